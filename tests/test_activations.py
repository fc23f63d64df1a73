from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import assert_same, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.data.split import Batch
from dynamics.errors import DynamicsError
from dynamics.nets import Residual
from dynamics.probes.activations import histograms, moments, outputs
from dynamics.probes.base import log_spaced
from dynamics.runs.drift import drift
from dynamics.training import flatten

SPLIT = toy_split()
X = SPLIT[:24].padded().permute(0, 3, 1, 2).contiguous()
BLOCKS = ["prep", "layer1", "layer1.residual.res1", "layer1.residual.res2", "layer2", "layer3", "layer3.residual.res1",
          "layer3.residual.res2"]  # fmt: skip
LAYERS = [*(f"{b}.{part}" for b in BLOCKS for part in ("conv", "norm")), "linear"]


def trained(step: int = 3, **changes) -> dyn.Snapshot:
    for snap in dyn.steps(toy_recipe(**changes), SPLIT):
        if snap.step == step:
            return snap
    raise AssertionError(step)


def snapshot_of(net: nn.Module) -> dyn.Snapshot:
    params = {k: p.detach() for k, p in net.named_parameters()}
    return dyn.Snapshot(dyn.State(0, params, dict(net.named_buffers())), net, {}, None, math.nan)


def forward64(snap: dyn.Snapshot, x: torch.Tensor, statistics: str = "batch") -> dict[str, np.ndarray]:
    """The outputs of every leaf of a net of ours, in float64, with norms written out in numpy."""
    net = copy.deepcopy(snap.net).double()
    net.load_state_dict({k: t.double() for k, t in {**snap.params, **snap.buffers}.items()})
    seen: dict[str, np.ndarray] = {}

    def walk(module: nn.Module, path: str, x: torch.Tensor) -> torch.Tensor:
        if isinstance(module, nn.Sequential):
            y = x
            for name, child in module.named_children():
                y = walk(child, f"{path}.{name}".lstrip("."), y)
            return x + y if isinstance(module, Residual) else y
        if hasattr(module, "running_var"):
            y, values = np.empty(x.shape), x.numpy()
            for c in range(x.shape[1]):
                mean, variance = values[:, c].mean(), values[:, c].var()
                if statistics == "running":
                    mean, variance = module.running_mean[c].item(), module.running_var[c].item()
                scale = module.weight[c].item() / math.sqrt(variance + module.eps)
                y[:, c] = scale * (values[:, c] - mean) + module.bias[c].item()
            y = torch.from_numpy(y)
        else:
            y = module(x)
        seen[path] = y.numpy()
        return y

    with torch.no_grad():
        walk(net, "", x.double())
    return seen


def channels(array: np.ndarray, axis: int = 1) -> list[np.ndarray]:
    return [np.take(array, c, axis).ravel() for c in range(array.shape[axis])]


def slow_moments(values: np.ndarray) -> tuple[float, float, float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    third = math.fsum((v - mean) ** 3 for v in values) / len(values)
    return mean, variance, third / variance**1.5 if variance else math.nan


def read(reading, name: str) -> np.ndarray:
    return reading[name][1].numpy()


def random_state() -> torch.Tensor:
    return torch.get_rng_state()


# nets for Net("test_activations:...")


class Attention(nn.Module):
    """A small Transformer encoder over rows of pixels: outputs [B, T, C]."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x.permute(0, 2, 3, 1).flatten(2))
        return self.head(self.encoder(tokens).mean(1))


def grouped(classes: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.GroupNorm(2, 4), nn.ReLU(inplace=True),
        nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes),
    )  # fmt: skip


def counting(classes: int = 4) -> nn.Module:
    """torch's own batch norm, which counts batches in an integer buffer, under an in-place activation."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, classes),
    )  # fmt: skip


