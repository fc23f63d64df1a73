from __future__ import annotations

import dataclasses
import inspect
import json
import math
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import assert_same, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics import optim
from dynamics.errors import DynamicsError
from dynamics.theory import robust_region

A = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
QUADRATIC = A @ A.T / 6
STEPS_PER_EPOCH = 4


# Every optimizer: the same protocol, the same tests


class Case(NamedTuple):
    """make(lr, groups) is ours. twin is the published algorithm: a torch optimizer of lr and groups of parameters, or a
    plain loop, rule(w, g, memory, lr, weight_decay) -> w, where memory is a dict of the parameter's own."""

    make: Callable[..., optim.Optimizer]
    twin: Callable[..., Any]
    lr: float
    weight_decay: float


def case(kind: type, lr: float, twin: Callable[..., Any], **given: Any) -> Case:
    def make(lr: Any, groups: tuple[dyn.Group, ...] = ()) -> optim.Optimizer:
        return kind(lr=lr, groups=groups, **given)

    return Case(make, twin, lr, given.get("weight_decay", 0.0))


def adapted(name: str, lr: float, **given: Any) -> Case:
    def make(lr: Any, groups: tuple[dyn.Group, ...] = ()) -> optim.Optimizer:
        return optim.TorchOptimizer(name, lr=lr, groups=groups, **given)

    # a parameter without decay in a group that names none takes the optimizer's own
    return Case(make, lambda groups: getattr(torch.optim, name)(groups, **given), lr, given.get("weight_decay"))


def torch_twin(kind: type[torch.optim.Optimizer], **given: Any) -> Callable[..., Any]:
    return lambda groups: kind(groups, **given)


def decoupled_nesterov_rule(w, g, memory, lr, decay):
    v = memory["v"] = 0.9 * memory.get("v", 0.0) + g
    return (1 - lr * decay) * w - lr * (g + 0.9 * v)


def lion_rule(w, g, memory, lr, decay):
    """Chen et al. 2023, Algorithm 2, line by line."""
    beta1, beta2, m = 0.8, 0.95, memory.get("m", np.zeros_like(w))
    c = beta1 * m + (1 - beta1) * g
    w = w - lr * (np.sign(c) + decay * w)
    memory["m"] = beta2 * m + (1 - beta2) * g
    return w


def lars_rule(w, g, memory, lr, decay):
    """You et al. 2017, Algorithm 1, one lr outside the velocity."""
    rate = 0.02 * np.sqrt((w**2).sum()) / (np.sqrt((g**2).sum()) + decay * np.sqrt((w**2).sum())) if w.ndim > 1 else 1.0
    v = memory["v"] = 0.9 * memory.get("v", 0.0) + rate * (g + decay * w)
    return w - lr * v


def page_lars_rule(nesterov):
    def rule(w, g, memory, lr, decay):
        before, memory_v = memory.get("v", np.zeros_like(w)), np.zeros_like(w)
        moved = w.copy()
        for i in range(len(w)):  # a channel at a time; a vector is not adapted
            rate = np.linalg.norm(w[i]) / (np.linalg.norm(g[i]) + 0.05) if w.ndim > 1 else 1.0
            d = rate * (g[i] + decay * w[i])
            memory_v[i] = 0.9 * before[i] + d
            moved[i] = w[i] - lr * (d + 0.9 * memory_v[i] if nesterov else memory_v[i])
        memory["v"] = memory_v
        return moved

    return rule


def muon_rule(*, normalise: bool = False, scale: Callable[[int, int], float] = lambda r, c: 1.0):
    """By singular values: each is divided by the norm of all and mapped five times by the polynomial."""

    def rule(w, g, memory, lr, decay):
        momentum = 0.8 if w.ndim > 1 else 0.6
        v = memory["v"] = momentum * memory.get("v", 0.0) + g
        d = g + momentum * v
        if w.ndim == 1:
            return (1 - lr * decay) * w - lr * d
        u, s, vt = np.linalg.svd(d.reshape(len(d), -1), full_matrices=False)
        if normalise:
            w = w * np.sqrt(len(w)) / np.sqrt((w**2).sum())
        step = (u * quintic(s / np.sqrt((s**2).sum()))) @ vt
        return (1 - lr * decay) * w - lr * scale(len(u), vt.shape[1]) * step.reshape(w.shape)

    return rule


def quintic(s: np.ndarray, steps: int = 5) -> np.ndarray:
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def lookahead_rule(inner: Callable[..., np.ndarray], k: int, alpha: float):
    """Zhang et al. 2019, Algorithm 1, the inner loop unrolled."""

    def rule(w, g, memory, lr, decay):
        slow = memory.setdefault("slow", w)
        memory["t"] = memory.get("t", 0) + 1
        w = inner(w, g, memory, lr, decay)
        if memory["t"] % k == 0:
            memory["slow"] = w = slow + alpha * (w - slow)
        return w

    return rule


def nesterov_rule(w, g, memory, lr, decay):
    d = g + decay * w
    v = memory["v"] = 0.9 * memory.get("v", 0.0) + d
    return w - lr * (d + 0.9 * v)


class YellowFinTwin:
    """Zhang and Mitliagkas 2017, Algorithms 1 to 4, from the whole history of gradients: every average is a sum over
    it, and the cubic is solved by its companion matrix."""

    def __init__(self, groups, *, beta: float, window: int, clip: bool = False) -> None:
        self.param_groups, self.beta, self.window, self.clip = groups, beta, window, clip
        self.velocity, self.history, self.tuned = [0.0] * len(groups), [], []

    def average(self, values):
        weights = self.beta ** np.arange(len(values) - 1.0, -1.0, -1.0)
        return sum(w * v for w, v in zip(weights, values, strict=True)) / weights.sum()

    def largest(self, pick=max):
        h = [g @ g for g in self.history]
        return np.exp(self.average([np.log(pick(h[max(0, i + 1 - self.window) : i + 1])) for i in range(len(h))]))

    @torch.no_grad()
    def step(self) -> None:
        params = [group["params"][0] for group in self.param_groups]
        g = applied = np.concatenate([p.grad.numpy().ravel() for p in params])
        if self.clip and self.history:
            bound = np.sqrt(self.largest())
            g = g * min(1, 10 * bound / np.linalg.norm(g))
            applied = applied * min(1, bound / np.linalg.norm(applied))
        self.history.append(g)
        t = len(self.history)
        h, norms = [g @ g for g in self.history], [np.linalg.norm(g) for g in self.history]
        h_max, h_min = self.largest(max), self.largest(min)
        variance = self.average(h) - (self.average(self.history) ** 2).sum()
        distance = self.average([self.average(norms[:i]) / self.average(h[:i]) for i in range(1, t + 1)])
        ratio = np.sqrt(h_max / h_min)
        # d/dx of x² D² + (1 - x)⁴ C / h²: 2 x D² - 4 (1 - x)³ C / h², its coefficients from x³ down
        slope = np.array([-1.0, 3.0, -3.0, 1.0]) * -4 * variance / h_min**2 + [0, 0, 2 * distance**2, 0]
        roots = [r.real for r in np.roots(slope) if abs(r.imag) < 1e-9 and -1e-9 <= r.real <= 1]
        x = min(roots) if t > 1 else 0.0  # one gradient has no variance
        momentum = max(x, (ratio - 1) / (ratio + 1)) ** 2
        lr = (1 - np.sqrt(momentum)) ** 2 / h_min * min(1, t / (10 * self.window))
        self.tuned.append((lr, momentum, h_min, h_max, variance, distance))
        parts = np.split(applied, np.cumsum([p.numel() for p in params])[:-1])
        for i, (group, p, part) in enumerate(zip(self.param_groups, params, parts, strict=True)):
            w = p.detach().numpy()
            self.velocity[i] = momentum * self.velocity[i] + part.reshape(w.shape) + group["weight_decay"] * w
            p.copy_(torch.from_numpy(w - group["lr"] * lr * self.velocity[i]))


