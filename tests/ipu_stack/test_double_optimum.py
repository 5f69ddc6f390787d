"""Tests of the double under the real optimum-graphcore: where a pipelined ViT runs, and IPUTrainer from end to end."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.ipu_stack

LABELS = 14


def tiny_vit(seed=0):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    problem = {"num_labels": LABELS, "problem_type": "multi_label_classification"}
    return ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, **sizes, **problem))


def pipelined(**settings):
    from optimum.graphcore import IPUConfig
    from optimum.graphcore.modeling_utils import to_pipelined

    config = IPUConfig(layers_per_ipu=[1, 1], ipus_per_replica=2, **settings)
    model = to_pipelined(tiny_vit(), config).eval()
    names = set(model.state_dict())
    model.parallelize()
    assert set(model.state_dict()) == names
    return model


def test_a_block_holds_until_the_next_begins(poptorch):
    model = pipelined()
    executor = poptorch.inferenceModel(model, poptorch.Options().replicationFactor(2))
    executor.compile(pixel_values=torch.zeros(2, 3, 32, 32))
    leaves = {name for name, module in model.named_modules() if not list(module.children())}
    assert set(executor.placement) == leaves
    first = {name for name in leaves if name.startswith(("vit.embeddings.", "vit.encoder.layer.0."))}
    assert {name for name, ipu in executor.placement.items() if ipu == 0} == first
    assert {executor.placement["vit.layernorm"], executor.placement["classifier"]} == {1}
    assert (executor.num_ipus, poptorch.hardware.free) == (4, 60)
    model.deparallelize()
    alone = poptorch.inferenceModel(model)
    alone.compile(pixel_values=torch.zeros(2, 3, 32, 32))
    assert set(alone.placement.values()) == {0}


def test_ipus_are_taken_and_given_back(poptorch, monkeypatch):
    monkeypatch.setenv("DOUBLE_IPUS_PRESENT", "4")
    poptorch.reset()
    poptorch.hardware.free = 3
    executor = poptorch.inferenceModel(pipelined())
    executor.compile(torch.zeros(1, 3, 32, 32))
    assert poptorch.hardware.free == 1
    other = poptorch.inferenceModel(pipelined())
    with pytest.raises(poptorch.Error, match=r"Failed to acquire 2 IPU\(s\)"):
        other.compile(torch.zeros(1, 3, 32, 32))
    assert not other.isCompiled()
    executor.detachFromDevice()
    other.compile(torch.zeros(1, 3, 32, 32))
    assert (poptorch.ipuHardwareVersion(), poptorch.ipuHardwareIsAvailable(4)) == (2, True)
    poptorch.hardware.present = 0
    assert (poptorch.ipuHardwareVersion(), poptorch.ipuHardwareIsAvailable()) == (0, False)


def test_every_layer_is_a_recomputation_checkpoint_when_told_so(poptorch):
    for every_layer, checkpoints in ((False, 0), (True, 2)):
        executor = poptorch.inferenceModel(pipelined(recompute_checkpoint_every_layer=every_layer))
        executor.compile(torch.zeros(1, 3, 32, 32))
        assert executor.num_recomputation_checkpoints == checkpoints


def test_a_memory_proportion_above_one_fails_at_compilation(poptorch):
    model = pipelined(matmul_proportion=3.0)
    executor = poptorch.inferenceModel(model, model.ipu_config.to_options(for_inference=True))
    with pytest.raises(poptorch.Error, match=r"availableMemoryProportion of IPU0 is 3.0, expected 0 to 1"):
        executor.compile(torch.zeros(1, 3, 32, 32))


def test_an_offline_model_takes_no_ipu_and_does_not_run(poptorch):
    poptorch.hardware.present = 0
    executor = poptorch.inferenceModel(pipelined(), poptorch.Options().useOfflineIpuTarget())
    executor.compile(torch.zeros(1, 3, 32, 32))
    assert (executor.isCompiled(), executor.isAttachedToDevice()) == (True, False)
    with pytest.raises(poptorch.Error, match="offline"):
        executor(torch.zeros(1, 3, 32, 32))


def collate(examples):
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


@pytest.mark.parametrize("fp32", [True, False])
def test_optimum_graphcore_trains_saves_and_evaluates(poptorch, tmp_path, fp32):
    from optimum.graphcore import IPUConfig, IPUTrainer, IPUTrainingArguments

    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if fp32 else torch.float16
    examples = [
        {
            "pixel_values": torch.randn(3, 32, 32, generator=generator).to(dtype),
            "labels": torch.randint(2, (LABELS,), generator=generator).float(),
        }
        for _ in range(9)
    ]
    args = IPUTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        save_steps=3,
        learning_rate=1e-2,
        warmup_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        fp32=fp32,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )
    config = IPUConfig(layers_per_ipu=[1, 1], ipus_per_replica=2, gradient_accumulation_steps=2)
    model = tiny_vit()
    trainer = IPUTrainer(
        model=model, ipu_config=config, args=args, train_dataset=examples, eval_dataset=examples, data_collator=collate
    )
    trainer.train()
    metrics = trainer.evaluate()

    training, inference = poptorch.executors
    assert (training.num_optimizer_steps, training.micro_batches) == (3, [2] * 6)
    assert training.compiled_shapes == {"pixel_values": (4, 3, 32, 32), "labels": (4, LABELS)}
    # the executor took the optimizer before the scheduler began its warm-up, and heard of it after the first update
    assert [call["learning_rates"][0] for call in training.calls] == [[0.01] * 2, [0.005] * 2, [0.01] * 2]
    assert (len(inference.calls), inference.placement["classifier"]) == (3, 1)
    assert poptorch.hardware.free == 64
    saved = torch.load(tmp_path / "checkpoint-3" / "pytorch_model.bin", weights_only=True)
    assert set(saved) == set(model.state_dict())
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    assert not torch.equal(saved["classifier.weight"].float(), model.state_dict()["classifier.weight"])
    state = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert (state["ipu_param"]["step"], len(state["ipu_state"])) == (3, 2 * len(saved))

    model.load_state_dict(saved)  # the host's weights, in float32, score what the IPUs scored
    batch = {name: tensor.float() for name, tensor in collate(examples).items()}
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), abs=1e-5)