class Twice(nn.Module):
    """One layer that runs twice, one that never does, one with several outputs, and one with none."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.idle, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.size = Size()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.size(x)
        return self.last(self.lstm(self.shared(self.shared(x)))[0])


class Size(nn.Module):
    def forward(self, x: torch.Tensor) -> int:
        return len(x)


# --- what is measured


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_moments_twin(statistics, channels_last):
    snap = trained(channels_last=channels_last)
    reading = moments(X, statistics=statistics)(snap)
    twin = forward64(snap, X, statistics)
    expected = [(layer, i, *slow_moments(v)) for layer in LAYERS for i, v in enumerate(channels(twin[layer]))]
    assert reading["channel_layer"] == (("channel",), [row[0] for row in expected])
    assert reading["channel_index"] == (("channel",), [row[1] for row in expected])
    mean, variance, skew = np.array([row[2:] for row in expected]).T
    assert (abs(read(reading, "mean") - mean) / np.sqrt(variance)).max() < 5e-6
    np.testing.assert_allclose(read(reading, "variance"), variance, rtol=1e-5)
    np.testing.assert_allclose(read(reading, "skew"), skew, atol=2e-5)
    assert reading["mean"][1].dtype == torch.float32 and reading["mean"][2]["statistics"] == statistics


def test_moments_of_a_float64_run_are_float64():
    snap = trained(precision="float64")
    reading, twin = moments(X)(snap), forward64(snap, X)
    expected = np.array([slow_moments(v) for layer in LAYERS for v in channels(twin[layer])])
    for i, name in enumerate(("mean", "variance", "skew")):
        assert reading[name][1].dtype == torch.float64
        np.testing.assert_allclose(read(reading, name), expected[:, i], rtol=1e-9, atol=1e-12)


def test_a_bf16_recipe_is_measured_in_float32():
    snap = trained(precision="bf16")
    reading, twin = moments(X)(snap), forward64(snap, X)
    expected = [slow_moments(v)[1] for layer in LAYERS for v in channels(twin[layer])]
    np.testing.assert_allclose(read(reading, "variance"), expected, rtol=1e-5)


def test_batch_statistics_are_those_that_batch_norm_divides_by():
    """After the norm the mean is its bias and the sd its scale, up to eps; before it they are what a norm with
    momentum 1 keeps."""
    snap = trained(net=dyn.Net("resnet9", width=2, eps=1e-12))
    reading = moments(X)(snap)
    layer, mean, variance = np.array(reading["channel_layer"][1]), read(reading, "mean"), read(reading, "variance")
    for block in BLOCKS:
        scale, bias = (snap.params[f"{block}.norm.{k}"].numpy() for k in ("weight", "bias"))
        after = layer == f"{block}.norm"
        np.testing.assert_allclose(mean[after], bias, atol=1e-6)
        np.testing.assert_allclose(np.sqrt(variance[after]), abs(scale), rtol=1e-5)
        kept = nn.BatchNorm2d(len(bias), momentum=1.0)
        kept(outputs(snap, X, [f"{block}.conv"])[f"{block}.conv"])
        n = outputs(snap, X, [f"{block}.conv"])[f"{block}.conv"][:, 0].numel()
        before = layer == f"{block}.conv"
        np.testing.assert_allclose(mean[before], kept.running_mean.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[before] * n / (n - 1), kept.running_var.numpy(), rtol=1e-5)


def test_running_statistics_are_those_of_the_snapshot():
    """The net's own buffers have moved already: the forward pass of this step came before the snapshot."""
    snap = trained()
    assert not torch.equal(snap.buffers["prep.norm.running_mean"], snap.net.get_buffer("prep.norm.running_mean"))
    evaluated = copy.deepcopy(snap.net).eval()
    evaluated.load_state_dict({**snap.params, **snap.buffers})
    with torch.no_grad():
        expected = evaluated(X)
    torch.testing.assert_close(outputs(snap, X, ["logits"], statistics="running")["logits"], expected)


def test_the_weights_are_those_of_the_snapshot():
    """A watched net has taken its step already when it is measured."""
    torch.manual_seed(0)
    net = counting()
    params = {k: p.detach().clone() for k, p in net.named_parameters()}
    snap = dyn.Snapshot(dyn.State(0, params, {}), net, {}, None, math.nan)
    before = moments(X)(snap)["mean"][1]
    with torch.no_grad():
        net[0].weight.mul_(2)
        net[0].bias.zero_()
    assert torch.equal(moments(X)(snap)["mean"][1], before)
    assert int(net[1].num_batches_tracked) == 0