def yellowfin(lr: float, *, weight_decay: float = 0.0, **given: Any) -> Case:
    def make(lr: Any, groups: tuple[dyn.Group, ...] = ()) -> optim.Optimizer:
        return optim.YellowFin(lr, weight_decay=weight_decay, groups=groups, **given)

    return Case(make, lambda groups: YellowFinTwin(groups, **given), lr, weight_decay)


def ahead(inner: type, lr: float, twin: Callable[..., Any], k: int, alpha: float, **given: Any) -> Case:
    def make(lr: Any, groups: tuple[dyn.Group, ...] = ()) -> optim.Optimizer:
        return optim.Lookahead(inner(lr=lr, groups=groups, **given), k, alpha)

    return Case(make, lookahead_rule(twin, k, alpha), lr, given.get("weight_decay", 0.0))


def nesterov_arguments(**given: Any) -> dict[str, Any]:
    return {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02, **given}


CASES = {
    "SGD": case(
        dyn.SGD, 0.07, torch_twin(torch.optim.SGD, momentum=0.9, nesterov=True), **nesterov_arguments()
    ),
    "SGD, plain": case(dyn.SGD, 0.07, torch_twin(torch.optim.SGD), momentum=0.0, weight_decay=0.02),
    "SGD, decoupled": case(dyn.SGD, 0.07, decoupled_nesterov_rule, **nesterov_arguments(decoupled=True)),
    "PageLARS": case(optim.PageLARS, 0.02, page_lars_rule(True), eps=0.05, weight_decay=0.1),
    "PageLARS, heavy ball": case(
        optim.PageLARS, 0.02, page_lars_rule(False), eps=0.05, nesterov=False, weight_decay=0.0
    ),
    "LARS": case(optim.LARS, 0.3, lars_rule, trust=0.02, weight_decay=0.1),
    "Adam": case(
        optim.Adam, 0.05, torch_twin(torch.optim.Adam, betas=(0.8, 0.95), eps=1e-3),
        beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1,
    ),
    "Adam, no decay": case(optim.Adam, 0.05, torch_twin(torch.optim.Adam), weight_decay=0.0),
    "AdamW": case(
        optim.AdamW, 0.05, torch_twin(torch.optim.AdamW, betas=(0.8, 0.95), eps=1e-3),
        beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.5,
    ),
    "Lion": case(optim.Lion, 0.02, lion_rule, beta1=0.8, beta2=0.95, weight_decay=0.5),
    "Muon": case(optim.Muon, 0.05, muon_rule(), momentum=0.8, sgd_momentum=0.6, weight_decay=0.5),
    "Muon, normalised": case(
        optim.Muon, 0.05, muon_rule(normalise=True), momentum=0.8, sgd_momentum=0.6, weight_decay=0.5, normalise=True
    ),
    "Muon, aspect": case(
        optim.Muon, 0.05, muon_rule(scale=lambda r, c: max(1, r / c) ** 0.5), momentum=0.8, sgd_momentum=0.6,
        scale="aspect",
    ),
    "Muon, rms": case(
        optim.Muon, 0.05, muon_rule(scale=lambda r, c: 0.2 * max(r, c) ** 0.5), momentum=0.8, sgd_momentum=0.6,
        scale="rms",
    ),
    "Lookahead": ahead(dyn.SGD, 0.07, nesterov_rule, 4, 0.3, **nesterov_arguments()),
    "Lookahead of Lion": ahead(optim.Lion, 0.02, lion_rule, 3, 0.8, beta1=0.8, beta2=0.95, weight_decay=0.5),
    "YellowFin": yellowfin(5.0, beta=0.9, window=4, weight_decay=0.1),
    "YellowFin, clipped": yellowfin(5.0, beta=0.7, window=3, clip=True),
    "torch SGD": adapted("SGD", 0.07, momentum=0.9, dampening=0.3, weight_decay=0.02),
    "torch SGD, foreach": adapted("SGD", 0.07, **nesterov_arguments(weight_decay=0.0, foreach=True)),
    "torch SGD, plain": adapted("SGD", 0.07),
    "torch Adam": adapted("Adam", 0.05, betas=(0.8, 0.95), amsgrad=True, weight_decay=0.1),
    "torch AdamW": adapted("AdamW", 0.05, weight_decay=0.5),
    "torch AdamW, fused": adapted("AdamW", 0.05, weight_decay=0.5, fused=True),
    "torch NAdam": adapted("NAdam", 0.05, weight_decay=0.1, decoupled_weight_decay=True),
    "torch RAdam": adapted("RAdam", 0.05, weight_decay=0.1, betas=(0.8, 0.9)),
    "torch RMSprop": adapted("RMSprop", 0.02, weight_decay=0.1, centered=True, momentum=0.5),
    "torch Adagrad": adapted("Adagrad", 0.2, weight_decay=0.1, lr_decay=0.1, initial_accumulator_value=0.3),
    "torch Adamax": adapted("Adamax", 0.05, weight_decay=0.1),
    "torch Adadelta": adapted("Adadelta", 1.0, weight_decay=0.1, rho=0.8),
    "torch ASGD": adapted("ASGD", 0.07, weight_decay=0.1, lambd=0.01, t0=5),
    "torch Rprop": adapted("Rprop", 0.05, etas=(0.4, 1.3)),
    "torch Adafactor": adapted("Adafactor", 0.05, weight_decay=0.1),
}  # fmt: skip
HAS_DECAY = {k: k != "torch Rprop" for k in CASES}
TUNED = {k: "lr_factor" if k.startswith("YellowFin") else "lr" for k in CASES}
"""Where the lr that was given is found among the hyperparameters: YellowFin's own are nan, known in training only."""
every_optimizer = pytest.mark.parametrize("name", CASES)


def groups_for(name: str) -> tuple[dyn.Group, ...]:
    return (
        dyn.Group("*.bias", 4.0, 0.0 if HAS_DECAY[name] else 1.0),
        dyn.Group("norm.*", 0.5, 3.0 if HAS_DECAY[name] else 1.0),
    )


