#!/usr/bin/env bash
# datasets: `imagefolder` drops every class but one where one class is called `test`.
#
# Versions: datasets 5.2.0, pillow 13.0.0, Python 3.11.
# Expected: a folder with one folder a class is a data set of all classes.
# Seen:     a class folder called `test` is taken for the name of a split. The folders `effusion` and `normal` beside it
#           are left out without an error or a warning; what is left is a split `test` without labels.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
cd "$folder"
export HF_HOME="$folder/hub" HF_HUB_OFFLINE=1
cat > finding.py <<'END'
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
END
if venv/bin/python finding.py; then
    echo "as stated above"
else
    echo "NOT as stated above: the behaviour has changed"
    exit 1
fi