def test_a_channels_last_run_is_measured_to_float32_accuracy():
    """In channels_last itself float32 batch norm on a CPU is off by 3e-5 here."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)).to(memory_format=torch.channels_last)
    x = (torch.randn(512, 3, 32, 32) + 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
    measured = outputs(snapshot_of(net), x, ["1"])["1"]
    assert float((measured - exact).abs().max()) < 5e-6
    variance = torch.var_mean(exact, dim=(0, 2, 3), correction=0)[0]
    got = moments(x, ["1"])(snapshot_of(net))["variance"][1]
    assert float((got / variance - 1).abs().max()) < 2e-6


@pytest.mark.parametrize("standardise", [False, True])
def test_histograms_twin(standardise):
    snap = trained()
    bins, low, high = 17, -1.1, 1.3
    reading = histograms(X, LAYERS, bins=bins, low=low, high=high, standardise=standardise)(snap)
    edges = np.linspace(low, high, bins + 1)
    np.testing.assert_allclose(reading["edge"], edges, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(reading["bin"], (edges[1:] + edges[:-1]) / 2, rtol=1e-12, atol=1e-12)
    counts = np.column_stack([read(reading, "below"), read(reading, "count"), read(reading, "above")])
    twin = forward64(snap, X)
    values = [v for layer in LAYERS for v in channels(twin[layer])]
    assert counts.shape == (len(values), bins + 2)
    for got, v in zip(counts, values, strict=True):
        v = (v - v.mean()) / v.std() if standardise else v
        assert got.sum() == len(v)
        # values within rounding of an edge may stand on either side of it
        for k, edge in enumerate(edges):
            assert (v < edge - 1e-4).sum() <= got[: k + 1].sum() <= (v < edge + 1e-4).sum()
    if not standardise:  # and of the very same float32 values, numpy's
        same = np.concatenate([channels(o.numpy()) for o in outputs(snap, X, LAYERS[:3]).values()], dtype=object)
        for got, v in zip(read(reading, "count"), same, strict=False):
            assert abs(got - np.histogram(v.astype(float), edges)[0]).sum() <= 2


def test_histograms_of_known_values():
    """Bins are half-open, zero is on an edge, constant channels stand at 0 if standardised, and nan is nowhere."""
    net = nn.Sequential(nn.Identity())
    columns = [[-4.0, 0.0, 0.0, 3.99, 4.0, math.inf], [math.nan, -4.01, -math.inf, 1.0, 1.0, 1.0], [7.0] * 6]
    x = torch.tensor(columns).T.contiguous()
    reading = histograms(x, ["0"], bins=8)(snapshot_of(net))
    assert read(reading, "count").tolist() == [[1, 0, 0, 0, 2, 0, 0, 1], [0, 0, 0, 0, 0, 3, 0, 0], [0] * 8]
    assert read(reading, "below").tolist() == [0, 2, 0] and read(reading, "above").tolist() == [2, 0, 6]
    assert reading["edge"] == [-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0] and reading["bin"][0] == -3.5
    reading = histograms(x[:, 2:], ["0"], bins=8, standardise=True)(snapshot_of(net))
    assert read(reading, "count").tolist() == [[0, 0, 0, 0, 6, 0, 0, 0]]


@pytest.mark.parametrize(("shift", "size"), [(0.0, 1.0), (1e4, 1.0), (-3.0, 1e-18), (0.0, 1e15)])
def test_moments_are_accurate_far_from_zero_and_at_any_scale(shift, size):
    draw = np.random.RandomState(0)
    values = ((draw.gamma(2.0, size=(4000, 3)) + shift) * size).astype(np.float32)
    reading = moments(torch.from_numpy(values), ["0"])(snapshot_of(nn.Sequential(nn.Identity())))
    mean, variance, skew = np.array([slow_moments(v) for v in values.T.astype(float)]).T
    np.testing.assert_allclose(read(reading, "mean"), mean, rtol=3e-7)
    if size > 1e-18:  # whose square is no number of float32's full precision
        np.testing.assert_allclose(read(reading, "variance"), variance, rtol=1e-6)
        np.testing.assert_allclose(read(reading, "skew"), skew, rtol=1e-5)


def test_a_constant_channel_has_no_skew():
    x = torch.tensor([[1.0, 2.5], [3.0, 2.5]])
    reading = moments(x, ["0"])(snapshot_of(nn.Sequential(nn.Identity())))
    assert read(reading, "variance").tolist() == [1.0, 0.0]
    assert read(reading, "skew")[0] == 0.0 and math.isnan(read(reading, "skew")[1])


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Linear(5, 7), (6, 5), 1),
        (nn.Linear(5, 7), (6, 4, 5), 2),
        (nn.Linear(5, 7), (6, 3, 4, 5), 3),
        (nn.LayerNorm(5), (6, 4, 5), 2),
        (nn.LayerNorm(5), (6, 3, 4, 5), 3),
        (nn.LayerNorm([3, 4, 5]), (6, 3, 4, 5), 1),
        (nn.RMSNorm(5), (6, 4, 5), 2),
        (nn.Conv1d(5, 7, 1), (6, 5, 4), 1),
        (nn.BatchNorm1d(5), (6, 5, 4), 1),
        (nn.BatchNorm1d(5), (6, 5), 1),
        (nn.BatchNorm1d(5, track_running_stats=False), (6, 5, 4), 1),
        (nn.GroupNorm(1, 5), (6, 5, 4), 1),
        (nn.InstanceNorm2d(5), (6, 5, 4, 3), 1),
        (nn.Conv2d(5, 7, 1), (6, 5, 4, 3), 1),
        (nn.ConvTranspose2d(5, 7, 1), (6, 5, 4, 3), 1),
        (nn.Conv3d(5, 7, 1), (6, 5, 4, 3, 2), 1),
        (nn.ReLU(), (6, 4, 5), 2),
        (nn.ReLU(), (6, 5, 4, 3), 1),
    ],
)
def test_which_axis_is_the_channels(module, shape, axis):
    torch.manual_seed(1)
    x = torch.randn(shape)
    with torch.no_grad():
        values = channels(copy.deepcopy(module)(x).double().numpy(), axis)
    given = ["0"] if isinstance(module, nn.ReLU) else None
    reading = moments(x, given)(snapshot_of(nn.Sequential(module)))
    expected = np.array([slow_moments(v) for v in values])
    np.testing.assert_allclose(read(reading, "mean"), expected[:, 0], atol=1e-6)
    np.testing.assert_allclose(read(reading, "variance"), expected[:, 1], rtol=1e-5, atol=1e-10)


def test_a_transformer_by_default():
    """Its attention's out_proj is a linear layer that never runs as a module, and is left out."""
    snap = snapshot_of(Attention())
    for statistics in ("batch", "running"):
        reading = moments(X, statistics=statistics)(snap)
        names = list(dict.fromkeys(reading["channel_layer"][1]))
        parts = ("linear1", "linear2", "norm1", "norm2")
        assert names == ["embed", *(f"encoder.layers.{i}.{p}" for i in (0, 1) for p in parts), "head"]
        assert len(read(reading, "mean")) == 8 + 2 * (16 + 8 + 8 + 8) + 4
        assert np.isfinite(read(reading, "skew")).all()


