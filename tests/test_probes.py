from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import first, k_step_angle, last, toy_recipe, toy_split

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.probes.base import probe_from_json
from dynamics.probes.weights import layer_names

SPLIT = toy_split()
GROUPS = (dyn.Group("*.bias", 64.0, 0.0), dyn.Group("linear.*", 0.5))
CONVS = ["prep", "layer1", "layer1.residual.res1", "layer1.residual.res2", "layer2", "layer3", "layer3.residual.res1",
         "layer3.residual.res2"]  # fmt: skip
LAYERS = [*(f"{c}.conv" for c in CONVS), "linear"]


def snapshot(step: int = 4, **changes) -> dyn.Snapshot:
    given = {"optimizer": dyn.SGD(0.1, 0.9, nesterov=True, weight_decay=5e-3, groups=GROUPS), **changes}
    for snap in dyn.steps(toy_recipe(**given), SPLIT):
        if snap.step == step:
            return snap
    raise AssertionError(step)


def values(reading, name: str) -> np.ndarray:
    return reading[name][1].double().numpy()


def weights(snap: dyn.Snapshot) -> dict[str, tuple[np.ndarray, ...]]:
    """Layer name -> weight, gradient and update as float64 matrices [filter, rest]."""
    keys = {name: f"{name}.weight" for name in LAYERS}
    return {
        name: tuple(
            np.array([f.numpy().ravel() for f in tree[k].double().contiguous()])
            for tree in (snap.params, snap.grads, snap.updates)
        )
        for name, k in keys.items()
    }


def slow_angle(a: np.ndarray, b: np.ndarray) -> float:
    """The angle between two vectors by Kahan's formula, in float64."""
    a, b = a.ravel() / math.sqrt(sum(a.ravel() ** 2)), b.ravel() / math.sqrt(sum(b.ravel() ** 2))
    return 2 * math.atan2(math.sqrt(sum((a - b) ** 2)), math.sqrt(sum((a + b) ** 2)))


LAYOUTS = pytest.mark.parametrize("channels_last", [True, False])


@LAYOUTS
def test_weight_norms_twin(channels_last):
    snap = snapshot(channels_last=channels_last)
    reading = dyn.weight_norms(snap)
    assert reading["layer"] == LAYERS
    filters = [(name, f) for name, (w, _, _) in weights(snap).items() for f in w]
    assert reading["filter_layer"] == (("filter",), [name for name, _ in filters])
    channels = [i for w, _, _ in weights(snap).values() for i in range(len(w))]
    assert reading["filter_channel"] == (("filter",), channels)
    expected = [math.sqrt(sum(w.ravel() ** 2)) for w, _, _ in weights(snap).values()]
    np.testing.assert_allclose(values(reading, "norm"), expected, rtol=1e-6)
    np.testing.assert_allclose(values(reading, "filter_norm"), [math.sqrt(sum(f**2)) for _, f in filters], rtol=1e-6)


@LAYOUTS
def test_angles_twin(channels_last):
    snap = snapshot(channels_last=channels_last)
    reading, twin = dyn.angles(snap), weights(snap)
    assert reading["layer"] == LAYERS
    np.testing.assert_allclose(values(reading, "angle"), [slow_angle(w, w + u) for w, _, u in twin.values()], rtol=2e-6)
    per_filter = [(f, v) for w, _, u in twin.values() for f, v in zip(w, u, strict=True)]
    np.testing.assert_allclose(
        values(reading, "filter_angle"), [slow_angle(f, f + v) for f, v in per_filter], rtol=5e-6
    )
    relative = [np.linalg.norm(u) / np.linalg.norm(w) for w, _, u in twin.values()]
    np.testing.assert_allclose(values(reading, "relative_update"), relative, rtol=2e-6)
    relative = [np.linalg.norm(v) / np.linalg.norm(f) for f, v in per_filter]
    np.testing.assert_allclose(values(reading, "filter_relative_update"), relative, rtol=2e-6)


