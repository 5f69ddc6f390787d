"""Trained runs from strangers, met by `predict`, and by `evaluate`, which reads metadata.jsonl as well.

A pickle is a program; so are the modules that a config may name. Each has a payload here that would leave a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np

from chestxray_vit.labels import NIH_CHESTXRAY14
from tests.robustness.hostile import ACCEPT, REFUSE, Case, put
from tests.robustness.hostile.images import scores
from tests.robustness.hostile.predictions_files import strict_json

FINDINGS = NIH_CHESTXRAY14.names

PREDICT = "predict run xrays --output scores.csv --device cpu"
EVALUATE = "evaluate run --dataset_dir release --output_dir scored --device cpu --cache_dir none"
THRESHOLDS = ("run/thresholds.json",)
WEIGHTS, CONFIG, PROCESSOR = "run/model.safetensors", "run/config.json", "run/preprocessor_config.json"
LABELS = {str(index): finding for index, finding in enumerate(FINDINGS)}
CODE = b"open('owned', 'w')\n"  # of a module that a config names


class Payload:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return open, ("owned", "w")


# How a run is spoilt.


def config(name: str = CONFIG, **changes: Any) -> Callable[[Path], object]:
    """Set entries of a JSON file."""

    def make(root: Path) -> None:
        content = json.loads((root / name).read_text())
        (root / name).write_text(json.dumps({**content, **changes}))

    return make


def processor(**changes: Any) -> Callable[[Path], object]:
    return config(PROCESSOR, **changes)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: put(root / name, content)


def removed(*names: str) -> Callable[[Path], object]:
    return lambda root: [(root / name).unlink() for name in names]


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda root: (root / WEIGHTS).write_bytes(change((root / WEIGHTS).read_bytes()))


def tensors(change: Callable[[Dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        from safetensors.numpy import load_file, save_file

        content = {name: tensor.copy() for name, tensor in load_file(root / WEIGHTS).items()}
        change(content)
        save_file(content, root / WEIGHTS, metadata={"format": "pt"})

    return make


def all_of(*makes: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: [make(root) for make in makes]


def pickled(root: Path) -> None:
    """Leave a pickle alone, as torch.save wrote them before it wrote zip files."""
    (root / WEIGHTS).unlink()
    put(root / "run" / "pytorch_model.bin", pickle.dumps(Payload()))
    put(root / "run" / "training_args.bin", pickle.dumps(Payload()))


def indexed(target_name: str) -> Callable[[Path], object]:
    """Take the weights away, to `target_name`, and leave an index that says so."""

    def make(root: Path) -> None:
        from safetensors.numpy import load_file

        names = list(load_file(root / WEIGHTS))
        target = root / "run" / target_name
        target.parent.mkdir(exist_ok=True)
        (root / WEIGHTS).rename(target)
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, target_name)}
        put(root / "run" / "model.safetensors.index.json", json.dumps(index).encode())

    return make


def linked(root: Path) -> None:
    """Keep the weights elsewhere, as the Hub's cache does."""
    (root / WEIGHTS).rename(root / "outside" / "blob")
    (root / WEIGHTS).symlink_to("../outside/blob")


def flipped(content: bytes) -> bytes:
    return content[:9] + bytes([content[9] ^ 4]) + content[10:]


def header(change: Callable[[dict], object]) -> Callable[[bytes], bytes]:
    """Change the JSON header of a safetensors file."""

    def rewrite(content: bytes) -> bytes:
        (size,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + size :]

    return rewrite


def overlap(entries: dict) -> None:
    names = [name for name in entries if name != "__metadata__"]
    entries[names[0]]["data_offsets"] = entries[names[1]]["data_offsets"]


def as_bert(root: Path) -> None:
    config(model_type="bert", architectures=["BertModel"])(root)


def with_modules(root: Path) -> None:
    for name in ("evil.py", "modeling_evil.py", "configuration_vit.py"):
        put(root / "run" / name, CODE)


