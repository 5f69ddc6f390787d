"""List the stages, or run one: `chestxray-vit <stage> ...` is `python -m chestxray_vit.<stage> ...`."""

from __future__ import annotations

import importlib
import sys
from typing import Optional, Sequence

from chestxray_vit import __version__

STAGES = {
    "demo": "see the whole way on drawn X-rays, in three minutes on a CPU",
    "ingest": "NIH release -> metadata.jsonl: N-hot labels, split by patient",
    "plan": "ipu_config.json -> layers, memory and waiting of each stage; checks a pipeline on a CPU",
    "train": "metadata.jsonl -> run/: fine-tune a ViT",
    "evaluate": "run/ -> predictions.csv and the AUC report",
    "report": "predictions.csv -> auc.html and its numbers; compares two runs; needs no torch",
    "predict": "run/ and any X-rays -> scores",
    "explain": "run/ and any X-rays -> heat maps; scores them on NIH's boxes",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the stage that the first argument names."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in STAGES:
        return importlib.import_module(f"chestxray_vit.{argv[0]}").main(argv[1:])
    text = [f"chestxray_vit {__version__}: NIH ChestX-ray14 -> multi-label ViT -> AUC report. Research use only.", ""]
    text += ["usage: chestxray-vit STAGE ...   or   python -m chestxray_vit.STAGE ...", ""]
    text += [f"  {name:<10}{what}" for name, what in STAGES.items()]
    text += ["", "chestxray-vit STAGE --help tells a stage's flags."]
    print("\n".join(text))
    if not argv or argv[0] in ("-h", "--help"):
        return 0
    print(f"\nerror: no stage {argv[0]!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