def test_a_bfloat16_net_has_float32_moments():
    net = nn.Sequential(nn.Linear(4, 3)).bfloat16()
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = net(x.bfloat16()).double().numpy()
    reading = moments(x)(snapshot_of(net))
    assert reading["mean"][1].dtype == torch.float32
    np.testing.assert_allclose(read(reading, "mean"), [slow_moments(v)[0] for v in values.T], rtol=1e-5, atol=1e-6)


def test_tokens_pass_as_they_are():
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    reading = moments(torch.arange(9).view(3, 3))(snapshot_of(net))
    assert reading["channel_layer"][1] == ["1"] * 3


def test_in_place_activations_do_not_change_what_was_taken():
    torch.manual_seed(0)
    snap = snapshot_of(counting())
    with torch.no_grad():
        normed = copy.deepcopy(snap.net)[:2](X)
    assert float(normed.min()) < 0
    torch.testing.assert_close(outputs(snap, X, ["1"])["1"], normed)
    assert read(histograms(X, ["1"], low=0.0, high=9.0)(snap), "below").sum() == int((normed < 0).sum())


def test_the_first_of_several_outputs_is_taken():
    torch.manual_seed(0)
    net = Twice()
    x = torch.randn(5, 3, 6)
    with torch.no_grad():
        expected = net.lstm(net.shared(net.shared(x)))[0]
    found = outputs(snapshot_of(net), x, ["last", "lstm"])
    assert list(found) == ["last", "lstm"]
    torch.testing.assert_close(found["lstm"], expected)
    # by default: those that run once
    assert set(moments(x)(snapshot_of(net))["channel_layer"][1]) == {"last"}