def turned(snap: dyn.Snapshot, update, dtype=torch.float32) -> dyn.Snapshot:
    """A snapshot with updates of one's own: update(name, w) for weights, zeros elsewhere."""
    params = {k: p.to(dtype) for k, p in snap.params.items()}
    updates = {k: update(k, p) if p.ndim >= 2 else torch.zeros_like(p) for k, p in params.items()}
    return replace(snap, state=replace(snap.state, params=params), updates=updates)


def orthogonal(w: torch.Tensor, angle: float) -> torch.Tensor:
    """An update that turns every filter by `angle` and keeps its direction of turning orthogonal to it."""
    v = torch.randn(w.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(w.numel())).flatten(1)
    f = w.double().flatten(1)
    v = v - f * ((v * f).sum(1) / f.square().sum(1))[:, None]
    v = v * (f.norm(dim=1) / v.norm(dim=1))[:, None] * math.tan(angle)
    return v.view(w.shape).to(w.dtype)


@pytest.mark.parametrize("angle", [1e-6, 1e-5, 1e-3, 0.3, 1.5])
def test_tiny_and_large_angles(angle):
    """Down to 1e-6 rad in float32, where the arc cosine of a float32 cosine reads zero."""
    snap = turned(snapshot(), lambda k, w: orthogonal(w, angle))
    reading = dyn.angles(snap)
    twin = weights(snap)
    assert slow_angle(*(twin["prep.conv"][0] + x for x in (0, twin["prep.conv"][2]))) == pytest.approx(angle, rel=1e-6)
    np.testing.assert_allclose(values(reading, "angle"), angle, rtol=2e-6)
    np.testing.assert_allclose(values(reading, "filter_angle"), angle, rtol=2e-6)


@pytest.mark.parametrize("factor", [-1e-3, -0.5, 0.25, 2.0])
def test_an_update_along_the_weight_turns_nothing(factor):
    reading = dyn.angles(turned(snapshot(), lambda k, w: factor * w))
    # a few roundings of the slope: 3e-10 rad for a decay step of 1e-3
    bound = 5e-7 * abs(factor) / (1 + factor)
    assert values(reading, "angle").max() <= bound and values(reading, "filter_angle").max() <= bound
    np.testing.assert_allclose(values(reading, "relative_update"), abs(factor), rtol=1e-6)


def test_no_update_is_no_angle():
    reading = dyn.angles(turned(snapshot(), lambda k, w: torch.zeros_like(w)))
    for name in ("angle", "filter_angle", "relative_update", "filter_relative_update"):
        assert not values(reading, name).any()


def test_an_update_that_turns_the_weight_round():
    reading = dyn.angles(turned(snapshot(), lambda k, w: -3 * w))
    np.testing.assert_allclose(values(reading, "angle"), math.pi, rtol=1e-6)


def test_decay_beside_a_turn():
    """Filters that shrink by different factors turn the layer's weight although none of them turns itself."""

    def shrink(key, w):
        return -w * torch.linspace(0, 0.5, len(w)).view(-1, *[1] * (w.ndim - 1))

    snap = turned(snapshot(), shrink)
    reading = dyn.angles(snap)
    expected = [slow_angle(w, w + u) for w, _, u in weights(snap).values()]
    np.testing.assert_allclose(values(reading, "angle"), expected, rtol=2e-6)
    assert values(reading, "filter_angle").max() < 5e-7 < 0.02 < min(expected)


