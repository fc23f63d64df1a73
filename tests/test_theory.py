"""Every closed form against a simulated random walk: slow, obvious, float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynamics import theory
from dynamics.errors import DynamicsError

REPLICAS, COORDINATES = 48, 64


def update(w, v, g, lr, weight_decay, momentum, nesterov, decoupled):
    """One step of torch.optim.SGD, or of SGD with decay beside the step; the new weights and velocity."""
    d = g if decoupled else g + weight_decay * w
    v = momentum * v + d
    step = d + momentum * v if nesterov else v
    return (w * (1 - lr * weight_decay) if decoupled else w) - lr * step, v


def walk(norm0, lrs, weight_decay, G, momentum=0.0, nesterov=False, decoupled=False, radial=0.0, seed=0):
    """Weights [T+1, replicas, coordinates] under isotropic tangential gradients of norm G/|w|, plus radial*w."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((REPLICAS, COORDINATES))
    w *= norm0 / np.linalg.norm(w, axis=1, keepdims=True)
    v = np.zeros_like(w)
    history = [w]
    for lr in lrs:
        norm = np.linalg.norm(w, axis=1, keepdims=True)
        z = rng.standard_normal(w.shape)
        z -= np.sum(z * w, axis=1, keepdims=True) / norm**2 * w
        g = z / np.linalg.norm(z, axis=1, keepdims=True) * G / norm + radial * w
        w, v = update(w, v, g, lr, weight_decay, momentum, nesterov, decoupled)
        history.append(w)
    return np.stack(history)


def normaliser(kind, w, lr, weight_decay, g, t, state, given):
    """One step of torch's Adam or AdamW, of Lion, or of LARS, from weights [replicas, coordinates]; the new weights."""
    if kind in ("adam", "adamw"):
        beta1, beta2 = given.get("beta1", 0.9), given.get("beta2", 0.999)
        g = g + weight_decay * w if kind == "adam" else g
        state["m"] = beta1 * state["m"] + (1 - beta1) * g
        state["s"] = beta2 * state["s"] + (1 - beta2) * g**2
        root = np.sqrt(state["s"] / (1 - beta2**t)) + given.get("eps", 0.0)
        shrunk = w * (1 - lr * weight_decay) if kind == "adamw" else w
        return shrunk - lr * state["m"] / (1 - beta1**t) / root
    if kind == "lion":
        beta1, beta2 = given.get("beta1", 0.9), given.get("beta2", 0.99)
        sign = np.sign(beta1 * state["m"] + (1 - beta1) * g)
        state["m"] = beta2 * state["m"] + (1 - beta2) * g
        return w * (1 - lr * weight_decay) - lr * sign
    norm, size = (np.linalg.norm(x, axis=1, keepdims=True) for x in (w, g))
    ratio = norm / (size + given.get("eps", 0.0) + (weight_decay * norm if given.get("layerwise") else 0.0))
    momentum, inside = given.get("momentum", 0.0), given.get("lr_in_velocity", False)
    d = ratio * (g + weight_decay * w) * (lr if inside else 1.0)
    state["m"] = momentum * state["m"] + d
    return w - (1.0 if inside else lr) * (d + momentum * state["m"] if given.get("nesterov") else state["m"])


