"""What the tests share: a synthetic release, raw and ingested, and a release of three patients written by hand."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any library reads it: no test needs the network
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process a core already; threads of tiny models only wait

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it; tests send it

import pytest
from PIL import Image

from chestxray_vit import ingest
from chestxray_vit.data.synthetic.release import draw_release
from tests.helpers.fork_server import ForkServer

SHARED = Path(__file__).parents[2] / "shared"  # real files, beside the repository where there are any
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
# Three patients, five images. By the lists patients 1 and 2 are train_val, patient 3 is test; with a fifth of the
# others for validation, seed 1337 draws patient 2.
MINI_ROWS = (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Emphysema|Cardiomegaly,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000003_000.png,Hernia,0,3,80,F,AP,2500,2048,0.168,0.168",
    "00000002_000.png,No Finding,0,2,80,M,PA,2500,2048,0.171,0.171",
    "00000003_001.png,Pleural_Thickening|Infiltration,1,3,81,F,PA,2582,2991,0.143,0.143",
)
MOST_WORKERS = 8  # each loads torch: about 500 MB


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Return how many processes `-n auto` starts: one a core, or none where all that is named is single files."""
    named = [word.split("::")[0] for word in config.args]
    if config.args_source is config.ArgsSource.ARGS and all(Path(word).is_file() for word in named):
        return 0  # a second start of torch would take longer than it saves
    wanted = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    return int(wanted) if wanted else min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def write_csv(path: Path, rows=MINI_ROWS, header=HEADER) -> Path:
    """Write a Data_Entry CSV as NIH does: UTF-8, line feeds, one at the end."""
    path.write_bytes("".join(f"{line}\n" for line in (header, *rows)).encode())
    return path


def write_release(folder: Path, rows=MINI_ROWS, test_patients=("00000003",), images="images") -> Path:
    """Write a release of the given rows: CSV, split lists, and a grey image of 8x8 pixels each."""
    (folder / images).mkdir(parents=True)
    write_csv(folder / "Data_Entry_2017_v2020.csv", rows)
    names = [row.split(",")[0] for row in rows]
    for index, name in enumerate(names):
        Image.new("L", (8, 8), 40 * index).save(folder / images / name)
    test = [name for name in names if name[:8] in test_patients]
    train_val = [name for name in names if name[:8] not in test_patients]
    (folder / "test_list.txt").write_text("\n".join(test))  # as NIH's: no final newline
    (folder / "train_val_list.txt").write_text("\n".join(train_val))
    return folder


@pytest.fixture
def mini_release(tmp_path):
    """Return a new folder with the release of three patients, not ingested."""
    return write_release(tmp_path / "chest-xray-nihcc")


@pytest.fixture(scope="session")
def synthetic_release(tmp_path_factory):
    """Return a folder with a synthetic release, not ingested. Shared: never write into it."""
    return draw_release(tmp_path_factory.mktemp("synthetic") / "release", num_patients=60, image_size=64, seed=1337)


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory):
    """Return a folder with an ingested synthetic release; train, validation and test hold images. Shared, as above."""
    folder = draw_release(tmp_path_factory.mktemp("synthetic") / "dataset", num_patients=60, image_size=64, seed=1337)
    assert ingest.main([str(folder), "--split", "official", "--val_fraction", "0.2"]) == 0
    return folder


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    """Return what runs commands in forked processes, and says at the end how many it killed."""
    result = ForkServer(tmp_path_factory.mktemp("commands"), "ingest train evaluate report predict explain".split())
    yield result
    result.close()
    print(f"\n{result.kills} processes were killed")


@pytest.fixture(scope="session")
def real_release():
    """Return the folder of the real files of NIH, or skip."""
    folder = SHARED / "data" / "nih"
    if not (folder / "Data_Entry_2017_v2020.csv.gz").is_file():
        pytest.skip(f"the real NIH files are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def deit_tiny():
    """Return the folder of the real DeiT-Tiny checkpoint, or skip."""
    folder = SHARED / "models" / "deit-tiny-patch16-224"
    if not (folder / "preprocessor_config.json").is_file():
        pytest.skip(f"the real DeiT-Tiny checkpoint is not at {folder}")
    return folder
