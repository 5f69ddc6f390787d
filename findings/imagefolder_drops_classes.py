"""datasets: `imagefolder` drops every class but one where one class is called `test`.

Versions: datasets 5.2.0, pillow 13.0.0, Python 3.11.
Expected: a folder with one folder a class is a data set of all classes.
Seen:     a class folder called `test` is taken for the name of a split. The folders `effusion` and `normal` beside it
          are left out without an error or a warning; what is left is a split `test` without labels.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PACKAGES = ["datasets==5.2.0", "pillow==13.0.0"]
SCRIPT = """
import sys, datasets
from pathlib import Path
from PIL import Image
counts = {}
for third in ("tests", "test"):  # the control, then the surprise
    for name in ("effusion", "normal", third):
        for index in range(4):
            path = Path(third + "_folder", name, f"{index}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), index).save(path)
    splits = datasets.load_dataset("imagefolder", data_dir=third + "_folder")
    counts[third] = {name: split.num_rows for name, split in splits.items()}
    print(f"12 images in effusion/, normal/, {third}/ are read as {counts[third]}, "
          f"columns {[split.column_names for split in splits.values()]}")
print("datasets", datasets.__version__)
sys.exit(counts != {"tests": {"train": 12}, "test": {"test": 4}})
"""

with tempfile.TemporaryDirectory() as folder:
    venv.create(Path(folder) / "venv", with_pip=True)
    python = Path(folder) / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    environment = {"HF_HOME": str(Path(folder) / "hub"), "HF_HUB_OFFLINE": "1"}
    code = subprocess.run([python, "-c", SCRIPT], cwd=folder, env=environment).returncode
print("as stated above" if code == 0 else "NOT as stated above: the behaviour has changed")
sys.exit(code)
