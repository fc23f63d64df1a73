from __future__ import annotations

import numpy as np
import pytest
import torch

import dynamics as dyn
from dynamics.errors import DynamicsError

A = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
QUADRATIC = A @ A.T / 6
STEPS_PER_EPOCH = 4


def start() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    shapes = {"conv.weight": (6, 2), "norm.weight": (6,), "norm.bias": (6,), "linear.weight": (6, 3)}
    return {k: torch.randn(*s, dtype=torch.float64, generator=draws) for k, s in shapes.items()}


def gradients(params: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    """A quadratic that couples everything to itself, with a step-dependent force."""
    force = torch.sin(torch.arange(6, dtype=torch.float64) + step)
    return {k: QUADRATIC @ p + (force if p.ndim == 1 else force[:, None]) for k, p in params.items()}


def ours(optimizer: dyn.SGD, steps: int = 30) -> dict[str, torch.Tensor]:
    params = start()
    opt = optimizer.init(params)
    for t in range(steps):
        updates, opt = optimizer.update(gradients(params, t), opt, params, (t + 1) / STEPS_PER_EPOCH)
        params = {k: p + updates[k] for k, p in params.items()}
    return params


def torchs(groups, schedule, steps: int = 30, **given) -> dict[str, torch.Tensor]:
    params = {k: torch.nn.Parameter(p) for k, p in start().items()}
    listed = [{"params": [params[k] for k in names], **options} for names, options in groups]
    optimizer = torch.optim.SGD(listed, lr=1.0, **given)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: schedule((t + 1) / STEPS_PER_EPOCH))
    for t in range(steps):
        for k, g in gradients({k: p.detach() for k, p in params.items()}, t).items():
            params[k].grad = g
        optimizer.step()
        scheduler.step()
    return {k: p.detach() for k, p in params.items()}


def assert_close(a, b):
    assert list(a) == list(b)
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=1e-12, atol=1e-12, msg=k)


@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
@pytest.mark.parametrize("lr", [0.07, dyn.PiecewiseLinear((0, 2, 6), (0.0, 0.1, 0.01))], ids=["constant", "schedule"])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_equals_torch(momentum, nesterov, lr, weight_decay):
    optimizer = dyn.SGD(lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    given = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    expected = torchs([(list(start()), {})], optimizer.lr_at, **given)
    assert_close(ours(optimizer), expected)


def test_groups_equal_torchs():
    schedule = dyn.PiecewiseLinear((0, 2, 6), (0.01, 0.1, 0.02))
    groups = (dyn.Group("*.bias", 4.0, 0.0), dyn.Group("norm.*", 0.5, 3.0))
    optimizer = dyn.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=0.02, groups=groups)
    expected = torchs(
        [
            (["norm.bias"], {"lr": 4.0, "weight_decay": 0.0}),
            (["norm.weight"], {"lr": 0.5, "weight_decay": 0.06}),
            (["conv.weight", "linear.weight"], {"weight_decay": 0.02}),
        ],
        schedule,
        momentum=0.9,
        nesterov=True,
    )
    assert_close(ours(optimizer), expected)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_decoupled_decay_equals_a_loop_by_hand(momentum, nesterov):
    """Loshchilov and Hutter 2019: the weights shrink by 1 - lr * weight_decay, apart from the gradient step."""
    lr = dyn.PiecewiseLinear((0, 2, 6), (0.0, 0.1, 0.01))
    groups = (dyn.Group("*.bias", 2.0, 0.5),)
    optimizer = dyn.SGD(lr, momentum=momentum, nesterov=nesterov, weight_decay=0.3, decoupled=True, groups=groups)
    params = {k: p.numpy().copy() for k, p in start().items()}
    velocity = {k: np.zeros_like(p) for k, p in params.items()}
    for t in range(30):
        grads = gradients({k: torch.from_numpy(p) for k, p in params.items()}, t)
        for k, p in params.items():
            rate = lr((t + 1) / STEPS_PER_EPOCH) * (2.0 if k.endswith(".bias") else 1.0)
            decay = 0.3 * (0.5 if k.endswith(".bias") else 1.0)
            g = grads[k].numpy()
            velocity[k] = momentum * velocity[k] + g
            step = g + momentum * velocity[k] if nesterov else velocity[k]
            params[k] = (1 - rate * decay) * p - rate * step
    assert_close(ours(optimizer), {k: torch.from_numpy(p) for k, p in params.items()})


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_update_is_pure(momentum, nesterov, decoupled, weight_decay):
    if nesterov and not momentum:
        return
    optimizer = dyn.SGD(0.1, momentum, nesterov=nesterov, weight_decay=weight_decay, decoupled=decoupled)
    params, opt = start(), optimizer.init(start())
    for _ in range(2):  # the second time with a velocity
        grads = gradients(params, 0)
        inputs = [*grads.values(), *params.values(), *opt.get("velocity", {}).values()]
        copies, versions = [t.clone() for t in inputs], [t._version for t in inputs]
        updates, following = optimizer.update(grads, opt, params, 0.5)
        again, following_again = optimizer.update(grads, opt, params, 0.5)
        assert all(torch.equal(t, c) for t, c in zip(inputs, copies, strict=True))
        assert [t._version for t in inputs] == versions
        storages = {t.untyped_storage().data_ptr() for t in inputs}
        results = [*updates.values(), *following.get("velocity", {}).values()]
        assert not storages & {t.untyped_storage().data_ptr() for t in results}
        assert len({t.untyped_storage().data_ptr() for t in results}) == len(results)
        assert all(torch.equal(updates[k], again[k]) for k in params)
        assert list(updates) == list(params)
        opt = following
        assert following.keys() == following_again.keys()


