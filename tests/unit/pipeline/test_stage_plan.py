"""The stage plan on paper, against instantiated models, brute force, and numbers worked by hand."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

import pytest

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit_size import ViTSize
from chestxray_vit.pipeline.ipu_config import known_names, read_ipu_config
from chestxray_vit.pipeline.schedule import bubble_of, simulate
from chestxray_vit.pipeline.stage_cost import IPU_BYTES, balance, imbalance_of
from chestxray_vit.pipeline.stage_plan import StagePlan

POD4 = read_ipu_config("vit-base-pod4")
SMALL = ViTSize(
    image_size=32,
    patch_size=8,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=48,
    num_labels=15,
)
LARGE = ViTSize(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
SHAPES = {
    "ViT-B/16": ViTSize(),
    "15 outputs, no qkv bias": ViTSize(num_labels=15, qkv_bias=False),
    "another patch, one channel": ViTSize(image_size=96, patch_size=32, num_channels=1, num_hidden_layers=5),
    "small": SMALL,
}


def plan(shape=SHAPES["ViT-B/16"], micro_batch_size=1, fp32=False, inference=False, **changes):
    """Plan vit-base-pod4 with changes."""
    return StagePlan.from_config(POD4.with_values(**changes), shape, micro_batch_size, fp32, inference)


def instantiated(shape, device="meta"):
    """Build the ViT of a shape."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with torch.device(device):
        return transformers.ViTForImageClassification(transformers.ViTConfig(**asdict(shape)))


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_instantiated_model(name):
    shape = SHAPES[name]
    counts = {"embedding": 0, "layer": 0, "head": 0}
    for key, parameter in instantiated(shape).named_parameters():
        part = "layer" if re.search(r"layers?\.\d+\.", key) else "embedding" if "embeddings" in key else "head"
        counts[part] += parameter.numel()
    assert counts == {
        "embedding": shape.embedding_parameters,
        "layer": shape.layer_parameters * shape.num_hidden_layers,
        "head": shape.head_parameters,
    }


def test_parameters_of_the_stages_are_those_of_the_instantiated_vit_base():
    parameters = [stage.parameters for stage in plan().stages]
    assert parameters == [22_006_272, 21_263_616, 21_263_616, 21_275_918]
    assert sum(parameters) == 85_809_422 == instantiated(ViTSize()).num_parameters()


def test_flops_are_those_that_torch_counts():
    model = instantiated(replace(SMALL, num_channels=1), device="cpu")
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("eager")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 32, 32))
    flops = replace(SMALL, num_channels=1).stage_flops((1, 2))
    assert sum(flops) == counter.get_total_flops()


def test_flops_by_hand():
    assert (SMALL.num_patches, SMALL.num_tokens) == (16, 17)
    assert SMALL.embedding_flops == 2 * 16 * 192 * 32
    assert SMALL.layer_flops == 2 * (4 * 17 * 32 * 32 + 2 * 17 * 17 * 32 + 2 * 17 * 32 * 48)
    assert SMALL.head_flops == 2 * 32 * 15
    assert SMALL.stage_flops((1, 0, 2)) == [196_608 + 280_704, 0, 2 * 280_704 + 960]