FACTORS = {"norm.bias": (4.0, 0.0), "norm.weight": (0.5, 3.0)}
"""What `groups_for` says of lr and decay, by hand."""


def start() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    shapes = {"conv.weight": (6, 2, 3, 3), "norm.weight": (6,), "norm.bias": (6,), "linear.weight": (6, 3)}
    return {k: torch.randn(*s, dtype=torch.float64, generator=draws) for k, s in shapes.items()}


def gradients(params: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
    """A quadratic that couples everything to itself, with a step-dependent force."""
    force = torch.sin(torch.arange(6, dtype=torch.float64) + step)
    return {k: torch.tensordot(QUADRATIC, p, 1) + force.reshape(-1, *[1] * (p.ndim - 1)) for k, p in params.items()}


def walk(optimizer: optim.Optimizer, params, opt, begin: int, end: int):
    """The training loop: parameters and optimizer state after the steps begin to end."""
    for t in range(begin, end):
        updates, opt = optimizer.update(gradients(params, t), opt, params, (t + 1) / STEPS_PER_EPOCH)
        params = {k: p + updates[k] for k, p in params.items()}
    return params, opt


def ours(optimizer: optim.Optimizer, steps: int = 30) -> dict[str, torch.Tensor]:
    return walk(optimizer, start(), optimizer.init(start()), 0, steps)[0]


def twins(case: Case, schedule: Callable[[float], float], factors: dict[str, tuple[float, float]], steps: int = 30):
    """The twin's trajectory on its own loop, each parameter with its own lr and decay."""
    scale = {k: factors.get(k, (1.0, 1.0)) for k in start()}
    params = {k: torch.nn.Parameter(p) for k, p in start().items()}
    if "groups" in inspect.signature(case.twin).parameters:
        decay = {} if case.weight_decay is None else {"weight_decay": case.weight_decay}
        groups = [{"params": [p], **{k: d * scale[name][1] for k, d in decay.items()}} for name, p in params.items()]
        for group, name in zip(groups, params, strict=True):
            group["lr"] = schedule(1 / STEPS_PER_EPOCH) * scale[name][0]
        optimizer = case.twin(groups)
        for t in range(steps):
            grads = gradients({k: p.detach() for k, p in params.items()}, t)
            for (name, p), group in zip(params.items(), optimizer.param_groups, strict=True):
                p.grad, group["lr"] = grads[name], schedule((t + 1) / STEPS_PER_EPOCH) * scale[name][0]
            optimizer.step()
        return {k: p.detach() for k, p in params.items()}
    weights, memory = {k: p.numpy().copy() for k, p in start().items()}, {k: {} for k in params}
    for t in range(steps):
        grads = gradients({k: torch.from_numpy(w) for k, w in weights.items()}, t)
        for k, w in weights.items():
            lr, decay = schedule((t + 1) / STEPS_PER_EPOCH) * scale[k][0], case.weight_decay * scale[k][1]
            weights[k] = case.twin(w, grads[k].numpy(), memory[k], lr, decay)
    return {k: torch.from_numpy(w) for k, w in weights.items()}


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


def assert_close(a, b, tolerance=1e-12):
    assert list(a) == list(b)
    for k in a:
        torch.testing.assert_close(a[k], b[k], rtol=tolerance, atol=tolerance, msg=k)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for key, value in tree.items():
        assert "/" not in key
        out.update(flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {prefix + key: value})
    assert all(isinstance(t, torch.Tensor) for t in out.values())
    return out


@every_optimizer
@pytest.mark.parametrize("grouped", [False, True], ids=["constant", "schedule and groups"])
def test_every_optimizer_equals_its_twin(name, grouped):
    case = CASES[name]
    lr = dyn.PiecewiseLinear((0, 2, 6), (0.0, case.lr, case.lr / 5)) if grouped else dyn.Constant(case.lr)
    optimizer = case.make(lr if grouped else case.lr, groups_for(name) if grouped else ())
    expected = twins(case, lr, FACTORS if grouped else {})
    assert_close(ours(optimizer), expected, 1e-10 if name.startswith("torch") else 1e-12)
    assert min(float((expected[k] - p).abs().max()) for k, p in start().items()) > 1e-2, "a test that moves nothing"


@every_optimizer
def test_every_update_is_pure_and_fits_the_parameters(name):
    optimizer = CASES[name].make(CASES[name].lr, groups_for(name))
    params = start()
    opt = optimizer.init(params)
    structure = {k: (t.shape, t.dtype) for k, t in flat(opt).items()}
    for t in range(3):  # the first without a state
        grads = gradients(params, t)
        inputs = [*grads.values(), *params.values(), *flat(opt).values()]
        copies, versions = [t.clone() for t in inputs], [t._version for t in inputs]
        updates, following = optimizer.update(grads, opt, params, 0.5)
        again, following_again = optimizer.update(grads, opt, params, 0.5)
        assert all(torch.equal(t, c) for t, c in zip(inputs, copies, strict=True))
        assert [t._version for t in inputs] == versions
        storages = {t.untyped_storage().data_ptr() for t in inputs}
        results = [*updates.values(), *flat(following).values()]
        assert not storages & {t.untyped_storage().data_ptr() for t in results}
        assert len({t.untyped_storage().data_ptr() for t in results}) == len(results)
        assert not any(t.requires_grad for t in results)
        assert list(updates) == list(params)
        assert all(updates[k].shape == p.shape and updates[k].dtype == p.dtype for k, p in params.items())
        assert all(torch.equal(updates[k], again[k]) for k in params)
        assert all(
            torch.equal(a, b) for a, b in zip(flat(following).values(), flat(following_again).values(), strict=True)
        )
        assert {k: (t.shape, t.dtype) for k, t in flat(following).items()} == structure
        params, opt = {k: p + updates[k] for k, p in params.items()}, following


@every_optimizer
def test_stopping_in_the_middle_changes_nothing(name):
    case = CASES[name]
    optimizer = case.make(dyn.PiecewiseLinear((0, 2, 6), (0.0, case.lr, 0.0)), groups_for(name))
    whole, opt_whole = walk(optimizer, start(), optimizer.init(start()), 0, 20)
    params, opt = walk(optimizer, start(), optimizer.init(start()), 0, 7)
    saved = {k: t.numpy().tolist() for k, t in flat(opt).items()}
    fresh = optimizer.init(params)  # a saved state is written over a fresh one
    for k, tensor in flat(fresh).items():
        tensor.copy_(torch.tensor(saved.pop(k), dtype=torch.float64))
    assert not saved
    halves, opt_halves = walk(optimizer, params, fresh, 7, 20)
    assert all(torch.equal(whole[k], halves[k]) for k in whole)
    assert all(torch.equal(a, b) for a, b in zip(flat(opt_whole).values(), flat(opt_halves).values(), strict=True))


# Rprop's steps have a lower bound, and rescaling is no step
@pytest.mark.parametrize("name", [k for k in CASES if k not in ("torch Rprop", "Muon, normalised")])
def test_zero_lr_moves_nothing(name):
    everywhere = CASES[name].make(0.0)
    in_a_group = CASES[name].make(CASES[name].lr, (dyn.Group("linear.*", lr_factor=0.0),))
    before, after, grouped = start(), ours(everywhere, 5), ours(in_a_group, 5)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert [k for k in before if torch.equal(before[k], grouped[k])] == ["linear.weight"]


@every_optimizer
@pytest.mark.parametrize("grads_too", [False, True], ids=["gradients contiguous", "gradients too"])
def test_every_optimizer_trains_in_float32_and_channels_last(name, grads_too):
    like = {k: p.float() for k, p in start().items()}
    like["conv.weight"] = like["conv.weight"].contiguous(memory_format=torch.channels_last)
    optimizer = CASES[name].make(CASES[name].lr)
    params, opt = like, optimizer.init(like)
    for t in range(3):
        grads = {k: g.float() for k, g in gradients({k: p.double() for k, p in params.items()}, t).items()}
        if grads_too:
            grads["conv.weight"] = grads["conv.weight"].contiguous(memory_format=torch.channels_last)
        updates, opt = optimizer.update(grads, opt, params, 1.0)
        params = {k: p + updates[k] for k, p in params.items()}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in params.values())
    assert updates["conv.weight"].is_contiguous(memory_format=torch.channels_last) or not grads_too
    expected = ours(optimizer, 3)
    assert all((params[k] - p).abs().max() < 1e-3 for k, p in expected.items())