def test_a_zero_filter_does_not_spoil_its_layer():
    """Zero initialisation and pruning make filters of exactly zero."""
    snap = snapshot()
    params = {k: p.clone() for k, p in snap.params.items()}
    params["layer1.conv.weight"][1] = 0
    updates = {k: u.clone() for k, u in snap.updates.items()}
    for still in (False, True):
        if still:
            updates["layer1.conv.weight"][1] = 0
        changed = replace(snap, state=replace(snap.state, params=params), updates=updates)
        w, g, u = weights(changed)["layer1.conv"]
        angles, gradients = dyn.angles(changed), dyn.gradients(changed)
        assert values(angles, "angle")[1] == pytest.approx(slow_angle(w, w + u), rel=2e-6)
        assert values(angles, "relative_update")[1] == pytest.approx(np.linalg.norm(u) / np.linalg.norm(w), rel=2e-6)
        assert values(gradients, "cosine")[1] == pytest.approx(
            (w * g).sum() / np.linalg.norm(w) / np.linalg.norm(g), rel=1e-3, abs=1e-6
        )
        assert np.isfinite(np.delete(values(angles, "filter_angle"), 2 + 1)).all()


@LAYOUTS
def test_gradients_twin(channels_last):
    snap = snapshot(channels_last=channels_last)
    reading, twin = dyn.gradients(snap), weights(snap)
    assert reading["layer"] == LAYERS
    norm = np.array([np.linalg.norm(g) for _, g, _ in twin.values()])
    size = np.array([np.linalg.norm(w) for w, _, _ in twin.values()])
    np.testing.assert_allclose(values(reading, "norm"), norm, rtol=1e-6)
    # a cosine is compared with what rounding leaves of it
    cosine = [np.dot(w.ravel(), g.ravel()) / np.linalg.norm(w) / np.linalg.norm(g) for w, g, _ in twin.values()]
    np.testing.assert_allclose(values(reading, "cosine"), cosine, rtol=1e-5, atol=3e-7)
    lr = np.array([0.1] * 8 + [0.05])
    np.testing.assert_allclose(values(reading, "raw_step"), lr * norm / size, rtol=2e-6)
    per_filter = [(f, v) for w, g, _ in twin.values() for f, v in zip(w, g, strict=True)]
    np.testing.assert_allclose(values(reading, "filter_norm"), [np.linalg.norm(v) for _, v in per_filter], rtol=1e-6)
    with np.errstate(invalid="ignore"):
        cosine = [np.dot(f, v) / np.linalg.norm(f) / np.linalg.norm(v) for f, v in per_filter]
    np.testing.assert_allclose(values(reading, "filter_cosine"), cosine, rtol=1e-5, atol=3e-7)


def test_readings_of_a_float64_run_are_float64():
    """And gradients are orthogonal to weights to 1e-10 there (P5-9)."""
    snap = snapshot(precision="float64", net=dyn.Net("resnet9", width=2, eps=1e-14))
    for measure in (dyn.weight_norms, dyn.angles, dyn.gradients, dyn.effective_lr, dyn.batchnorm):
        tensors = [v[1] for v in measure(snap).values() if isinstance(v, tuple) and isinstance(v[1], torch.Tensor)]
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float64}
    assert abs(values(dyn.gradients(snap), "cosine")[:8]).max() < 1e-10
    twin = [slow_angle(w, w + u) for w, _, u in weights(snap).values()]
    np.testing.assert_allclose(values(dyn.angles(snap), "angle"), twin, rtol=1e-12)


