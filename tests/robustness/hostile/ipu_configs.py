"""IPU configurations by hand, of older versions, and of malice: all are read by `plan`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable

from tests.robustness.hostile import ACCEPT, NOTICE, REFUSE, Case, put

PLAN = "plan config"
NAME = "config/ipu_config.json"
GOOD = {
    "replication_factor": 1,
    "gradient_accumulation_steps": 128,
    "ipus_per_replica": 4,
    "layers_per_ipu": [3, 3, 3, 3],
    "matmul_proportion": 0.3,
    "enable_half_partials": True,
}


def config(**changes: Any) -> Callable[[Path], object]:
    return lambda root: put(root / NAME, json.dumps({**GOOD, **changes}).encode())


def text(content: bytes) -> Callable[[Path], object]:
    return lambda root: put(root / NAME, content)


def in_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / NAME).unlink()
        make(root / NAME)

    return change


def four_stages(root: Path, said: str) -> None:
    """The plan is of four IPUs of three layers, as in the good configuration."""
    assert all(words in said for words in ("embedding, 0-2", "3-5", "6-8", "9-11, norm, head"))
    assert "update      128 images = micro batch 1 x 128 micro-batches x 1 replica" in said


def strict(root: Path, said: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(said, parse_constant=refuse)


def bad(name: str, make: Callable[[Path], object], *words: str, **options: Any) -> Case:
    return Case(name, make, PLAN, REFUSE, words, **options)


def good(name: str, make: Callable[[Path], object], **options: Any) -> Case:
    return Case(name, make, PLAN, ACCEPT, check=four_stages, **options)


DIGITS = b"9" * 4_000  # Python reads them as a number, and does not write their square

CASES = (
    good("as it should be", config()),
    Case("as JSON", config(), f"{PLAN} --json", ACCEPT, check=strict),
    good(
        "nulls where IPUConfig has them",
        config(inference_layers_per_ipu=None, inference_ipus_per_replica=None, seed=None),
    ),
    good("what older versions wrote", config(use_popdist=False, transformers_version="4.20.0", _comment="x")),
    Case(
        "values by pod",
        config(replication_factor={"pod4": 1, "pod16": 4}),
        PLAN,
        NOTICE,
        ("an older form",),
        four_stages,
    ),
    good("a name twice", text(json.dumps(GOOD).encode()[:-1] + b', "replication_factor": 1}')),
    bad("of no bytes", text(b""), "not JSON", NAME),
    bad("cut", text(json.dumps(GOOD).encode()[:-9]), "not JSON"),
    bad("not UTF-8", text(b'{"output_mode": "\xe9"}'), "not JSON"),
    bad("a list", text(b"[1, 2]"), "expected an object, found list"),
    bad("null", text(b"null"), "expected an object, found NoneType"),
    bad("nested 100,000 deep", text(b'{"a":' * 100_000), "not JSON"),
    bad("a comment inside", text(b'{"seed": 1, // one\n}'), "not JSON"),
    bad("a number of 5,000 digits", text(b'{"replication_factor": ' + b"9" * 5_000 + b"}"), NAME),
    bad(
        "numbers of 4,000 digits",
        text(json.dumps(GOOD).encode().replace(b"128", DIGITS)),
        "gradient_accumulation_steps",
    ),
    bad(
        "layers of 4,000 digits",
        text(json.dumps(GOOD).encode().replace(b"[3,", b"[" + DIGITS + b",")),
        "layers_per_ipu",
    ),
    bad(
        "a pipeline of 10^9 stages",
        config(ipus_per_replica=10**9, layers_per_ipu=[-1]),
        "ipus_per_replica",
        contained=True,
    ),
    bad("a list of 10^6 layers", config(ipus_per_replica=10**6, layers_per_ipu=[0] * 10**6), "layers_per_ipu"),
    bad("replicas of 10^30", config(replication_factor=10**30), "replication_factor"),
    bad("replicas in words", config(replication_factor="one"), "not a whole number", "replication_factor is 'one'"),
    bad("replicas of 1.0", config(replication_factor=1.0), "replication_factor is 1.0"),
    bad("true for replicas", config(replication_factor=True), "replication_factor is True"),
    bad("null for replicas", config(replication_factor=None), "replication_factor is None"),
    bad("null for layers", config(layers_per_ipu=None), "layers_per_ipu is None"),
    bad("null for the proportion", config(matmul_proportion=None), "matmul_proportion is None"),
    bad("no replicas", config(replication_factor=0), "replication_factor is 0"),
    bad("negative accumulation", config(gradient_accumulation_steps=-4), "gradient_accumulation_steps is -4"),
    bad("accumulation of NaN", config(gradient_accumulation_steps=float("nan")), "gradient_accumulation_steps is nan"),
    bad("layers in words", config(layers_per_ipu="3333"), "layers_per_ipu is '3333'"),
    bad("layers of halves", config(layers_per_ipu=[3, 3, 3, 3.5]), "layers_per_ipu"),
    bad("layers of lists", config(layers_per_ipu=[[3], 3, 3, 3]), "layers_per_ipu"),
    bad("layers below -1", config(layers_per_ipu=[3, 3, 3, -2]), "layers_per_ipu"),
    bad("no layers", config(layers_per_ipu=[]), "layers_per_ipu is []"),
    bad("layers that add up to 11", config(layers_per_ipu=[3, 3, 3, 2]), "places 11 layers, the model has 12"),
    bad("layers that add up to 13", config(layers_per_ipu=[3, 3, 3, 4]), "places 13 layers, the model has 12"),
    bad("fewer entries than IPUs", config(layers_per_ipu=[6, 6]), "has 2 entries, ipus_per_replica is 4"),
    bad("a proportion of NaN", config(matmul_proportion=float("nan")), "outside (0, 1]: matmul_proportion is nan"),
    bad("an infinite proportion", config(matmul_proportion=float("inf")), "outside (0, 1]"),
    bad("a proportion of 3", config(matmul_proportion=3), "outside (0, 1]: matmul_proportion is 3"),
    bad("true for a proportion", config(matmul_proportion=True), "matmul_proportion is True"),
    bad("proportions of another length", config(matmul_proportion=[0.3, 0.3]), "matmul_proportion has 2 entries"),
    bad("a switch in words", config(enable_half_partials="yes"), "enable_half_partials is 'yes'"),
    bad("a pod without a number", config(replication_factor={"pod": 1}), "replication_factor"),
    bad("a pod in words", config(replication_factor={"podfour": 1}), "replication_factor"),
    bad("pods of pods", config(replication_factor={"pod4": {"pod4": 1}}), "replication_factor"),
    bad("an unknown key", config(gradient_acumulation_steps=4), "unknown field: 'gradient_acumulation_steps'"),
    bad("a key of 1 MB", config(**{"x" * 10**6: 1}), "unknown field"),
    bad("a key that steers a terminal", config(**{"\x1b[2J": 1}), "unknown field", r"\x1b[2J"),
    bad("a value of 1 MB", config(layers_per_ipu="3" * 10**6), "layers_per_ipu is '333"),
    bad("1,000 unknown keys", config(**{f"key{index}": 1 for index in range(1000)}), "(1,000 times; the first 3"),
    bad("all of it wrong", config(replication_factor=0, matmul_proportion=2, colour="red"), "3 kinds of problems"),
    bad("a folder", in_place(Path.mkdir), "no ipu_config.json there"),
    bad("a pipe", in_place(os.mkfifo), "no ipu_config.json there"),
    bad("a link to nowhere", in_place(lambda path: path.symlink_to("no")), "no ipu_config.json there"),
    Case(
        "no such name", lambda root: None, "plan no-such-config", REFUSE, ("no ipu_config.json there", "vit-base-pod4")
    ),
    Case("a name that climbs", lambda root: None, "plan ../../../etc", REFUSE, ("no ipu_config.json there",)),
    Case(
        "overrides nested deep",
        config(),
        f"{PLAN} --ipu_config_overrides layers_per_ipu={'[' * 2000}",
        REFUSE,
        ("layers_per_ipu",),
    ),
)