@every_optimizer
def test_hyperparameters_are_one_number_a_group(name):
    case = CASES[name]
    schedule = dyn.PiecewiseLinear((0, 2), (0.0, case.lr))
    optimizer = case.make(schedule, groups_for(name))
    in_force = optimizer.hyperparameters(1.0)
    unknown = ("lr", "momentum") if TUNED[name] == "lr_factor" else ()
    assert all(
        type(v) is float and math.isfinite(v) != (k in unknown) for k, values in in_force.items() for v in values
    )
    assert {len(values) for values in in_force.values()} == {3}
    assert in_force[TUNED[name]] == pytest.approx((2 * case.lr, case.lr / 4, case.lr / 2))
    if HAS_DECAY[name]:
        decay = in_force["weight_decay"][-1]
        assert in_force["weight_decay"] == (0.0, 3 * decay, decay) and decay == (case.weight_decay or 0.0)
        is_decoupled = name.endswith("decoupled") or name.split(",")[0] in (
            "AdamW", "Lion", "Muon", "Lookahead of Lion", "torch AdamW", "torch NAdam", "torch Adafactor"
        )  # fmt: skip
        assert in_force["decoupled"] == (float(is_decoupled),) * 3
    optimizer.partition(tuple(start()))


@every_optimizer
def test_every_optimizer_is_a_value_that_json_can_hold(name):
    make, lr = CASES[name].make, CASES[name].lr
    optimizer = make(dyn.PiecewiseLinear((0, 2), (0.0, lr)), groups_for(name))
    assert type(optimizer) in optim.KINDS
    fields = {f.name: getattr(optimizer, f.name) for f in dataclasses.fields(optimizer)}

    def decoded(value):  # a recipe's JSON: dataclasses by kind, and lists, which come back as tuples
        if isinstance(value, list | tuple):
            return tuple(map(decoded, value))
        if type(value) in optim.KINDS:
            return type(value)(**{f.name: decoded(getattr(value, f.name)) for f in dataclasses.fields(value)})
        return json.loads(json.dumps(value, allow_nan=False))

    again = decoded(optimizer)
    assert again == optimizer and hash(again) == hash(optimizer) and again is not optimizer
    assert type(optimizer)(**fields) == optimizer != dataclasses.replace(optimizer, lr=lr)
    assert eval(repr(optimizer), {k.__name__: k for k in optim.KINDS}) == optimizer


@every_optimizer
def test_every_schedule_can_be_stretched(name):
    optimizer = CASES[name].make(dyn.PiecewiseLinear((0, 2), (0.0, 0.1)))
    stretched = dataclasses.replace(optimizer, lr=optimizer.lr.stretch(3))
    assert stretched.hyperparameters(3.0) == optimizer.hyperparameters(1.0) != stretched.hyperparameters(1.0)


@every_optimizer
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -0.1}, "lr must be a number of at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"lr": "0.1"}, "lr must be a number of at least 0, got '0.1'"),
        ({"groups": (dyn.Group("*.scale"),)}, "no parameter matches the group '*.scale'"),
        ({"groups": ("*.bias",)}, "groups must be a tuple of Group"),
    ],
    ids=["negative", "nan", "string", "no match", "not a group"],
)
def test_bad_input_is_one_line(name, change, message):
    with pytest.raises(DynamicsError) as error:
        CASES[name].make(**{"lr": 0.1, **change}).init(start())
    assert message in str(error.value) and "\n" not in str(error.value)


# LARS


def test_page_lars_equals_pages_own_convention_at_constant_lr():
    """His loss is the sum over N images, with N times the decay; 1e-2 goes to that norm, lr into the velocity."""
    n, lr, decay, momentum = 128, 0.02, 0.3, 0.9
    params = {k: p.clone() for k, p in start().items() if p.ndim > 1}
    mine = optim.PageLARS(lr, weight_decay=decay, eps=1e-2 / n)
    w, opt, velocity = params, mine.init(params), {k: torch.zeros_like(p) for k, p in params.items()}
    for t in range(20):
        updates, opt = mine.update(gradients(w, t), opt, w, 0.0)
        w = {k: p + updates[k] for k, p in w.items()}
        for k, g in gradients(params, t).items():
            p, total = params[k], n * g
            size = [v.flatten(1).norm(dim=1).reshape(-1, *[1] * (p.ndim - 1)) for v in (p, total)]
            d = -lr * size[0] / (size[1] + 1e-2) * (total + n * decay * p)
            velocity[k] = momentum * velocity[k] + d
            params[k] = p + d + momentum * velocity[k]
    assert_close(w, params)


def test_every_channel_moves_by_a_fraction_lr_of_its_norm():
    params = start()
    lars = optim.PageLARS(0.03, momentum=0.0, nesterov=False, weight_decay=0.0, eps=0.0)
    updates, _ = lars.update(gradients(params, 3), lars.init(params), params, 0.0)
    for k in ("conv.weight", "linear.weight"):
        size = updates[k].flatten(1).norm(dim=1) / params[k].flatten(1).norm(dim=1)
        torch.testing.assert_close(size, torch.full_like(size, 0.03), rtol=1e-12, atol=0)
    torch.testing.assert_close(updates["norm.bias"], -0.03 * gradients(params, 3)["norm.bias"])


