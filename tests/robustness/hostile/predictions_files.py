"""Predictions from any tool, and what may lie beside them: all are read by `report`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Callable, List, Optional

from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.reporting.write import OUTPUTS
from chestxray_vit.storage.atomic import sha256
from tests.robustness.hostile import ACCEPT, NOTICE, REFUSE, Case, put

FINDINGS = NIH_CHESTXRAY14.names

REPORT = "report predictions/predictions.csv"
NAME, VALIDATION, ORIGIN = (
    f"predictions/{name}" for name in ("predictions.csv", "predictions_validation.csv", "evaluation.json")
)
COLUMNS = ["file_name", "patient_id", "age", "sex", "view"]
COLUMNS += [f"target_{finding}" for finding in FINDINGS] + [f"score_{finding}" for finding in FINDINGS]
HERNIA, SCORE = COLUMNS.index("target_Hernia"), COLUMNS.index("score_Hernia")


def good_rows(num_images: int = 40) -> List[List[str]]:
    """Return a table: two images a patient, every finding in a third of them, scores that rank most pairs right."""
    rows = [COLUMNS]
    for image in range(num_images):
        targets = [int((image + column) % 3 == 0) for column in range(14)]
        scores = [
            round((0.2 + 0.3 * target + 0.37 * (image * (column + 1) % 7) / 7), 4)
            for column, target in enumerate(targets)
        ]
        about = [
            f"images/{image:08d}.png",
            str(image // 2),
            str(20 + image),
            "MF"[image % 2],
            ("PA", "AP")[image // 2 % 2],
        ]
        rows.append([*about, *map(str, targets), *map(str, scores)])
    return rows


def as_csv(rows: List[List[str]], **form: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", **form).writerows(rows)
    return text.getvalue().encode()


# How it is spoilt.


def table(change: Callable[[List[List[str]]], object] = lambda rows: None, **form: Any) -> Callable[[Path], object]:
    """Write a table whose rows, the header first, are changed in place, or replaced by what is returned."""

    def make(root: Path) -> None:
        rows = good_rows()
        changed = change(rows)
        put(root / NAME, as_csv(changed if isinstance(changed, list) else rows, **form))

    return make


def cells(column: str, *values: str) -> Callable[[Path], object]:
    """Put values into a column of the first rows."""

    def change(rows: List[List[str]]) -> None:
        for row, value in zip(rows[1:], values):
            row[COLUMNS.index(column)] = value

    return table(change)


def text(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: put(root / NAME, change(as_csv(good_rows())))


def provenance(**changes: Any) -> Callable[[Path], object]:
    """Leave an evaluation.json that belongs to the predictions, some of it changed."""

    def make(root: Path) -> None:
        content = {
            "predictions_sha256": sha256(root / NAME),
            "split": "test",
            "drawn": False,
            "command": "evaluate run",
            **{name: {} for name in ("versions", "checkpoint", "training", "data")},
        }
        put(root / ORIGIN, json.dumps({**content, **changes}).encode())

    return make


def in_place(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / name).unlink(missing_ok=True) if (root / name).exists() else None
        make(root / name)

    return change


def many_problems(rows: List[List[str]]) -> None:
    """Leave twelve problems of eight kinds."""
    rows[1][SCORE] = "nan"
    rows[2][SCORE] = "1.5"
    rows[3][SCORE] = "-0.1"
    rows[4][SCORE] = "high"
    rows[5][HERNIA] = "2"
    rows[6][HERNIA] = ""
    rows[7][0] = rows[8][0]
    rows[9][0] = ""
    rows[10][1] = " "
    rows[11][2] = "old"
    rows[12].append("x")
    rows[13].pop()


# What must be true.


def strict_json(path: Path) -> Any:
    """Read JSON that holds neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path.name} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def reported(num_images: int = 40, macro: Optional[bool] = True) -> Callable[[Path, str], None]:
    """All renderers are new, auc.json is strict, and the macro is defined, or not."""

    def check(root: Path, said: str) -> None:
        found = strict_json(root / "predictions" / "auc.json")
        assert found["num_images"] == num_images
        assert (found["macro"]["auc"] is not None) == macro
        page = (root / "predictions" / "auc.html").read_text(encoding="utf-8")
        assert "<img src=x" not in page and "<script>alert" not in page
        for name in OUTPUTS[1:4]:
            cells = (root / "predictions" / name).read_text(encoding="utf-8").replace("\n", ",").split(",")
            assert not [cell for cell in cells if cell.lstrip('"').startswith(("=", "+", "@", "-c"))]
        text = (root / "predictions" / "auc.md").read_text(encoding="utf-8")
        assert "nan" not in text.lower().split() and "inf" not in text.lower().split()

    return check


