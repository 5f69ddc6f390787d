from __future__ import annotations

import json

import pytest

from chestxray_vit import demo
from chestxray_vit.errors import InputError
from chestxray_vit.storage.lock import LOCK, folder_lock


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert demo.main(["--output_dir", str(tmp_path)]) == 2
    assert "exists and is not a demo's folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_earlier_demo_is_replaced_and_nothing_outside(tmp_path):
    folder = tmp_path / "demo"
    for name in ("demo", "outside"):
        (tmp_path / name).mkdir()
    for _ in range(2):
        demo._check(folder)
        demo._make_room(folder)
        assert [path.name for path in folder.iterdir()] == [demo.MARKER]
        (folder / "old").mkdir()
        (folder / "old" / "image.png").touch()
        (folder / "notes.txt").touch()
        (folder / "link").symlink_to(tmp_path / "outside")
    assert (tmp_path / "outside").is_dir()


def test_of_two_demos_in_a_folder_one_is_refused(tmp_path, capsys):
    folder = tmp_path / "demo"
    with folder_lock(folder, ()):
        demo._make_room(folder)
        (folder / "release").mkdir()
        assert demo.main(["--output_dir", str(folder)]) == 2
        assert sorted(path.name for path in folder.iterdir()) == sorted([LOCK, "release", demo.MARKER])
    assert "is writing here" in capsys.readouterr().err


def test_a_failing_command_stops_the_demo(tmp_path, capfd):
    with pytest.raises(InputError, match="ingest ended with exit code 2"):
        demo._run_command("ingest", str(tmp_path / "nowhere"))
    printed = capfd.readouterr()
    assert "$ python -m chestxray_vit.ingest" in printed.out
    assert "no such folder" in printed.err


@pytest.mark.slow
def test_demo_reaches_what_the_readme_says(tmp_path, capfd):
    pytest.importorskip("transformers")
    assert demo.main(["--output_dir", str(tmp_path / "demo"), "--device", "cpu"]) == 0
    macro = json.loads((tmp_path / "demo" / "report" / "auc.json").read_text())["macro"]
    assert macro["num_findings"] == 14
    assert macro["auc"] >= 0.90
    printed = capfd.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("macro over 14 findings"))
    assert f"{macro['auc']:.3f}" in line.split()
    assert (tmp_path / "demo" / "run" / "loss.png").is_file()