def test_a_layer_moves_by_at_most_lr_times_trust_of_its_norm():
    params = start()
    for decay, close in ((0.0, True), (0.5, False)):
        lars = optim.LARS(2.0, momentum=0.0, weight_decay=decay, trust=0.01)
        updates, _ = lars.update(gradients(params, 3), lars.init(params), params, 0.0)
        for k in ("conv.weight", "linear.weight"):
            size = float(updates[k].norm() / params[k].norm())
            assert size <= 0.02 * (1 + 1e-12) and (abs(size - 0.02) < 1e-12) == close


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_survives_weights_and_gradients_of_zero(decay, eps):
    params, zeros = start(), {k: torch.zeros_like(p) for k, p in start().items()}
    for lars in (optim.PageLARS(0.1, eps=eps, weight_decay=decay), optim.LARS(0.1, weight_decay=decay)):
        for weights, grads in ((zeros, gradients(params, 0)), (params, zeros), (zeros, zeros)):
            updates, opt = lars.update(grads, lars.init(weights), weights, 0.0)
            assert all(t.isfinite().all() for t in [*updates.values(), *opt["velocity"].values()])
            moved = float(updates["conv.weight"].abs().max()) > 0
            # Page's norm 0 stays; the layer-wise one takes a plain step from there
            if weights is zeros:
                assert moved == (isinstance(lars, optim.LARS) and grads is not zeros)


# Muon


def tall_and_wide(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(3)
    shapes = ((12, 30), (30, 12), (16, 16), (1, 5), (5, 1))
    return [torch.randn(*s, generator=draws, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_orthogonalising_maps_every_singular_value_by_the_polynomial(steps):
    for matrix in tall_and_wide():
        u, s, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
        expected = (u * quintic(s / np.sqrt((s**2).sum()), steps)) @ vt
        found = optim.orthogonalised(matrix, steps=steps)
        assert found.shape == matrix.shape and found.dtype == torch.float64
        assert np.abs(found.numpy() - expected).max() < 1e-10


def test_orthogonalised_matrices_are_nearly_the_polar_factor():
    """Singular values in the band that the docstring states, and the direction of U Vᵀ."""
    inside = quintic(np.geomspace(0.0016, 1, 20_001))
    assert 0.68 < inside.min() < 0.69 and 1.20 < inside.max() < 1.21
    assert quintic(np.array([0.0012])) < 0.66
    for matrix in tall_and_wide():
        u, s, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
        assert s.min() / np.sqrt((s**2).sum()) > 0.0016
        found, polar = optim.orthogonalised(matrix).numpy(), u @ vt
        values = np.linalg.svd(found, compute_uv=False)
        assert inside.min() - 1e-9 <= values.min() and values.max() <= inside.max() + 1e-9
        assert (found * polar).sum() / np.linalg.norm(found) / np.linalg.norm(polar) > 0.97
    # singular values over two decades, where the matrix itself is far from its polar factor
    skew = tall_and_wide()[0] * torch.logspace(0, -2, 12, dtype=torch.float64)[:, None]
    u, _, vt = np.linalg.svd(skew.numpy(), full_matrices=False)
    polar = torch.from_numpy(u @ vt)
    cosine = [float((m * polar).sum() / m.norm() / polar.norm()) for m in (skew, optim.orthogonalised(skew))]
    assert cosine[0] < 0.8 < 0.97 < cosine[1]


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-4), (True, 0.06)])
def test_orthogonalising_in_lower_precision(bf16, tolerance):
    for matrix in tall_and_wide(torch.float32):
        found = optim.orthogonalised(matrix, bf16=bf16)
        assert found.dtype == torch.float32
        assert (found.double() - optim.orthogonalised(matrix.double())).abs().max() < tolerance


def test_orthogonalising_is_blind_to_size_and_leaves_zero():
    matrix = tall_and_wide()[0]
    for factor in (1e-4, 1e6):
        torch.testing.assert_close(
            optim.orthogonalised(factor * matrix), optim.orthogonalised(matrix), rtol=1e-10, atol=1e-10
        )
    assert not optim.orthogonalised(torch.zeros(3, 4)).any()


