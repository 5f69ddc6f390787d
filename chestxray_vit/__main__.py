"""List the commands, or run one: `chestxray-vit <command> ...` is `python -m chestxray_vit.<command> ...`."""

from __future__ import annotations

import importlib
import sys
from typing import Optional, Sequence

from chestxray_vit import __version__

COMMANDS = {
    "demo": "run every step on synthetic X-rays, in three minutes on a CPU",
    "ingest": "NIH release -> metadata.jsonl: N-hot labels, split by patient",
    "plan": "ipu_config.json -> layers, memory and idle time of each pipeline stage; checks a pipeline",
    "train": "metadata.jsonl -> run/: fine-tune a ViT",
    "evaluate": "run/ -> predictions.csv and the AUC report",
    "report": "predictions.csv -> auc.html and its numbers; compares two runs; needs no torch",
    "predict": "run/ and any X-rays -> scores",
    "explain": "run/ and any X-rays -> heat maps; measures them on NIH's boxes",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command that the first argument names."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return importlib.import_module(f"chestxray_vit.{argv[0]}").main(argv[1:])
    text = [f"chestxray_vit {__version__}: NIH ChestX-ray14 -> multi-label ViT -> AUC report. Research use only.", ""]
    text += ["usage: chestxray-vit COMMAND ...   or   python -m chestxray_vit.COMMAND ...", ""]
    text += [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    text += ["", "chestxray-vit COMMAND --help lists the flags of a command."]
    print("\n".join(text))
    if not argv or argv[0] in ("-h", "--help"):
        return 0
    print(f"\nerror: no command {argv[0]!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
