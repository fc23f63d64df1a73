from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same, bits, first, last, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics import theory
from dynamics.errors import DynamicsError
from dynamics.probes.motion import diffusion, gradient_autocorrelation, momentum_alignment
from dynamics.training import Hyperparameters, Snapshot, State, flatten

TRAIN = toy_split()
RECIPE = toy_recipe(epochs=4)
PROBES = {
    "diffusion": dyn.every(2, diffusion),
    "autocorrelation": dyn.every(1, gradient_autocorrelation((1, 3))),
    "momentum": dyn.every(3, momentum_alignment),
}
LAYOUTS = pytest.mark.parametrize("channels_last", [True, False])


def values(reading, name: str) -> np.ndarray:
    return reading[name][1].double().numpy()


def vectors(tensors: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
    """Convolutions and matrices as float64 matrices [filter, rest]."""
    return [t.double().contiguous().flatten(1).numpy().copy() for t in tensors.values() if t.ndim >= 2]


def slow_angle(a: np.ndarray, b: np.ndarray) -> float:
    """The angle between two vectors by Kahan's formula, in float64."""
    a, b = a.ravel() / math.sqrt(sum(a.ravel() ** 2)), b.ravel() / math.sqrt(sum(b.ravel() ** 2))
    return 2 * math.atan2(math.sqrt(sum((a - b) ** 2)), math.sqrt(sum((a + b) ** 2)))


def slow_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel(), b.ravel()
    return sum(a * b) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b))


def projected(g: np.ndarray, w: np.ndarray) -> np.ndarray:
    return g - sum((g * w).ravel()) / sum((w * w).ravel()) * w


def by_hand(step: int = 0, opt: Mapping | None = None, hyperparameters: Mapping | None = None, **tensors) -> Snapshot:
    """A snapshot of weights (and gradients, as name_grad) of one's own."""
    params = {f"{k}.weight": v for k, v in tensors.items() if not k.endswith("_grad")}
    grads = {f"{k.removesuffix('_grad')}.weight": v for k, v in tensors.items() if k.endswith("_grad")}
    in_force = Hyperparameters((("default", tuple(params)),), hyperparameters or {})
    return Snapshot(State(step, params, {}, opt), nn.Module(), {}, None, 0.0, grads=grads, hyperparameters=in_force)


