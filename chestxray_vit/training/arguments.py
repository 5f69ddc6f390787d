"""The arguments of `train` and `evaluate`, in the manner of Hugging Face: ours first, then TrainingArguments'.

`--help` shows our own arguments without loading torch; `--help_all` adds those of TrainingArguments. A JSON or YAML
file may stand in place of flags."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Callable, Collection, Dict, List, NoReturn, Optional, Sequence, Tuple, Type

from chestxray_vit.errors import InputError

FILES = (".json", ".yaml", ".yml")
Positional = Optional[Tuple[str, str]]


def argument(default: Any, metavar: Optional[str], text: str, choices: Optional[Sequence[str]] = None) -> Any:
    """Return the dataclass field of an argument."""
    metadata: Dict[str, Any] = {"help": text}
    if metavar:
        metadata["metavar"] = metavar
    if choices:
        metadata["choices"] = list(choices)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class DatasetArguments:
    """What `train` and `evaluate` ask about the data set and the engine."""

    dataset_dir: Optional[str] = argument(None, "DIR", "ingested folder, with metadata.jsonl")
    cache_dir: Optional[str] = argument(
        None,
        "DIR",
        "keep the images at the model's size here, for every later epoch and run (default: pixel_cache in the data "
        "set's folder, or Hugging Face's cache; none: decode each time)",
    )
    allow_unreadable: bool = argument(False, None, "leave out images that cannot be read, and list them")
    device: str = argument(
        "auto", None, "engine (default: auto, IPUs or CUDA if present)", choices=("auto", "ipu", "cuda", "cpu")
    )


@dataclasses.dataclass
class TrainArguments(DatasetArguments):
    """Our own arguments of `train`."""

    model_name_or_path: str = argument(
        "google/vit-base-patch16-224-in21k",
        "MODEL",
        "ViT to start from: a folder or a name on the Hub (default: google/vit-base-patch16-224-in21k)",
    )
    global_batch_size: Optional[int] = argument(
        None, "N", "images per update, over all processes (default: 128, or the IPU config's)"
    )
    pos_weight: str = argument(
        "none",
        None,
        "auto: weight each finding's positives by negatives / positives in training (default: none)",
        choices=("none", "auto"),
    )
    augment: bool = argument(
        False, None, "rotate, shift, scale and brighten each training image a little, never flip (CUDA and CPU)"
    )
    overwrite: bool = argument(False, None, "replace an earlier run in --output_dir")
    from_scratch: bool = argument(False, None, "start from random weights, of the size that the next flags give")


@dataclasses.dataclass
class ViTSizeArguments:
    """The size of a ViT trained from scratch; None for ViT-B/16's."""

    image_size: Optional[int] = argument(None, "N", "pixels (default: 224)")
    patch_size: Optional[int] = argument(None, "N", "pixels (default: 16)")
    hidden_size: Optional[int] = argument(None, "N", "width (default: 768)")
    num_hidden_layers: Optional[int] = argument(None, "N", "depth (default: 12)")
    num_attention_heads: Optional[int] = argument(None, "N", "heads (default: 12)")
    intermediate_size: Optional[int] = argument(None, "N", "MLP width (default: 3072)")

    def named(self) -> Dict[str, Any]:
        """Return the sizes that were named."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass
class IPUArguments:
    """What `train` and `evaluate` ask about IPUs, under optimum-graphcore's names."""

    ipu_config_name: Optional[str] = argument(
        None,
        "CONFIG",
        "ipu_config.json, whose global batch holds on every engine: a folder, vit-base-pod4, or a name on the Hub",
    )
    n_ipu: Optional[int] = argument(None, "N", "IPUs to use, which sets the replicas (default: $NUM_AVAILABLE_IPU)")
    ipu_config_overrides: Optional[str] = argument(
        None, "SETTINGS", "such as gradient_accumulation_steps=64,layers_per_ipu=[2 4 4 2]"
    )
    fp32: bool = argument(False, None, "float32 in place of float16 on IPUs")


@dataclasses.dataclass
class PipelineArguments(IPUArguments):
    """What training in a pipeline asks besides."""

    loss_scaling: Optional[float] = argument(None, "X", "factor on the loss in float16 (default: 1)")
    dataloader_mode: str = argument(
        "sync",
        None,
        "how the host loads images for IPUs (default: sync)",
        choices=("sync", "async", "async_rebatched"),
    )
    pipeline: bool = argument(
        False, None, "on CUDA or CPU: one process per stage of --ipu_config_name, started by torchrun"
    )
    pipeline_schedule: str = argument(
        "1f1b", None, "order of forward and backward passes in --pipeline (default: 1f1b)", choices=("1f1b", "gpipe")
    )


