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