def test_shape_is_read_from_a_config():
    transformers = pytest.importorskip("transformers")
    assert ViTSize.of(transformers.ViTConfig(**asdict(SMALL))) == SMALL
    assert ViTSize.of(transformers.ViTConfig(num_labels=14)) == ViTSize()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image_size": 225}, r"image_size 225 must be a multiple of patch_size 16"),
        ({"num_attention_heads": 7}, r"hidden_size 768 of num_attention_heads 7"),
        ({"hidden_size": 0, "image_size": [224, 224]}, r"image_size is \[224, 224\], hidden_size is 0; expected a who"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(change, text):
    with pytest.raises(InputError, match=text):
        ViTSize(**change)


def test_memory_by_hand():
    """ViT-B/16: pixels 150,528; hidden 197 x 768 = 151,296; a layer 197 x 12,288 + 12 x 197^2 = 2,886,444 numbers."""
    first, last = plan().stages[0], plan().stages[-1]
    assert (first.weights, first.gradients) == (2 * 22_006_272, 2 * 22_006_272)
    assert (first.optimizer_on_chip, first.optimizer_off_chip) == (0, 6 * 22_006_272)
    assert first.activations == 2 * (7 * (150_528 + 3 * 151_296) + 2_886_444)
    assert last.activations == 2 * (1 * (151_296 + 3 * 151_296) + 2_886_444)
    assert first.total == 2 * 44_012_544 + 14_234_712
    assert first.reserve == 270_000_000
    assert plan(micro_batch_size=4).stages[0].activations == 4 * 14_234_712


def test_memory_in_float32():
    stage = plan(fp32=True, optimizer_state_offchip=False).stages[0]
    assert stage.weights == stage.gradients == 4 * 22_006_272
    assert (stage.optimizer_on_chip, stage.optimizer_off_chip) == (8 * 22_006_272, 0)
    assert stage.activations == 2 * 14_234_712


def test_without_checkpoints_only_the_input_is_stashed_and_the_whole_stage_is_live():
    stage = plan(recompute_checkpoint_every_layer=False).stages[0]
    assert stage.activations == 2 * (7 * 150_528 + 3 * 2_886_444)


def test_one_ipu_recomputes_nothing():
    for checkpoint in (True, False):
        (stage,) = plan(ipus_per_replica=1, layers_per_ipu=[12], recompute_checkpoint_every_layer=checkpoint).stages
        assert stage.activations == 2 * (150_528 + 12 * 2_886_444)
        assert stage.holds == "everything"


@pytest.mark.parametrize(("sharding", "moments"), [(True, 33_009_408), (False, 132_037_632)])
def test_replicas_share_the_moments(sharding, moments):
    changes = {"replication_factor": 4, "replicated_tensor_sharding": sharding}
    assert plan(**changes).stages[0].optimizer_off_chip == moments
    assert plan(**changes, optimizer_state_offchip=False).stages[0].optimizer_on_chip == moments


def test_memory_in_inference():
    first, second = plan(inference=True).stages[:2]
    assert (first.gradients, first.optimizer_on_chip, first.optimizer_off_chip, first.in_flight) == (0, 0, 0, 1)
    assert first.activations == 2 * (150_528 + 2_886_444)
    assert second.total == 2 * 21_263_616 + 2 * (151_296 + 2_886_444)


def held_by_popart(stage, num_stages, num_micro_batches):
    """Walk PopART's cycles: forward k of stage s in cycle k + s, its backward in cycle k + 2 (p - 1) - s."""
    cycles = range(num_micro_batches + 2 * num_stages)
    return max(
        sum(k + stage <= cycle <= k + 2 * (num_stages - 1) - stage for k in range(num_micro_batches))
        for cycle in cycles
    )


@pytest.mark.parametrize("num_stages", [1, 2, 3, 6])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 5, 11, 16])
def test_micro_batches_in_flight_are_those_of_popart(num_stages, num_micro_batches):
    found = plan(ipus_per_replica=num_stages, layers_per_ipu=[-1], gradient_accumulation_steps=num_micro_batches).stages
    assert [stage.in_flight for stage in found] == [
        held_by_popart(stage, num_stages, num_micro_batches) for stage in range(num_stages)
    ]


def test_verdict_at_its_borders():
    made = plan()
    stage = replace(made.stages[0], gradients=0, optimizer_on_chip=0, activations=0)
    weights = {"fits": IPU_BYTES - stage.reserve, "tight": IPU_BYTES - stage.reserve + 1}
    for verdict, count in weights.items():
        assert made.verdict(replace(stage, weights=count)) == verdict
    assert made.verdict(replace(stage, weights=IPU_BYTES)) == "tight"
    assert made.verdict(replace(stage, weights=IPU_BYTES + 1)) == "does not fit"


def test_knobs_are_computed_and_the_best_comes_first():
    crowded = plan(LARGE, 8, layers_per_ipu=[6] * 4, optimizer_state_offchip=False, gradient_accumulation_steps=8)
    needs = [changed.fullest.total + changed.fullest.reserve for _, changed in crowded.knobs()]
    assert needs == sorted(needs)
    assert needs[-1] < crowded.fullest.total + crowded.fullest.reserve
    names = [name for name, _ in crowded.knobs()]
    assert names[0] == "optimizer_state_offchip=true"
    assert "micro_batch_size=4" in names
    assert "replicated_tensor_sharding=true" not in names  # one replica has none to share with
    offchip = crowded.config.with_values(optimizer_state_offchip=True)
    assert crowded.knobs()[0][1] == StagePlan.from_config(offchip, LARGE, 8)


def test_advice_names_knobs_only_where_a_stage_is_crowded():
    assert plan().advice() == ["IPU 0 is the fullest: 102 of 900 MB, 270 MB for temporaries (matmul_proportion): fits"]
    crowded = plan(LARGE, layers_per_ipu=[6] * 4, optimizer_state_offchip=False, gradient_accumulation_steps=8)
    lines = crowded.advice()
    assert lines[0].startswith("IPU 0 is the fullest: 792 of 900 MB, 270 MB")
    assert lines[0].endswith("tight")
    assert re.fullmatch(r"optimizer_state_offchip=true helps: \d+ MB with temporaries, fits", lines[1])
    assert len(lines) == 4


def test_inference_knobs_turn_inference_fields():
    crowded = plan(replace(LARGE, num_hidden_layers=40), 8, inference=True, layers_per_ipu=[-1] * 4,
                   inference_layers_per_ipu=[40])  # fmt: skip
    assert crowded.verdict(crowded.stages[0]) == "does not fit"
    names = [name for name, _ in crowded.knobs()]
    assert names[0] == "inference_layers_per_ipu=[20, 20] on 2 IPUs"
    assert set(names[1:]) == {"inference_matmul_proportion=0.15", "micro_batch_size=4"}


