"""Tests of the double itself: what it computes and records is held against numbers worked by hand, and plain torch.

The double must not be kinder than PopTorch: shapes, IPUs, pickling and the two copies of the weights are tested for
what they refuse as well."""

from __future__ import annotations

import copy
import io

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.ipu_stack


class Regression(torch.nn.Module):
    """A weight for each of two columns; returns the mean squared error and the predictions."""

    def __init__(self, weights=(1.0, -2.0)):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1, bias=False)
        self.linear.weight.data = torch.tensor([weights])

    def forward(self, x, y):
        predictions = self.linear(x)[:, 0]
        return torch.nn.functional.mse_loss(predictions.float(), y.float()), predictions


class Echo(torch.nn.Module):
    """Returns its rows and their sum."""

    def forward(self, x):
        return {"sum": x.sum(), "rows": x}


def rows(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, 2, generator=generator), torch.randn(number, generator=generator)


def trained(executor):
    return executor.model.linear.weight.detach().clone()


# The optimizers and the batch


def test_adamw_without_bias_correction_is_the_formula_worked_by_hand(poptorch):
    model = Regression((1.0, -2.0))
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5, bias_correction=False)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    loss, predictions = executor(torch.tensor([[1.0, 2.0]]), torch.tensor([1.0]))
    # prediction -3, loss (-4)^2, gradient 2 x (-4) x (1, 2) = (-8, -16); m = 0.1 g, v = 0.001 g^2,
    # so m / sqrt(v) = -0.1 / sqrt(0.001) = -3.16227766 for both; w = w (1 - 0.1 x 0.5) + 0.1 x 3.16227766
    assert (loss.item(), predictions.tolist()) == (16.0, [-3.0])
    torch.testing.assert_close(trained(executor), torch.tensor([[1.266227766, -1.583772234]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_accumulation_and_replicas_make_the_step_of_one_batch(poptorch, name):
    settings = {"lr": 0.1, "weight_decay": 0.1, **({"momentum": 0.9} if name == "SGD" else {})}
    model, plain = Regression(), Regression()
    options = poptorch.Options().replicationFactor(2)
    options.Training.gradientAccumulation(4)
    optimizer = getattr(poptorch.optim, name)(model.parameters(), **settings)
    executor = poptorch.trainingModel(model, options, optimizer)
    plain_optimizer = getattr(torch.optim, name)(plain.parameters(), **settings)
    for step in range(3):
        executor(*rows(8, seed=step))
        plain_optimizer.zero_grad()
        plain(*rows(8, seed=step))[0].backward()
        plain_optimizer.step()
    torch.testing.assert_close(trained(executor), plain.linear.weight.data)
    assert executor.num_optimizer_steps == 3
    assert executor.micro_batches == [1] * 24
    assert executor.calls[0] == {"images": 8, "learning_rates": [[0.1]]}


def test_every_device_iteration_takes_a_step(poptorch):
    model, plain = Regression(), Regression()
    executor = poptorch.trainingModel(
        model, poptorch.Options().deviceIterations(2), torch.optim.SGD(model.parameters(), 0.1)
    )
    x, y = rows(6)
    executor(x, y)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for half in (slice(0, 3), slice(3, 6)):
        optimizer.zero_grad()
        plain(x[half], y[half])[0].backward()
        optimizer.step()
    torch.testing.assert_close(trained(executor), plain.linear.weight.data)
    assert executor.calls[0]["learning_rates"] == [[0.1], [0.1]]


def test_gradients_are_summed_when_told_so(poptorch):
    x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.zeros(2)  # gradient 2 x 1 x (1, 0) from each row
    for reduction, expected in (("Mean", [[0.8, -2.0]]), ("Sum", [[0.6, -2.0]])):
        model, options = Regression(), poptorch.Options()
        options.Training.gradientAccumulation(2)
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType[reduction])
        executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
        executor(x, y)
        torch.testing.assert_close(trained(executor), torch.tensor(expected))


@pytest.mark.parametrize(
    ("mode", "expected_rows", "expected_sums"),
    [
        ("All", [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        ("Default", [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        ("Final", [[4.0], [5.0]], [4.0, 5.0]),
        ("Sum", [[6.0], [9.0]], [6.0, 9.0]),  # on replica 0 the rows 0, 2, 4; on replica 1 the rows 1, 3, 5
    ],
)
def test_output_modes(poptorch, mode, expected_rows, expected_sums):
    options = poptorch.Options().deviceIterations(3).replicationFactor(2).outputMode(poptorch.OutputMode[mode])
    outputs = poptorch.inferenceModel(Echo(), options)(torch.arange(6.0)[:, None])
    assert outputs["rows"].tolist() == expected_rows
    assert outputs["sum"].tolist() == expected_sums


def test_training_returns_the_last_micro_batch_by_default(poptorch):
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    x, y = rows(4)
    loss, predictions = poptorch.trainingModel(Regression(), options)(x, y)
    expected_loss, expected = Regression()(x[2:], y[2:])
    assert loss.dim() == 0
    torch.testing.assert_close((loss, predictions), (expected_loss.detach(), expected.detach()))


def test_identity_loss_marks_what_is_trained_on(poptorch):
    class Marked(Regression):
        def forward(self, x, y):
            _, predictions = super().forward(x, y)
            assert poptorch.isRunningOnIpu()
            return predictions.sum() * 100, poptorch.identity_loss((predictions - y) ** 2, "mean")

    executors = [poptorch.trainingModel(model()) for model in (Marked, Regression)]
    for executor in executors:
        executor(*rows(4))
    assert torch.equal(*(trained(executor) for executor in executors))
    with pytest.raises(poptorch.Error, match="the model returns no loss"):
        poptorch.trainingModel(torch.nn.Linear(2, 1))(rows(4)[0])
    model, other = Regression(), Regression()
    with pytest.raises(poptorch.Error, match="a parameter that is not the model's"):
        poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(other.parameters(), lr=1.0))
    assert type(model) is Regression


def test_other_shapes_than_the_compiled_are_refused(poptorch):
    executor = poptorch.trainingModel(Regression())
    executor.compile(*rows(4))
    assert executor.compiled_shapes == {"x": (4, 2), "y": (4,)}
    with pytest.raises(poptorch.Error, match=r"x: shape \(3, 2\) was given, but .* compiled for \(4, 2\)"):
        executor(*rows(3))
    options = poptorch.Options()
    options.Training.gradientAccumulation(3)
    with pytest.raises(poptorch.Error, match="x has 4 rows, expected a multiple of .* = 3"):
        poptorch.trainingModel(Regression(), options).compile(*rows(4))
    with pytest.raises(poptorch.Error, match="gradient accumulation is 3, expected the default 1 for inference"):
        poptorch.inferenceModel(Regression(), options)


# Two copies of the weights


def test_the_host_follows_when_somebody_looks(poptorch):
    model = Regression()
    weight = model.linear.weight  # held from before, so that nobody asks the model
    executor = poptorch.trainingModel(model)
    executor(*rows(4))
    assert weight.tolist() == [[1.0, -2.0]]
    assert type(model).__name__ == "PoptorchRegression"
    assert model.state_dict()["linear.weight"].tolist() == weight.tolist() != [[1.0, -2.0]]
    assert type(copy.deepcopy(model)) is Regression
    executor.destroy()
    assert type(model) is Regression
    assert poptorch.hardware.free == 64


def test_weights_loaded_on_the_host_survive_a_detach(poptorch):
    model = Regression()
    executor = poptorch.trainingModel(model)
    executor(*rows(4))
    model.load_state_dict({"linear.weight": torch.tensor([[5.0, 6.0]])})
    executor.detachFromDevice()
    assert trained(executor).tolist() == [[5.0, 6.0]]
    with pytest.raises(poptorch.Error, match="not attached"):
        executor.detachFromDevice()
    executor.attachToDevice()  # uploads them
    _, predictions = executor(torch.ones(4, 2), torch.zeros(4))
    assert predictions.tolist() == [11.0] * 4
    executor.load_state_dict({"linear.weight": torch.tensor([[1.0, 1.0]])})  # while attached: uploaded at once
    assert executor(torch.ones(4, 2), torch.zeros(4))[1].tolist() == [2.0] * 4


def test_inference_beside_training_sees_the_trained_weights(poptorch):
    model = Regression()
    trainer, scorer = poptorch.trainingModel(model), poptorch.inferenceModel(model)
    x, y = rows(4)
    before = scorer(x, y)[1]
    trainer(x, y)
    after = scorer(x, y)[1]
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, (x @ trained(trainer).T)[:, 0])


def test_the_device_draws_its_own_random_numbers(poptorch):
    class Dropped(Regression):
        def forward(self, x, y):
            return super().forward(torch.nn.functional.dropout(x, 0.5, self.training), y)

    def two_calls():
        model = Dropped()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        executor = poptorch.trainingModel(model, poptorch.Options().randomSeed(3), optimizer)
        return [executor(torch.ones(32, 2), torch.zeros(32))[1].tolist() for _ in range(2)]

    first, second = two_calls()
    state = torch.get_rng_state()
    compiled = poptorch.trainingModel(copy.deepcopy(poptorch.executors[0].model))
    compiled(*rows(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second
    assert two_calls() == [first, second]


def test_learning_rates_are_those_of_the_last_set_optimizer(poptorch):
    model = Regression()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    optimizer.param_groups[0]["lr"] = 0.5
    executor(*rows(4))
    executor.setOptimizer(optimizer)
    executor(*rows(4))
    assert [call["learning_rates"] for call in executor.calls] == [[[0.1]], [[0.5]]]


# Half precision


def half_executor(poptorch, weights, state=None):
    model, options = Regression(weights).half(), poptorch.Options().randomSeed(7)
    options.Precision.enableStochasticRounding(True)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=1e-3, bias_correction=False)
    executor = poptorch.trainingModel(model, options, optimizer)
    if state is not None:
        optimizer.load_state_dict(state)
        executor.setOptimizer(optimizer)
    return executor, optimizer


def test_a_half_model_resumes_bit_for_bit(poptorch):
    undisturbed, _ = half_executor(poptorch, (1.0, -2.0))
    for step in range(4):
        loss, predictions = undisturbed(*rows(4, seed=step))
    assert (loss.dtype, predictions.dtype) == (torch.float32, torch.float16)
    assert trained(undisturbed).dtype is torch.float16

    first, optimizer = half_executor(poptorch, (1.0, -2.0))
    for step in range(2):
        first(*rows(4, seed=step))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["ipu_param"] == {"step": 2}
    second, _ = half_executor(poptorch, trained(first)[0].tolist(), state)
    for step in range(2, 4):
        second(*rows(4, seed=step))
    assert torch.equal(trained(second), trained(undisturbed))


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(poptorch):
    from poptorch.batching import round_to_half

    for value, low, high in ((1.0003, 1.0, 1.0009765625), (-3e-8, -(2.0**-24), 0.0)):
        rounded = round_to_half(torch.full((20000,), value), torch.Generator().manual_seed(0))
        assert set(rounded.tolist()) == {low, high}
        assert abs(rounded.mean().item() - value) < 0.02 * (high - low)
    exact = torch.tensor([0.0, 1.5, -65504.0, 2.0**-24, float("inf")])
    assert torch.equal(round_to_half(exact, torch.Generator()), exact)


# Options and processes


def test_unknown_options_are_refused(poptorch):
    options = poptorch.Options()
    with pytest.raises(AttributeError):
        options.replicas = 4
    with pytest.raises(AttributeError):
        options.Training.gradientAccumulations(4)


def test_popdist_tells_each_process_its_place(poptorch, monkeypatch):
    import popdist
    import popdist.poptorch

    assert not popdist.isPopdistEnvSet()
    monkeypatch.setenv("DOUBLE_POPDIST_INSTANCE", "1")
    monkeypatch.setenv("DOUBLE_POPDIST_INSTANCES", "2")
    monkeypatch.setenv("DOUBLE_POPDIST_REPLICAS", "3")
    options = popdist.poptorch.Options(ipus_per_replica=4)
    assert (options.replication_factor, popdist.getNumTotalReplicas()) == (3, 6)
    batches = list(poptorch.DataLoader(options, range(17)))  # two shares of two combined batches of 3
    assert [batch.tolist() for batch in batches] == [[6, 7, 8], [9, 10, 11]]
    sampler = torch.utils.data.SequentialSampler(range(17))  # what IPUTrainer passes
    with pytest.raises(poptorch.Error, match="the sampler counts on the whole"):
        list(poptorch.DataLoader(options, range(17), sampler=sampler))


# The loader


def test_the_loader_makes_combined_batches_and_drops_a_partial_one(poptorch):
    options = poptorch.Options().replicationFactor(2).deviceIterations(2)
    options.Training.gradientAccumulation(3)
    for number, batches in ((23, 0), (24, 1), (25, 1), (48, 2)):
        loader = poptorch.DataLoader(options, range(number), batch_size=2)
        assert [len(batch) for batch in loader] == [24] * batches
        assert len(loader) == batches


def test_asynchronous_loaders_need_what_pickles(poptorch):
    options, modes = poptorch.Options(), poptorch.DataLoaderMode
    with pytest.raises(poptorch.Error, match="collate_fn must pickle"):
        poptorch.DataLoader(options, range(4), mode=modes.Async, collate_fn=lambda rows: torch.tensor(rows))
    assert len(poptorch.DataLoader(options, range(4), mode=modes.Async)) == 4
    with pytest.raises(poptorch.Error, match="at least 2 workers, found num_workers=1"):
        poptorch.DataLoader(options, range(4), mode=modes.AsyncRebatched, num_workers=1)