def test_a_split_is_taken_as_training_normalises_it():
    snap = trained()
    for x in (SPLIT[:24], X, Batch(X, SPLIT.labels[:24]), X.to(memory_format=torch.channels_last)):
        assert_same({"mean": moments(X)(snap)["mean"][1]}, {"mean": moments(x)(snap)["mean"][1]})


def test_the_fixed_batch_stays_fixed():
    x, snap = X.clone(), trained()
    measure = moments(x)
    before = measure(snap)["mean"][1]
    x.zero_()
    assert torch.equal(measure(snap)["mean"][1], before)


# --- nothing is disturbed


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "net", ["resnet9", "helpers:dropout_net", *(f"test_activations:{n}" for n in ("Attention", "grouped", "counting"))]
)
def test_a_probed_run_ends_bit_identical_to_a_bare_one(net, precision):
    made = dyn.Net(net, width=2) if net == "resnet9" else dyn.Net(net)
    recipe = toy_recipe(net=made, precision=precision, optimizer=dyn.SGD(0.02, momentum=0.9))
    probes = {
        "moments": dyn.every(2, moments(X)),
        "evaluated": dyn.every(3, moments(X, statistics="running")),
        "histograms": dyn.at(log_spaced(6, 3), histograms(SPLIT[:10], standardise=True)),
    }
    torch.manual_seed(5)
    before = random_state()
    probed = dyn.train(recipe, SPLIT, probes=probes, progress=False)
    assert torch.equal(random_state(), before)
    bare = dyn.train(recipe, SPLIT, progress=False)
    assert_same(probed.state.params, bare.state.params)
    assert_same(probed.state.buffers, bare.state.buffers)
    assert_same(flatten(probed.state.opt), flatten(bare.state.opt))
    assert np.array_equal(probed["train"].loss, bare["train"].loss)
    # weights alone are read, so the last state is read too
    assert probed["moments"].step.values.tolist() == [0, 2, 4, 6]
    assert probed["histograms"]["count"].dims == ("step", "channel", "bin")
    assert np.isfinite(probed["moments"]["mean"]).all()


class Breaks(nn.Module):
    """Draws, writes to its buffer, and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inner(x)
        raise RuntimeError("out of luck\nand more")


def written(net: nn.Module) -> tuple[list[int], list[bool], dict[str, torch.Tensor]]:
    """Counts of writes to its tensors, its modes, and copies of its tensors."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    copies = {k: t.detach().clone() for k, t in tensors.items()}
    return [t._version for t in tensors.values()], [m.training for m in net.modules()], copies


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("fails", [False, True])
def test_state_modes_hooks_and_randomness_are_put_back(statistics, fails):
    net = Breaks().train()
    net.inner[1].eval()
    if not fails:
        net = net.inner
    snap, x = snapshot_of(net), torch.randn(6, 3)
    before, generator = written(net), random_state()
    if fails:
        with pytest.raises(DynamicsError, match=r"float32 \[6, 3\] \(out of luck\): give the probe a batch"):
            moments(x, statistics=statistics)(snap)
    else:
        moments(x, statistics=statistics)(snap)
    after = written(net)
    assert before[:2] == after[:2]
    assert_same(before[2], after[2])
    assert torch.equal(random_state(), generator)
    assert not any(m._forward_hooks for m in net.modules())
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_a_norm_that_training_keeps_in_eval_mode_is_measured_in_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    net[1].eval()
    x = torch.randn(6, 3) + 2
    found = outputs(snapshot_of(net), x, ["0", "1", "2"])
    torch.testing.assert_close(found["1"], found["0"] / math.sqrt(1 + 1e-5))
    assert float(found["2"].mean(0).abs().max()) < 1e-6
    # a net that is in eval mode as a whole was left there by an evaluation
    net.eval()
    assert float(outputs(snapshot_of(net), x, ["1"])["1"].mean(0).abs().max()) < 1e-6