def same(root: Path, said: str) -> None:
    """The AUCs are those of the good table."""
    reported()(root, said)
    found = strict_json(root / "predictions" / "auc.json")
    assert [row["auc"] for row in found["findings"]] == [
        row["auc"] for row in strict_json(root / "expected" / "auc.json")["findings"]
    ]


def without_origin(root: Path, said: str) -> None:
    same(root, said)
    assert strict_json(root / "predictions" / "auc.json")["provenance"] is None


def bad(name: str, make: Callable[[Path], object], *words: str, **options: Any) -> Case:
    return Case(name, make, REPORT, REFUSE, words, **options)


def good(name: str, make: Callable[[Path], object], check: Callable[[Path, str], None] = same, **options: Any) -> Case:
    return Case(name, make, REPORT, ACCEPT, check=check, **options)


HTML = '<img src=x onerror=alert(1)>"><script>alert(1)</script>'
FORMULA = "=cmd|' /C calc'!A0"

TABLES = (
    good("as evaluate writes it", table()),
    good("byte order mark", text(lambda content: b"\xef\xbb\xbf" + content)),
    good("CRLF", text(lambda content: content.replace(b"\n", b"\r\n"))),
    good("every field quoted", table(quoting=csv.QUOTE_ALL)),
    good("blank lines", text(lambda content: content.replace(b"\n", b"\n\n"))),
    good("no final newline", text(bytes.rstrip)),
    good("columns in another order", table(lambda rows: [row[::-1] for row in rows])),
    good("rows in another order", table(lambda rows: [rows[0], *rows[:0:-1]])),
    Case(
        "a further column",
        table(lambda rows: [[*row, HTML] for row in rows]),
        REPORT,
        NOTICE,
        ("1 further columns",),
        same,
    ),
    Case(
        "a further column that steers a terminal",
        table(lambda rows: [[*row, "\x1b[2J" + "x" * 9_999] for row in rows]),
        REPORT,
        NOTICE,
        (r"\x1b[2J",),
        same,
    ),
    bad(
        "semicolons", text(lambda content: content.replace(b",", b";")), "a column is missing from line 1", "file_name"
    ),
    bad("empty", text(lambda content: b""), "the file is empty", "expected a header"),
    bad("header alone", table(lambda rows: rows[:1]), "no image", "found a header and no row"),
    bad("no header", table(lambda rows: rows[1:]), "a column is missing from line 1"),
    bad("no patients", table(lambda rows: [[row[0], *row[2:]] for row in rows]), "line 1: patient_id"),
    bad("no scores", table(lambda rows: [row[:19] for row in rows]), "(14 times; the first 3: score_Atelectasis"),
    bad("one score missing", table(lambda rows: [row[:-1] for row in rows]), "line 1: score_Hernia"),
    bad("a column twice", table(lambda rows: [[*row, row[-1]] for row in rows]), "twice on line 1: score_Hernia"),
    bad("a header of 1 MB", text(lambda content: b"x" * 10**6 + content), "cannot be read as a CSV"),
    bad(
        "not UTF-8", cells("file_name", "x") if False else text(lambda c: c.replace(b"PA", b"P\xc4", 1)), "CSV in UTF-8"
    ),
    bad("UTF-16", text(lambda content: content.decode().encode("utf-16")), "CSV in UTF-8"),
    bad("NULs", text(lambda content: b"\0" * 5000), "predictions.csv"),
    bad("a PNG", text(lambda content: b"\x89PNG\r\n\x1a\n"), "CSV in UTF-8"),
    bad("an HTML page", text(lambda content: b"<!DOCTYPE html>"), "a column is missing"),
    bad("cut", text(lambda content: content[:-20]), "a row without 33 fields", "line 41 has"),
    bad("a quote that is not closed", text(lambda c: c.replace(b"images/", b'"images/', 1)), "predictions.csv"),
    bad("no file", lambda root: (root / NAME).unlink(), "there is no such file"),
    bad("a folder", in_place(NAME, Path.mkdir), "predictions.csv: cannot be read"),
    bad("a link to nowhere", in_place(NAME, lambda path: path.symlink_to("no")), "there is no such file"),
)