@pytest.mark.parametrize(("scale", "theirs"), [("aspect", "original"), ("rms", "match_rms_adamw")])
def test_muon_equals_torchs_where_both_iterate_in_bf16(scale, theirs):
    """torch iterates in bf16 whatever the weights are. Its momentum is a mean, ours a sum: with momentum 1/2 they
    differ by a power of two, which no rounding sees, and so the two agree in float64."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    for momentum, tolerance in ((0.5, 1e-12), (0.9, 5e-3)):
        w = {"linear.weight": start()["linear.weight"], "wide.weight": tall_and_wide()[0]}
        twins_ = [nn.Parameter(p.clone()) for p in w.values()]
        twin = torch.optim.Muon(twins_, lr=0.03, weight_decay=0.1, momentum=momentum, adjust_lr_fn=theirs)
        muon = optim.Muon(0.03, momentum, weight_decay=0.1, scale=scale, bf16=True)
        opt = muon.init(w)
        for t in range(6):
            grads = {k: torch.sin(3 * p + t) for k, p in w.items()}
            for p, g in zip(twins_, grads.values(), strict=True):
                p.grad = g.clone()
            twin.step()
            updates, opt = muon.update(grads, opt, w, 0.0)
            w = {k: p + updates[k] for k, p in w.items()}
            for p, q in zip(twins_, w.values(), strict=True):
                assert (p - q).abs().max() < tolerance * (t + 1)


def test_muon_leaves_to_sgd_what_it_is_told():
    params, grads = start(), gradients(start(), 2)
    given = {"momentum": 0.7, "weight_decay": 0.3}
    muon = optim.Muon(0.05, sgd=("linear.*", "norm.weight"), **given)
    everything = optim.Muon(0.05, sgd=("*",), **given)
    sgd = dyn.SGD(0.05, nesterov=True, decoupled=True, **given)
    moved = [o.update(grads, o.init(params), params, 0.0)[0] for o in (muon, everything, sgd)]
    assert_close(moved[1], moved[2])
    assert [k for k in params if torch.equal(moved[0][k], moved[1][k])] == ["norm.weight", "norm.bias", "linear.weight"]


def test_muon_holds_normalised_weights_at_the_root_of_their_channels():
    params = start()
    params["conv.weight"] *= 7
    params["linear.weight"] *= 0
    muon = optim.Muon(0.0, normalise=True)
    updates, _ = muon.update(gradients(params, 0), muon.init(params), params, 0.0)
    moved = {k: p + updates[k] for k, p in params.items()}
    assert float(moved["conv.weight"].norm()) == pytest.approx(math.sqrt(6), rel=1e-12)
    assert not moved["linear.weight"].any(), "weights of zero have no direction"
    assert torch.equal(moved["norm.weight"], params["norm.weight"])


def test_muon_steps_are_the_same_inside_autocast():
    """The caller of a training loop may be inside one; the recipe's trajectory is not theirs to change."""
    params = {k: p.float() for k, p in start().items()}
    grads = {k: p.float() for k, p in gradients(start(), 0).items()}
    muon = optim.Muon(0.05)
    bare, _ = muon.update(grads, muon.init(params), params, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = muon.update(grads, muon.init(params), params, 0.0)
    assert all(torch.equal(bare[k], inside[k]) for k in bare)


# Lookahead


def test_lookahead_is_its_inner_optimizer_until_it_looks_back():
    inner = dyn.SGD(0.07, 0.9, weight_decay=0.1)
    assert_close(ours(optim.Lookahead(inner, 6, 0.3), 5), ours(inner, 5), 0.0)
    assert_close(ours(optim.Lookahead(inner, 6, 1.0), 30), ours(inner, 30), 1e-12)
    assert float((ours(optim.Lookahead(inner, 6, 0.3), 6)["conv.weight"] - ours(inner, 6)["conv.weight"]).norm()) > 0.01
    look = optim.Lookahead(inner, 4, 0.5)
    for steps in (4, 8, 12):
        params, opt = walk(look, start(), look.init(start()), 0, steps)
        assert_close(params, opt["slow"])
    assert int(opt["fast_steps"]) == 12 and set(opt) == {"velocity", "slow", "fast_steps"}


def test_lookaheads_lr_and_groups_are_its_inner_optimizers():
    schedule, groups = dyn.PiecewiseLinear((0, 2), (0, 0.4)), (dyn.Group("*.bias", 2.0),)
    look = optim.Lookahead(dyn.SGD(schedule, groups=groups), k=3)
    assert look.lr is schedule and look.groups == groups
    assert dataclasses.replace(look, lr=0.1) == optim.Lookahead(dyn.SGD(0.1, groups=groups), k=3)
    assert dataclasses.replace(look, k=7).inner == look.inner
    in_force = look.hyperparameters(1.0)
    assert in_force["lr"] == (0.4, 0.2) and in_force["lookahead_k"] == (3.0, 3.0)
    recipe = toy_recipe(optimizer=look, epochs=2)
    assert recipe.stretch(6).optimizer == optim.Lookahead(dyn.SGD(schedule.stretch(3), groups=groups), k=3)


# recipes


@pytest.mark.parametrize(
    "optimizer",
    [
        optim.Muon(0.02, weight_decay=0.1, sgd=("linear.*",), normalise=True),
        optim.Lookahead(dyn.SGD(0.05, 0.9), 2),
        optim.Lookahead(optim.TorchOptimizer("RMSprop", lr=1e-3, momentum=0.5), 2),
        optim.YellowFin(dyn.PiecewiseLinear((0, 2), (1, 0)), window=2, clip=True),
    ],
    ids=["Muon", "Lookahead", "Lookahead of a torch optimizer", "YellowFin"],
)
def test_the_new_optimizers_train_and_resume_to_the_bit_and_go_through_json(optimizer, tmp_path):
    recipe = toy_recipe(optimizer=optimizer, epochs=2)
    again = dyn.Recipe.from_json(json.loads(json.dumps(recipe.to_json(), allow_nan=False)))
    assert again == recipe and again.to_json() == recipe.to_json()
    split = toy_split()
    whole = dyn.train(recipe, split, out=tmp_path / "run", chunk_steps=5, progress=False)
    forked = dyn.train(recipe, split, start=whole.state_at(5), progress=False)
    assert_same(whole.weights, forked.weights)
    assert math.isfinite(float(whole["train"].loss[-1]))
    probe = {"momentum": dyn.every(1, dyn.momentum_alignment)}
    read = dyn.train(recipe, split, probes=probe, progress=False)["momentum"]
    assert float(read.norm[-1].min()) > 0, "momentum is found in the state"


def test_a_probe_reads_what_yellowfin_tuned():
    @dyn.reads("opt")
    def tuned(snap):
        return {k: ((), snap.state.opt[k], {"units": "1"}) for k in ("lr", "momentum")}

    recipe = toy_recipe(optimizer=optim.YellowFin(0.5, window=2), epochs=2)
    run = dyn.train(recipe, toy_split(), probes={"tuned": dyn.every(1, tuned)}, progress=False)
    lr, momentum = run["tuned"].lr.values, run["tuned"].momentum.values
    assert lr[0] == momentum[0] == 0 and (lr[1:] > 0).all() and (momentum >= 0).all() and (momentum < 1).all()
    assert np.isnan(run["hyperparameters"].lr).all() and (run["hyperparameters"].lr_factor == 0.5).all()


# YellowFin


def yellowfins_walk(steps: int = 120, **given: Any) -> tuple[list[dict[str, Any]], YellowFinTwin]:
    """Our states and the twin, on a noisy quadratic."""
    optimizer = optim.YellowFin(**given)
    params = start()
    twin = YellowFinTwin([{"params": [p.clone()], "lr": optimizer.lr, "weight_decay": 0.0} for p in params.values()],
                         beta=optimizer.beta, window=optimizer.window, clip=optimizer.clip)  # fmt: skip
    opt, states = optimizer.init(params), []
    for t in range(steps):
        noise = torch.Generator().manual_seed(t)
        grads = {k: torch.tensordot(QUADRATIC, p, 1) + torch.randn(p.shape, generator=noise) for k, p in params.items()}
        grads = {k: g * (30.0 if t == 60 else 1.0) for k, g in grads.items()}  # one outlier
        for group, g in zip(twin.param_groups, grads.values(), strict=True):
            group["params"][0].grad = g
        twin.step()
        updates, opt = optimizer.update(grads, opt, params, 0.0)
        params = {k: p + updates[k] for k, p in params.items()}
        for group, p in zip(twin.param_groups, params.values(), strict=True):
            torch.testing.assert_close(group["params"][0], p, rtol=1e-10, atol=1e-10)
        states.append(opt)
    return states, twin


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("beta", "window"), [(0.999, 20), (0.9, 5), (0.0, 1)])
def test_yellowfin_tunes_what_its_twin_tunes(beta, window, clip):
    states, twin = yellowfins_walk(beta=beta, window=window, clip=clip)
    for state, (lr, momentum, *_) in zip(states, twin.tuned, strict=True):
        assert float(state["lr"]) == pytest.approx(lr, rel=1e-10)
        assert float(state["momentum"]) == pytest.approx(momentum, rel=1e-10, abs=1e-20)
    if beta:
        assert max(float(s["momentum"]) for s in states) > 0.05


def test_S_9_yellowfins_momentum_holds_its_whole_range_of_curvature_robust():
    """mu >= ((sqrt(h) - 1) / (sqrt(h) + 1))², h = h_max / h_min, and every curvature of the range is in the region in
    which heavy ball contracts by sqrt(mu), but for the slow start, in which lr is below it."""
    states, twin = yellowfins_walk(beta=0.99, window=5)
    for t, (state, (_, _, h_min, h_max, *_)) in enumerate(zip(states, twin.tuned, strict=True), start=1):
        mu, lr = float(state["momentum"]), float(state["lr"]) / min(1, t / 50)
        assert mu >= ((np.sqrt(h_max / h_min) - 1) / (np.sqrt(h_max / h_min) + 1)) ** 2 * (1 - 1e-9)
        low, high = robust_region(np.array([h_min, h_max]), momentum=mu)
        assert (low * (1 - 1e-9) <= lr).all() and (lr <= high * (1 + 1e-9)).all()
    assert h_max / h_min > 1.5