def test_dropout_draws_the_same_masks_at_every_reading():
    snap = snapshot_of(nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3)))
    x = torch.ones(20, 3)
    taken = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        taken.append(outputs(snap, x, ["0"])["0"])
    assert torch.equal(*taken) and 0 < int((taken[0] == 0).sum()) < 60


def test_autocast_around_a_probe_does_not_reach_it():
    snap = snapshot_of(nn.Sequential(nn.Linear(3, 3)))
    x = torch.randn(20, 3)
    expected = moments(x)(snap)["mean"][1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(moments(x)(snap)["mean"][1], expected)


class Pair(nn.Module):
    """Compiled through its own forward, which a Sequential has none of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu())


def test_compiled_modules_are_read_and_not_compiled_anew():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch.manual_seed(0)
    net, x = Pair(), torch.randn(7, 3)
    expected = moments(x)(snapshot_of(net))["mean"][1]
    net.compile(backend=backend)
    net(x)
    assert len(compilations) == 1
    assert torch.equal(moments(x)(snapshot_of(net))["mean"][1], expected)
    net(x)
    assert len(compilations) == 1


# --- drift


def slow_drift(data: xr.Dataset, now: int, then: int, c: int) -> tuple[float, float, float]:
    def at(name: str, i: int) -> float:
        return float(data[name].values[i, c])

    sd = math.sqrt(at("variance", then))
    return (
        (at("mean", now) - at("mean", then)) / sd,
        0.5 * math.log(at("variance", now) / at("variance", then)),
        at("skew", now) - at("skew", then),
    )


@pytest.fixture(scope="module")
def run() -> dyn.Run:
    probes = {"moments": dyn.at(log_spaced(6, 4), moments(X))}
    return dyn.train(toy_recipe(), SPLIT, probes=probes, progress=False)


@pytest.mark.parametrize("since", ["first", "previous"])
def test_drift_twin(run, since):
    data = run["moments"]
    found = drift(data, since=since)
    steps = data.step.values.tolist()
    assert found["mean"].dims == ("step", "channel") and found.attrs == {"since": since, "statistics": "batch"}
    assert found.channel_layer.values.tolist() == data.channel_layer.values.tolist()
    assert found.step.values.tolist() == (steps if since == "first" else steps[1:])
    for row, step in enumerate(found.step.values.tolist()):
        i = steps.index(step)
        then = 0 if since == "first" else i - 1
        for c in range(data.sizes["channel"]):
            expected = slow_drift(data, i, then, c)
            got = [float(found[k].values[row, c]) for k in ("mean", "log_sd", "skew")]
            assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)
            if since == "previous":
                per_step = [float(found[f"{k}_per_step"].values[row, c]) for k in ("mean", "log_sd", "skew")]
                assert per_step == pytest.approx([e / (step - steps[then]) for e in expected], rel=1e-12, abs=1e-12)
    if since == "previous":
        assert found.interval.values.tolist() == np.diff(steps).tolist()
    else:
        assert not found["mean"].values[0].any() and abs(found["mean"].values[1:]).max() > 0.01


def test_drift_of_a_known_change():
    """Outputs scaled by -3 and shifted by half an old standard deviation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5))
    x = torch.randn(40, 3).double()
    net.double()
    measure = moments(x)

    def reading() -> dict[str, np.ndarray]:
        found = measure(snapshot_of(net))
        return {k: found[k][1].numpy() for k in ("mean", "variance", "skew")}

    before = reading()
    with torch.no_grad():
        net[0].weight.mul_(-3)
        net[0].bias.mul_(-3).add_(0.5 * torch.from_numpy(before["variance"]).sqrt())
    after = reading()
    found = drift(dataset({k: np.stack([before[k], after[k]]) for k in before}, steps=(10, 14)))
    sd = np.sqrt(before["variance"])
    np.testing.assert_allclose(found["mean"][1], 0.5 - 4 * before["mean"] / sd, rtol=1e-10)
    np.testing.assert_allclose(found["log_sd"][1], math.log(3), rtol=1e-10)
    np.testing.assert_allclose(found["skew"][1], -2 * before["skew"], rtol=1e-8)