def normalised_walk(kind, norm0, lrs, weight_decay, G, radial=0.0, seed=0, **given):
    """`walk` for the optimizers that normalise; for AdamW and Lion `radial` is in units of the rms of g."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((REPLICAS, COORDINATES))
    w *= norm0 / np.linalg.norm(w, axis=1, keepdims=True)
    state = {"m": np.zeros_like(w), "s": np.zeros_like(w)}
    history = [w]
    for t, lr in enumerate(lrs, start=1):
        norm = np.linalg.norm(w, axis=1, keepdims=True)
        z = rng.standard_normal(w.shape)
        z -= np.sum(z * w, axis=1, keepdims=True) / norm**2 * w
        unit = G / norm / np.sqrt(COORDINATES) if kind in ("adamw", "lion") else 1.0
        g = z / np.linalg.norm(z, axis=1, keepdims=True) * G / norm + radial * unit * w
        w = normaliser(kind, w, lr, weight_decay, g, t, state, given)
        history.append(w)
    return np.stack(history)


def norms(weights):
    return np.linalg.norm(weights, axis=2)


def cosines(weights, lag=1):
    return np.sum(weights[lag:] * weights[:-lag], axis=2) / (norms(weights)[lag:] * norms(weights)[:-lag])


def rms(values, axis=None):
    return np.sqrt(np.mean(np.square(values), axis=axis))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_walk_has_torch_conventions_under_a_schedule(nesterov):
    rng = np.random.default_rng(1)
    w, v = rng.standard_normal((2, 3)), np.zeros((2, 3))
    twin = torch.nn.Parameter(torch.tensor(w))
    optimizer = torch.optim.SGD([twin], lr=1.0, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    for lr in np.linspace(0.3, 0.0, 20):
        g = rng.standard_normal((2, 3))
        w, v = update(w, v, g, lr, 0.1, 0.9, nesterov, False)
        optimizer.param_groups[0]["lr"] = lr
        twin.grad = torch.tensor(g)
        optimizer.step()
    np.testing.assert_allclose(twin.detach().numpy(), w, rtol=1e-13)


# lr, lr * weight_decay, G, and the optimizer: lr and G vary, so that a wrong exponent shows.
EQUILIBRIA = [
    (0.1, 2e-3, 0.5, {}),
    (0.8, 1e-3, 3.0, {"radial": 2e-3}),
    (0.4, 5e-4, 2.0, {"momentum": 0.9}),
    (0.02, 5e-4, 0.1, {"momentum": 0.9, "nesterov": True}),
    (0.1, 1e-3, 1.0, {"momentum": 0.5, "nesterov": True}),
    (0.4, 1e-3, 0.3, {"momentum": 0.9, "decoupled": True}),
    (0.1, 1e-3, 5.0, {"momentum": 0.9, "nesterov": True, "decoupled": True}),
    (0.05, 5e-4, 0.5, {"momentum": 0.9, "radial": 1e-2}),
    (0.1, 1e-3, 0.5, {"momentum": 0.9, "radial": -2e-3, "nesterov": True}),
    (0.1, 2e-3, 0.5, {"momentum": 0.9, "radial": 2e-3, "decoupled": True}),
    (0.1, 2e-3, 0.5, {"momentum": 0.8, "radial": 4e-3, "decoupled": True, "nesterov": True}),
]
SETTLE = 300


def in_equilibrium(lr, product, G, kind, steps=1800):
    weight_decay = product / lr
    norm = float(theory.equilibrium_norm(lr, weight_decay, G, **kind))
    # From 5 % above, so that the walk has to find the equilibrium and not only to stay there.
    return weight_decay, norm, walk(1.05 * norm, (lr,) * steps, weight_decay, G, **kind)[SETTLE:]


@pytest.mark.parametrize(("lr", "product", "G", "kind"), EQUILIBRIA)
def test_equilibrium_norm_angle_and_raw_step(lr, product, G, kind):
    weight_decay, norm, weights = in_equilibrium(lr, product, G, kind)
    measured = np.mean(norms(weights)[SETTLE:] ** 4) ** 0.25
    assert norm == pytest.approx(measured, rel=0.01)
    angle = rms(np.arccos(cosines(weights)))
    assert theory.equilibrium_angle(lr, weight_decay, **kind) == pytest.approx(angle, rel=0.01)
    without = {key: value for key, value in kind.items() if key != "nesterov"}
    raw = lr * rms(G / norms(weights)[SETTLE:] ** 2)
    assert theory.raw_step(lr, weight_decay, **without) == pytest.approx(raw, rel=0.015)


@pytest.mark.parametrize(
    ("lr", "product", "G", "kind"),
    [
        (0.1, 1e-3, 0.5, {}),
        (0.4, 1e-4, 2.0, {"momentum": 0.9}),
        (0.1, 1e-4, 2.0, {"momentum": 0.9, "nesterov": True}),
        (0.1, 1e-3, 0.5, {"momentum": 0.9, "decoupled": True}),
        (0.1, 1e-3, 1.0, {"momentum": 0.5, "nesterov": True}),
    ],
)
def test_angle_over_a_window(lr, product, G, kind):
    weight_decay, _, weights = in_equilibrium(lr, product, G, kind)
    lags = [3, 12, 40]
    measured = [-2 * np.log(np.mean(cosines(weights, lag))) for lag in lags]
    predicted = theory.angular_diffusion(lr, weight_decay, steps=lags, **kind)
    np.testing.assert_allclose(np.sqrt(predicted), np.sqrt(measured), rtol=0.01)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_window_angle_joins_the_single_step_and_the_diffusive_one(nesterov, decoupled):
    kind = {"momentum": 0.9, "decoupled": decoupled}
    one, long = theory.angular_diffusion(0.1, 5e-3, steps=[1, 1e7], nesterov=nesterov, **kind)
    assert one == pytest.approx(theory.equilibrium_angle(0.1, 5e-3, nesterov=nesterov, **kind) ** 2, rel=1e-12)
    assert long == pytest.approx(1e7 * theory.diffusive_angle(0.1, 5e-3, **kind) ** 2, rel=1e-5)


def test_diffusive_angle_of_a_walk():
    weight_decay, _, weights = in_equilibrium(0.1, 5e-4, 0.5, {"momentum": 0.5})
    lags = np.array([20, 80])
    angle2 = [-2 * np.log(np.mean(cosines(weights, lag))) for lag in lags]
    slope = (angle2[1] - angle2[0]) / (lags[1] - lags[0])
    assert theory.diffusive_angle(0.1, weight_decay, momentum=0.5) == pytest.approx(np.sqrt(slope), rel=0.01)


def test_page_defaults():
    """Mean convention, lr 0.4, decay 5e-4, momentum 0.9."""
    assert theory.equilibrium_angle(0.4, 5e-4, momentum=0.9, nesterov=True) == pytest.approx(0.0168, abs=5e-5)
    assert theory.equilibrium_angle(0.4, 5e-4, momentum=0.9) == pytest.approx(0.0145, abs=5e-5)
    assert theory.raw_step(0.4, 5e-4, momentum=0.9) == pytest.approx(0.0063, abs=5e-5)
    assert theory.diffusive_angle(0.4, 5e-4, momentum=0.9) == pytest.approx(0.0632, abs=5e-5)
    assert theory.time_constant(0.4, 5e-4, momentum=0.9) == pytest.approx(125)


def test_plain_sgd_angle_is_exact_for_any_step():
    """w - lr*(g + wd*w) with |g| such that the norm stays: a triangle on paper."""
    for product in (1e-9, 0.1, 0.5, 1.0, 1.9):
        w = np.array([1.0, 0.0])
        after = (1 - product) * w + np.sqrt(1 - (1 - product) ** 2) * np.array([0.0, 1.0])
        angle = np.arctan2(after[1], after[0])
        assert theory.equilibrium_angle(1.0, product) == pytest.approx(angle, rel=1e-6)
    assert np.isnan(theory.equilibrium_angle(1.0, 2.5))
    assert theory.equilibrium_angle(1.0, 0.5, radial=1e-12) == pytest.approx(1.0)  # leading order: sqrt(2 * 0.5)


def test_no_equilibrium_is_nan_and_arrays_broadcast():
    radial = np.array([-2e-3, 0.0, 2e-3])
    for function in (theory.equilibrium_angle, theory.raw_step, theory.diffusive_angle):
        values = function(np.array([[0.1], [0.2]]), 1e-3, momentum=0.9, radial=radial)
        assert values.shape == (2, 3)
        assert np.isnan(values[:, 0]).all() and np.isfinite(values[:, 1:]).all()
        assert np.ndim(function(0.1, 1e-3)) == 0
    assert np.isnan(theory.equilibrium_norm(0.1, 1e-3, 1.0, radial=radial)[0])
    assert theory.equilibrium_norm(0.1, 0.0, 1.0) == np.inf
    assert theory.time_constant(0.1, 0.0) == np.inf
    assert theory.equilibrium_angle(0.1, 0.0, momentum=0.9) == 0


SCHEDULES = {
    "constant": np.full(500, 0.1),
    "triangle": np.interp(np.arange(600), [0, 150, 600], [0.0, 0.3, 0.0]),
    "staircase": np.repeat([0.2, 0.02, 0.1], 200),
}
KINDS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "decoupled": True},
    {"momentum": 0.9, "radial": 4e-3},
    {"momentum": 0.8, "decoupled": True, "radial": 4e-3},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("schedule", "norm0"), [("constant", 0.6), ("constant", 3.0), ("triangle", 0.6), ("staircase", 3.0)]
)
def test_trajectory_of_norm_and_angle(schedule, norm0, kind):
    lr, weight_decay, G = SCHEDULES[schedule], 5e-3, 0.5
    weights = walk(norm0, lr, weight_decay, G, **kind)
    norm = theory.norm_trajectory(norm0, lr, weight_decay, G, **kind)
    np.testing.assert_allclose(norm, rms(norms(weights), axis=1), rtol=0.01)
    angle = theory.angle_trajectory(norm0, lr, weight_decay, G, **kind)
    moving = lr > 0
    measured = rms(np.arccos(np.minimum(cosines(weights), 1.0)), axis=1)
    ratio = angle[moving] / measured[moving]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.01)
    assert np.all(np.abs(ratio - 1) < 0.06)  # 48 replicas: one step's rms angle is itself known to some per cent


def test_trajectory_ends_in_equilibrium():
    lr, weight_decay, G = np.full(20_000, 0.1), 1e-3, 0.7
    for kind in KINDS[:4]:
        assert theory.norm_trajectory(0.3, lr, weight_decay, G, **kind)[-1] == pytest.approx(
            theory.equilibrium_norm(0.1, weight_decay, G, **kind), rel=2e-3
        )
        assert theory.angle_trajectory(0.3, lr, weight_decay, G, **kind)[-1] == pytest.approx(
            theory.equilibrium_angle(0.1, weight_decay, **kind), rel=2e-3
        )


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_scaling_lr_decay_and_initial_norm_together_changes_no_direction(kind):
    """(lr, wd, w0) -> (c^2 lr, wd/c^2, c w0): exact; bit for bit where c is a power of two."""
    lr, weight_decay, G, norm0 = SCHEDULES["triangle"], 5e-3, 0.5, 1.1
    for c, tolerance in ((2.0, 0.0), (3.0, 1e-12)):
        scaled = (c * norm0, c**2 * lr, weight_decay / c**2, G)
        norm = theory.norm_trajectory(norm0, lr, weight_decay, G, **kind)
        np.testing.assert_allclose(theory.norm_trajectory(*scaled, **kind), c * norm, rtol=tolerance)
        angle = theory.angle_trajectory(norm0, lr, weight_decay, G, **kind)
        np.testing.assert_allclose(theory.angle_trajectory(*scaled, **kind), angle, rtol=1e4 * tolerance)
    here = walk(norm0, lr, weight_decay, G, **kind)
    np.testing.assert_array_equal(walk(2 * norm0, 4 * lr, weight_decay / 4, G, **kind), 2 * here)


def test_trajectory_shapes_per_update_and_layer():
    lr = np.full(7, 0.1)
    gradient = np.linspace(0.5, 1.0, 21).reshape(7, 3)
    norm = theory.norm_trajectory([1.0, 2.0, 3.0], lr, np.full(7, 5e-3), gradient, momentum=0.9)
    assert norm.shape == (8, 3)
    np.testing.assert_array_equal(norm[0], [1.0, 2.0, 3.0])
    alone = theory.norm_trajectory(2.0, lr, 5e-3, gradient[:, 1], momentum=np.full(7, 0.9))
    assert alone.shape == (8,)
    np.testing.assert_allclose(norm[:, 1], alone, rtol=1e-14)
    per_layer = theory.norm_trajectory(1.0, lr, 5e-3, [[0.5, 1.0, 2.0]])
    assert per_layer.shape == (8, 3)
    np.testing.assert_allclose(per_layer[:, 2], theory.norm_trajectory(1.0, lr, 5e-3, 2.0), rtol=1e-14)
    assert theory.norm_trajectory(1.0, [], 5e-3, 2.0).tolist() == [1.0]
    with pytest.raises(DynamicsError, match="gradient has 6 rows for 7 updates"):
        theory.norm_trajectory(1.0, lr, 5e-3, gradient[:6])
    with pytest.raises(DynamicsError, match="after their first axis"):
        theory.norm_trajectory([1.0, 2.0], lr, 5e-3, gradient)
    with pytest.raises(DynamicsError, match="lr for each update"):
        theory.norm_trajectory(1.0, 0.1, 5e-3, gradient)


@pytest.mark.parametrize("start", [0.5, 3.0])
def test_transient_at_constant_lr_without_momentum(start):
    lr, weight_decay, G, steps = 0.1, 0.01, 0.5, 1500
    norm0 = start * float(theory.equilibrium_norm(lr, weight_decay, G))
    measured = np.mean(norms(walk(norm0, (lr,) * steps, weight_decay, G)) ** 4, axis=1) ** 0.25
    step = np.arange(steps + 1)
    np.testing.assert_allclose(theory.norm_transient(step, norm0, lr, weight_decay, G), measured, rtol=0.01)
    # The time constant, read off the walk: |w|^4 is 1/e of its way from equilibrium.
    y = theory.equilibrium_norm(lr, weight_decay, G) ** 4
    left = (measured**4 - y) / (norm0**4 - y)
    assert np.argmax(left < np.exp(-1)) == pytest.approx(theory.time_constant(lr, weight_decay), rel=0.03)


@pytest.mark.parametrize("kind", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "decoupled": True}], ids=str)
def test_transient_with_momentum(kind):
    lr, G, steps = 0.1, 0.5, 500
    weight_decay = 2e-3 if "decoupled" not in kind else 2e-2
    tau = float(theory.time_constant(lr, weight_decay, **{k: v for k, v in kind.items() if k != "nesterov"}))
    assert tau == pytest.approx(125)
    y = float(theory.equilibrium_norm(lr, weight_decay, G, **kind))
    step = np.arange(steps + 1)
    for start, late, tolerance in ((3.0, 0, 0.03), (0.5, 50, 0.03)):
        measured = rms(norms(walk(start * y, (lr,) * steps, weight_decay, G, **kind)), axis=1)
        ratio = theory.norm_transient(step, start * y, lr, weight_decay, G, **kind) / measured
        assert np.all(np.abs(ratio[late:] - 1) < tolerance)


def test_without_decay_the_norm_grows_as_the_fourth_root_of_time():
    measured = rms(norms(walk(1.0, (0.1,) * 2000, 0.0, 0.5)), axis=1)
    predicted = theory.norm_transient(np.arange(2001), 1.0, 0.1, 0.0, 0.5)
    np.testing.assert_allclose(predicted, measured, rtol=0.01)
    assert predicted[-1] == pytest.approx((1 + 2 * (0.1 * 0.5) ** 2 * 2000) ** 0.25)


def test_freezes_marks_an_exponential_decay_by_its_rate():
    step = np.arange(400)
    lr = 0.4 * np.exp(-0.004 * step)
    mask = theory.freezes(lr, 5e-4, momentum=0.9)
    np.testing.assert_array_equal(mask, 4 * lr / 0.1 * 5e-4 < 0.004)
    assert not mask[0] and mask[-1]
    np.testing.assert_array_equal(theory.freezes(lr[::10], 5e-4, momentum=0.9, steps=step[::10]), mask[::10])
    np.testing.assert_array_equal(theory.freezes(lr, 5e-3, momentum=0.9, decoupled=True), mask)
    np.testing.assert_array_equal(theory.freezes(lr[:, None], [5e-4], momentum=0.9)[:, 0], mask)
    assert theory.freezes([0.0, 0.1, 0.2, 0.0, 0.0], 5e-3).tolist() == [False, False, True, True, True]
    assert not theory.freezes(np.full(5, 0.1), 5e-3).any()
    with pytest.raises(DynamicsError, match="two steps"):
        theory.freezes(0.1, 5e-3)
    with pytest.raises(DynamicsError, match="increasing"):
        theory.freezes([0.1, 0.1], 5e-3, steps=[3, 3])


def test_where_the_schedule_freezes_the_norm_stays_and_the_step_follows_lr():
    lr = np.interp(np.arange(1500), [0, 100, 1500], [0.2, 0.2, 0.0])
    weight_decay, G = 5e-3, 0.5
    frozen = np.flatnonzero(theory.freezes(lr, weight_decay, momentum=0.9))
    first = frozen[0]
    assert frozen.tolist() == list(range(first, 1500)) and 1200 < first < 1450
    norm0 = float(theory.equilibrium_norm(0.2, weight_decay, G, momentum=0.9))
    weights = walk(norm0, lr, weight_decay, G, momentum=0.9)
    norm = rms(norms(weights), axis=1)
    followed = theory.equilibrium_norm(lr[first:-1], weight_decay, G, momentum=0.9)
    assert followed[-1] / followed[0] < 0.4  # where an equilibrium would be
    assert 0.8 < norm[-1] / norm[first] < 1.0  # where the norm is
    angle = rms(np.arccos(np.minimum(cosines(weights), 1.0)), axis=1)
    late = slice(-60, -20)
    assert np.all(angle[late] < 0.75 * theory.equilibrium_angle(lr[late], weight_decay, momentum=0.9))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_stability_bound_on_a_quadratic(momentum, nesterov):
    curvature = 7.0
    bound = theory.stability_bound(curvature, momentum=momentum, nesterov=nesterov)
    final = []
    for lr in (0.99 * bound, 1.01 * bound):
        w, v = 1.0, 0.0
        for _ in range(4000):
            w, v = update(w, v, curvature * w, lr, 0.0, momentum, nesterov, False)
        final.append(abs(w))
    assert final[0] < 1e-3 and final[1] > 1e3


def test_stability_bound_values():
    bound = theory.stability_bound([1.0, 0.0, -3.0], momentum=0.9, nesterov=True)
    np.testing.assert_allclose(bound, [3.8 / 2.8, np.inf, np.inf])
    assert theory.stability_bound(1.0, momentum=0.9) == pytest.approx(3.8)


def test_the_two_other_learning_rates():
    np.testing.assert_allclose(theory.effective_lr(0.1, [1.0, 2.0]), [0.1, 0.025])
    assert theory.momentum_scaled_lr(0.1, 0.9) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.equilibrium_angle(-0.1, 1e-3), "lr must not be negative"),
        (lambda: theory.equilibrium_angle(0.1, -1e-3), "weight_decay must not be negative"),
        (lambda: theory.equilibrium_angle(0.1, 1e-3, momentum=1.0), "momentum must be below 1"),
        (lambda: theory.equilibrium_angle(np.array([0.1, np.nan]), 1e-3), "lr has nan"),
        (lambda: theory.equilibrium_angle(0.1, 1e-3, radial=np.nan), "radial has nan"),
        (lambda: theory.equilibrium_norm(0.1, 1e-3, -1.0), "gradient must not be negative"),
        (lambda: theory.raw_step(0.1, np.inf), "weight_decay has nan or infinite"),
        (lambda: theory.diffusive_angle(0.1, 1e-3, momentum=-0.1), "momentum must not be negative"),
        (lambda: theory.angular_diffusion(0.1, 1e-3, steps=-1), "steps must not be negative"),
        (lambda: theory.effective_lr(0.1, 0.0), "norm must be positive"),
        (lambda: theory.time_constant(-1.0, 1e-3), "lr must not be negative"),
        (lambda: theory.norm_transient(-1, 1.0, 0.1, 1e-3, 1.0), "step must not be negative"),
        (lambda: theory.norm_trajectory(0.0, [0.1], 1e-3, 1.0), "norm0 must be positive"),
        (lambda: theory.norm_trajectory(1.0, [0.1], 1e-3, np.nan), "gradient has nan"),
        (lambda: theory.freezes([0.1, -0.1], 1e-3), "lr must not be negative"),
        (lambda: theory.stability_bound(np.nan), "curvature has nan"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(DynamicsError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# the optimizer, lr, weight_decay, G, its arguments, and how near the walk comes
NORMALISED = [
    ("adamw", 0.01, 0.2, 3.0, {}, 0.01),
    ("adamw", 0.05, 0.02, 0.5, {"beta1": 0.5}, 0.01),
    ("adamw", 0.01, 0.2, 3.0, {"beta1": 0.0, "beta2": 0.99}, 0.01),
    ("adamw", 0.02, 0.05, 3.0, {"radial": 0.05}, 0.01),
    ("adamw", 0.02, 0.15, 3.0, {"radial": -0.05}, 0.01),
    ("adam", 0.01, 0.1, 3.0, {}, 0.01),
    ("adam", 0.01, 0.02, 1.0, {"beta1": 0.5, "beta2": 0.99}, 0.01),
    ("adam", 0.01, 0.1, 3.0, {"radial": 0.05}, 0.01),
    ("lion", 0.01, 0.1, 3.0, {}, 0.015),
    ("lion", 0.03, 0.05, 3.0, {"beta1": 0.95, "beta2": 0.98}, 0.015),
    ("lion", 0.01, 0.2, 0.5, {"beta1": 0.0}, 0.01),
    ("lion", 0.01, 0.05, 3.0, {"radial": 0.002}, 0.02),
    ("lars", 0.06, 0.05, 2.0, {}, 0.01),
    ("lars", 0.006, 0.01, 2.0, {"momentum": 0.9}, 0.01),
    ("lars", 0.006, 0.01, 2.0, {"momentum": 0.9, "nesterov": True}, 0.01),
    ("lars", 0.01, 0.02, 2.0, {"momentum": 0.8, "nesterov": True, "layerwise": True}, 0.01),
    ("lars", 0.1, 0.1, 2.0, {"layerwise": True}, 0.01),
    ("lars", 0.006, 0.05, 3.0, {"momentum": 0.9, "radial": 0.05, "layerwise": True}, 0.01),
]


def predicted(kind, what, *leading, G, **given):
    """An equilibrium or a trajectory: every optimizer's own arguments in their order."""
    gradient = {"adamw": (), "lion": (), "adam": (G,), "lars": (G,)}[kind]
    size = () if kind == "lars" else (COORDINATES,)
    return getattr(theory, f"{kind}_{what}")(*leading, *gradient, *size, **given)


