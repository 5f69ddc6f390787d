"""Plan an ipu_config.json: which layers each IPU holds, whether they fit, and how long IPUs wait for one another.

    python -m chestxray_vit.plan vit-base-pod4
    python -m chestxray_vit.plan vit-base-pod4 --balance 8

It needs neither an IPU nor torch, and takes less than a second, where compiling takes minutes."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Sequence, Tuple

from chestxray_vit.entry_point import cli_main
from chestxray_vit.errors import InputError
from chestxray_vit.labels import NIH_CHESTXRAY14
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline import ipu_config
from chestxray_vit.pipeline.pipeline_config import PipelineConfig
from chestxray_vit.pipeline.schedule import MAX_SHOWN, SCHEDULES, bubble_of, draw_schedule, simulate
from chestxray_vit.training.arguments import ViTSizeArguments

if TYPE_CHECKING:  # --help needs no plan
    from chestxray_vit.pipeline.stage_plan import StagePlan

NAMES = {"1f1b": "1F1B", "gpipe": "GPipe"}
WIDTH = 110


def parser() -> argparse.ArgumentParser:
    """Return the command line of this command."""
    result = argparse.ArgumentParser(
        prog="python -m chestxray_vit.plan",
        description="Show the stage plan of an ipu_config.json: layers, FLOPs and memory of each IPU, and the share of "
        "the time in which IPUs wait. Neither an IPU nor torch is needed.",
        epilog="examples: python -m chestxray_vit.plan vit-base-pod4 --micro_batch_size 4; "
        "python -m chestxray_vit.plan vit-base-pod4 --balance 8",
        allow_abbrev=False,
    )
    add = result.add_argument
    add("config", metavar="CONFIG", help="ipu_config.json: a file, its folder, vit-base-pod4, or a name on the Hub")
    add("--model_name_or_path", metavar="M", help="ViT checkpoint, a folder or a name on the Hub (default: ViT-B/16)")
    add("--micro_batch_size", type=int, default=1, metavar="B", help="images that a stage takes at a time (default: 1)")
    add("--n_ipu", type=int, metavar="N", help="IPUs to use, which sets the replicas (default: $NUM_AVAILABLE_IPU)")
    add("--ipu_config_overrides", metavar="S", help='such as "gradient_accumulation_steps=64,layers_per_ipu=[2 4 4 2]"')
    add("--fp32", action="store_true", help="float32 in place of float16")
    for field in fields(ViTSizeArguments):
        add(f"--{field.name}", type=int, metavar="N", help=f"of a ViT trained from scratch: {field.metadata['help']}")
    add("--json", action="store_true", help="print all of it as JSON, in bytes and FLOPs")
    add("--schedule", choices=SCHEDULES, default="1f1b", help="order of the passes in the picture (default: 1f1b)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="engine of --check (default: cpu)")
    add = result.add_mutually_exclusive_group().add_argument
    add("--balance", type=int, metavar="N", help="print the layers_per_ipu of N IPUs whose slowest is the fastest")
    add("--plot", type=Path, metavar="F.png", help="draw the schedule of one update")
    add("--check", action="store_true", help="run the stages as processes and compare with one process; needs torch")
    return result


@cli_main
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command."""
    args = parser().parse_args(argv)
    size = _model_size(args)
    config = ipu_config.read_ipu_config(args.config, ipu_config.num_ipus(args.n_ipu), args.ipu_config_overrides)
    if args.balance is not None:
        print(_balanced(config, size, args.balance, args.json))
        return 0
    from chestxray_vit.pipeline.stage_plan import StagePlan

    training = StagePlan.from_config(config, size, args.micro_batch_size, args.fp32)
    inference = StagePlan.from_config(config, size, args.micro_batch_size, args.fp32, inference=True)
    if args.check:
        return _check(args, config, size)
    if args.json:
        both = {"training": training.to_dict(), "inference": inference.to_dict()}
        print(json.dumps({"config": args.config, "model": args.model_name_or_path, **both}, indent=2, allow_nan=False))
    else:
        print(_text(args, training, inference))
    if args.plot:
        _plot(training, args)
    return 0


def _check(args: argparse.Namespace, config: PipelineConfig, size: ViTSize) -> int:
    from chestxray_vit.pipeline.equivalence import Comparison, compare_with_whole_model  # only here: it loads torch

    return compare_with_whole_model(Comparison(config, size, args.micro_batch_size, args.device, args.schedule))


def _model_size(args: argparse.Namespace) -> ViTSize:
    """Return the size of the checkpoint, or that of the size flags."""
    sizes = ViTSizeArguments(**{field.name: getattr(args, field.name) for field in fields(ViTSizeArguments)}).named()
    if not args.model_name_or_path:
        return ViTSize(**sizes)
    if sizes:
        raise InputError(
            f"--model_name_or_path {args.model_name_or_path} has a size of its own: leave out --{next(iter(sizes))}."
        )
    from transformers import AutoConfig  # only here: it takes seconds

    try:
        config = AutoConfig.from_pretrained(args.model_name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{args.model_name_or_path}: no ViT checkpoint could be read: {str(error).splitlines()[0]} "
            "Give a folder with config.json, or a name on the Hub and a network."
        ) from error
    if config.model_type != "vit":
        raise InputError(
            f"{args.model_name_or_path}: the architecture is {config.model_type!r}, expected a ViT ('vit')."
        )
    size = ViTSize.of(config)
    is_run = config.problem_type == NIH_CHESTXRAY14.problem_type  # any other checkpoint gets a new head
    return size if is_run else replace(size, num_labels=len(NIH_CHESTXRAY14))