def test_S_9_heavy_ball_contracts_by_the_root_of_momentum_in_the_robust_region_and_not_beside_it():
    """The spectral radius of its recursion on a quadratic of curvature h, and our SGD along it."""
    for mu in (0.1, 0.5, 0.9):
        for h in (0.3, 2.0):
            low, high = (float(v) for v in robust_region(h, momentum=mu))
            assert low * h == pytest.approx((1 - mu**0.5) ** 2) and high * h == pytest.approx((1 + mu**0.5) ** 2)

            def radius(lr, mu=mu, h=h):
                return np.abs(np.linalg.eigvals([[1 + mu - lr * h, -mu], [1, 0]])).max()

            for lr in np.linspace(low * 1.001, high * 0.999, 7):
                assert radius(lr) == pytest.approx(mu**0.5, rel=1e-9)
            assert radius(low * 0.9) > 1.01 * mu**0.5 and radius(high * 1.1) > 1.01 * mu**0.5
            sgd, w = dyn.SGD((low + high) / 2, mu, weight_decay=0.0), {"w": torch.ones(1, dtype=torch.float64)}
            opt, sizes = sgd.init(w), []
            for _ in range(120):
                updates, opt = sgd.update({"w": h * w["w"]}, opt, w, 0.0)
                # complex roots: both coordinates of the recursion together shrink evenly
                sizes.append(float(torch.hypot(w["w"], w["w"] + updates["w"])))
                w = {"w": w["w"] + updates["w"]}
            rate = (sizes[-1] / sizes[19]) ** (1 / 100)
            assert rate == pytest.approx(mu**0.5, rel=0.02)


def test_single_step_is_the_minimum_of_its_objective():
    """By brute force over momentum, with and without the bound of the curvature range."""
    grid = np.linspace(0, 1, 2_000_001)[:-1]
    for variance, distance, low, high in ((1.0, 1.0, 1.0, 1.0), (3.0, 0.2, 0.5, 0.6), (1e-3, 2.0, 4.0, 400.0)):
        numbers = [torch.tensor(v, dtype=torch.float64) for v in (variance, distance, low, high)]
        lr, momentum = map(float, optim.single_step(*numbers))
        bound = ((np.sqrt(high / low) - 1) / (np.sqrt(high / low) + 1)) ** 2
        allowed = grid[grid >= bound * (1 - 1e-12)]
        lrs = (1 - np.sqrt(allowed)) ** 2 / low
        best = allowed[np.argmin(allowed * distance**2 + lrs**2 * variance)]
        assert momentum == pytest.approx(best, abs=1e-6)
        assert lr == pytest.approx((1 - np.sqrt(momentum)) ** 2 / low, rel=1e-10)


@pytest.mark.parametrize("p", [1e-20, 1e-6, 0.3, 1.0, 50.0, 1e8, 1e16])
def test_the_root_of_the_cubic_keeps_its_accuracy_at_all_sizes(p):
    """p x = (1 - x)³ with p = D² h² / 2C, solved in exact rational steps."""
    one = torch.ones((), dtype=torch.float64)
    _, momentum = optim.single_step(one / 2, one * math.sqrt(p), one, one)
    x = Fraction(math.sqrt(float(momentum)))
    low, high = Fraction(0), Fraction(1)
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if Fraction(p) * middle < (1 - middle) ** 3 else (low, middle)
    assert float(abs(x - low) / low) < 1e-12


def test_gradients_of_zero_leave_yellowfin_finite():
    params = start()
    zeros = {k: torch.zeros_like(p) for k, p in params.items()}
    for clip in (False, True):
        yellow = optim.YellowFin(clip=clip)
        opt = yellow.init(params)
        for grads in (zeros, zeros, gradients(params, 0), zeros):
            updates, opt = yellow.update(grads, opt, params, 0.0)
            assert all(t.isfinite().all() for t in [*updates.values(), *flat(opt).values()])


# torch's optimizers


def test_adapter_needs_no_torch_state_of_its_own():
    """torch gives scalars the precision of the default type, load_state_dict that of the parameters."""
    nadam = CASES["torch NAdam"].make(0.1)
    opt = nadam.init(start())
    assert {t.dtype for t in opt["mu_product"].values()} == {torch.float32}
    assert opt["count"] == 0 and not any(t.any() for t in flat(opt).values())
    _, opt = walk(nadam, start(), opt, 0, 2)
    assert opt["count"] == 2 and {float(t) for t in opt["step"].values()} == {2.0}


def test_adapter_passes_muon_matrices_and_nothing_else():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    muon = optim.TorchOptimizer("Muon", lr=0.02, weight_decay=0.1)
    assert muon.hyperparameters(0.0)["decoupled"] == (1.0,)
    with pytest.raises(DynamicsError, match=r"torch.optim.Muon refuses .*2D") as error:
        muon.init(start())
    assert "\n" not in str(error.value)
    matrix = {"linear.weight": start()["linear.weight"].float()}
    twin = nn.Parameter(matrix["linear.weight"].clone())
    theirs, (w, opt) = torch.optim.Muon([twin], lr=0.02, weight_decay=0.1), (matrix, muon.init(matrix))
    for t in range(4):
        g = torch.cos(t + torch.arange(18.0)).reshape(6, 3)
        updates, opt = muon.update({"linear.weight": g}, opt, w, 0.0)
        w = {k: p + updates[k] for k, p in w.items()}
        twin.grad = g
        theirs.step()
    torch.testing.assert_close(w["linear.weight"], twin.detach(), rtol=1e-5, atol=1e-6)


def test_adapter_takes_torchs_own_lr_by_default():
    assert optim.TorchOptimizer("Adagrad").lr == 0.01 and optim.TorchOptimizer("Adadelta").lr == 1.0


def test_adapters_are_equal_when_their_arguments_are():
    listed = optim.TorchOptimizer("Adam", eps=1e-6, betas=[0.8, 0.9])
    pairs = optim.TorchOptimizer(name="Adam", arguments=[["betas", (0.8, 0.9)], ("eps", 1e-6)])
    assert listed == pairs and listed.arguments == (("betas", (0.8, 0.9)), ("eps", 1e-6))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
         {"lr": 0.5, "momentum": 0.9, "nesterov": 1.0, "weight_decay": 0.1, "decoupled": 0.0, "dampening": 0.0}),
        (("Adam", {"betas": (0.8, 0.9), "eps": 1e-6}),
         {"lr": 0.5, "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.0, "decoupled": 0.0}),
        (("AdamW", {}), {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01, "decoupled": 1.0}),
        (("RAdam", {"decoupled_weight_decay": True}), {"decoupled": 1.0}),
        (("Adafactor", {"eps": (None, 1e-2)}), {"eps2": 1e-2, "decoupled": 1.0, "eps1": None, "eps": None}),
        (("Rprop", {}), {"eta1": 0.5, "eta2": 1.2, "step_size1": 1e-6, "step_size2": 50.0, "decoupled": None}),
        (("LBFGS", {}), {"max_iter": 20.0, "decoupled": None, "line_search_fn": None}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_torch_hyperparameters(given, expected):
    """None: left out."""
    name, arguments = given
    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.zeros(2))], lr=0.5, **arguments)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    found = optim.torch_hyperparameters(optimizer)
    assert {k: found.get(k) for k in expected} == {k: None if v is None else (v,) for k, v in expected.items()}
    assert not {"params", "foreach", "fused", "capturable", "differentiable", "initial_lr"} & found.keys()