def test_figures_by_hand():
    made = plan(gradient_accumulation_steps=8, replication_factor=16, micro_batch_size=2)
    assert made.global_batch_size == 2 * 8 * 16
    assert made.bubble == 3 / 11 == bubble_of(simulate([1.0] * 4, 8))
    assert imbalance_of([6, 2, 4]) == 1.5
    flops = [stage.flops for stage in made.stages]
    assert made.imbalance == max(flops) / (sum(flops) / 4)
    assert made.efficiency == pytest.approx((8 / 11) * sum(flops) / 4 / flops[0])


@pytest.mark.parametrize(("stages", "steps", "refused"), [(4, 6, True), (4, 7, False), (1, 1, False)])
def test_pipelines_that_popart_refuses_are_named(stages, steps, refused):
    changes = {"ipus_per_replica": stages, "layers_per_ipu": [-1], "gradient_accumulation_steps": steps}
    assert bool(plan(**changes).refusal()) == refused
    assert plan(**changes, inference=True).refusal() == ""
    if refused:
        assert plan(**changes).refusal().startswith("gradient_accumulation_steps 6 is below 2 x 4 IPUs - 1")


def test_layers_of_another_model_are_refused():
    with pytest.raises(InputError, match="layers do not fit in training: .* places 12 layers, the model has 24"):
        plan(LARGE)
    with pytest.raises(InputError, match="micro_batch_size is 0, expected 1 or more"):
        plan(micro_batch_size=0)


def test_stages_say_what_they_hold():
    made = plan(layers_per_ipu=[0, 1, 11, 0])
    assert [stage.holds for stage in made.stages] == ["embedding", "0", "1-11", "norm, head"]
    assert [stage.holds for stage in plan(layers_per_ipu=[1, 0, 10, 1]).stages][1] == "nothing"


def test_dictionary_is_json():
    made = plan(gradient_accumulation_steps=8)
    result = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert result["parameters"] == 85_809_422
    assert result["stages"][3]["total"] == made.stages[3].total
    assert result["stages"][3]["verdict"] == "fits"
    assert result["pipeline"] == {
        "num_micro_batches": 8,
        "global_batch_size": 8,
        "bubble": made.bubble,
        "imbalance": made.imbalance,
        "efficiency": made.efficiency,
    }
    assert plan(inference=True).to_dict()["pipeline"] is None


@pytest.mark.parametrize("name", known_names())
@pytest.mark.parametrize("shape", [ViTSize(), replace(LARGE, num_hidden_layers=12, hidden_size=4096)])
def test_tables_are_narrow_and_sum_up(name, shape):
    made = StagePlan.from_config(read_ipu_config(name), shape, micro_batch_size=16, fp32=True)
    lines = made.table().splitlines()
    assert max(map(len, lines)) <= 110
    assert len(lines) == 2 + 1 + made.mode.ipus_per_replica + 1 + 1
    cells = lines[-1].split()
    assert cells[:2] == ["all", f"{sum(stage.parameters for stage in made.stages) / 1e6:,.1f}"]
    total = sum(stage.total for stage in made.stages) / 1e6
    assert float(cells[-2].replace(",", "")) == pytest.approx(total, abs=0.51)


def compositions(total, parts):
    """Yield every way to write total as a sum of so many counts from 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in compositions(total - first, parts - 1):
            yield (first, *rest)


@pytest.mark.parametrize(
    ("layers", "stages"),
    [(layers, stages) for layers in (1, 2, 5, 8) for stages in (1, 2, 3, 4) if stages < layers + 3],
)
@pytest.mark.parametrize("channels", [3, 40])  # with 40, the embedding outweighs a layer
@pytest.mark.parametrize("labels", [14, 9000])  # and with 9000 the head weighs as much
def test_balance_is_as_good_as_the_best_of_all(layers, stages, channels, labels):
    shape = replace(SMALL, num_hidden_layers=layers, num_channels=channels, num_labels=labels)
    found = balance(shape, stages)
    assert (len(found), sum(found)) == (stages, layers)
    assert all(found[1:-1]) or stages < 3
    best = min(max(shape.stage_flops(split)) for split in compositions(layers, stages))
    assert max(shape.stage_flops(found)) == best


def test_balance_of_vit_base():
    assert balance(ViTSize(), 4) == (3, 3, 3, 3)
    assert balance(ViTSize(), 1) == (12,)
    assert balance(ViTSize(num_hidden_layers=13), 4) == (3, 3, 4, 3)  # of equals the later; the ends carry more
    assert balance(ViTSize(num_hidden_layers=2), 4) == (0, 1, 1, 0)


@pytest.mark.parametrize("stages", [0, -1, 15])
def test_balance_refuses_empty_stages(stages):
    with pytest.raises(InputError, match=f"^{stages} stages for 12 layers: expected 1 to 14, so that no stage"):
        balance(ViTSize(), stages)


def test_summary_tells_what_stands_where():
    plan = StagePlan.from_config(read_ipu_config("vit-base-pod16"), ViTSize())
    assert plan.summary() == "embedding, 0-2 | 3-5 | 6-8 | 9-11, norm, head, 4 times"
