"""What the tests of crashes share: stages in forked processes that are killed after a while or at a chosen file event.

A process that has loaded torch forks one for each kill, so that a kill costs what the stage does, not its imports."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

KILLED = -9
DRIVER = """
import importlib, json, os, signal, sys, time

STAGES = {name: importlib.import_module(f"chestxray_vit.{name}") for name in sys.argv[1:]}
LOADED = set(sys.modules)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree")

def watch(kill_at, below):
    count = [0]
    def hook(event, args):
        of_files = event in EVENTS or event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if of_files and str(args[0]).startswith(below):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    return count

def child(job):
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1), os.dup2(log, 2)
    if job["user"] is not None:
        os.setgroups([]), os.setgid(job["user"]), os.setuid(job["user"])
    os.umask(job["umask"])
    count = watch(job["event"], job["below"])
    try:
        code = STAGES[job["stage"]].main(job["argv"])
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    if job["user"] is None:
        with open(job["log"] + ".counted", "w") as file:
            json.dump([count[0], sorted(set(sys.modules) - LOADED)], file)
        os.rename(file.name, job["log"] + ".events")  # whole: the kill may come here, too
    os._exit(code)

def learn(job):
    # what a stage loads on its way, later forks have
    if os.path.exists(job["log"] + ".events"):
        for name in json.load(open(job["log"] + ".events"))[1]:
            LOADED.add(name)
            try:
                importlib.import_module(name)
            except Exception:
                pass

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        child(job)
    if job["delay"] is not None:
        time.sleep(job["delay"])
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    learn(job)
    print(json.dumps([code, time.monotonic() - start]), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    """How a stage ended: code (negative for a signal), seconds, what it told, how many file events it had."""

    code: int
    seconds: float
    told: str
    events: Optional[int]


class Stages:
    """Runs stages in forked processes."""

    def __init__(self, folder: Path, names: List[str]):
        """Args: folder: for logs; names: of the stages to load."""
        words = [sys.executable, "-c", DRIVER, *names]
        self.log, self.kills = folder / "log", 0
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def run(self, stage, *argv, delay=None, event=None, below="/", user=None, umask=0o022) -> Answer:
        """Run a stage; kill it after `delay` seconds, or before its file event number `event` below a folder."""
        for path in (self.log, Path(f"{self.log}.events")):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        job = {"stage": stage, "argv": list(map(str, argv)), "delay": delay, "event": event}
        job.update(log=str(self.log), below=str(below), user=user, umask=umask)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        self.kills += code == KILLED
        events = Path(f"{self.log}.events")
        return Answer(
            code, seconds, self.log.read_text(), json.loads(events.read_text())[0] if events.is_file() else None
        )

    def close(self) -> None:
        """End the process that forks."""
        self.process.communicate()


def contents(folder: Path, but=()) -> dict:
    """Return the bytes of all files below a folder by relative name, but for those whose name holds one of `but`."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not any(part in name for part in but)}