def equilibrium_of(kind, lr, weight_decay, G, **given):
    unused = () if kind == "lion" else ("beta2",)
    given = {k: v for k, v in given.items() if k not in (*unused, "eps", "lr_in_velocity")}
    return predicted(kind, "equilibrium", lr, weight_decay, G=G, **given)


@pytest.mark.parametrize(("kind", "lr", "weight_decay", "G", "given", "near"), NORMALISED)
def test_equilibria_of_the_optimizers_that_normalise(kind, lr, weight_decay, G, given, near):
    law = equilibrium_of(kind, lr, weight_decay, G, **given)
    weights = normalised_walk(kind, 1.03 * law.norm, (lr,) * 1800, weight_decay, G, **given)[600:]
    assert law.norm == pytest.approx(rms(norms(weights)), rel=near)
    assert law.angle == pytest.approx(rms(np.arccos(cosines(weights))), rel=near)
    if kind != "lars":
        assert law.raw_step == pytest.approx(lr * np.sqrt(COORDINATES) / law.norm, rel=1e-6)
    elif "layerwise" not in given:
        assert law.raw_step == lr
    slope = -2 * np.log(np.mean(cosines(weights, 400)) / np.mean(cosines(weights, 200))) / 200
    assert law.diffusive_angle == pytest.approx(np.sqrt(slope), rel=0.06)