def dataset(values: dict[str, np.ndarray], steps: tuple[int, ...]) -> xr.Dataset:
    n = values["mean"].shape[1]
    coords = {
        "step": list(steps),
        "channel_layer": ("channel", ["a"] * n),
        "channel_index": ("channel", list(range(n))),
    }
    return xr.Dataset({k: (("step", "channel"), v) for k, v in values.items()}, coords)


def test_weights_that_do_not_move_do_not_drift():
    """Running statistics move without them, and with them what eval mode puts out."""
    measures = {k: moments(X, statistics=k) for k in ("batch", "running")}
    probes = {k: dyn.every(2, m) for k, m in measures.items()}
    still = dyn.train(toy_recipe(optimizer=dyn.SGD(0.0)), SPLIT, probes=probes, progress=False)
    found = drift(still["batch"])
    assert all(not found[k].values.any() for k in ("mean", "log_sd", "skew"))
    found = drift(still["running"])
    assert abs(found["mean"].sel(channel=found.channel_layer == "linear")).max() > 0.1
    assert not found["mean"].sel(channel=found.channel_layer == "prep.conv").values.any()


def test_dead_channels_are_nan():
    """Channel 0 lives; 1 is constant; 2 has only rounding beside its mean, 3 beside its layer; 4 dies; 5 is born."""
    mean = np.array([[0.0, 1.0, 1e3, 0.0, 0.0, 0.0], [1.0, 2.0, 1e3, 1.0, 1.0, 1.0]])
    sd = np.array([[2.0, 0.0, 1e-4, 1e-7, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0, 2.0]])
    data = dataset({"mean": mean, "variance": sd**2, "skew": np.where(sd > 0, 0.25 * mean, np.nan)}, steps=(0, 5))
    for since in ("first", "previous"):
        found = drift(data, since=since).isel(step=-1)
        nan = math.nan
        np.testing.assert_allclose(found["mean"], [0.5, nan, nan, nan, 0.5, nan])
        np.testing.assert_allclose(found["log_sd"], [-math.log(2), nan, nan, nan, nan, nan])
        np.testing.assert_allclose(found["skew"], [0.25, nan, nan, nan, nan, nan])


# --- when


def test_log_spaced():
    assert log_spaced(1000, 4) == [0, 1, 10, 100, 1000]
    assert log_spaced(6, 50) == [0, 1, 2, 3, 4, 5, 6]
    assert log_spaced(640, 7, first=10) == [0, 10, 20, 40, 80, 160, 320, 640]
    for last in (2, 17, 1000, 123_457, 10**9):
        steps = log_spaced(last)
        assert steps == sorted(set(steps)) and steps[:2] == [0, 1] and steps[-1] == last and len(steps) <= 21
    assert [s for s in range(50) if dyn.at(log_spaced(40, 3, first=10), dyn.angles).due(s)] == [0, 10, 20, 40]


@pytest.mark.parametrize(
    "make",
    [lambda: log_spaced(0), lambda: log_spaced(10, 1), lambda: log_spaced(10, first=10), lambda: log_spaced(1e3)],
)
def test_log_spaced_refuses(make):
    with pytest.raises(DynamicsError, match=r"log_spaced\(\) takes whole numbers 1 <= first < last"):
        make()