def _balanced(config: PipelineConfig, size: ViTSize, num_stages: int, as_json: bool) -> str:
    """Return the balanced layers, the fragment for ipu_config.json, and the imbalance before and after.

    A configuration whose layers are not the model's has no imbalance before; this is what corrects it.
    """
    from chestxray_vit.pipeline.stage_cost import balance, imbalance_of

    layers = balance(size, num_stages)
    fragment = {"ipus_per_replica": num_stages, "layers_per_ipu": list(layers)}
    after = imbalance_of(size.stage_flops(layers))
    mode = config.training
    try:
        before: Optional[float] = imbalance_of(size.stage_flops(mode.layers_by_ipu(size.num_hidden_layers)))
    except ValueError:
        before = None
    if as_json:
        return json.dumps({**fragment, "imbalance_before": before, "imbalance_after": after}, indent=2)
    now = "not of this model now" if before is None else f"{before:.3f} now on {_count(mode.ipus_per_replica, 'IPU')}"
    return "\n".join(
        [
            f"{_count(size.num_hidden_layers, 'layer')} on {_count(num_stages, 'IPU')}: {' '.join(map(str, layers))}",
            f"imbalance, slowest IPU over mean: {now}, {after:.3f} then",
            json.dumps(fragment),
        ]
    )


def _text(args: argparse.Namespace, training: StagePlan, inference: StagePlan) -> str:
    """Return what is planned, the table and figures of training, and what inference needs."""
    from chestxray_vit.pipeline.stage_plan import ESTIMATE

    mode, micro, steps = training.mode, training.micro_batch_size, training.num_micro_batches
    stages = mode.ipus_per_replica
    images = f"{training.global_batch_size} images = micro batch {micro} x {_count(steps, 'micro-batch')} x "
    figures = [
        ("update", f"{images}{_count(mode.replication_factor, 'replica')}"),
        ("bubble", f"{_share(training.bubble)} of the time an IPU waits: ({stages} - 1) / ({steps} + {stages} - 1)"),
        ("imbalance", f"{training.imbalance:.3f}: FLOPs of the slowest IPU over their mean"),
        ("efficiency", f"{_share(training.efficiency)} = (1 - bubble) / imbalance"),
        ("refused", training.refusal()),
        *(("memory", line) for line in training.advice()),
    ]
    parts = [_headline(args, training), f"Training, by IPU of a replica:\n\n{training.table()}", _listed(figures)]
    return "\n\n".join([*parts, _inference(training, inference), f"Memory is {ESTIMATE}."])


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{('es' if noun[-1] == 'h' else 's') * (number != 1)}"


def _headline(args: argparse.Namespace, plan: StagePlan) -> str:
    size, mode = plan.size, plan.mode
    million = sum(stage.parameters for stage in plan.stages) / 1e6
    model = f"{args.model_name_or_path}, a ViT" if args.model_name_or_path else "a ViT"
    return _filled(
        f"{args.config} for {model} of {million:.1f} M parameters, {_count(size.num_hidden_layers, 'layer')} x "
        f"{size.hidden_size}: {_count(mode.num_ipus, 'IPU')}, {_count(mode.replication_factor, 'replica')} of "
        f"{_count(mode.ipus_per_replica, 'stage')}, float{32 if plan.fp32 else 16}"
    )


def _inference(training: StagePlan, plan: StagePlan) -> str:
    """Return a paragraph on inference, with a table where its pipeline is another than training's."""
    same = [stage.holds for stage in plan.stages] == [stage.holds for stage in training.stages]
    text = f"{_count(plan.mode.replication_factor, 'replica')}, {'the same' if same else 'other'} stages"
    if plan.mode.ipus_per_replica > 1:
        text += ", one at a time (optimum-graphcore pipelines in training only)"
    listed = _listed([("inference", text), *(("memory", line) for line in plan.advice())])
    return listed if same else f"{listed}\n\n{plan.table()}"


def _listed(figures: Sequence[Tuple[str, str]]) -> str:
    """Return a line a figure; those without a text are left out, and a name is said once."""
    lines, said = [], ""
    for name, text in figures:
        if text:
            lines.append(_filled(f"{name if name != said else '':<12}{text}", " " * 12))
            said = name
    return "\n".join(lines)


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _plot(plan: StagePlan, args: argparse.Namespace) -> None:
    """Draw the schedule with the stages' FLOPs as times; of many micro-batches, a whole update of the first few."""
    mean = sum(stage.flops for stage in plan.stages) / len(plan.stages)
    costs = [stage.flops / mean for stage in plan.stages]
    bubble = bubble_of(simulate(costs, plan.num_micro_batches, args.schedule))
    shown = min(plan.num_micro_batches, MAX_SHOWN)
    slots = simulate(costs, shown, args.schedule)
    title = f"{args.config}, {NAMES[args.schedule]}, backward = 2 forwards: {_count(shown, 'micro-batch')}"
    if shown < plan.num_micro_batches:
        title += f" of {plan.num_micro_batches}, {_share(bubble_of(slots))} waiting ({_share(bubble)} with all)"
    else:
        title += f", {_share(bubble)} waiting"
    try:
        draw_schedule(slots, args.plot, title)
    except OSError as error:
        raise InputError(f"--plot {args.plot}: cannot be written: {error}.") from error
    print(f"wrote {args.plot}", file=sys.stderr if args.json else sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
