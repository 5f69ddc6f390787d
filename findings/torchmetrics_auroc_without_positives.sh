#!/usr/bin/env bash
# torchmetrics: the AUROC of a label without a positive image is 0.0, and the macro mean counts it.
#
# Versions: torchmetrics 1.9.0, torch 2.13.0, Python 3.11, CPU.
# Expected: the AUROC compares pairs of a positive and a negative image; without a positive there is no pair, no value.
# Seen:     it is 0.0 (with a warning), the value of a perfectly wrong model. For a model that is perfect on both labels
#           that can be measured, the macro mean is 0.667. scikit-learn returns NaN for such a label.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torchmetrics==1.9.0 torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1
cd "$folder"
cat > finding.py <<'END'
import sys, torch, torchmetrics, sklearn
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multilabel_auroc
targets = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])  # 4 images, 3 labels, the last without a positive
scores = torch.tensor([[.1, .8, .3], [.9, .2, .4], [.2, .1, .2], [.8, .7, .1]])  # the first two ranked perfectly
per_label = multilabel_auroc(scores, targets, num_labels=3, average=None).tolist()
macro = multilabel_auroc(scores, targets, num_labels=3, average="macro").item()
print(f"torchmetrics {torchmetrics.__version__}: each label {per_label}, macro {macro:.3f}")
print(f"scikit-learn {sklearn.__version__}: the last label {roc_auc_score(targets[:, 2], scores[:, 2])}")
sys.exit(not (per_label == [1.0, 1.0, 0.0] and abs(macro - 2 / 3) < 1e-6))
END
if venv/bin/python finding.py; then
    echo "as stated above"
else
    echo "NOT as stated above: the behaviour has changed"
    exit 1
fi