def draws(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape, dtype=torch.float32: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


# --- diffusion


@LAYOUTS
def test_diffusion_equals_its_twin_at_regular_and_irregular_steps(channels_last):
    steps = [0, 3, 6, 7, 12]  # 12 is the last snapshot, which has weights alone
    carry, kept = None, None
    for snap in dyn.steps(replace(RECIPE, channels_last=channels_last), TRAIN):
        if snap.step not in steps:
            continue
        reading, carry = diffusion(snap, carry)
        now = vectors(snap.params)
        assert reading["layer"] == dyn.weight_norms(snap)["layer"]
        assert reading["filter_layer"] == dyn.weight_norms(snap)["filter_layer"]
        if kept is None:
            assert reading["window"][1] == 0
            assert np.isnan(values(reading, "angle")).all() and np.isnan(values(reading, "filter_angle")).all()
            assert values(reading, "angle").shape == (9,)
        else:
            before, weights = kept
            assert reading["window"][1] == snap.step - before
            expected = [slow_angle(a, b) for a, b in zip(weights, now, strict=True)]
            np.testing.assert_allclose(values(reading, "angle"), expected, rtol=3e-6)
            expected = [
                slow_angle(a, b) for old, new in zip(weights, now, strict=True) for a, b in zip(old, new, strict=True)
            ]
            np.testing.assert_allclose(values(reading, "filter_angle"), expected, rtol=5e-6)
            assert min(expected) > 1e-3
        kept = (snap.step, now)
    assert kept[0] == 12


def test_diffusion_over_one_step_is_the_single_step_angle():
    carry, single = None, None
    for snap in dyn.steps(RECIPE, TRAIN):
        reading, carry = diffusion(snap, carry)
        if single is not None:
            for name in ("angle", "filter_angle"):
                np.testing.assert_allclose(values(reading, name), values(single, name), rtol=2e-5)
        single = dyn.angles(snap) if snap.updates is not None else None


@pytest.mark.parametrize("shrink", [1.0, 1e-3])
@pytest.mark.parametrize("angle", [1e-5, 1e-3, 0.3, 1.5, 3.0])
def test_tiny_and_large_angles_in_float32(angle, shrink):
    """Down to 1e-5 rad, where the arc cosine of a float32 cosine reads zero."""
    draw = draws()
    w, v = draw(6, 300, dtype=torch.float64), draw(6, 300, dtype=torch.float64)
    v -= w * ((v * w).sum(1) / w.square().sum(1))[:, None]
    v *= (w.norm(dim=1) / v.norm(dim=1))[:, None]
    before = w.float()
    after = (shrink * (math.cos(angle) * w + math.sin(angle) * v)).float()
    _, carry = diffusion(by_hand(0, a=before), None)
    reading, _ = diffusion(by_hand(10, a=after), carry)
    expected = [slow_angle(a, b) for a, b in zip(before.double().numpy(), after.double().numpy(), strict=True)]
    assert np.allclose(expected, angle, rtol=2e-3)
    rounding = 4e-7 / shrink if shrink < 1 else 0.0
    np.testing.assert_allclose(values(reading, "filter_angle"), expected, rtol=3e-6, atol=rounding)
    np.testing.assert_allclose(values(reading, "angle"), angle, rtol=2e-3, atol=rounding)


def test_weights_that_only_shrink_do_not_turn():
    w = draws()(5, 40)
    _, carry = diffusion(by_hand(0, a=w), None)
    reading, _ = diffusion(by_hand(4, a=0.25 * w), carry)
    assert values(reading, "angle").max() < 1e-6 and values(reading, "filter_angle").max() < 1e-6


def test_weights_of_zero_have_no_direction():
    w = draws()(4, 5)
    gone = w.clone()
    gone[1] = 0
    for a, b, c, d in ((w, gone, w[:2], 0 * w[:2]), (gone, w, 0 * w[:2], w[:2])):
        _, carry = diffusion(by_hand(0, a=a, b=c, c=w), None)
        reading, _ = diffusion(by_hand(5, a=b, b=d, c=w), carry)
        assert np.flatnonzero(np.isnan(values(reading, "filter_angle"))).tolist() == [1, 4, 5]
        np.testing.assert_allclose(
            values(reading, "angle"), [slow_angle(*vectors({"a": a, "b": b})), math.nan, 0.0], rtol=3e-6
        )


def test_a_carry_of_a_readers_own_loop_does_not_follow_the_weights():
    w = draws()(3, 4)
    _, carry = diffusion(by_hand(0, a=w), None)
    reading, _ = diffusion(by_hand(1, a=w.add_(1.0)), carry)
    assert values(reading, "angle")[0] > 0.1


def random_walk(steps: int, *, lr: float, decay: float, rho: float, nesterov: bool):
    """SGD on losses that do not change when a filter is rescaled, with gradients that are pure noise: heavy ball or
    Nesterov as torch.optim.SGD has them, written out. Yields the weights [filter, 48] in float64 at each step."""
    draw, shape = np.random.RandomState(0), (500, 48)
    w = draw.randn(*shape)
    # begins at the norm |w|^4 = lr G^2 / (2 decay (1 - rho)) of equilibrium, with G = 1
    w *= (lr / (2 * decay * (1 - rho))) ** 0.25 / np.linalg.norm(w, axis=1, keepdims=True)
    v = np.zeros(shape)
    for _ in range(steps):
        yield w
        size = np.linalg.norm(w, axis=1, keepdims=True)
        g = draw.randn(*shape)
        g -= (g * w).sum(1, keepdims=True) / size**2 * w
        g /= np.linalg.norm(g, axis=1, keepdims=True) * size
        d = g + decay * w
        v = rho * v + d
        w = w - lr * (d + rho * v if nesterov else v)


@pytest.mark.parametrize("nesterov", [False, True])
def test_diffusion_of_a_random_walk_is_that_of_theory(nesterov):
    """-2 ln<cos> over windows of 1, 5 and 20 steps, and not the limit of long windows."""
    given = {"lr": 0.1, "rho": 0.8, "decay": 2e-3, "nesterov": nesterov}
    settle, carries = 60, {1: None, 5: None, 20: None}
    cosines = {k: [] for k in carries}
    for step, w in enumerate(random_walk(settle + 241, **given)):
        for k in carries:
            if step >= settle and (step - settle) % k == 0:
                reading, carries[k] = diffusion(by_hand(step, a=torch.from_numpy(w)), carries[k])
                cosines[k].append(np.cos(values(reading, "filter_angle")))
                assert reading["window"][1] == (0 if step == settle else k)
    for k, found in cosines.items():
        predicted = theory.angular_diffusion(0.1, 2e-3, steps=k, momentum=0.8, nesterov=nesterov)
        measured = -2 * math.log(np.mean(found[1:]))
        assert measured == pytest.approx(predicted, rel=0.02), k


# --- autocorrelation of gradients


@LAYOUTS
def test_autocorrelation_equals_its_twin(channels_last):
    """Of every pair of gradients that the probe was called at, at irregular steps, and of their tangential parts."""
    lags, called = (1, 2, 4, 5), [0, 1, 2, 4, 6, 7, 11]
    measure, carry, kept, seen = gradient_autocorrelation(lags), None, {}, 0
    for snap in dyn.steps(replace(RECIPE, channels_last=channels_last), TRAIN):
        if snap.step not in called:
            continue
        reading, carry = measure(snap, carry)
        assert reading["layer"] == dyn.weight_norms(snap)["layer"] and reading["lag"] == list(lags)
        w, kept[snap.step] = vectors(snap.params), vectors(snap.grads)
        cosine, tangential = np.full((9, 4), math.nan), np.full((9, 4), math.nan)
        for i in range(9):
            for j, lag in enumerate(lags):
                if snap.step - lag in kept:
                    a, b = kept[snap.step][i], kept[snap.step - lag][i]
                    cosine[i, j] = slow_cosine(a, b)
                    tangential[i, j] = slow_cosine(projected(a, w[i]), projected(b, w[i]))
                    seen += i == 0
        np.testing.assert_allclose(values(reading, "cosine"), cosine, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(values(reading, "tangential_cosine"), tangential, rtol=1e-5, atol=1e-6)
        if snap.step == 7:
            assert np.nanmax(abs(cosine - tangential)[8]) > 1e-4  # the classifier, which no norm follows
    # 1-0, 2-1, 2-0, 4-2, 4-0, 6-4, 6-2, 6-1, 7-6, 7-2, 11-7, 11-6
    assert seen == 12


def test_gradients_are_kept_no_longer_than_the_longest_lag():
    measure, carry = gradient_autocorrelation((4, 8)), None
    for step in range(0, 40, 4):
        _, carry = measure(by_hand(step, a=torch.ones(2, 3), a_grad=torch.ones(2, 3)), carry)
    assert carry["steps"].tolist() == [32, 36] and carry["gradients"]["a.weight"].shape == (2, 2, 3)


def test_autocorrelation_of_noise_with_a_memory_is_its_memory():
    """g_t = a g_(t-1) + noise has the autocorrelation a^lag."""
    draw, a, n = draws(1), 0.8, 20_000
    w, g = draw(100, n // 100), draw(100, n // 100)
    measure, carry = gradient_autocorrelation((1, 2, 4, 8)), None
    for step in range(9):
        reading, carry = measure(by_hand(step, a=w, a_grad=g), carry)
        g = a * g + math.sqrt(1 - a * a) * draw(100, n // 100)
    np.testing.assert_allclose(values(reading, "cosine")[0], [a, a**2, a**4, a**8], atol=0.03)
    np.testing.assert_allclose(values(reading, "tangential_cosine")[0], [a, a**2, a**4, a**8], atol=0.03)


def test_radial_gradients_are_alike_but_not_tangentially():
    """The radial part of a gradient can make a strong autocorrelation of none at all."""
    draw = draws(2)
    w, measure, carry = draw(20, 100), gradient_autocorrelation((1,)), None
    for step in range(2):
        reading, carry = measure(by_hand(step, a=w, a_grad=3 * w + draw(20, 100)), carry)
    assert values(reading, "cosine")[0, 0] > 0.8 and abs(values(reading, "tangential_cosine")[0, 0]) < 0.1


def test_a_zero_gradient_has_no_direction():
    measure, w = gradient_autocorrelation((1,)), draws()(3, 4)
    for pair in ((w, 0 * w), (0 * w, w)):
        carry = None
        for step, g in enumerate(pair):
            reading, carry = measure(by_hand(step, a=torch.ones(3, 4), a_grad=g), carry)
        assert np.isnan(values(reading, "cosine")).all() and np.isnan(values(reading, "tangential_cosine")).all()


@pytest.mark.parametrize("lags", [(), (0,), (-1, 2), (1.5,), (2, 2), 4, "12", None])
def test_lags_that_are_not_lags_are_refused(lags):
    with pytest.raises(DynamicsError, match="lags must be different whole numbers of steps of at least 1") as error:
        gradient_autocorrelation(lags)
    assert "\n" not in str(error.value)


# --- momentum


@LAYOUTS
def test_momentum_alignment_equals_its_twin(channels_last):
    optimizer = dyn.SGD(0.05, momentum=0.9, weight_decay=5e-3)
    for snap in dyn.steps(replace(RECIPE, channels_last=channels_last, optimizer=optimizer), TRAIN):
        if snap.updates is None:
            break
        reading = momentum_alignment(snap)
        assert reading["layer"] == dyn.weight_norms(snap)["layer"]
        if snap.step == 0:  # a velocity of zeros
            assert not values(reading, "norm").any()
            assert (
                np.isnan(values(reading, "gradient_cosine")).all() and np.isnan(values(reading, "weight_cosine")).all()
            )
            velocity = [np.zeros_like(w) for w in vectors(snap.params)]
        triples = list(zip(velocity, vectors(snap.grads), vectors(snap.params), strict=True))
        if snap.step:
            expected = [slow_cosine(v, g) for v, g, _ in triples]
            np.testing.assert_allclose(values(reading, "gradient_cosine"), expected, rtol=1e-4, atol=2e-6)
            expected = [slow_cosine(v, w) for v, _, w in triples]
            np.testing.assert_allclose(values(reading, "weight_cosine"), expected, rtol=1e-4, atol=2e-6)
            expected = [math.sqrt(sum(v.ravel() ** 2)) for v, _, _ in triples]
            np.testing.assert_allclose(values(reading, "norm"), expected, rtol=1e-5)
        velocity = [0.9 * v + g + 5e-3 * w for v, g, w in triples]


@pytest.mark.parametrize("name", ["velocity", "momentum_buffer", "exp_avg"])
def test_momentum_is_found_under_the_names_of_every_optimizer(name):
    draw = draws()
    w, g, m = draw(4, 5), draw(4, 5), draw(4, 5)
    others = {"exp_avg_sq": {"a.weight": m**2}, "step": {"a.weight": torch.tensor(3.0)}}
    reading = momentum_alignment(by_hand(3, {**others, name: {"a.weight": m}}, a=w, a_grad=g))
    w, g, m = (t.double().numpy() for t in (w, g, m))
    np.testing.assert_allclose(values(reading, "gradient_cosine"), [slow_cosine(m, g)], rtol=1e-5)
    np.testing.assert_allclose(values(reading, "weight_cosine"), [slow_cosine(m, w)], rtol=1e-5)
    np.testing.assert_allclose(values(reading, "norm"), [np.linalg.norm(m)], rtol=1e-6)


@pytest.mark.parametrize("in_force", [{"momentum": (0.0, 0.9)}, {"beta1": (0.9,), "beta2": (0.999,)}])
def test_before_the_first_step_of_torch_optim_momentum_has_no_direction(in_force):
    reading = momentum_alignment(by_hand(0, {}, in_force, a=torch.ones(2, 3), a_grad=torch.ones(2, 3)))
    assert values(reading, "norm").tolist() == [0.0] and np.isnan(values(reading, "gradient_cosine")).all()


def test_a_parameter_that_has_not_moved_yet_has_no_momentum():
    ones = torch.ones(2, 3)
    opt = {"exp_avg": {"b.weight": 2 * ones}}
    reading = momentum_alignment(by_hand(3, opt, a=ones, b=ones, a_grad=ones, b_grad=ones))
    np.testing.assert_allclose(values(reading, "gradient_cosine"), [math.nan, 1.0], rtol=1e-6)
    np.testing.assert_allclose(values(reading, "norm"), [0.0, math.sqrt(24)], rtol=1e-6)


@pytest.mark.parametrize("opt", [None, {}, {"square_avg": {}}])
def test_an_optimizer_without_momentum_is_refused(opt):
    in_force = {"momentum": (0.0, math.nan), "lr": (0.1, math.nan)}
    with pytest.raises(DynamicsError, match=r"keeps no momentum .*give it some, or leave out this probe") as error:
        momentum_alignment(by_hand(0, opt, in_force, a=torch.ones(2, 3), a_grad=torch.ones(2, 3)))
    assert "\n" not in str(error.value)
    snap = first(dyn.steps(toy_recipe(optimizer=dyn.SGD(0.1, momentum=0.0)), TRAIN))
    with pytest.raises(DynamicsError, match="keeps no momentum"):
        momentum_alignment(snap)


# --- in a run


def train(**given) -> dyn.Run:
    return dyn.train(RECIPE, TRAIN, progress=False, **given)


@pytest.fixture(scope="module")
def run() -> dyn.Run:
    return train(probes=PROBES)


def test_a_run_with_these_probes_ends_as_a_bare_one(run):
    bare = train()
    assert_same(run.state.params, bare.state.params)
    assert_same(run.state.buffers, bare.state.buffers)
    assert_same(run.state.opt["velocity"], bare.state.opt["velocity"])
    assert run["train"].identical(bare["train"])


def test_what_a_run_records(run):
    assert run["diffusion"].step.values.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert run["diffusion"].window.values.tolist() == [0, 2, 2, 2, 2, 2, 2]
    assert run["diffusion"].angle.dims == ("step", "layer") and run["diffusion"].angle.attrs["units"] == "rad"
    read = run["autocorrelation"]
    assert read.cosine.dims == ("step", "layer", "lag") and read.lag.values.tolist() == [1, 3]
    assert read.step.values.tolist() == list(range(12))
    missing = np.isnan(read.cosine.values).all(1)
    np.testing.assert_array_equal(missing, [[step < lag for lag in (1, 3)] for step in range(12)])
    assert run["momentum"].step.values.tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_killed_and_resumed_run_is_the_undisturbed_one(keep, run, tmp_path):
    """What the probes remember crosses the checkpoint bit for bit."""
    whole = train(probes=PROBES, out=tmp_path / "r", chunk_steps=5)
    for path in sorted(Path(tmp_path / "r").glob("chunk-*"))[keep:]:
        path.unlink()
    own = {"autocorrelation": PROBES["autocorrelation"]}
    resumed = dyn.resume(tmp_path / "r", TRAIN, progress=False, probes=own)
    for other in (whole, run):
        assert resumed.state.step == other.state.step == 12
        for name in other.readings:
            assert resumed[name].identical(other[name]), name
        assert_same(resumed.state.params, other.state.params)
        carried = flatten(resumed.state.carries)
        assert carried.keys() == flatten(other.state.carries).keys() and carried
        assert all(torch.equal(bits(v), bits(carried[k])) for k, v in flatten(other.state.carries).items())


def test_the_last_snapshot_has_weights_to_measure():
    reading, _ = diffusion(last(dyn.steps(toy_recipe(epochs=1), TRAIN)), None)
    assert reading["window"][1] == 0 and dyn.every(1, diffusion).remembers
    assert dyn.every(1, diffusion).reads == {"params", "buffers"}
