"""The schedule of a pipeline, computed slot by slot: which stage computes what when, and how long the stages wait.

Two orders are known: 1F1B (PipeDream-Flush, Narayanan et al. 2021), which holds few activations, and GPipe (Huang et
al. 2019), which does all forwards first; both as `torch.distributed.pipelining` runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from chestxray_vit.storage.atomic import PathLike


SCHEDULES = ("1f1b", "gpipe")
MAX_SHOWN = 16  # micro-batches in a picture: more could not be distinguished
COLOURS, INK = ("#8fb8de", "#2f5d8a"), ("black", "white")  # forward, backward
Pass = Tuple[int, int, bool]  # stage, micro-batch, backward


class Slot(NamedTuple):
    """One pass of one micro-batch through one stage; times in units of the costs."""

    stage: int
    micro_batch: int
    backward: bool
    start: float
    end: float


def simulate(
    costs: Sequence[float], num_micro_batches: int, schedule: str = "1f1b", backward: float = 2.0
) -> List[Slot]:
    """Return all slots of one update: each pass starts as soon as its stage is free and its input is there.

    Stage s does forward k after stage s - 1 has, and backward k after stage s + 1 has (the last after its own
    forward k); sending takes no time.

    Args:
        costs: time of a forward pass, by stage.
        num_micro_batches: of one update.
        schedule: `1f1b` or `gpipe`.
        backward: time of a backward pass, in forward passes; 3 where all is recomputed.

    Returns:
        Slots in order of their start, then of their stage.

    Raises:
        ValueError: no stage, no micro-batch, a time below 0, or another schedule.
    """
    if not costs or num_micro_batches < 1 or min(*costs, backward) < 0 or schedule not in SCHEDULES:
        raise ValueError(
            f"cannot schedule {num_micro_batches} micro-batches on {len(costs)} stages by {schedule!r}: expected one "
            f"or more of both, times from 0, and one of {', '.join(SCHEDULES)}"
        )
    orders = [_order(stage, len(costs), num_micro_batches, schedule) for stage in range(len(costs))]
    slots: List[Slot] = []
    ended: Dict[Optional[Pass], float] = {None: 0.0}  # the first stage's pixels are there from the start
    free = [0.0] * len(costs)
    while any(orders):
        for stage, order in enumerate(orders):
            while order and _input_of(stage, *order[0], len(costs)) in ended:
                micro_batch, is_backward = order.pop(0)
                start = max(free[stage], ended[_input_of(stage, micro_batch, is_backward, len(costs))])
                free[stage] = start + costs[stage] * (backward if is_backward else 1.0)
                ended[stage, micro_batch, is_backward] = free[stage]
                slots.append(Slot(stage, micro_batch, is_backward, start, free[stage]))
    return sorted(slots, key=lambda slot: (slot.start, slot.stage))


def _order(stage: int, num_stages: int, num_micro_batches: int, schedule: str) -> List[Tuple[int, bool]]:
    """Return the passes of a stage, (micro-batch, backward), in the order in which it does them."""
    forwards = [(micro_batch, False) for micro_batch in range(num_micro_batches)]
    backwards = [(micro_batch, True) for micro_batch in range(num_micro_batches)]
    if schedule == "gpipe":
        return forwards + backwards
    ahead = min(num_micro_batches, num_stages - stage)
    order = forwards[:ahead]
    for backward, forward in zip(backwards, forwards[ahead:]):
        order += [backward, forward]
    return order + backwards[num_micro_batches - ahead :]


def _input_of(stage: int, micro_batch: int, is_backward: bool, num_stages: int) -> Optional[Pass]:
    """Return the pass that a pass waits for; None for the pixels."""
    if not is_backward:
        return (stage - 1, micro_batch, False) if stage else None
    return (stage, micro_batch, False) if stage == num_stages - 1 else (stage + 1, micro_batch, True)


def bubble_of(slots: Sequence[Slot]) -> float:
    """Return the share of all stages' time, from the first start to the last end, in which they wait."""
    num_stages = 1 + max(slot.stage for slot in slots)
    total = num_stages * (max(slot.end for slot in slots) - min(slot.start for slot in slots))
    return (total - sum(slot.end - slot.start for slot in slots)) / total if total else 0.0


def draw_schedule(slots: Sequence[Slot], path: PathLike, title: Optional[str] = None) -> Any:
    """Draw time by stage into a PNG, bubbles hatched, and return the matplotlib figure.

    Args:
        slots: of `simulate`. Of more than 16 micro-batches, only 16 micro-batches' worth of time is drawn.
        path: of the PNG, written whole or not at all.
        title: by default the stages, the micro-batches, and the bubble of all slots.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_stages, num_micro = 1 + max(slot.stage for slot in slots), 1 + max(slot.micro_batch for slot in slots)
    until = max(slot.end for slot in slots) * min(1.0, MAX_SHOWN / num_micro)
    figure = Figure(figsize=(12, 1.4 + 0.5 * num_stages), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh(range(num_stages), until, height=0.9, color="white", edgecolor="0.75", hatch="////", linewidth=0)
    for slot in slots:
        if slot.start < until:
            _draw_slot(axes, slot, until)
    axes.set(xlim=(0, until), ylim=(num_stages - 0.5, -0.5), yticks=range(num_stages), xlabel="time, forward passes")
    axes.set_ylabel("stage")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    default = f"{num_stages} stages, {num_micro} micro-batches: bubble {100 * bubble_of(slots):.1f} %"
    axes.set_title(title or default, loc="left", fontsize=11)
    _add_legend(figure)
    from chestxray_vit.storage.atomic import atomic_write

    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
    return figure


def _draw_slot(axes: Any, slot: Slot, until: float) -> None:
    """Draw a bar with the number of its micro-batch, which is left out where it would be wider than the bar."""
    width = min(slot.end, until) - slot.start
    axes.barh(slot.stage, width, 0.9, slot.start, color=COLOURS[slot.backward], edgecolor="white", linewidth=0.8)
    if width > until / 70:
        centre, ink = slot.start + width / 2, INK[slot.backward]
        axes.text(centre, slot.stage, str(slot.micro_batch), ha="center", va="center", fontsize=8, color=ink)


def _add_legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    keys = [Patch(facecolor=colour, label=label) for colour, label in zip(COLOURS, ("forward", "backward"))]
    keys.append(Patch(facecolor="white", edgecolor="0.75", hatch="////", label="bubble"))
    figure.legend(handles=keys, loc="outside right upper", frameon=False)
