"""The process behind ForkServer: it loads commands once, then forks one process, or several, for each job it reads.

A job is a line of JSON on standard input, its answer a line on standard output: exit code (negative for a signal) and
seconds. What a command prints goes to the job's log."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any, Dict, List

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree")


def watch(kill_at: int, below: str) -> List[int]:
    """Count this process's file events below a folder in a list's first item; kill it before one of them."""
    count = [0]

    def hook(event: str, args: tuple) -> None:
        of_files = event in EVENTS or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        if of_files and str(args[0]).startswith(below):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def child(job: Dict[str, Any], loaded: set, main: Any) -> None:
    """Run a command in this forked process, and end it."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.update(job["environment"])
    if job["user"] is not None:
        os.setgroups([]), os.setgid(job["user"]), os.setuid(job["user"])
    os.umask(job["umask"])
    count = watch(job["event"], job["below"])
    try:
        code = main(job["argv"])
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 the process ends here, whatever it was
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    if job["user"] is None:
        with open(job["log"] + ".counted", "w") as file:
            json.dump([count[0], sorted(set(sys.modules) - loaded)], file)
        os.rename(file.name, job["log"] + ".events")  # whole: the kill may come here, too
    os._exit(code or 0)


def learn(job: Dict[str, Any], loaded: set) -> None:
    """Load what a command loaded on its way, so that later forks have it."""
    if os.path.exists(job["log"] + ".events"):
        with open(job["log"] + ".events") as file:
            names = json.load(file)[1]
        for name in names:
            loaded.add(name)
            with contextlib.suppress(Exception):  # some are no modules of files
                importlib.import_module(name)


def ended(status: int) -> int:
    """Return the exit code of a process, negative for a signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def jobs_of(job: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Return a job for each of its processes, which find each other as torchrun's do."""
    if job["processes"] == 1:
        return [job]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    meeting.update(dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(job["processes"])))
    ranks = [{**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(job["processes"])]
    return [
        {**job, "log": job["log"] + f".{env['RANK']}", "environment": {**job["environment"], **env}} for env in ranks
    ]


def wait(processes: List[int]) -> int:
    """Wait for all processes; as torchrun does, end the others where one fails. Return the first failure's code."""
    failure, left = 0, set(processes)
    while left:
        process, status = os.wait()
        if process not in left:
            continue
        left.remove(process)
        if ended(status) != 0 and failure == 0:
            failure = ended(status)
            for other in left:
                os.kill(other, signal.SIGTERM)
    return failure


def main() -> None:
    """Answer jobs until standard input ends."""
    commands = {name: importlib.import_module(f"chestxray_vit.{name}") for name in sys.argv[1:]}
    loaded = set(sys.modules)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        start = time.monotonic()
        parts, processes = jobs_of(job), []
        for part in parts:
            process = os.fork()
            if process == 0:
                child(part, loaded, commands[job["command"]].main)
            processes.append(process)
        if job["delay"] is not None:
            time.sleep(job["delay"])
            os.kill(processes[0], signal.SIGKILL)
        code = wait(processes)
        seconds = time.monotonic() - start
        learn(parts[0], loaded)
        print(json.dumps([code, seconds]), flush=True)


if __name__ == "__main__":
    main()
