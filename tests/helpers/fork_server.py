"""Commands in forked processes, which may be killed after a while or at a chosen file event, or be several that meet.

A process that has loaded torch forks them, so that each costs what the command does, not its imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

ROOT = Path(__file__).parents[2]
KILLED = -9


@dataclass(frozen=True)
class Answer:
    """How a command ended: code (negative for a signal), seconds, what it printed, how many file events it had."""

    code: int
    seconds: float
    printed: str
    events: Optional[int]


class ForkServer:
    """Runs commands in forked processes."""

    def __init__(self, folder: Path, names: List[str]):
        """Args: folder: for logs; names: of the commands to load."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        words = [sys.executable, "-m", "tests.helpers.fork_driver", *names]
        self.log, self.kills = folder / "log", 0
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, command, *argv, processes=1, environment: Optional[Dict[str, str]] = None, **how) -> Answer:
        """Run a command.

        Args:
            command: its name.
            argv: its arguments.
            processes: how many run it, which meet as torchrun's do.
            environment: variables to add.
            how: delay: kill it after so many seconds; event: kill it before its file event of this number, below: a
                folder; user: whose process it is; umask.
        """
        for path in self.log.parent.glob(f"{self.log.name}*"):
            path.unlink()
        job = {"delay": None, "event": None, "below": "/", "user": None, "umask": 0o022, **how}
        job.update(command=command, argv=list(map(str, argv)), log=str(self.log), below=str(job["below"]))
        job.update(processes=processes, environment=environment or {})
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        self.kills += code == KILLED
        logs = [self.log] if processes == 1 else [Path(f"{self.log}.{rank}") for rank in range(processes)]
        events = Path(f"{logs[0]}.events")
        printed = "".join(path.read_text() for path in logs)
        return Answer(code, seconds, printed, json.loads(events.read_text())[0] if events.is_file() else None)

    def close(self) -> None:
        """End the process that forks."""
        self.process.communicate()


def contents(folder: Path, but=()) -> dict:
    """Return the bytes of all files below a folder by relative name, but for those whose name holds one of `but`."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not any(part in name for part in but)}
