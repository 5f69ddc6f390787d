"""The schedule of a pipeline, against the formula of its bubble and slots worked by hand."""

from __future__ import annotations

import itertools

import pytest

from chestxray_vit.pipeline.schedule import bubble_of, draw_schedule, simulate


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("backward", [1.0, 2.0, 3.0])
def test_bubble_of_equal_stages_is_the_formula(schedule, num_micro_batches, num_stages, backward):
    slots = simulate([1.0] * num_stages, num_micro_batches, schedule, backward)
    assert bubble_of(slots) == (num_stages - 1) / (num_micro_batches + num_stages - 1)


BY_HAND = {
    "1f1b": [(0, 0, "F", 0, 1), (0, 1, "F", 1, 2), (1, 0, "F", 1, 2), (1, 0, "B", 2, 4), (0, 0, "B", 4, 6),
             (1, 1, "F", 4, 5), (1, 1, "B", 5, 7), (0, 1, "B", 7, 9)],
    "gpipe": [(0, 0, "F", 0, 1), (0, 1, "F", 1, 2), (1, 0, "F", 1, 2), (1, 1, "F", 2, 3), (1, 0, "B", 3, 5),
              (0, 0, "B", 5, 7), (1, 1, "B", 5, 7), (0, 1, "B", 7, 9)],
}  # fmt: skip


@pytest.mark.parametrize("schedule", BY_HAND)
def test_two_stages_and_two_micro_batches_by_hand(schedule):
    slots = simulate([1, 1], 2, schedule)
    assert [(slot.stage, slot.micro_batch, "FB"[slot.backward], slot.start, slot.end) for slot in slots] == BY_HAND[
        schedule
    ]


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("costs", [[1, 3, 2], [5, 1, 1, 4], [0, 2]])
def test_every_pass_waits_for_its_input_and_for_nothing_else(schedule, costs):
    slots = simulate(costs, 5, schedule)
    assert len(slots) == len({slot[:3] for slot in slots}) == 2 * 5 * len(costs)
    end = {slot[:3]: slot.end for slot in slots}
    last = len(costs) - 1
    for stage in range(len(costs)):
        free = 0
        for slot in sorted((slot for slot in slots if slot.stage == stage), key=lambda slot: (slot.end, slot.start)):
            _, micro_batch, backward, start, stop = slot
            if not backward:
                ready = end[stage - 1, micro_batch, False] if stage else 0
            else:
                ready = end[(stage, micro_batch, False) if stage == last else (stage + 1, micro_batch, True)]
            assert start == max(ready, free)
            assert stop - start == costs[stage] * (2 if backward else 1)
            free = stop


@pytest.mark.parametrize(("schedule", "held"), [("1f1b", [4, 3, 2, 1]), ("gpipe", [6, 6, 6, 6])])
def test_schedules_differ_in_what_they_hold(schedule, held):
    slots = simulate([1.0] * 4, 6, schedule)
    for stage, most in enumerate(held):
        steps = [-1 if slot.backward else 1 for slot in slots if slot.stage == stage]
        assert max(itertools.accumulate(steps)) == most
        for backward in (False, True):
            order = [slot.micro_batch for slot in slots if slot.stage == stage and slot.backward == backward]
            assert order == list(range(6))


@pytest.mark.parametrize(
    "wrong", [([], 1, "1f1b"), ([1], 0, "1f1b"), ([1], 1, "interleaved"), ([-1], 1, "gpipe"), ([1], 1, "gpipe", -1)]
)
def test_what_cannot_be_scheduled_is_refused(wrong):
    with pytest.raises(ValueError, match=r"cannot schedule .* on .* stages by .*: expected one or more of both"):
        simulate(*wrong)


@pytest.mark.parametrize(("num_micro_batches", "num_texts"), [(4, 2 * 2 * 4), (64, None)])
def test_picture_shows_at_most_sixteen_micro_batches_of_time(tmp_path, num_micro_batches, num_texts):
    pytest.importorskip("matplotlib")
    slots = simulate([1.0, 1.0], num_micro_batches)
    figure = draw_schedule(slots, tmp_path / "schedule.png")
    axes = figure.axes[0]
    share = f"{100 / (num_micro_batches + 1):.1f} %"
    assert axes.get_title(loc="left") == f"2 stages, {num_micro_batches} micro-batches: bubble {share}"
    assert axes.get_xlim()[1] == (3 * (num_micro_batches + 1)) * min(1, 16 / num_micro_batches)
    assert len(axes.texts) == (num_texts or len([slot for slot in slots if slot.start < axes.get_xlim()[1]]))
    assert (tmp_path / "schedule.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.png"]