@pytest.mark.parametrize(
    ("kind", "lr", "weight_decay", "G", "given"),
    [
        ("adamw", 0.01, 0.1, 3.0, {}),
        ("adamw", 0.01, 0.1, 3.0, {"beta1": 0.5}),
        ("adam", 0.002, 0.05, 1.0, {}),
        ("lion", 0.01, 0.2, 3.0, {}),
        ("lion", 0.01, 0.2, 3.0, {"beta1": 0.95, "beta2": 0.98}),
        ("lars", 0.006, 0.01, 2.0, {"momentum": 0.9}),
        ("lars", 0.006, 0.01, 2.0, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_angle_over_a_window_of_the_optimizers_that_normalise(kind, lr, weight_decay, G, given):
    norm = float(equilibrium_of(kind, lr, weight_decay, G, **given).norm)
    weights = normalised_walk(kind, 1.03 * norm, (lr,) * 1500, weight_decay, G, **given)[500:]
    lags = [1, 3, 12, 40]
    measured = [-2 * np.log(np.mean(cosines(weights, lag))) for lag in lags]
    leading = {"adam": (lr, weight_decay, G, COORDINATES), "lars": (lr,)}.get(kind, (lr, weight_decay))
    diffusion = getattr(theory, f"{kind}_diffusion")(*leading, steps=lags, **given)
    np.testing.assert_allclose(np.sqrt(diffusion), np.sqrt(measured), rtol=0.015 if kind == "lion" else 0.012)


def test_window_angles_of_the_optimizers_that_normalise_join_both_ends():
    for diffusion, law in (
        (theory.adamw_diffusion(0.1, 5e-3, steps=[1, 1e6]), theory.adamw_equilibrium(0.1, 5e-3, 9)),
        (theory.adam_diffusion(0.1, 5e-3, 2.0, 9, steps=[1, 1e6]), theory.adam_equilibrium(0.1, 5e-3, 2.0, 9)),
        (theory.lars_diffusion(0.1, steps=[1, 1e6], momentum=0.9), theory.lars_equilibrium(0.1, 1, 1, momentum=0.9)),
        (theory.lion_diffusion(1e-4, 5e-3, steps=[1, 1e6]), theory.lion_equilibrium(1e-4, 5e-3, 9)),
    ):
        assert diffusion[0] == pytest.approx(law.angle**2, rel=1e-5)
        assert diffusion[1] == pytest.approx(1e6 * law.diffusive_angle**2, rel=1e-3)
    assert theory.lion_diffusion(0.01, 1.0, steps=50, beta2=0.99) == pytest.approx(  # decay as fast as m forgets
        theory.lion_diffusion(0.01, 1.00001, steps=50, beta2=0.99), rel=1e-3
    )


def test_an_equilibrium_of_numbers_is_numbers():
    for law in (
        theory.sgd_equilibrium(0.1, 1e-3, 1.0),
        theory.adamw_equilibrium(0.1, 1e-3, 9),
        theory.adam_equilibrium(0.1, 1e-3, 1.0, 9),
        theory.lion_equilibrium(0.1, 1e-3, 9),
        theory.lars_equilibrium(0.1, 1e-3, 1.0, layerwise=True),
    ):
        assert [f"{value:.3g}" for value in law]
    shape = theory.lion_equilibrium(np.full((4, 1), 0.1), 1e-3, [9, 16, 25]).norm.shape
    assert shape == theory.lars_equilibrium(np.full((4, 1), 0.1), 1e-3, [1.0, 2.0, 3.0]).norm.shape == (4, 3)


def test_equilibria_agree_where_optimizers_do():
    lr, decay = 0.02, np.array([1e-3, 0.1])
    adamw = theory.adamw_equilibrium(lr, decay, COORDINATES)
    np.testing.assert_allclose(adamw.angle, theory.equilibrium_angle(lr, decay, momentum=0.9, decoupled=True))
    heavy_ball = theory.angular_diffusion(lr, decay, steps=7, momentum=0.9, decoupled=True)
    np.testing.assert_allclose(theory.adamw_diffusion(lr, decay, steps=7), heavy_ball)
    # Sign descent is AdamW without averages; its angle arccos(1 - lr * decay) is a triangle on paper.
    lion = theory.lion_equilibrium(lr, decay, COORDINATES, beta1=0.0, beta2=0.0)
    plain = theory.adamw_equilibrium(lr, decay, COORDINATES, beta1=0.0)
    np.testing.assert_allclose(lion.angle, plain.angle, rtol=1e-9)
    np.testing.assert_allclose(lion.norm, plain.norm, rtol=2e-3)
    # Kosson et al.'s leading order, within the two corrections.
    small = theory.lion_equilibrium(1e-4, 1e-3, COORDINATES)
    q = 0.1**2 + 0.9**2 * 0.01 / 1.99
    assert small.angle == pytest.approx(np.sqrt(np.pi * 1e-7 * q), rel=0.015)
    assert small.norm == pytest.approx(np.sqrt(1e-4 * COORDINATES / (np.pi * 1e-3 * q)), rel=0.015)
    # AdamW whose decay is divided by the rms gradient at equilibrium is Adam with L2.
    adam = theory.adam_equilibrium(lr, 0.1, 3.0, COORDINATES)
    same = theory.adamw_equilibrium(lr, 0.1 / (3.0 / adam.norm / np.sqrt(COORDINATES)), COORDINATES)
    np.testing.assert_allclose(adam[:4], same[:4], rtol=1e-12)
    assert adam.time_constant == pytest.approx(same.time_constant / 1.5)
    # SGD's equilibrium steps, taken by LARS at the equivalent rate.
    kind = {"momentum": 0.9, "nesterov": True}
    sgd = theory.sgd_equilibrium(0.4, 5e-4, 2.0, **kind)
    lars = theory.lars_equilibrium(theory.equivalent_lars_rate(0.4, 5e-4, momentum=0.9), 5e-4, 2.0, **kind)
    assert sgd.raw_step == theory.raw_step(0.4, 5e-4, momentum=0.9)
    np.testing.assert_allclose((lars.angle, lars.raw_step, lars.diffusive_angle), (sgd.angle, *sgd[2:4]), rtol=1e-12)
    assert sgd.norm == theory.equilibrium_norm(0.4, 5e-4, 2.0, **kind)
    assert lars.time_constant == pytest.approx(2 * sgd.time_constant)
    tiny = theory.lars_equilibrium(1e-6, 1e-3, 2.0, layerwise=True)
    np.testing.assert_allclose(tiny, theory.lars_equilibrium(1e-6, 1e-3, 2.0), rtol=1e-5)


def test_lars_without_decay_turns_as_fast_and_never_settles():
    law = theory.lars_equilibrium(0.003, 0.0, 2.0, momentum=0.8, layerwise=True)
    assert law.norm == law.time_constant == np.inf
    weights = normalised_walk("lars", 1.0, (0.003,) * 1000, 0.0, 2.0, momentum=0.8)
    assert law.angle == pytest.approx(rms(np.arccos(cosines(weights))), rel=0.01)
    grown = np.exp(0.003**2 / (2 * 0.2**2) * 1000)
    assert rms(norms(weights)[-1]) == pytest.approx(grown, rel=0.01)


def test_no_equilibrium_of_the_optimizers_that_normalise_is_nan_or_infinite():
    for law in (
        theory.adamw_equilibrium(0.1, 1e-3, 9, radial=-2e-3),
        theory.adam_equilibrium(0.1, 1e-3, 1.0, 9, radial=-2e-3),
        theory.lion_equilibrium(0.1, 1e-3, 9, radial=-2e-3),
        theory.lars_equilibrium(0.1, 1e-3, 1.0, radial=-2e-3),
        theory.lars_equilibrium(0.1, 1e-3, 1.0, radial=-2e-3, layerwise=True),
    ):
        assert np.isnan([law.angle, law.norm]).all()
    for law in (
        theory.adamw_equilibrium(0.1, 0.0, 9),
        theory.adam_equilibrium(0.1, 0.0, 1.0, 9),
        theory.lion_equilibrium(0.1, 0.0, 9),
    ):
        assert law.norm == law.time_constant == np.inf and law.angle == 0


@pytest.mark.parametrize(
    ("kind", "lr", "weight_decay", "G", "given"),
    [
        ("adamw", 2e-2, 0.2, 3.0, {"beta1": 0.5}),
        ("lion", 1e-2, 0.4, 3.0, {"beta1": 0.5, "beta2": 0.9}),
        ("adam", 1e-2, 0.1, 3.0, {"beta2": 0.9}),
        ("lars", 0.05, 0.01, 3.0, {}),
        ("lars", 0.25, 0.1, 3.0, {"layerwise": True}),
        ("sgd", 0.1, 0.05, 0.5, {}),
    ],
)
def test_time_constant_is_the_relaxation_of_a_small_disturbance(kind, lr, weight_decay, G, given):
    if kind == "sgd":
        law = theory.sgd_equilibrium(lr, weight_decay, G)
    else:
        law = equilibrium_of(kind, lr, weight_decay, G, **given)

    def trajectory(norm0, lrs):
        if kind == "sgd":
            return theory.sgd_trajectory(norm0, lrs, weight_decay, G).norm
        return predicted(kind, "trajectory", norm0, lrs, weight_decay, G=G, **given).norm

    steps = np.full(int(3 * law.time_constant), lr)
    apart = trajectory(1.03 * law.norm, steps) - trajectory(0.97 * law.norm, steps)
    later = int(law.time_constant / 2)
    fell = np.log(apart[later] / apart[-1]) / (len(steps) - later)
    assert 1 / fell == pytest.approx(law.time_constant, rel=0.06)


WARMUP = np.interp(np.arange(500), [0, 120, 500], [0.01, 1.0, 0.0])


@pytest.mark.parametrize("start", [0.5, 2.0, 3.0])
@pytest.mark.parametrize(
    ("kind", "peak", "weight_decay", "G", "given", "near"),
    [
        ("adamw", 0.02, 0.3, 3.0, {}, 0.012),
        ("adamw", 0.02, 0.3, 3.0, {"beta1": 0.5, "beta2": 0.99, "eps": 0.02}, 0.015),
        ("adam", 0.01, 0.1, 3.0, {"eps": 0.02}, 0.02),
        ("lion", 0.01, 0.4, 3.0, {}, 0.015),
        ("lion", 0.01, 0.4, 3.0, {"beta1": 0.95, "beta2": 0.98}, 0.015),
        ("lars", 0.02, 0.02, 3.0, {"momentum": 0.9, "nesterov": True}, 0.01),
        ("lars", 0.02, 0.02, 3.0, {"momentum": 0.9, "eps": 0.5, "lr_in_velocity": True}, 0.01),
        ("lars", 0.02, 0.02, 3.0, {"momentum": 0.9, "layerwise": True}, 0.01),
    ],
)
def test_trajectories_of_the_optimizers_that_normalise(kind, peak, weight_decay, G, given, near, start):
    lr, norm0 = peak * WARMUP, start * float(equilibrium_of(kind, peak, weight_decay, G, **given).norm)
    weights = normalised_walk(kind, norm0, lr, weight_decay, G, **given)
    extra = {"gradient": G} if kind in ("adamw", "lion") else {}
    path = predicted(kind, "trajectory", norm0, lr, weight_decay, G=G, **extra, **given)
    if kind == "adam" and start == 3.0:  # λ|w| is a third of |g| there, and does not spread evenly over coordinates
        near = 0.045
    np.testing.assert_allclose(path.norm, rms(norms(weights), axis=1), rtol=near)
    measured = rms(np.arccos(np.minimum(cosines(weights), 1.0)), axis=1)
    ratio = path.angle[5:-1] / measured[5:-1]  # lr is 0 at the last, and eps meets single draws at the first
    assert np.median(ratio) == pytest.approx(1.0, abs=near)
    assert np.all(np.abs(ratio - 1) < (0.08 if near < 0.04 else 0.12))


@pytest.mark.parametrize("kind", ["adamw", "adam", "lion", "lars"])
def test_trajectories_of_the_optimizers_that_normalise_end_in_equilibrium(kind):
    lr, decay, G = {"lars": 0.03, "adam": 3e-3}.get(kind, 1e-2), 0.02, 0.5
    lrs = np.full(10_000, lr)
    law = equilibrium_of(kind, lr, decay, G)
    path = predicted(kind, "trajectory", 0.9 * law.norm, lrs, decay, G=G)
    assert path.norm[-1] == pytest.approx(float(law.norm), rel=3e-3)
    assert path.angle[-1] == pytest.approx(float(law.angle), rel=3e-3)
    two = predicted(kind, "trajectory", [0.9 * law.norm, 2.0], lrs[:50, None], [[decay, 0.2]], G=G)
    assert two.norm.shape == (51, 2) and two.angle.shape == (50, 2)
    np.testing.assert_allclose(two.norm[:, 0], path.norm[:51], rtol=1e-13)


def test_one_pass_serves_both_of_the_older_trajectories():
    lr = SCHEDULES["triangle"]
    path = theory.sgd_trajectory(0.6, lr, 5e-3, 0.5, momentum=0.9, nesterov=True)
    np.testing.assert_array_equal(path.norm, theory.norm_trajectory(0.6, lr, 5e-3, 0.5, momentum=0.9, nesterov=True))
    np.testing.assert_array_equal(path.angle, theory.angle_trajectory(0.6, lr, 5e-3, 0.5, momentum=0.9, nesterov=True))


def test_adam_trajectories_without_and_with_a_steady_gradient_agree():
    """|g| = G/|w| is steady where |w| is."""
    lr, law = np.full(300, 1e-3), theory.adamw_equilibrium(1e-3, 0.1, 9)
    path = theory.adamw_trajectory(law.norm, lr, 0.1, 9)
    np.testing.assert_allclose(theory.adamw_trajectory(law.norm, lr, 0.1, 9, gradient=2.0).norm, path.norm, rtol=1e-4)
    assert path.angle[0] == pytest.approx(1e-3 * 3 / law.norm, rel=1e-3)  # Adam's first update is lr * sign(g)
    gone = theory.adamw_trajectory(1.0, lr, 0.1, 9, gradient=0.0)  # decay alone
    np.testing.assert_allclose(gone.norm, (1 - 1e-4) ** np.arange(301), rtol=1e-12)
    assert np.abs(gone.angle).max() < 1e-7


def test_outpaces_is_freezes_for_any_optimizer():
    lr = 0.4 * np.exp(-0.004 * np.arange(400))
    sgd = theory.sgd_equilibrium(lr, 5e-4, 1.0, momentum=0.9)
    np.testing.assert_array_equal(theory.outpaces(lr, sgd.time_constant), theory.freezes(lr, 5e-4, momentum=0.9))
    adamw = theory.adamw_equilibrium(lr, 0.01, 9)
    np.testing.assert_array_equal(theory.outpaces(lr, adamw.time_constant), 2 * lr * 0.01 < 0.004)


@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_decay_trajectory_is_torch_with_zero_gradients(nesterov, page):
    lr = np.linspace(0.3, 0.0, 20)
    scale = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([scale], lr=1.0, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    values, w, v = [[1.0, -2.0]], np.array([1.0, -2.0]), np.zeros(2)
    for rate in lr:
        u = -rate * 0.1 * w
        v = 0.9 * v + u
        w = w + (u + 0.9 * v if nesterov else v)
        optimizer.param_groups[0]["lr"] = rate
        scale.grad = torch.zeros_like(scale)
        optimizer.step()
        values.append(w if page else scale.detach().numpy().copy())
    kind = {"momentum": 0.9, "nesterov": nesterov, "lr_in_velocity": page}
    np.testing.assert_allclose(theory.decay_trajectory([1.0, -2.0], lr[:, None], 0.1, **kind), values, rtol=1e-13)


def test_batch_norm_scales_under_pages_eighteen_epochs():
    """P8-11: peak 0.6 at a fifth of 18 epochs of 97 steps, decay 5e-4, momentum 0.9."""
    lr = np.interp(np.arange(18 * 97) / 97, [0, 3.6, 18], [0, 0.6, 0])
    product = theory.decay_product(1.0, lr, 5e-4, momentum=0.9)
    epochs = np.array([3, 5, 7, 9, 18])
    np.testing.assert_allclose(product[97 * epochs], [0.69, 0.40, 0.247, 0.165, 0.073], atol=0.006)
    np.testing.assert_allclose(product[97 * epochs[2:]], [0.247, 0.165, 0.073], atol=5e-4)
    for page in (False, True):
        exact = theory.decay_trajectory(1.0, lr, 5e-4, momentum=0.9, nesterov=True, lr_in_velocity=page)
        np.testing.assert_allclose(exact[97 * epochs], product[97 * epochs], rtol=0.05)
    one = theory.decay_trajectory(1.0, lr, 5e-4, decoupled=True, momentum=0.9)
    np.testing.assert_allclose(one, theory.decay_product(1.0, lr, 5e-4, decoupled=True, momentum=0.9), rtol=1e-12)
    assert theory.decay_trajectory(2.0, [], 5e-4).tolist() == [2.0]


def test_relu_moments_and_the_shift_and_scale():
    x = np.linspace(-24, 24, 480_001)
    for std in (np.sqrt(2), 0.7):
        weight = np.exp(-(x**2) / (2 * std**2))
        weight /= weight.sum()
        relu = np.maximum(x, 0)
        mean, square = np.sum(weight * relu), np.sum(weight * relu**2)
        np.testing.assert_allclose(theory.relu_moments(std), (mean, square - mean**2, square), rtol=1e-7)
    he = theory.relu_moments(np.sqrt(2))
    np.testing.assert_allclose(he, (1 / np.sqrt(np.pi), 1 - 1 / np.pi, 1.0))


def test_share_within_channels_by_depth():
    share = theory.within_channel_share(50)
    published = {1: 1.0, 2: 0.682, 3: 0.506, 5: 0.319, 10: 0.145, 20: 0.0555, 50: 0.0126}
    for layer, value in published.items():
        assert share[layer - 1] == pytest.approx(value, abs=5e-4)
    deep = np.array([1000, 10_000])
    ratio = theory.within_channel_share(10_000)[deep - 1] / theory.collapse_asymptote(deep)
    assert abs(ratio[0] - 1) < 0.03 and abs(ratio[1] - 1) < 0.005
    for activation in ("linear", "shifted"):
        np.testing.assert_allclose(theory.within_channel_share(50, activation=activation), 1.0, atol=1e-12)
    np.testing.assert_allclose(
        theory.within_channel_share(3, activation="linear", correlation=[0.0, 0.5])[-1], [1, 0.5]
    )


@pytest.mark.parametrize("activation", ["relu", "linear", "shifted"])
def test_share_within_channels_of_a_net(activation):
    """Width 400, five layers, six nets: He's weights on independent inputs, then the activation."""
    rng = np.random.default_rng(0)
    width, inputs, layers = 400, 120, 5
    act, gain = {
        "relu": (lambda z: np.maximum(z, 0), 2.0),
        "linear": (lambda z: z, 1.0),
        "shifted": (lambda z: (np.maximum(z, 0) - 1 / np.sqrt(np.pi)) / np.sqrt(1 - 1 / np.pi), 2.0),
    }[activation]
    total = np.zeros((layers, 2))
    for _ in range(6):
        x = rng.standard_normal((inputs, width))
        for layer in range(layers):
            z = x @ rng.standard_normal((width, width)) * np.sqrt(gain / width)
            spread = z.var(axis=0, ddof=1).mean()
            total[layer] += spread, spread + (z.mean(axis=0) ** 2).mean()
            x = act(z)
    measured = total[:, 0] / total[:, 1]
    np.testing.assert_allclose(theory.within_channel_share(layers, activation=activation), measured, atol=0.035)


def test_robust_region_of_heavy_ball_is_where_the_spectral_radius_is_the_root_of_momentum():
    curvature, momentum = 3.0, 0.6
    low, high = theory.robust_region(curvature, momentum=momentum)

    def radius(lr):
        return np.abs(np.linalg.eigvals([[1 + momentum - lr * curvature, -momentum], [1.0, 0.0]])).max()

    for lr in np.linspace(low, high, 9)[1:-1]:
        assert radius(lr) == pytest.approx(np.sqrt(momentum), rel=1e-12)
    assert min(radius(0.95 * low), radius(1.05 * high)) > np.sqrt(momentum) * 1.02
    assert high < theory.stability_bound(curvature, momentum=momentum)
    assert np.isnan(theory.robust_region([0.0, -1.0], momentum=0.5)).all()


def test_plateaus_of_batch_sharpness():
    small, large = theory.batch_sharpness(0.1, momentum=0.9)
    assert (small, large) == (pytest.approx(2.0), pytest.approx(38.0))
    assert theory.stability_bound(large, momentum=0.9) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.adamw_equilibrium(0.1, 1e-3, 0), "size must be positive"),
        (lambda: theory.adamw_equilibrium(0.1, 1e-3, 9, beta1=1.0), "beta1 must be below 1"),
        (lambda: theory.adamw_equilibrium(0.1, -1e-3, 9), "weight_decay must not be negative"),
        (lambda: theory.adamw_diffusion(0.1, 1e-3, steps=-1), "steps must not be negative"),
        (lambda: theory.adam_equilibrium(0.1, 1e-3, -1.0, 9), "gradient must not be negative"),
        (lambda: theory.lion_equilibrium(0.1, 1e-3, 9, beta2=1.0), "beta2 must be below 1"),
        (lambda: theory.lion_diffusion(-0.1, 1e-3, steps=1), "lr must not be negative"),
        (lambda: theory.lars_equilibrium(0.1, 1e-3, 1.0, momentum=1), "momentum must be below 1"),
        (lambda: theory.adamw_trajectory(1.0, 0.1, 1e-3, 9), "lr for each update"),
        (lambda: theory.adamw_trajectory(1.0, [0.1], 1e-3, 9, gradient=np.nan), "gradient has nan"),
        (lambda: theory.adam_trajectory(1.0, [0.1], 1e-3, 1.0, 9, eps=-1), "eps must not be negative"),
        (lambda: theory.lion_trajectory([1.0, 2.0], [0.1], 1e-3, [1, 2, 3]), "after their first axis"),
        (lambda: theory.lars_trajectory(1.0, [0.1, 0.1], 1e-3, [1.0] * 3), "gradient has 3 rows for 2 updates"),
        (lambda: theory.decay_trajectory(1.0, 0.1, 1e-3), "lr for each update"),
        (lambda: theory.decay_trajectory(1.0, [0.1, 0.2], [1e-3] * 3), "disagree in shape"),
        (lambda: theory.decay_product(1.0, 0.1, 1e-3), "lr for each update"),
        (lambda: theory.correlation_map(1.5), "correlation must lie in"),
        (lambda: theory.correlation_map(0.5, activation="relo"), "unknown activation 'relo': did you mean 'relu'"),
        (lambda: theory.within_channel_share(0), "at least 1"),
        (lambda: theory.collapse_asymptote(0), "layer must be positive"),
        (lambda: theory.relu_moments(-1), "std must not be negative"),
        (lambda: theory.robust_region(1.0, momentum=1.0), "momentum must be below 1"),
        (lambda: theory.batch_sharpness(0.0), "lr must be positive"),
    ],
)
def test_bad_input_to_the_rest_is_refused_in_one_line(call, message):
    with pytest.raises(DynamicsError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
