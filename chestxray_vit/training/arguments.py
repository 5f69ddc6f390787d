"""Hugging Face's habits for flags: ours first, every TrainingArguments flag behind, a JSON or YAML file instead.

`--help` shows our own flags without loading torch; `--help_all` adds those of TrainingArguments."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple, Type

from transformers.hf_argparser import HfArgumentParser

from chestxray_vit.errors import InputError

FILES = (".json", ".yaml", ".yml")


@dataclasses.dataclass
class IPUFlags:
    """What `train` and `evaluate` ask about IPUs, under optimum-graphcore's names."""

    ipu_config_name: Optional[str] = dataclasses.field(
        default=None,
        metadata={
            "metavar": "CONFIG",
            "help": "ipu_config.json, whose global batch holds on every engine: a folder, vit-base-pod4, or a name "
            "on the Hub",
        },
    )
    n_ipu: Optional[int] = dataclasses.field(
        default=None,
        metadata={"metavar": "N", "help": "IPUs to use, which sets the replicas (default: $NUM_AVAILABLE_IPU)"},
    )
    ipu_config_overrides: Optional[str] = dataclasses.field(
        default=None,
        metadata={"metavar": "SETTINGS", "help": "such as gradient_accumulation_steps=64,layers_per_ipu=[2 4 4 2]"},
    )
    fp32: bool = dataclasses.field(default=False, metadata={"help": "float32 in place of float16 on IPUs"})


def parse(
    kinds: Sequence[Type],
    prog: str,
    description: str,
    recipe_help: str,
    argv: Optional[Sequence[str]] = None,
    positional: Optional[Tuple[str, str]] = None,
) -> Tuple[List[Any], Dict[str, Any], Optional[str]]:
    """Parse a command line of our own flags and those of TrainingArguments.

    Args:
        kinds: dataclasses of our flags, with `help` in the fields' metadata.
        prog, description: for the help.
        recipe_help: what of TrainingArguments is worth a word in the short help.
        argv: as given to `main`; None for the process's own.
        positional: name and help of a positional argument.

    Returns:
        An instance of each kind; the values of TrainingArguments' fields, the recipe's where none was given; and that
        of the positional argument.

    Raises:
        InputError: a file of flags that cannot be read, or holds a flag that is none.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        parser = _parser(kinds, prog, description, positional)
        parser.formatter_class = argparse.HelpFormatter  # our own help texts name the defaults that matter
        _print_help(parser, recipe_help)

    # Threads that wait for work soon sleep. Two trainings of the demo's ViT side by side on two cores make 4.3 updates
    # a second each, against 0.4 with GOMP's own spinning; one alone 9.3 against 10.0. OpenMP reads it with torch.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from chestxray_vit.training import precision  # only here: they load torch and the Trainer
    from chestxray_vit.training.engines import choose as backend

    parser = _parser([*kinds, backend.TrainingArguments], prog, description, positional)
    for action in parser._actions:
        if action.dest == "bf16":
            action.type, action.help = precision.bf16_flag, precision.BF16_HELP
    if "--help_all" in argv:
        parser.set_defaults(**backend.recipe())
        _print_help(parser, "")
    parser.set_defaults(**backend.recipe())
    known = {field.name for kind in (*kinds, backend.TrainingArguments) for field in dataclasses.fields(kind)}
    tokens = [_rename(token, backend.name_here) for token in _expand(argv, known, backend.name_here)]
    values = vars(parser.parse_args(tokens))
    ours = [kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)}) for kind in kinds]
    training = {name: value for name, value in values.items() if name in backend.FIELDS}
    return ours, training, values[positional[0]] if positional else None


def _parser(
    kinds: Sequence[Type], prog: str, description: str, positional: Optional[Tuple[str, str]]
) -> HfArgumentParser:
    parser = HfArgumentParser(list(kinds), prog=prog, description=description, allow_abbrev=False, add_help=False)
    parser.usage = f"{prog} {positional[0].upper() + ' ' if positional else ''}[flags] [flags.yaml]"
    for action in parser._actions:
        action.required = False  # transformers 4 asks for --output_dir; each stage has its own word on it
        action.option_strings = action.option_strings[:1]  # the help need not tell --two_forms, --two-forms of each
    if positional:
        parser.add_argument(positional[0], metavar=positional[0].upper(), help=positional[1])
    return parser


def _print_help(parser: HfArgumentParser, recipe_help: str) -> NoReturn:
    parser.print_help()
    if recipe_help:
        print(f"\n{recipe_help}")
    raise SystemExit(0)


def _expand(argv: Sequence[str], known, name_here) -> List[str]:
    """Put the flags of a JSON or YAML file in its place, ahead of the others, so that these win."""
    tokens: List[str] = []
    rest: List[str] = []
    for place, token in enumerate(argv):
        follows_flag = place > 0 and argv[place - 1].startswith("--")
        if token.endswith(FILES) and not token.startswith("-") and not follows_flag:
            tokens += _read_flags(Path(token), known, name_here)
        else:
            rest.append(token)
    return tokens + rest


def _read_flags(path: Path, known, name_here) -> List[str]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as JSON or YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected flags as `name: value`, found {type(content).__name__}.")
    unknown = sorted(name for name in content if name_here(str(name)) not in known)
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


def _rename(token: str, name_here) -> str:
    """Accept a TrainingArguments flag under its older or newer name."""
    if not token.startswith("--"):
        return token
    name, equals, value = token[2:].partition("=")
    return f"--{name_here(name)}{equals}{value}"