def ingested(*changes: Callable[[List[Dict[str, Any]]], object]) -> Callable[[Path], object]:
    """Put good metadata beside the images, its rows changed."""

    def make(root: Path) -> None:
        for name in ("metadata.jsonl", "ingest_report.json"):
            shutil.copyfile(root / "expected" / name, root / "release" / "images" / name)
        path = root / "release" / "images" / "metadata.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for change in changes:
            change(rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return make


def row(**values: Any) -> Callable[[List[Dict[str, Any]]], object]:
    return lambda rows: rows[0].update(values)


def metadata_text(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        ingested()(root)
        path = root / "release" / "images" / "metadata.jsonl"
        path.write_bytes(change(path.read_bytes()))

    return make


# What must be true.


def scored(root: Path, said: str) -> None:
    """Each image has 14 probabilities, and the two images have not the same."""
    found = scores(root)
    assert list(found) == ["file_name", "xrays/good.png", "xrays/plain.png"]
    values = [[float(value) for value in found[name]] for name in list(found)[1:]]
    assert all(len(row) == 14 and all(0 < value < 1 for value in row) for row in values)
    assert values[0] != values[1]


def evaluated(root: Path, said: str) -> None:
    """Every image of the test list has a row, and auc.json holds no NaN."""
    rows = (root / "scored" / "predictions.csv").read_text().splitlines()[1:]
    expected = set((root / "release" / "test_list.txt").read_text().split())
    assert {line.split(",")[0] for line in rows} == expected
    assert len(rows) == len(expected)
    assert strict_json(root / "scored" / "auc.json")["num_images"] == len(rows)


def bad(name: str, make: Callable[[Path], object], *words: str) -> Case:
    return Case(name, make, PREDICT, REFUSE, words)


def good(name: str, make: Callable[[Path], object]) -> Case:
    return Case(name, make, PREDICT, ACCEPT, check=scored)


WHOLE = "Is the checkpoint whole?"
NO_VIT = ("run: no ViT checkpoint could be read: config.json: ", "Give a folder with config.json")
DEEP = b'{"a":' * 100_000
KERNEL = {"attn_implementation": "evil/kernel", "_attn_implementation": "evil/kernel"}
QUANTIZED = {"quant_method": "bitsandbytes", "load_in_8bit": True}
MAP = {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "modeling_evil.Model"}

FILES = (
    good("as drawn", lambda root: None),
    bad("no config", removed(CONFIG), "run: no ViT checkpoint could be read: config.json: "),
    bad("no weights", removed(WEIGHTS), "no model.safetensors. Weights must be safetensors"),
    bad("no preprocessor_config", removed(PROCESSOR), "preprocessor_config.json cannot be loaded"),
    bad("no folder", lambda root: shutil.rmtree(root / "run"), "no ViT checkpoint could be read"),
    bad("a file for the folder", lambda r: [shutil.rmtree(r / "run"), put(r / "run", b"x")], "no ViT checkpoint"),
    bad("empty weights", weights(lambda content: b""), "the weights have 0 bytes", WHOLE),
    bad("cut weights", weights(lambda content: content[:-1000]), "run: cannot be loaded: ", WHOLE),
    bad("weights cut in the header", weights(lambda content: content[:500] + bytes(99_999)), "cannot be loaded: "),
    bad("a flipped bit in the header", weights(flipped), "cannot be loaded: ", WHOLE),
    bad("a header of 2^62 bytes", weights(lambda c: struct.pack("<Q", 2**62) + c[8:]), "cannot be loaded: ", WHOLE),
    bad("a header of 200 MB", weights(lambda c: struct.pack("<Q", 2 * 10**8) + b" " * 10**5), "cannot be loaded: "),
    bad("tensors that overlap", weights(header(overlap)), "cannot be loaded: ", WHOLE),
    bad("weights of an LFS pointer", written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), WHOLE),
    bad("a pickle named safetensors", written(WEIGHTS, pickle.dumps(Payload()) + bytes(99_999)), "cannot be loaded: "),
    bad("a pickle alone", pickled, "Weights must be safetensors: a pickle can run code"),
    good("pickles beside", written("run/training_args.bin", pickle.dumps(Payload()))),
    good("weights in parts", indexed("model-00001-of-00001.safetensors")),
    bad("an index that climbs", indexed("../outside/weights.safetensors"), "names files outside its folder"),
    bad("an index of a folder", indexed("deeper/weights.safetensors"), "names files outside its folder"),
    bad("an index of a missing file", all_of(indexed("a.safetensors"), removed("run/a.safetensors")), "no model.safe"),
    bad(
        "an index that is none",
        all_of(indexed("a.safetensors"), written("run/model.safetensors.index.json", b"[]")),
        "is no index",
    ),
    bad(
        "a deep index",
        all_of(indexed("a.safetensors"), written("run/model.safetensors.index.json", DEEP)),
        "is no index",
    ),
    good("weights through a link", linked),
    bad("weights in a pipe", all_of(removed(WEIGHTS), lambda root: os.mkfifo(root / WEIGHTS)), "no model.safetensors"),
    bad("NaN in a bias", tensors(lambda t: t["vit.layernorm.bias"].fill(np.nan)), "1 tensors hold NaN or infinity"),
    bad("infinity in the head", tensors(lambda t: t["classifier.bias"].fill(np.inf)), "(first: classifier.bias)"),
    bad("no head", tensors(lambda t: t.pop("classifier.weight")), "1 tensors are missing", "classifier.weight"),
    bad(
        "another layer",
        tensors(lambda t: t.update({"vit.encoder.layer.2.x": np.zeros(9)})),
        "a ViT of its config.json has not",
    ),
)

CONFIGS = (
    *(
        bad(f"config.json {name}", written(CONFIG, content), *words)
        for name, content, words in (
            ("of no bytes", b"", NO_VIT),
            ("cut", b'{"model_type": "vi', NO_VIT),
            ("not UTF-8", b'{"model_type": "vit\xe9"}', NO_VIT),
            ("nested 100,000 deep", DEEP, NO_VIT),
            ("of a list", b"[]", ("the architecture is 'list', expected a ViT ('vit')",)),
            ("of null", b"null", ("the architecture is 'NoneType', expected a ViT ('vit')",)),
            ("of nothing", b"{}", ("the architecture is None, expected a ViT ('vit')",)),
        )
    ),
    *(
        bad(f"preprocessor_config.json {name}", written(PROCESSOR, content), "preprocessor_config.json", WHOLE)
        for name, content in (
            ("of no bytes", b""),
            ("cut", b'{"size": '),
            ("not UTF-8", b"\xff\xfe"),
            ("nested 100,000 deep", DEEP),
            ("of a list", b"[]"),
        )
    ),
    bad("another architecture", as_bert, "the architecture is 'bert', expected a ViT ('vit')"),
    bad("other findings", config(id2label={**LABELS, "3": "Cough"}), "Effusion, Cough, Mass", "under wrong names"),
    bad(
        "another order of findings",
        config(id2label={**LABELS, "0": LABELS["1"], "1": LABELS["0"]}),
        "under wrong names",
    ),
    bad("labels without names", config(id2label=None), "its outputs are not named; expected Atelectasis"),
    bad("labels as a list", config(id2label=list(FINDINGS)), "its outputs are not named"),
    bad("a label of 1 MB", config(id2label={**LABELS, "0": "x" * 10**6}), "its outputs are xxx", "under wrong names"),
    bad("another task", config(problem_type="single_label_classification"), "not a trained run of this package"),
    bad("another width", config(hidden_size=32), "cannot be loaded: "),
    bad("another image size", config(image_size=32), "cannot be loaded: "),
    bad("fewer layers", config(num_hidden_layers=1), "tensors that a ViT of its config.json has not"),
    bad("more layers", config(num_hidden_layers=3), "16 tensors are missing"),
    bad("a million layers", config(num_hidden_layers=10**6), "parameters, the weights have"),
    bad("a width of 2^40", config(hidden_size=2**40), "parameters, the weights have"),
    bad("an image of 10^9 pixels a side", config(image_size=16 * 10**8), "parameters, the weights have"),
    bad(
        "sizes of other types",
        config(hidden_size="16", patch_size=None, image_size=True, num_channels=0.5),
        "not a whole number above 0 (4 times",
        "image_size is True",
    ),
    bad("a negative size", config(patch_size=-16), "not a whole number above 0: patch_size is -16"),
    bad("heads that do not divide", config(num_attention_heads=3), "hidden_size 16 of num_attention_heads 3"),
    bad("an unknown activation", config(hidden_act="os.system"), "unknown activation: hidden_act is 'os.system'"),
    bad("NaN for an epsilon", config(layer_norm_eps=float("nan")), "not a number from 0 to 1: layer_norm_eps is nan"),
    good("a kernel to fetch", config(**KERNEL)),
    good("weights elsewhere by name", config(transformers_weights="../outside/weights.safetensors")),
    good("a quantisation to import", config(quantization_config=QUANTIZED)),
    good("code to trust", all_of(config(auto_map=MAP, trust_remote_code=True), with_modules)),
    good("code for the images", all_of(processor(auto_map={"AutoImageProcessor": "evil.Images"}), with_modules)),
    bad(
        "code for the images alone",
        all_of(processor(auto_map={"AutoImageProcessor": "evil.X"}, image_processor_type="X"), with_modules),
        "preprocessor_config.json cannot be loaded: ",
    ),
    bad("images of another size", processor(size={"height": 32, "width": 32}), "expected height and width 64"),
    bad(
        "images of 10^9 pixels a side",
        processor(size={"height": 10**9, "width": 10**9}),
        "expected height and width 64",
    ),
    bad("images by their shortest edge", processor(size={"shortest_edge": 64}), "expected height and width 64"),
    bad("a size of another type", processor(size=None), "preprocessor_config.json"),
    bad("a crop", processor(do_center_crop=True, crop_size={"height": 8, "width": 8}), "no crop"),
    bad("an unknown filter", processor(resample=99), "resample 99", "one of Pillow's filters"),
    bad("a mean of NaN", processor(image_mean=[float("nan")] * 3), "black and white give no pixel values of their own"),
    bad("a mean of one channel", processor(image_mean=[0.5]), "preprocessor_config.json"),
    bad("a deviation of 0", processor(image_std=[0, 0, 0]), "black and white give no pixel values of their own"),
    bad("no scale", processor(rescale_factor=0), "black and white give no pixel values of their own"),
    bad("a method overwritten", processor(preprocess="x"), "preprocessor_config.json cannot be loaded: "),
    bad("thresholds that are none", written("run/thresholds.json", b"[]"), "run/thresholds.json"),
    bad("thresholds nested deep", written("run/thresholds.json", DEEP), "run/thresholds.json"),
    bad("thresholds of NaN", written("run/thresholds.json", b'{"thresholds": NaN}'), "run/thresholds.json"),
)


def no_metadata(name: str, make: Callable[[Path], object], *words: str, **options: Any) -> Case:
    return Case(name, make, EVALUATE, REFUSE, words, **options)


def good_report(root: Path) -> None:
    """Leave the stale metadata, beside the report of a good one."""
    shutil.copy(root / "expected" / "ingest_report.json", root / "release" / "images")


AGAIN = "Ingest again: python -m chestxray_vit.ingest release"
EVALUATIONS = (
    Case("evaluated", ingested(), EVALUATE, ACCEPT, check=evaluated, writes=THRESHOLDS),
    Case(
        "evaluated into a file",
        ingested(),
        EVALUATE.replace("scored", "run/config.json"),
        REFUSE,
        ("run/config.json: cannot be written to", "--output_dir"),
    ),
    Case(
        "flags nested deep",
        written("flags.yaml", b"[" * 100_000),
        "evaluate run flags.yaml",
        REFUSE,
        ("flags.yaml",),
    ),
    no_metadata("evaluated, a pickle alone", all_of(ingested(), pickled), "Weights must be safetensors"),
    no_metadata(
        "evaluated, NaN weights", all_of(ingested(), tensors(lambda t: t["classifier.bias"].fill(np.nan))), "NaN"
    ),
    no_metadata("metadata of another program", good_report, "metadata.jsonl: line 1: ", AGAIN),
    no_metadata(
        "metadata and report of another program", lambda root: None, "ingest_report.json: ", "Ingest the release"
    ),
    no_metadata("metadata cut", metadata_text(lambda content: content[:-30]), "line 97: ", AGAIN),
    no_metadata("metadata of no bytes", metadata_text(lambda content: b""), "no rows", AGAIN),
    no_metadata("metadata not UTF-8", metadata_text(lambda content: content.replace(b"PA", b"\xff\xff")), AGAIN),
    no_metadata(
        "metadata nested deep", metadata_text(lambda c: b'{"x":' + b"[" * 10**6 + b"\n" + c), AGAIN, contained=True
    ),
    no_metadata(
        "metadata of null",
        metadata_text(lambda content: b"null\n" + content),
        "line 1: ",
        AGAIN,
        contained=True,
    ),
    no_metadata("an image that climbs", ingested(row(file_name="../../outside/xray.png")), "image outside the folder"),
    no_metadata("an image from the root", ingested(row(file_name="/etc/passwd")), "image outside the folder: '/etc'"),
    no_metadata(
        "an image that is not there", ingested(row(file_name="no.png")), "1 of ", "images are missing (first: no.png)"
    ),
    no_metadata("an image twice", ingested(lambda rows: rows.append(rows[0])), "doubled image", "on 2 lines"),
    no_metadata("a label of 2", ingested(row(labels=[2.0] * 14)), "label neither 0 nor 1: line 1"),
    no_metadata("ragged labels", ingested(row(labels=[1.0])), "labels of another length: found [1, 14]"),
    no_metadata(
        "an unknown split", ingested(row(split="dev")), "unknown split: 'dev'", "Known: train, validation, test"
    ),
    no_metadata("a patient of another type", ingested(row(patient_id=True)), "line 1: ", AGAIN),
    no_metadata(
        "no test images",
        ingested(lambda rows: [row.update(split="train") for row in rows]),
        "no image in the test split",
    ),
)

CASES = (*FILES, *CONFIGS, *EVALUATIONS)
