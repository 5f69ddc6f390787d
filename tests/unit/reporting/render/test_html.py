"""The page: its numbers are auc.json's, strangers' words stay text, and in a browser it sorts, explores, prints."""

from __future__ import annotations

import html.parser
import json
import re
import shutil

import numpy as np
import pytest

from chestxray_vit import report
from chestxray_vit.artifacts.predictions import Predictions, write_predictions
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.reporting.render.html import to_html
from chestxray_vit.reporting.summary import ReportInputs, build_report

FINDINGS = NIH_CHESTXRAY14.names

HOSTILE = '<img src=x onerror="document.title=1">&"\'</script><script>document.title=2</script>'


def random_predictions(num_images, seed, name="{:08d}_000.png"):
    random = np.random.default_rng(seed)
    patients = random.integers(0, num_images // 3, num_images) + 100_000 * seed
    targets_NL = (random.random((num_images, 14)) < np.linspace(0.05, 0.3, 14)).astype(int)
    logits_NL = 1.3 * targets_NL - 2 + random.standard_normal((num_images, 14))
    ages, sexes, views = random.integers(1, 95, num_images), random.choice(["F", "M"], num_images), None
    views = random.choice(["PA", "AP"], num_images)
    return Predictions(
        [name.format(image) for image in range(num_images)],
        [str(patient) for patient in patients],
        ages.tolist(),
        sexes.tolist(),
        views.tolist(),
        targets_NL,
        1 / (1 + np.exp(-logits_NL)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of hostile names, with validation predictions and a comparison."""
    folder = tmp_path_factory.mktemp("page") / "a<b>&c"
    folder.mkdir()
    table = random_predictions(900, seed=1, name=HOSTILE.replace("{", "").replace("}", "") + "{:08d}.png")
    write_predictions(folder / "predictions.csv", table)
    write_predictions(folder / "predictions_validation.csv", random_predictions(600, seed=2))
    other = np.clip(table.scores_NL * 0.9 + 0.05 * np.random.default_rng(3).random(table.scores_NL.shape), 0, 1)
    write_predictions(folder / "<i>other.csv", _with_scores(table, other))
    compared = ["--compare", str(folder / "<i>other.csv")]
    assert report.main([str(folder / "predictions.csv"), *compared, "--prevalence", "0.02"]) == 0
    return folder


def _with_scores(table, scores_NL):
    return Predictions(
        table.file_names, table.patient_ids, table.ages, table.sexes, table.views, table.targets_NL, scores_NL
    )


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "auc.json").read_text(encoding="utf-8"))


class Reader(html.parser.HTMLParser):
    """Collects the elements that could load or run something, and the words of each table row."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.rows, self.open_tags = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.links += [name for name, _ in attrs if name.startswith("on")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip() + " "


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "auc.html").read_text(encoding="utf-8")


def test_page_shows_the_numbers_of_the_json(page, results):
    rows = {row[0].strip(): [cell.strip() for cell in row] for row in reversed(Reader(page).rows) if row}
    for row in results["findings"]:
        cells = rows[row["finding"].replace("_", " ") + (" *" if row["num_positive_patients"] < 30 else "")]
        assert cells[1] == f"{row['num_positives']:,}"
        assert cells[4] == f"{row['auc']:.3f}"
        assert cells[5] == f"{row['low']:.3f} to {row['high']:.3f}"
        assert cells[6] == f"{row['average_precision']:.3f}"
    macro = results["macro"]
    assert f"<b>{macro['auc']:.3f}</b>, 95 % interval {macro['low']:.3f} to {macro['high']:.3f}" in page
    assert results["caution"] in page


def test_strangers_words_stay_text(page):
    reader = Reader(page)
    assert reader.tags.count("script") == 2  # the explorer's data, and ours
    assert "img" not in reader.tags and "i" not in reader.tags
    assert "&lt;img src=x onerror=" in page
    assert "&lt;i&gt;other.csv" in page
    assert not [link for link in reader.links if not link.startswith(("#", "data:,"))]


def test_page_asks_for_nothing_and_is_small_enough_to_mail(page):
    assert "http://" not in re.sub(r'xmlns(:xlink)?="http://www.w3.org/[^"]*"', "", page)
    assert "https://" not in page
    assert len(page.encode()) < 3_000_000
    assert "default-src 'none'" in page


def test_figures_have_text_alternatives_and_distinct_ids(page, results):
    assert page.count('<svg role="img"') == 2 + 2 * 14
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for row in results["findings"]:
        assert f"{row['finding'].replace('_', ' ')} {row['auc']:.3f} ({row['low']:.3f} to {row['high']:.3f})" in page


def test_same_input_gives_the_same_bytes(folder, tmp_path):
    for name in ("predictions.csv", "predictions_validation.csv", "<i>other.csv"):
        shutil.copy(folder / name, tmp_path / name)
    compared = ["--compare", str(tmp_path / "<i>other.csv")]
    assert report.main([str(tmp_path / "predictions.csv"), *compared, "--prevalence", "0.02"]) == 0
    assert (tmp_path / "auc.html").read_bytes() == (folder / "auc.html").read_bytes()


def test_page_of_bare_predictions_says_what_it_lacks(tmp_path):
    write_predictions(tmp_path / "p.csv", random_predictions(200, seed=4))
    assert report.main([str(tmp_path / "p.csv")]) == 0
    page = (tmp_path / "auc.html").read_text(encoding="utf-8")
    assert "because these predictions came without <code>evaluation.json</code>" in page
    assert 'id="points"' not in page and 'id="comparison"' not in page


def test_counts_that_evaluation_json_lacks_are_unknown():
    counts = {"images": 3, "patients": 2, "positives": {"Mass": 1, "Edema": "many"}}
    split = {"method": "official", "leaked_patients": 2}
    splits = dict.fromkeys(("train", "validation", "test"), counts)
    data = {"num_rows": 9, "num_images": 9, "left_out": {}, "split": split, "splits": splits, "notices": []}
    provenance = {name: {} for name in ("versions", "checkpoint", "training")}
    provenance.update(split="test", synthetic=False, command="evaluate", data=data)
    page = to_html(build_report(ReportInputs(random_predictions(60, seed=1), provenance=provenance)))
    rows = {row[0].strip(): row[1].strip() for row in Reader(page[page.index('id="data"') :]).rows if len(row) == 4}
    assert (rows["Mass"], rows["Edema"], rows["Hernia"]) == ("1", "unknown", "unknown")
    assert "These AUCs are too high, because the split leaks patients." in page


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("needs Debian's chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, folder):
    """The page in a browser of 1280 pixels, and what it complained of or asked for."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(dialog.message))
    url = (folder / "auc.html").as_uri()
    tab.on("request", lambda request: complaints.append(request.url) if request.url != url else None)
    tab.goto(url)
    yield tab
    assert complaints == []
    tab.close()


@pytest.mark.browser
def test_page_opens_without_complaint_or_request(opened):
    assert opened.title() == "AUC report: 14 findings of NIH ChestX-ray14, 900 chest X-rays"
    assert opened.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.browser
def test_narrow_page_scrolls_only_its_tables(browser, folder):
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.goto((folder / "auc.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.close()


@pytest.mark.browser
def test_table_sorts_up_and_down_by_keyboard(opened, results):
    by_auc = [row["finding"].replace("_", " ") for row in sorted(results["findings"], key=lambda row: row["auc"])]
    button = opened.locator("table.sortable").first.get_by_role("button", name="AUC", exact=True)
    button.focus()
    for expected in (by_auc, by_auc[::-1]):
        opened.keyboard.press("Enter")
        names = opened.locator("table.sortable").first.locator("tbody th").all_inner_texts()
        assert [name.replace(" *", "") for name in names] == expected


def shown(tab, name):
    return tab.locator(f'#explorer [data-show="{name}"]').inner_text()


@pytest.mark.browser
def test_explorer_shows_what_the_predictions_imply(opened, folder, results):
    from chestxray_vit.artifacts.predictions import read_predictions

    table = read_predictions(folder / "predictions.csv")
    index = FINDINGS.index("Effusion")
    opened.select_option('#explorer [name="finding"]', label="Effusion")
    point = results["operating_points"]["findings"][index]["points"]["youden"]
    assert shown(opened, "tp") == str(point["true_positives"])
    assert shown(opened, "sensitivity") == f"{100 * point['sensitivity']['value']:.1f} %"
    opened.locator('#explorer [name="threshold"]').focus()
    seen = set()
    for key in ("Home", "ArrowRight", "ArrowRight", "PageUp", "End", "ArrowLeft"):
        opened.keyboard.press(key)
        curve = results["curves"][index]
        value = int(opened.locator('#explorer [name="threshold"]').input_value())
        threshold = curve["thresholds"][len(curve["thresholds"]) - 1 - value]
        called, targets = table.scores_NL[:, index] >= threshold, table.targets_NL[:, index] == 1
        counts = [(called & targets).sum(), (called & ~targets).sum(), (~called & targets).sum()]
        assert [shown(opened, name) for name in ("tp", "fp", "fn")] == [str(count) for count in counts]
        assert shown(opened, "specificity") == f"{100 * (~called & ~targets).sum() / (~targets).sum():.1f} %"
        seen.add(value)
    assert len(seen) >= 5


@pytest.mark.browser
def test_explorer_gives_predictive_values_at_the_readers_prevalence(opened, results):
    opened.select_option('#explorer [name="finding"]', label="Hernia")
    opened.fill('#explorer [name="prevalence"]', "2")
    point = results["operating_points"]["findings"][13]["points"]["youden"]
    assert shown(opened, "ppv-at") == f"{100 * point['ppv_at']:.1f} %"
    assert shown(opened, "npv-at") == f"{100 * point['npv_at']:.1f} %"
    opened.get_by_role("button", name="sensitivity 95 %").click()
    point = results["operating_points"]["findings"][13]["points"]["sensitivity_95"]
    assert shown(opened, "fp") == str(point["false_positives"])
    opened.fill('#explorer [name="prevalence"]', "200")
    assert shown(opened, "ppv-at") == "undefined"


@pytest.mark.browser
def test_page_prints_to_a_pdf_with_everything_unfolded(opened):
    pdf = opened.pdf()
    assert pdf.startswith(b"%PDF")
    assert opened.locator("details:not([open])").count() == 0


@pytest.mark.browser
def test_page_reads_without_script(browser, folder, results):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto((folder / "auc.html").as_uri())
    assert f"{results['macro']['auc']:.3f}" in tab.locator(".headline").inner_text()
    assert tab.locator("#explorer").is_hidden()
    context.close()