VALUES = (
    bad("NaN for a score", cells("score_Mass", "nan"), "a score is not a number: line 2, score_Mass: 'nan'"),
    bad("infinity for a score", cells("score_Mass", "inf", "-Infinity"), "outside [0, 1]", "'inf'", "'-Infinity'"),
    bad("a score that overflows", cells("score_Mass", "1e999"), "outside [0, 1]: line 2, score_Mass: '1e999'"),
    bad("logits for scores", cells("score_Mass", "2.5", "-3"), "probabilities makes them of logits"),
    bad("per cent", cells("score_Mass", "50%"), "a score is not a number"),
    bad("a decimal comma", cells("score_Mass", "0,5"), "a score is not a number: line 2, score_Mass: '0,5'"),
    bad("an empty score", cells("score_Mass", ""), "a score is not a number: line 2, score_Mass: ''"),
    bad("a score of 100 kB", cells("score_Mass", "9" * 100_000), "line 2, score_Mass"),
    bad("a target of 2", cells("target_Mass", "2"), "a target is not 0 or 1: line 2, target_Mass: '2'"),
    bad("a target of 0.5", cells("target_Mass", "0.5"), "a target is not 0 or 1"),
    bad("a target of NaN", cells("target_Mass", "nan"), "a target is not 0 or 1: line 2, target_Mass: 'nan'"),
    bad("a target in words", cells("target_Mass", "True"), "a target is not 0 or 1"),
    bad("an uncertain target", cells("target_Mass", "-1"), "a target is not 0 or 1"),
    bad("an image twice", cells("file_name", "images/00000001.png"), "file_name twice", "on lines 2 and 3"),
    bad("an image without a name", cells("file_name", "  "), "file_name is empty: line 2"),
    bad("a patient without an id", cells("patient_id", ""), "patient_id is empty: line 2"),
    bad(
        "a patient's id of 100 kB", cells("patient_id", "x" * 100_000), "patient_id is no id: line 2", "200 characters"
    ),
    bad("NUL in a patient's id", cells("patient_id", "a", "a\0"), "patient_id is no id: line 3: 'a\\x00'"),
    bad("an age in words", cells("age", "058Y"), "age is not a number of years: line 2: '058Y'"),
    bad("a negative age", cells("age", "-5"), "age is not a number of years"),
    bad("an infinite age", cells("age", "inf"), "age is not a number of years"),
    good("an age of 10^308", cells("age", "1e308"), reported()),
    good("no ages", table(lambda rows: [row[:2] + (["age"] if row is rows[0] else [""]) + row[3:] for row in rows])),
    good("very small scores", cells("score_Mass", "5e-324", "1e-400", "-0.0"), reported()),
    bad(
        "twelve problems, told at once",
        table(many_problems),
        "8 kinds of problems",
        "'nan'",
        "'1.5'",
        "'-0.1'",
        "'high'",
        "'2'",
        "target_Hernia: ''",
        "on lines 8 and 9",
        "file_name is empty: line 10",
        "patient_id is empty: line 11",
        "line 12: 'old'",
        "line 13 has 34; line 14 has 32",
    ),
    bad("every row wrong", table(lambda rows: [rows[0], *[row[:-1] for row in rows[1:]]]), "(40 times; the first 3"),
    good("one image", table(lambda rows: rows[:2]), reported(1, macro=False)),
    good("two images of a patient", table(lambda rows: rows[:3]), reported(2)),
    good(
        "one class alone",
        table(lambda rows: [rows[0], *[row[:5] + ["0"] * 14 + row[19:] for row in rows[1:]]]),
        reported(macro=False),
    ),
    good(
        "every score the same",
        table(lambda rows: [rows[0], *[row[:19] + ["0.5"] * 14 for row in rows[1:]]]),
        reported(),
    ),
    good("perfect scores", table(lambda rows: [rows[0], *[row[:19] + row[5:19] for row in rows[1:]]]), reported()),
    good("names of HTML", cells("file_name", HTML, HTML * 2)),
    good("names of formulas", cells("file_name", FORMULA, "@SUM(1)", "+1", "-1")),
    good("names with line ends", cells("file_name", "a\nb", "a\r\nc", "a\n\n| d |")),
    good("names that climb", cells("file_name", "../../outside/xray.png", "/etc/passwd", "\0")),
    good("a name of 10,000 characters", cells("file_name", "x" * 10_000)),
    good("names of other scripts", cells("file_name", "\u202egnp.exe", "\U0001f4a9", "\u0430.png")),
    good("templates for names", cells("file_name", "{{ 7 * 7 }}", "{% include 'page.css' %}", "${jndi:ldap://x}")),
    good("sexes of HTML and formulas", cells("sex", HTML, FORMULA, "x" * 9_999)),
    good("views of HTML and formulas", cells("view", HTML, FORMULA, "\x1b[2J")),
    good("patients of HTML", cells("patient_id", HTML, HTML), reported()),
)


