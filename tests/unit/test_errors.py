"""Problems are reported all at once, with counts; libraries' errors are known by their words."""

from __future__ import annotations

import doctest
import os
import signal
import socket
import struct
import subprocess
import sys
import threading

import pytest

from chestxray_vit import errors as problems
from chestxray_vit.errors import FOREIGN_WORDS, InputError, Problems, explain_out_of_memory, is_foreign


def test_nothing_noted_raises_nothing():
    empty = Problems("a.csv")
    assert not empty
    empty.raise_if_any()


def test_one_kind_is_one_line():
    found = Problems("a.csv")
    found.add("unknown finding", "line 3: 'Masse'", remedy="Spell it as NIH does.")
    assert found
    with pytest.raises(InputError) as error:
        found.raise_if_any()
    assert str(error.value) == "a.csv: unknown finding: line 3: 'Masse'. Spell it as NIH does."


@pytest.mark.parametrize(
    "count, expected",
    [
        (1, "a.csv: bad: line 1."),
        (2, "a.csv: bad: line 1; line 2."),
        (3, "a.csv: bad: line 1; line 2; line 3."),
        (4, "a.csv: bad (4 times; the first 3: line 1; line 2; line 3)."),
        (1234, "a.csv: bad (1,234 times; the first 3: line 1; line 2; line 3)."),
    ],
)
def test_three_examples_are_shown_and_the_others_counted(count, expected):
    found = Problems("a.csv")
    for line in range(1, count + 1):
        found.add("bad", f"line {line}")
    assert str(found) == expected


def test_kinds_are_listed_in_the_order_of_their_first_example():
    found = Problems("a.csv")
    found.add("worse", "line 9", remedy="Stop.")
    for line in range(1, 5):
        found.add("bad", f"line {line}", remedy="Go on.")
    found.add("worse", "line 10", remedy="Stop.")
    assert str(found) == (
        "a.csv: 2 kinds of problems\n"
        "  - worse: line 9; line 10. Stop.\n"
        "  - bad (4 times; the first 3: line 1; line 2; line 3). Go on."
    )


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_docstring_example():
    result = doctest.testmod(problems)
    assert (result.attempted, result.failed) == (3, 0)


def test_a_lack_of_memory_is_reported_with_what_helps():
    words = "^no memory for 1,024 images at once: lower it[.]$"
    with pytest.raises(InputError, match=words), explain_out_of_memory(1024, "lower it"):
        bytearray(1 << 60)
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(1, "lower it"):
        raise RuntimeError("shapes differ")


# Words of libraries' errors: each is provoked in the library itself.


def chain(error):
    """Return an error and those that it came up in: of a full disk torch raises two."""
    while error is not None:
        yield error
        error = error.__context__


@pytest.fixture
def full_disk(tmp_path):
    """Mount a file system of 64 kB, or skip: only root may."""
    folder = tmp_path / "full"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_torch_lacks_memory_on_the_cpu():
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError, match="can't allocate memory") as error:
        torch.empty(1 << 60)
    assert is_foreign(error.value, "out of memory")


def test_torch_lacks_memory_on_cuda():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    with pytest.raises(RuntimeError, match="out of memory") as error:
        torch.empty(1 << 50, device="cuda")
    assert is_foreign(error.value, "out of memory")


def test_safetensors_meets_a_full_disk(full_disk):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    with pytest.raises(Exception, match="No space left.*os error 28") as error:
        safetensors.save_file({"a": torch.zeros(1 << 16)}, str(full_disk / "a.safetensors"))
    assert is_foreign(error.value, "disk full")


def test_torch_meets_a_full_disk(full_disk):
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as error:
        torch.save({"a": torch.zeros(1 << 16)}, str(full_disk / "a.pt"))
    assert is_foreign(error.value, "disk full")
    words = ("PytorchStreamWriter failed", "iostream error", "unexpected pos")
    assert any(word in str(part) for part in chain(error.value) for word in words)
    assert all(is_foreign(part, "disk full") for part in chain(error.value) if isinstance(part, RuntimeError))


GLOO = """
import datetime, os, signal, sys
import torch
import torch.distributed as distributed
rank, numbers = int(sys.argv[1]), torch.ones(1 << 20)
distributed.init_process_group(
    "gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
)
distributed.all_reduce(numbers)
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    for _ in range(100):
        distributed.all_reduce(numbers)
except RuntimeError as error:
    print(error, flush=True)
os._exit(0)  # gloo's threads may not end
"""


def test_gloos_peer_is_gone(tmp_path):
    pytest.importorskip("torch.distributed")
    words = [sys.executable, "-c", GLOO]
    ranks = [
        subprocess.Popen([*words, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    message, _ = ranks[0].communicate(timeout=120)
    ranks[1].communicate(timeout=120)
    assert ranks[1].returncode == -signal.SIGKILL
    assert "gloo" in message
    assert "Connection closed" in message or "Connection reset" in message
    assert is_foreign(RuntimeError(message), "process lost")


STORE = """
import datetime, sys
import torch.distributed as distributed
try:
    distributed.TCPStore("127.0.0.1", int(sys.argv[1]), None, False, timeout=datetime.timedelta(seconds=2)).get("a")
except RuntimeError as error:
    print(error)
"""


def test_torchs_store_loses_its_connection():
    """A server that closes while data is unread, as one that is killed: its clients see a reset."""
    pytest.importorskip("torch.distributed")

    def close_each():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=close_each, daemon=True)
        thread.start()
        words = [sys.executable, "-c", STORE, str(server.getsockname()[1])]
        message = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert "Connection reset" in message
    assert is_foreign(RuntimeError(message), "process lost")


class KillsItsReader:
    """A data set that ends the process that reads it, if that is a loader."""

    parent = os.getpid()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_torchs_loader_is_killed():
    data = pytest.importorskip("torch.utils.data")
    with pytest.raises(RuntimeError, match="DataLoader worker") as error:
        list(data.DataLoader(KillsItsReader(), num_workers=1))
    assert is_foreign(error.value, "loader ended")


# What the tests above do not provoke.
ELSEWHERE = {
    "NCCL": "needs two CUDA devices",
    "PytorchStreamWriter failed": "of other versions of torch; 2.13 raises `iostream error` and `unexpected pos`",
}


def test_every_word_is_provoked_here_or_named_with_its_reason():
    with open(__file__, encoding="utf-8") as file:
        tests = file.read().partition("# What the tests above do not provoke.")[0]
    words = {word for kind in FOREIGN_WORDS.values() for word in kind}
    assert {word for word in words if word not in tests} <= set(ELSEWHERE) <= words


def test_another_error_is_of_no_kind():
    assert not any(is_foreign(RuntimeError("shapes differ"), kind) for kind in FOREIGN_WORDS)