def test_init_does_not_alias_the_parameters():
    params = start()
    opt = dyn.SGD(0.1, 0.9).init(params)
    assert opt["velocity"].keys() == params.keys() and not any(v.any() for v in opt["velocity"].values())
    assert dyn.SGD(0.1, 0.0).init(params) == {}


def test_first_group_that_matches_applies():
    sgd = dyn.SGD(groups=(dyn.Group("*.bias", 64.0, 1 / 64), dyn.Group("norm.*", 0.0)))
    names = tuple(start())
    assert sgd.partition(names) == (
        ("*.bias", ("norm.bias",)),
        ("norm.*", ("norm.weight",)),
        ("default", ("conv.weight", "linear.weight")),
    )
    in_force = dyn.SGD(0.5, 0.8, weight_decay=0.64, groups=sgd.groups).hyperparameters(3.0)
    assert in_force["lr"] == (32.0, 0.0, 0.5) and in_force["weight_decay"] == (0.01, 0.64, 0.64)
    assert in_force["momentum"] == (0.8,) * 3 and in_force["nesterov"] == in_force["decoupled"] == (0.0,) * 3


def test_a_group_that_matches_nothing():
    with pytest.raises(DynamicsError, match=r"no parameter matches the group '\*.scale'.*'conv.weight'"):
        dyn.SGD(groups=(dyn.Group("*.scale"),)).init(start())
    # hidden behind a wider pattern
    with pytest.raises(DynamicsError, match=r"no parameter matches the group 'norm.bias'"):
        dyn.SGD(groups=(dyn.Group("norm.*"), dyn.Group("norm.bias"))).init(start())


@pytest.mark.parametrize(
    ("knots", "values"), [((0, 5, 24), (0, 0.4, 0)), ((2,), (0.3,)), ((1, 1.5, 9, 10), (1, 0, 2, 2))]
)
def test_piecewise_linear_equals_numpy(knots, values):
    schedule = dyn.PiecewiseLinear(knots, values)
    for epoch in [*np.linspace(-1, 30, 311), *knots]:
        assert schedule(float(epoch)) == pytest.approx(np.interp(epoch, knots, values), abs=1e-14)
        assert schedule.stretch(2.5)(2.5 * float(epoch)) == pytest.approx(schedule(float(epoch)), abs=1e-13)


@pytest.mark.parametrize("peak", [0.1, 0.4, 1 / 3, 0.7])
def test_a_schedule_reaches_its_values_and_never_passes_them(peak):
    """At a knot the value is exact: a run that ends at lr 0 does not end at -5e-17."""
    schedule = dyn.PiecewiseLinear((0, 1, 4), (0, peak, 0))
    assert [schedule(float(k)) for k in schedule.knots] == list(schedule.values)
    epochs = [*np.linspace(0, 4, 997), *(np.arange(1, 1200) / 300), *np.nextafter([1.0, 4.0], 0)]
    assert all(0 <= schedule(float(e)) <= peak for e in epochs)


def test_schedules_are_values():
    assert dyn.PiecewiseLinear([0, 5], [0, 1]) == dyn.PiecewiseLinear((0, 5), (0.0, 1.0))
    assert hash(dyn.PiecewiseLinear([0, 5], [0, 1])) == hash(dyn.PiecewiseLinear((0, 5), (0, 1)))
    assert dyn.Constant(0.3)(17.0) == 0.3 and dyn.Constant(0.3).stretch(2) == dyn.Constant(0.3)
    assert hash(dyn.SGD(groups=[dyn.Group("*.bias")])) == hash(dyn.SGD(groups=(dyn.Group("*.bias"),)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dyn.SGD(-0.1), "lr must be a number of at least 0, got -0.1"),
        (lambda: dyn.SGD(float("nan")), "lr must be a number"),
        (lambda: dyn.SGD(float("inf")), "lr must be a number"),
        (lambda: dyn.SGD("0.1"), "lr must be a number of at least 0, got '0.1'"),
        (lambda: dyn.SGD(weight_decay=-1e-4), "weight_decay must be"),
        (lambda: dyn.SGD(momentum=1.0), "momentum must be at least 0 and below 1, got 1.0"),
        (lambda: dyn.SGD(momentum=-0.1), "momentum"),
        (lambda: dyn.SGD(momentum=float("nan")), "momentum"),
        (lambda: dyn.SGD(momentum=0.0, nesterov=True), "Nesterov needs momentum"),
        (lambda: dyn.Group("*", lr_factor=-1), "lr_factor"),
        (lambda: dyn.Group("*", weight_decay_factor=float("nan")), "weight_decay_factor"),
        (lambda: dyn.Constant(-1), "lr must be"),
        (lambda: dyn.PiecewiseLinear((0, 1), (1,)), "2 knots and 1 values"),
        (lambda: dyn.PiecewiseLinear((), ()), "0 knots"),
        (lambda: dyn.PiecewiseLinear((0, 2, 2), (0, 1, 0)), "knots must increase"),
        (lambda: dyn.PiecewiseLinear((0, float("nan"), 2), (0, 1, 0)), "knots"),
        (lambda: dyn.PiecewiseLinear((0, 1), (0, -1)), "lr must be"),
    ],
)
def test_errors(make, message):
    with pytest.raises(DynamicsError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)
