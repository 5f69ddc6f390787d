"""Count how often a command opens a file: a data set is opened once a command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Mapping, Optional, Sequence, Tuple

CODE = """
import os, runpy, sys
log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
name, sys.argv = sys.argv[2], sys.argv[3:]

def note(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and os.path.basename(os.fsdecode(args[0])) == name:
        os.write(log, b".")

sys.addaudithook(note)
if sys.argv[0] == "-c":
    exec(sys.argv[1])
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def count_opens(
    name: str, command: Sequence[str], env: Optional[Mapping[str, str]] = None
) -> Tuple[int, subprocess.CompletedProcess]:
    """Run a command in a process of its own and count how often it opens files of a name.

    Args:
        name: of the file, without its folder.
        command: a module and its arguments, as after `python -m`; or `-c` and code.
        env: environment variables beside those of this process.

    Returns:
        How often a file of this name was opened, by Python's `open` or `os.open`, and the ended process with its
        output as text.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "opens")
        log.touch()
        run = subprocess.run(
            [sys.executable, "-c", CODE, str(log), name, *map(str, command)],
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
        )
        return log.stat().st_size, run