# --- bad input


def elsewhere():
    return moments(torch.zeros(4, 3, device="meta"))(snapshot_of(nn.Sequential(nn.Linear(3, 2))))


SHAPED = snapshot_of(Twice())
TOKENS = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: moments(np.zeros((2, 3))), "activations are read on a fixed batch, got ndarray: pass a tensor or a"),
        (lambda: moments(SHAPED), "activations are read on a fixed batch, got Snapshot"),
        (
            lambda: moments(SPLIT.images),
            "the fixed batch is torch.uint8: normalise it as for training, or pass a Split",
        ),
        (lambda: moments(torch.zeros(0, 3)), "the fixed batch has shape [0, 3]: give it at least one example"),
        (lambda: moments(X, statistics="runing"), "unknown statistics 'runing': did you mean 'running'"),
        (lambda: outputs(SHAPED, TOKENS, ["last"], statistics="eval"), "unknown statistics 'eval'"),
        (lambda: moments(X, []), "layers are module paths, got []"),
        (lambda: moments(X, 3), "layers are module paths, got 3"),
        (lambda: histograms(X, bins=0), "bins must be a whole number of at least 1, got 0"),
        (lambda: histograms(X, low=2, high=2), "a histogram runs from low to high, got 2 to 2"),
        (lambda: histograms(X, high=math.inf), "a histogram runs from low to high, got -4 to inf"),
        (lambda: histograms(X, statistics="x"), "unknown statistics 'x'"),
        (lambda: moments(TOKENS, ["lats"])(SHAPED), "unknown layer 'lats': did you mean 'last'"),
        (lambda: moments(TOKENS, "idle")(SHAPED), "the layer 'idle' does not run when the net sees the batch"),
        (lambda: moments(TOKENS, ["last", "shared"])(SHAPED), "the layer 'shared' runs more than once"),
        (lambda: moments(TOKENS, ["size"])(SHAPED), "the layer 'size' puts out no tensor, without channels"),
        (lambda: moments(torch.randn(5, 4))(SHAPED), "the net cannot take the fixed batch float32 [5, 4] ("),
        (
            lambda: moments(TOKENS)(snapshot_of(nn.Sequential(nn.ReLU()))),
            "no convolution, linear layer or norm of",
        ),
        (lambda: moments(torch.ones(3))(snapshot_of(nn.Linear(3, 2))), "puts out a tensor of shape [2], without chan"),
        (lambda: moments(torch.ones(1, 3))(snapshot_of(nn.BatchNorm1d(3))), "(Expected more than 1 value per channel"),
        (elsewhere, "the fixed batch is on meta and the weights are on cpu: pass x.to('cpu')"),
        (lambda: drift({"mean": 1}), "drift takes readings of the probe moments"),
        (lambda: drift(xr.Dataset({"mean": 1.0})), "drift takes readings of the probe moments"),
        (lambda: drift(dataset({k: np.ones((1, 2)) for k in ("mean", "variance", "skew")}, (0,))), "fewer than two"),
    ],
)
def test_errors(make, message):
    with pytest.raises(DynamicsError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_drift_knows_its_references(run):
    with pytest.raises(DynamicsError, match="unknown reference 'last': choose one of first, previous"):
        drift(run["moments"], since="last")


def test_a_whole_training_set_is_too_large_a_batch():
    images, labels = np.zeros((4097, 2, 2, 3), np.uint8), np.zeros(4097, int)
    split = dyn.Split.from_arrays(images, labels, classes=("a", "b"))
    with pytest.raises(DynamicsError, match=r"a fixed batch of 4097 images is too large .* pass split\[:512\]"):
        moments(split)


def test_a_run_with_these_probes_is_resumed_by_passing_them_again():
    measure = moments(X)
    with pytest.raises(DynamicsError, match="not one of the package's"):
        dyn.probes.base.probe_from_json("moments", dyn.every(2, measure).to_json())