@dataclasses.dataclass
class EvaluateArguments(DatasetArguments):
    """Our own arguments of `evaluate`."""

    split: str = argument("test", None, "images to score (default: test)", choices=("train", "validation", "test"))
    thumbnails: bool = argument(
        False, None, "show the images of the worst errors in auc.html: they are patients' data, mind where it goes"
    )


@dataclasses.dataclass(frozen=True)
class CommandHelp:
    """What `--help` says of a command.

    Attributes:
        prog, description: for argparse.
        training: what of TrainingArguments is worth a word in the short help.
        positional: name and help of a positional argument.
    """

    prog: str
    description: str
    training: str
    positional: Positional = None


def parse(
    kinds: Sequence[Type], texts: CommandHelp, argv: Optional[Sequence[str]] = None
) -> Tuple[List[Any], Dict[str, Any], Optional[str]]:
    """Parse a command line of our own arguments and those of TrainingArguments.

    Args:
        kinds: dataclasses of our arguments.
        texts: for the help.
        argv: as passed to `main`; None for the process's own.

    Returns:
        An instance of each kind; the values of TrainingArguments' fields, the recipe's where none was named; and that
        of the positional argument.

    Raises:
        InputError: a file of flags that cannot be read, or holds an unknown flag.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        parser = _parser(kinds, texts)
        parser.formatter_class = argparse.HelpFormatter  # our own help texts name the defaults that matter
        _print_help(parser, texts.training)

    # Threads that wait for work soon sleep. Two trainings of the demo's ViT side by side on two cores make 4.3 updates
    # a second each, against 0.4 with GOMP's own spinning; one alone 9.3 against 10.0. OpenMP reads it with torch.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from chestxray_vit.training import precision, recipe  # only here: they load torch and the Trainer

    parser = _parser([*kinds, recipe.TrainingArguments], texts)
    parser.set_defaults(**recipe.recipe())
    for action in parser._actions:
        if action.dest == "bf16":
            action.type, action.help = precision.bf16_flag, precision.BF16_HELP
    if "--help_all" in argv:
        _print_help(parser, "")
    known = {field.name for kind in (*kinds, recipe.TrainingArguments) for field in dataclasses.fields(kind)}
    tokens = _expand(argv, known, recipe.installed_name)
    values = vars(parser.parse_args([_rename(token, recipe.installed_name) for token in tokens]))
    ours = [kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)}) for kind in kinds]
    training = {name: value for name, value in values.items() if name in recipe.FIELDS}
    return ours, training, values[texts.positional[0]] if texts.positional else None


def _parser(kinds: Sequence[Any], texts: CommandHelp) -> argparse.ArgumentParser:
    from transformers.hf_argparser import HfArgumentParser

    parser = HfArgumentParser(
        list(kinds), prog=texts.prog, description=texts.description, allow_abbrev=False, add_help=False
    )
    positional = f"{texts.positional[0].upper()} " if texts.positional else ""
    parser.usage = f"{texts.prog} {positional}[flags] [flags.yaml]"
    for action in parser._actions:
        action.required = False  # transformers 4 asks for --output_dir; each command has its own error for it
        action.option_strings = action.option_strings[:1]  # one form in the help, not --two_forms, --two-forms
    if texts.positional:
        parser.add_argument(texts.positional[0], metavar=positional.strip(), help=texts.positional[1])
    return parser


def _print_help(parser: argparse.ArgumentParser, more: str) -> NoReturn:
    parser.print_help()
    if more:
        print(f"\n{more}")
    raise SystemExit(0)


def _expand(argv: Sequence[str], known: Collection[str], installed_name: Callable[[str], str]) -> List[str]:
    """Put the flags of a JSON or YAML file ahead of the others, so that the others win."""
    tokens: List[str] = []
    rest: List[str] = []
    for index, token in enumerate(argv):
        follows_flag = index > 0 and argv[index - 1].startswith("--")
        if token.endswith(FILES) and not token.startswith("-") and not follows_flag:
            tokens += _read_flags(Path(token), known, installed_name)
        else:
            rest.append(token)
    return tokens + rest


def _read_flags(path: Path, known: Collection[str], installed_name: Callable[[str], str]) -> List[str]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as JSON or YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected flags as `name: value`, found {type(content).__name__}.")
    unknown = sorted(name for name in content if installed_name(str(name)) not in known)
    if unknown:
        raise InputError(f"{path}: unknown flags: {', '.join(unknown)}. See --help_all.")
    tokens: List[str] = []
    for name, value in content.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        texts = [json.dumps(item) if isinstance(item, (bool, dict)) else str(item) for item in values]
        tokens += [f"--{name}", *texts]
    return tokens


def _rename(token: str, installed_name: Callable[[str], str]) -> str:
    """Accept a TrainingArguments flag under its older or newer name."""
    if not token.startswith("--"):
        return token
    name, equals, value = token[2:].partition("=")
    return f"--{installed_name(name)}{equals}{value}"