def beside(name: str, make: Callable[[Path], object], **options: Any) -> Case:
    return good(name, lambda root: [table()(root), make(root)], without_origin, **options)


def garbage(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: put(root / name, content)


BESIDE = (
    beside("evaluation.json of no bytes", garbage(ORIGIN, b"")),
    beside("evaluation.json not UTF-8", garbage(ORIGIN, b"\xff")),
    beside("evaluation.json of a list", garbage(ORIGIN, b"[]")),
    beside(
        "evaluation.json nested deep",
        garbage(ORIGIN, b'{"a":' * 100_000),
    ),
    beside("evaluation.json of other predictions", provenance(predictions_sha256="0" * 64)),
    beside("evaluation.json of other types", provenance(data=[], training=5)),
    beside(
        "evaluation.json with NaN",
        provenance(training={"updates": float("nan")}),
    ),
    beside("evaluation.json is a folder", lambda root: (root / ORIGIN).mkdir()),
    good(
        "evaluation.json of HTML",
        lambda root: [table()(root), provenance(command=HTML, training={"start": HTML}, versions={HTML: HTML})(root)],
    ),
    good(
        "thresholds.json of garbage",
        lambda root: [table()(root), put(root / "predictions" / "thresholds.json", b"\xff{")],
    ),
    good(
        "ingest_report.json of garbage",
        lambda root: [table()(root), put(root / "predictions" / "ingest_report.json", b"[" * 9)],
    ),
    bad(
        "validation predictions of garbage",
        lambda root: [table()(root), put(root / VALIDATION, b"x")],
        "predictions_validation.csv",
    ),
    bad(
        "a folder in the place of a face",
        lambda root: [
            table()(root),
            (root / "predictions" / "auc.html").unlink(),
            (root / "predictions" / "auc.html").mkdir(),
        ],
        "auc.html: cannot be written to: a folder of that name is there. Move it away",
    ),
    Case(
        "the report over its input",
        table(),
        f"{REPORT} --output_dir predictions/predictions.csv",
        REFUSE,
        ("cannot be written to",),
    ),
    Case(
        "predictions named as the report",
        lambda root: [table()(root), (root / NAME).rename(root / "predictions" / "auc.csv")],
        "report predictions/auc.csv",
        REFUSE,
        ("the report would overwrite it", "--output_dir"),
    ),
    Case(
        "localisation of garbage",
        lambda root: [table()(root), put(root / "l.json", b'{"a":' * 10**5)],
        f"{REPORT} --localisation l.json",
        REFUSE,
        ("l.json",),
    ),
    Case("a prevalence of NaN", table(), f"{REPORT} --prevalence nan", REFUSE, ("--prevalence is nan",)),
)

CASES = (*TABLES, *VALUES, *BESIDE)