def test_effective_lr_is_the_groups_lr_over_the_squared_norm():
    schedule = dyn.PiecewiseLinear((0, 1, 2), (0, 0.3, 0.1))
    snap = snapshot(optimizer=dyn.SGD(schedule, groups=(dyn.Group("layer1.*", 4.0), dyn.Group("*.conv.weight", 0.25))))
    reading = dyn.effective_lr(snap)
    assert reading["layer"] == LAYERS
    factor = np.array([4.0 if n.startswith("layer1.") else 1.0 if n == "linear" else 0.25 for n in LAYERS])
    squares = [np.sum(w**2) for w, _, _ in weights(snap).values()]
    np.testing.assert_allclose(values(reading, "effective_lr"), schedule(5 / 3) * factor / squares, rtol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_batchnorm_twin(norm):
    snap = snapshot(net=dyn.Net("resnet9", width=2, norm=norm))
    reading = dyn.batchnorm(snap)
    names = {"scale": "weight", "bias": "bias", "running_mean": "running_mean", "running_var": "running_var"}
    modules = [f"{c}.norm" for c in CONVS]
    everything = {**snap.params, **snap.buffers}
    for name, tensor in names.items():
        np.testing.assert_array_equal(
            reading[name][1].numpy(), np.concatenate([everything[f"{m}.{tensor}"].numpy() for m in modules])
        )
    sizes = [len(everything[f"{m}.bias"]) for m in modules]
    assert reading["channel_layer"] == (
        ("channel",),
        [m for m, n in zip(modules, sizes, strict=True) for _ in range(n)],
    )
    assert reading["channel_index"] == (("channel",), [i for n in sizes for i in range(n)])


def test_batchnorm_without_norms_reads_no_channels():
    reading = dyn.batchnorm(snapshot(net=dyn.Net("resnet9", width=2, norm="none")))
    assert reading["channel_layer"] == (("channel",), []) and reading["scale"][1].shape == (0,)


@pytest.mark.parametrize("net", ["resnet9", "helpers:dropout_net"])
def test_no_reading_is_a_view_of_what_will_change(net):
    net = dyn.Net(net, width=2) if net == "resnet9" else dyn.Net(net)
    snap = snapshot(net=net, optimizer=dyn.SGD(0.1))
    live = [*snap.params.values(), *snap.net.parameters(), *snap.buffers.values(), *snap.net.buffers()]
    live = {t.untyped_storage().data_ptr() for t in live}
    for measure in (dyn.weight_norms, dyn.angles, dyn.gradients, dyn.effective_lr, dyn.batchnorm):
        for key, value in measure(snap).items():
            if isinstance(value, tuple) and isinstance(value[1], torch.Tensor):
                assert value[1].untyped_storage().data_ptr() not in live, key


def test_live_filters():
    """A filter whose running variance is at most ten times eps is dead."""
    snap = snapshot(net=dyn.Net("resnet9", width=2, eps=1e-3))
    buffers = {k: b.clone() for k, b in snap.buffers.items()}
    buffers["layer2.norm.running_var"][:] = torch.tensor([1.0, 0.0, 1.01e-2, 0.99e-2, 1e-2 / 3, 1e-1, 1.0, 1.0])
    snap = replace(snap, state=replace(snap.state, buffers=buffers))
    for measure in (dyn.weight_norms, dyn.angles):
        reading = measure(snap)
        live, layer = reading["live"][1].numpy(), np.array(reading["filter_layer"][1])
        assert live.dtype == bool
        assert live[layer == "layer2.conv"].tolist() == [True, False, True, False, False, True, True, True]
        assert live[layer == "linear"].all()  # no norm after it


def test_dead_filters_have_angle_zero_and_are_masked():
    """A filter that nothing passes through has no gradient: without decay it does not turn."""
    recipe = toy_recipe(optimizer=dyn.SGD(0.1, 0.9, weight_decay=0.0))
    start = first(dyn.steps(recipe, SPLIT)).state.clone()
    start.params["layer1.conv.weight"][0] *= 1e-6
    start.params["layer1.norm.weight"][0], start.params["layer1.norm.bias"][0] = 0.0, -1.0
    start.buffers["layer1.norm.running_var"][0] = 0.0
    snap = first(dyn.steps(recipe, SPLIT, start=start))
    reading = dyn.angles(snap)
    (index,) = np.flatnonzero(
        (np.array(reading["filter_layer"][1]) == "layer1.conv") & (np.array(reading["filter_channel"][1]) == 0)
    )
    assert values(reading, "filter_angle")[index] == 0 and not reading["live"][1][index]
    assert np.isfinite(values(reading, "angle")).all()


def test_layer_names():
    assert layer_names(["a.conv.weight", "b.weight"]) == ["a.conv", "b"]
    assert layer_names(["attn.in_proj_weight", "attn.out.weight"]) == ["attn", "attn.out"]
    assert layer_names(["attn.q", "attn.k", "mlp.weight"]) == ["attn.q", "attn.k", "mlp"]
    assert layer_names(["weight"]) == ["weight"]


def test_layers_of_a_net_whose_modules_own_several_matrices():
    reading = dyn.weight_norms(snapshot(net=dyn.Net("helpers:TwoMatrices"), optimizer=dyn.SGD(0.1)))
    assert reading["layer"] == ["a", "b", "pair"]
    assert len(reading["filter_norm"][1]) == 3 + 3 + 4


# --- when


def test_every_and_at():
    assert [s for s in range(12) if dyn.every(5, dyn.angles).due(s)] == [0, 5, 10]
    assert [s for s in range(12) if dyn.every(5, dyn.angles, first=3).due(s)] == [3, 8]
    assert [s for s in range(12) if dyn.every(1, dyn.angles, first=10).due(s)] == [10, 11]
    assert [s for s in range(12) if dyn.at([7, 0, 7], dyn.angles).due(s)] == [0, 7]
    assert set(dyn.standard()) == {"norms", "angles", "gradients", "effective_lr", "batchnorm"}
    assert all([s for s in range(12) if p.due(s)] == [0, 4, 8] for p in dyn.standard(4).values())


def test_what_a_measurement_reads():
    assert dyn.every(1, dyn.weight_norms).reads == {"params", "buffers"}
    assert "updates" in dyn.every(1, dyn.angles).reads
    assert "updates" in dyn.every(1, lambda snap: {}).reads
    with pytest.raises(DynamicsError, match="unknown part of a Snapshot 'gradients': did you mean 'grads'"):
        dyn.reads("gradients")


def test_remembering():
    assert dyn.every(1, k_step_angle).remembers and not dyn.every(1, dyn.angles).remembers
    assert not dyn.every(1, lambda snap, scale=2.0: {}).remembers


@pytest.mark.parametrize(
    "probe", [*dyn.standard(7).values(), dyn.at([5, 2], dyn.angles), dyn.every(3, dyn.angles, first=2)]
)
def test_probe_json(probe):
    assert probe_from_json("x", probe.to_json()) == probe


def test_only_the_packages_probes_are_found_again():
    with pytest.raises(
        DynamicsError, match=r"the probe 'turn' of this run is not one of the package's \(helpers:k_step"
    ):
        probe_from_json("turn", dyn.every(3, k_step_angle).to_json())
    with pytest.raises(DynamicsError, match="not one of the package's"):
        probe_from_json("x", dyn.Probe(dyn.angles, lambda s: s == 3).to_json())
    with pytest.raises(DynamicsError, match="not one of the package's"):
        probe_from_json("x", {"measure": "dynamics.no_such_module:f", "every": 1, "first": 0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dyn.every(0, dyn.angles), "every() takes a whole number of steps of at least 1, got 0"),
        (lambda: dyn.every(2.5, dyn.angles), "every() takes"),
        (lambda: dyn.every(dyn.angles, 5), "every() takes"),
        (lambda: dyn.at([], dyn.angles), "at() takes a list of steps"),
        (lambda: dyn.at([3, -1], dyn.angles), "at() takes a list of steps of at least 0, got [-1, 3]"),
        (lambda: dyn.at(5, dyn.angles), "at() takes a list of steps"),
        (lambda: dyn.every(5, "angles"), "a probe measures with a function of a Snapshot, got 'angles'"),
        (lambda: dyn.Probe(dyn.angles, 10), "every(10"),
    ],
)
def test_errors(make, message):
    with pytest.raises(DynamicsError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_last_snapshot_has_what_reads_says():
    snap = last(dyn.steps(toy_recipe(), SPLIT))
    assert dyn.weight_norms(snap)["norm"][1].isfinite().all()
    assert dyn.batchnorm(snap)["scale"][1].isfinite().all()