def test_torch_hyperparameters_of_groups_that_differ():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = torch.optim.Adam(
        [{"params": [a], "lr": torch.tensor(0.25)}, {"params": [b], "betas": (0.5, 0.6), "own": 3}], lr=0.5
    )
    optimizer.add_param_group({"params": [c], "own": "text"})
    found = optim.torch_hyperparameters(optimizer)
    assert found["lr"] == (0.25, 0.5, 0.5) and found["beta1"] == (0.9, 0.5, 0.9)
    assert found["own"][1] == 3.0 and math.isnan(found["own"][0]) and math.isnan(found["own"][2])
    assert all(type(v) is float for values in found.values() for v in values)


def test_torch_hyperparameters_do_not_guess_the_decay_of_others():
    class Mine(torch.optim.Optimizer):
        pass

    mine = Mine([nn.Parameter(torch.zeros(2))], {"lr": 0.1, "weight_decay": 0.2})
    assert optim.torch_hyperparameters(mine) == {"lr": (0.1,), "weight_decay": (0.2,)}


def test_torch_hyperparameters_are_read_in_microseconds():
    optimizer = torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(2))]} for _ in range(3)])

    def seconds() -> float:
        begin = time.perf_counter()
        for _ in range(20):
            optim.torch_hyperparameters(optimizer)
        return (time.perf_counter() - begin) / 20

    assert min(seconds() for _ in range(10)) < 5e-4


def test_torch_state_is_the_optimizers_own_by_name():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    net[1].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters())
    assert optim.torch_state(optimizer, net.named_parameters()) == {}
    assert len(optimizer.state) == 0, "reading makes no entries"
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optim.torch_state(optimizer, net.named_parameters())
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert list(state["exp_avg"]) == ["0.weight", "0.bias", "1.weight"]  # a frozen parameter has none
    assert state["exp_avg"]["0.weight"] is optimizer.state[net[0].weight]["exp_avg"]
    optimizer.state[net[0].weight] |= {"number": 3, "listed": [1.0], "nothing": None}
    state = optim.torch_state(optimizer, net.named_parameters())
    assert state["number"] == {"0.weight": torch.tensor(3.0, dtype=torch.float64)} and "listed" not in state


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
        (lambda: optim.PageLARS(momentum=0.0), "Nesterov needs momentum"),
        (lambda: optim.PageLARS(eps=-1.0), "eps must be a number of at least 0"),
        (lambda: optim.LARS(momentum="0.9"), "momentum must be at least 0 and below 1, got '0.9'"),
        (lambda: optim.LARS(trust=float("inf")), "trust must be"),
        (lambda: optim.Adam(beta1=1.0), "beta1 must be at least 0 and below 1, got 1.0"),
        (lambda: optim.AdamW(beta2=-0.1), "beta2 must be"),
        (lambda: optim.AdamW(eps=float("nan")), "eps must be"),
        (lambda: optim.AdamW(weight_decay=-0.1), "weight_decay must be"),
        (lambda: optim.Lion(beta1=1.5), "beta1 must be"),
        (lambda: optim.Lion(weight_decay="1"), "weight_decay must be"),
        (lambda: optim.Muon(momentum=0.0), "Nesterov needs momentum"),
        (lambda: optim.Muon(momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda: optim.Muon(sgd_momentum=-1), "sgd_momentum must be at least 0 and below 1"),
        (lambda: optim.Muon(ns_steps=0), "ns_steps must be a whole number of at least 1, got 0"),
        (lambda: optim.Muon(ns_steps=2.5), "ns_steps must be a whole number"),
        (lambda: optim.Muon(scale="rsm"), "unknown scale 'rsm': did you mean 'rms'"),
        (lambda: optim.Muon(sgd="linear.*"), 'write sgd=("linear.*",)'),
        (lambda: optim.Muon(sgd=("head.*",)).init(start()), "no parameter matches 'head.*' of sgd"),
        (lambda: optim.Lookahead(0.1), "inner must be an optimizer, got 0.1: write Lookahead(SGD(0.1))"),
        (lambda: optim.Lookahead(dyn.SGD), "inner must be an optimizer"),
        (lambda: optim.Lookahead(optim.Lookahead(dyn.SGD())), "nest no further"),
        (lambda: optim.Lookahead(dyn.SGD(), k=0), "k must be a whole number of at least 1, got 0"),
        (lambda: optim.Lookahead(dyn.SGD(), alpha=1.5), "alpha must be above 0 and at most 1, got 1.5"),
        (lambda: optim.Lookahead(dyn.SGD(), alpha=0.0), "alpha must be above 0"),
        (lambda: optim.YellowFin(beta=1.0), "beta must be at least 0 and below 1"),
        (lambda: optim.YellowFin(window=0), "window must be a whole number"),
        (lambda: optim.YellowFin(-1.0), "lr must be a number of at least 0"),
        (lambda: optim.TorchOptimizer("adamw"), "unknown torch optimizer 'adamw': did you mean 'AdamW'"),
        (lambda: optim.TorchOptimizer("Optimizer"), "unknown torch optimizer 'Optimizer'"),
        (lambda: optim.TorchOptimizer("LBFGS"), "LBFGS does not fit"),
        (lambda: optim.TorchOptimizer("SparseAdam"), "SparseAdam does not fit"),
        (lambda: optim.TorchOptimizer("Adam", beta=0.9), "unknown argument of torch.optim.Adam 'beta': did you mean"),
        (lambda: optim.TorchOptimizer("Adam", params=()), "unknown argument of torch.optim.Adam 'params'"),
        (lambda: optim.TorchOptimizer("Adam", arguments=(("lr", 0.1),)), "unknown argument of torch.optim.Adam 'lr'"),
        (lambda: optim.TorchOptimizer("Adam", arguments=("eps",)), "arguments must be pairs"),
        (lambda: optim.TorchOptimizer("Adam", betas=(0.9, 1.5)), "torch.optim.Adam refuses"),
        (lambda: optim.TorchOptimizer("Adam", betas=0.9), "torch.optim.Adam refuses"),
        (lambda: optim.TorchOptimizer("Adam", eps=torch.tensor(1.0)), "eps must be numbers, strings or tuples"),
        (lambda: optim.TorchOptimizer("Rprop", groups=(dyn.Group("*", 1.0, 0.0),)), "Rprop has no weight_decay"),
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
