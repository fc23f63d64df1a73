from __future__ import annotations

import copy
import gc
import math
import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import dynamics as dyn
from dynamics.errors import DynamicsError

STEPS = 6
CLASSES = 3
Loop = Callable[..., None]


# --- nets, every one with its input shape and the layers that a reader should find


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, CLASSES))


def groupnorm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, CLASSES),
    )  # fmt: skip


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x).mean(1))


class Tied(nn.Module):
    """An embedding whose matrix is also the output layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(CLASSES, 5)
        self.mix = nn.Linear(5, 5)
        self.out = nn.Linear(5, CLASSES, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.mix(self.embed(x))))


class OddBuffers(nn.Module):
    """Buffers of all kinds of memory: expanded, transposed, complex, empty, scalar, channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, CLASSES)
        self.register_buffer("expanded", torch.arange(3.0).expand(4, 3))
        self.register_buffer("transposed", torch.rand(3, 4).t())
        self.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("blur", torch.rand(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "mlp": (mlp, (6,), ["0", "4"]),
    "groupnorm": (groupnorm_net, (3, 5, 5), ["0", "5"]),
    "transformer": (
        Transformer,
        (4, 8),
        ["block.self_attn", "block.self_attn.out_proj", "block.linear1", "block.linear2", "head"],
    ),
    "tied": (Tied, (), ["embed", "mix"]),
}
MATRIX = {"block.self_attn": "block.self_attn.in_proj_weight"}


def batch(step: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    y = torch.randint(CLASSES, (8,), generator=draw)
    x = torch.randint(CLASSES, (8,), generator=draw) if shape == () else torch.randn(8, *shape, generator=draw)
    return x, y


# --- the same numbers, by hand


@dataclass
class ByHand:
    """Clones around each step, in float64: the slow and obvious way to what `watch` reads."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    theta: list[dict[str, np.ndarray]] = field(default_factory=list)
    grads: list[dict[str, np.ndarray]] = field(default_factory=list)
    after: list[dict[str, np.ndarray]] = field(default_factory=list)
    lr: list[dict[str, float]] = field(default_factory=list)

    def _params(self) -> dict[str, np.ndarray]:
        return {k: p.detach().double().numpy().copy() for k, p in self.model.named_parameters()}

    def before(self, scale: float = 1.0) -> None:
        self.theta.append(self._params())
        self.grads.append(
            {
                k: np.zeros(p.shape) if p.grad is None else p.grad.double().numpy() / scale
                for k, p in self.model.named_parameters()
            }
        )
        rates = {id(p): g.get("lr", math.nan) for g in self.optimizer.param_groups for p in g["params"]}
        self.lr.append({k: float(rates.get(id(p), math.nan)) for k, p in self.model.named_parameters()})

    def stepped(self) -> None:
        self.after.append(self._params())


class Nobody:
    """Takes the place of ByHand in a bare loop."""

    def before(self, scale: float = 1.0) -> None: ...
    def stepped(self) -> None: ...


def readings_by_hand(hand: ByHand, layers: list[str]) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, list[Any]]] = {
        "norms": {"norm": [], "filter_norm": []},
        "angles": {"angle": [], "relative_update": [], "filter_angle": []},
        "gradients": {"norm": [], "cosine": [], "raw_step": [], "filter_norm": []},
        "effective_lr": {"effective_lr": []},
    }

    def unit(v: np.ndarray) -> np.ndarray:
        return v / np.linalg.norm(v)

    def angle(a: np.ndarray, b: np.ndarray) -> float:
        return 2 * math.atan2(np.linalg.norm(unit(a) - unit(b)), np.linalg.norm(unit(a) + unit(b)))

    for theta, grads, after, lr in zip(hand.theta, hand.grads, hand.after, hand.lr, strict=True):
        row: dict[tuple[str, str], list[Any]] = {}
        for layer in layers:
            key = MATRIX.get(layer, f"{layer}.weight")
            w, g, v = theta[key], grads[key], after[key]
            flat = [t.reshape(len(w), -1) for t in (w, g, v)]
            norm, size = np.linalg.norm(w), np.linalg.norm(g)
            with np.errstate(invalid="ignore", divide="ignore"):
                cosine = float((w * g).sum() / (norm * size))
            values = {
                ("norms", "norm"): [norm],
                ("norms", "filter_norm"): np.linalg.norm(flat[0], axis=1),
                ("angles", "angle"): [angle(w.ravel(), v.ravel())],
                ("angles", "relative_update"): [np.linalg.norm(v - w) / norm],
                ("angles", "filter_angle"): [angle(a, b) for a, b in zip(flat[0], flat[2], strict=True)],
                ("gradients", "norm"): [size],
                ("gradients", "cosine"): [cosine],
                ("gradients", "raw_step"): [lr[key] * size / norm],
                ("gradients", "filter_norm"): np.linalg.norm(flat[1], axis=1),
                ("effective_lr", "effective_lr"): [lr[key] / norm**2],
            }
            for where, value in values.items():
                row.setdefault(where, []).extend(value)
        for (name, variable), value in row.items():
            found[name][variable].append(value)
    return {name: {k: np.array(v) for k, v in group.items()} for name, group in found.items()}


def assert_read(rec: Any, hand: ByHand, layers: list[str]) -> None:
    """What was recorded is what the twin found, at every step."""
    for name, variables in readings_by_hand(hand, layers).items():
        read = rec[name]
        assert read.layer.values.tolist() == layers
        assert read.step.values.tolist() == list(range(len(hand.theta)))
        for variable, expected in variables.items():
            # an angle is a difference of float32 weights, one part in 1e7 of them
            loose = 4e-7 if name == "angles" or variable == "cosine" else 1e-9
            np.testing.assert_allclose(read[variable].values, expected, 1e-4, loose, err_msg=f"{name} {variable}")


# --- loops


def plain_loop(model, optimizer, tell, see, *, shape, scheduler=None, none=True, steps=STEPS):
    for step in range(steps):
        x, y = batch(step, shape)
        optimizer.zero_grad(set_to_none=none)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        tell(x, y, loss)
        see.before()
        optimizer.step()
        see.stepped()
        if scheduler:
            scheduler.step()


def closure_loop(model, optimizer, tell, see, *, shape, keyword=False, steps=STEPS):
    for step in range(steps):
        x, y = batch(step, shape)
        first = True

        def closure(x=x, y=y):
            nonlocal first
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if first:
                first = False
                see.before()
            return loss

        returned = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert torch.is_tensor(returned)
        see.stepped()


def accumulating_loop(model, optimizer, tell, see, *, shape, steps=STEPS):
    for step in range(steps):
        for part in range(3):
            x, y = batch(10 * step + part, shape)
            loss = F.cross_entropy(model(x), y) / 3
            loss.backward()
            tell(x, y, loss)
        see.before()
        optimizer.step()
        see.stepped()
        optimizer.zero_grad()


def clipping_loop(model, optimizer, tell, see, *, shape, steps=STEPS):
    for step in range(steps):
        x, y = batch(step, shape)
        optimizer.zero_grad()
        (10 * F.cross_entropy(model(x), y)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        see.before()
        optimizer.step()
        see.stepped()


def scaled_loop(model, optimizer, tell, see, *, shape, clip=False, steps=STEPS, overflow=2):
    """A GradScaler, whose step number `overflow` is left out for an inf in a gradient."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(steps):
        x, y = batch(step, shape)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if step == overflow:
            next(iter(model.parameters())).grad.view(-1)[0] = math.inf
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        if step != overflow:
            see.before(1.0 if clip else scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
        if step != overflow:
            see.stepped()


def freezing_loop(model, optimizer, tell, see, *, shape, how="requires_grad", steps=3 * STEPS):
    """The first layer of the net is frozen for the middle third."""
    group = optimizer.param_groups[0]
    lr = group["lr"]
    for step in range(steps):
        frozen = steps // 3 <= step < 2 * steps // 3
        if how == "requires_grad":
            for p in group["params"]:
                p.requires_grad_(not frozen)
        elif how == "lr":
            group["lr"] = 0.0 if frozen else lr
        x, y = batch(step, shape)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if how == "grad" and frozen:
            for p in group["params"]:
                p.grad = None
        see.before()
        optimizer.step()
        see.stepped()


# --- both at once: the loop bare, and the loop watched and followed by hand


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All that a loop leaves behind."""
    names = {id(p): k for k, p in model.named_parameters()}
    left = {f"p/{k}": p.detach() for k, p in model.named_parameters()}
    left |= {f"b/{k}": b for k, b in model.named_buffers()}
    left |= {f"g/{k}": p.grad for k, p in model.named_parameters() if p.grad is not None}
    for p, state in optimizer.state.items():
        left |= {f"o/{names[id(p)]}/{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)}
        left |= {f"o/{names[id(p)]}/{k}": torch.tensor(v) for k, v in state.items() if isinstance(v, int | float)}
        for k, v in state.items():
            if isinstance(v, list):
                left |= {f"o/{names[id(p)]}/{k}/{i}": t for i, t in enumerate(v) if isinstance(t, torch.Tensor)}
    numbers = np.random.get_state()[1].astype(np.int64)
    left["random/torch"] = torch.get_rng_state()
    left["random/numpy"] = torch.from_numpy(numbers)
    left["random/python"] = torch.tensor(random.getstate()[1])
    return left


def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@dataclass
class Outcome:
    rec: Any
    hand: ByHand
    model: nn.Module
    optimizer: torch.optim.Optimizer


def watched(
    make_model: Callable[[], nn.Module],
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    loop: Loop,
    *,
    probes: Any = None,
    around: Callable[[nn.Module], nn.Module] = lambda m: m,
    told: bool = False,
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None,
    **given: Any,
) -> Outcome:
    """Run a loop bare and watched; fails unless both leave the same bits."""
    left = []
    for follow in (False, True):
        seed()
        model = make_model()
        optimizer = make_optimizer(model)
        wrapped = around(model)
        extra = {"scheduler": scheduler(optimizer)} if scheduler else {}
        if not follow:
            loop(wrapped, optimizer, lambda *_: None, Nobody(), **extra)
        else:
            rec = dyn.watch(wrapped, optimizer, probes=probes or dyn.standard(1), **given)
            hand = ByHand(model, optimizer)
            loop(wrapped, optimizer, rec.batch if told else lambda *_: None, hand, **extra)
            rec.detach()
        left.append(everything(model, optimizer))
    assert_same(*left)
    return Outcome(rec, hand, model, optimizer)


def sgd(model, **given):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, **given})


def two_groups(model, kind=torch.optim.SGD, **given):
    """The first layer in a group of its own, with a tenth of the lr."""
    first = list(next(m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)).parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in first)]
    given = {"lr": 0.05, **given}
    return kind([{"params": first, "lr": given["lr"] / 10}, {"params": rest}], **given)


KINDS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "heavy_ball": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "adam": (torch.optim.Adam, {"lr": 3e-3, "weight_decay": 1e-2}),
    "adamw": (torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
}
WAYS = {"foreach": {"foreach": True}, "fused": {"fused": True}, "loop": {"foreach": False}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_readings_are_those_computed_by_hand(kind, way):
    make, given = KINDS[kind]
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, lambda m: make(m.parameters(), **given, **WAYS[way]), partial(plain_loop, shape=shape))
    assert_read(out.rec, out.hand, layers)
    assert out.rec.steps == STEPS
    force = out.rec["hyperparameters"]
    assert force.step.values.tolist() == list(range(STEPS)) and force.group.values.tolist() == ["group 0"]
    for name in ("lr", "weight_decay", "momentum"):
        if name in given:
            np.testing.assert_array_equal(force[name].values, given[name])
    assert float(force["decoupled"].values.max()) == (kind == "adamw")
    if "Adam" in make.__name__:
        np.testing.assert_array_equal(force["beta2"].values, 0.999)


@pytest.mark.parametrize("net", [k for k in NETS if k != "mlp"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop])
def test_readings_of_other_nets(net, kind):
    make, shape, layers = NETS[net]
    out = watched(make, lambda m: kind(m.parameters(), lr=1e-3), partial(plain_loop, shape=shape))
    assert_read(out.rec, out.hand, layers)


def test_tied_weights_are_one_parameter():
    make, shape, _ = NETS["tied"]
    out = watched(make, sgd, partial(plain_loop, shape=shape))
    assert out.rec["hyperparameters"].parameter.values.tolist() == ["embed.weight", "mix.weight", "mix.bias"]


def test_filters_are_labelled():
    make, shape, _ = NETS["groupnorm"]
    norms = watched(make, sgd, partial(plain_loop, shape=shape)).rec["norms"]
    assert norms.filter_layer.values.tolist() == ["0"] * 4 + ["5"] * CLASSES
    assert norms.live.values.all()


def test_running_statistics_are_those_after_the_steps_forward_pass():
    _, shape, _ = NETS["mlp"]
    seen = []

    class Seen(Nobody):
        def before(self, scale=1.0):
            seen.append(model[1].running_mean.numpy().copy())

    seed()
    model = mlp()
    with dyn.watch(model, sgd(model), probes=dyn.standard(2)) as rec:
        plain_loop(model, rec.optimizer, rec.batch, Seen(), shape=shape)
    np.testing.assert_array_equal(rec["batchnorm"].running_mean.values, np.array(seen[::2]))
    assert rec["batchnorm"].step.values.tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    ],
    ids=["step", "lambda", "one_cycle"],
)
def test_schedulers_are_followed(schedule):
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, two_groups, partial(plain_loop, shape=shape), scheduler=schedule)
    assert_read(out.rec, out.hand, layers)
    lr = out.rec["hyperparameters"].lr.values
    np.testing.assert_array_equal(lr, [[r["0.weight"], r["4.weight"]] for r in out.hand.lr])
    assert len(set(lr[:, 0])) > 2


@pytest.mark.parametrize("none", [True, False])
def test_gradients_set_to_none_or_to_zero(none):
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, sgd, partial(plain_loop, shape=shape, none=none))
    assert_read(out.rec, out.hand, layers)


# --- closures


@pytest.mark.parametrize("keyword", [True, False])
def test_sgd_with_a_closure(keyword):
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, sgd, partial(closure_loop, shape=shape, keyword=keyword))
    assert_read(out.rec, out.hand, layers)
    loss = out.rec["train"].loss
    assert loss.step.values.tolist() == list(range(STEPS)) and np.isfinite(loss.values).all()


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_reads_the_first_gradients_and_the_whole_update(search):
    _, shape, _ = NETS["mlp"]
    calls = []

    def counted(model, optimizer, *given):
        model.register_forward_hook(lambda *_: calls.append(0))
        closure_loop(model, optimizer, *given, shape=shape)

    def make(m):
        return torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=4, line_search_fn=search)

    def net():
        return nn.Sequential(*[m for m in mlp() if not isinstance(m, nn.Dropout)])

    out = watched(net, make, counted)
    assert_read(out.rec, out.hand, ["0", "3"])
    assert out.rec.steps == STEPS and len(calls) > 2 * 2 * STEPS  # the closure was called many times a step


def test_a_told_loss_counts_before_the_closures():
    model = mlp()
    optimizer = sgd(model)
    with dyn.watch(model, optimizer) as rec:
        for told in (None, 7.0):
            if told:
                rec.batch(None, loss=told)
            optimizer.step(lambda: torch.tensor(2.0))
    assert rec["train"].loss.values.tolist() == [2.0, 7.0]


@pytest.mark.parametrize("returned", [None, 3.0, torch.ones(2)])
def test_a_closure_may_return_what_it_likes(returned):
    model = mlp()
    optimizer = sgd(model)
    with dyn.watch(model, optimizer, probes=dyn.standard(1)) as rec:
        assert optimizer.step(lambda: returned) is returned
        optimizer.step(closure=None)
        optimizer.step(None)
    assert rec.steps == 3 and ("train" in rec) == (returned == 3.0 if isinstance(returned, float) else False)


# --- what loops do between gradients and steps


def test_gradients_accumulated_over_several_batches():
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, sgd, partial(accumulating_loop, shape=shape), told=True)
    assert_read(out.rec, out.hand, layers)
    assert out.rec["train"].step.size == STEPS  # of the last part of each


def test_gradients_are_read_as_clipped():
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, sgd, partial(clipping_loop, shape=shape))
    assert_read(out.rec, out.hand, layers)
    total = np.sqrt(sum(float((g**2).sum()) for g in out.hand.grads[0].values()))
    assert total == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_gradscaler_with_an_overflow(way, clip):
    """The step left out does not count, and gradients are unscaled whoever unscales them."""
    _, shape, layers = NETS["mlp"]
    out = watched(
        mlp,
        lambda m: torch.optim.AdamW(m.parameters(), lr=3e-3, **WAYS[way]),
        partial(scaled_loop, shape=shape, clip=clip),
    )
    assert out.rec.steps == STEPS - 1
    assert_read(out.rec, out.hand, layers)
    assert out.rec["hyperparameters"].step.values.tolist() == list(range(STEPS - 1))
    if way == "fused":  # the others are not called at all
        assert out.rec.skipped == 1 and "(1 skipped)" in repr(out.rec)


def test_nothing_is_read_when_every_step_overflows():
    _, shape, _ = NETS["mlp"]
    loop = partial(scaled_loop, shape=shape, steps=1, overflow=0)
    out = watched(mlp, lambda m: torch.optim.AdamW(m.parameters(), fused=True), loop)
    assert out.rec.steps == 0 and out.rec.readings == {} and out.rec.run().state.step == 0


@pytest.mark.parametrize("how", ["requires_grad", "grad", "lr"])
def test_a_group_that_freezes_and_thaws(how):
    _, shape, layers = NETS["mlp"]
    # plain SGD: momentum goes on moving what has no gradient where the gradient is a zero
    out = watched(mlp, partial(two_groups, lr=0.5), partial(freezing_loop, shape=shape, how=how))
    assert_read(out.rec, out.hand, layers)
    angle = out.rec["angles"].angle.sel(layer="0").values
    frozen = np.arange(3 * STEPS) // STEPS == 1
    assert (angle[frozen] == 0).all() and (angle[~frozen] > 0).all()
    cosine = out.rec["gradients"].cosine.sel(layer="0").values
    assert np.isnan(cosine[frozen]).all() == (how != "lr")
    assert (out.rec["hyperparameters"].lr.values[frozen, 0] == 0).all() == (how == "lr")


def test_what_was_frozen_from_the_start_belongs_to_the_others():
    _, shape, layers = NETS["mlp"]

    def make():
        model = mlp()
        model[0].requires_grad_(False)
        return model

    out = watched(make, lambda m: sgd(nn.ParameterList(m[4].parameters())), partial(plain_loop, shape=shape))
    assert_read(out.rec, out.hand, layers)
    force = out.rec["hyperparameters"]
    assert force.group.values.tolist() == ["group 0", "others"]
    group_of = dict(zip(force.parameter.values.tolist(), force.group_of.values.tolist(), strict=True))
    assert group_of == {"4.weight": 0, "4.bias": 0, "0.weight": 1, "0.bias": 1, "1.weight": 1, "1.bias": 1}
    assert np.isnan(force.lr.values[:, 1]).all() and (force.lr.values[:, 0] == 0.05).all()
    assert np.isnan(out.rec["effective_lr"].effective_lr.sel(layer="0").values).all()
    assert (out.rec["angles"].angle.sel(layer="0").values == 0).all()
    assert not np.isnan(out.rec["effective_lr"].effective_lr.sel(layer="4").values).any()


@pytest.mark.parametrize("whole", [True, False])
def test_a_group_added_midway_is_warned_of_once(whole):
    """Its lr must not pass for that of the parameters that belonged to no group."""
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model[4]) if not whole else two_groups(model)
    added = list(model[0].parameters()) if not whole else [nn.Parameter(torch.zeros(2))]
    with dyn.watch(model, optimizer, probes=dyn.standard(1)) as rec:
        plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=2)
        optimizer.add_param_group({"params": added, "lr": 7.0})
        with pytest.warns(UserWarning, match="the optimizer got new groups by step 2: watch it again") as told:
            plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=3)
    assert len(told) == 1 and told[0].filename == __file__
    assert rec["angles"].step.size == 5 and not (rec["hyperparameters"].lr.values == 7.0).any()
    if not whole:
        assert (rec["angles"].angle.sel(layer="0").values[2:] > 0).all()


def test_hyperparameters_that_come_and_go_do_not_spoil_the_readings():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model)
    with dyn.watch(model, optimizer, probes=dyn.standard(1), chunk_steps=2) as rec:
        for step in range(5):
            optimizer.param_groups[0][f"extra{step}"] = 1.0
            if step == 3:
                optimizer.param_groups[0]["weight_decay"] = torch.tensor(0.5)
            plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=1)
    decay = rec["hyperparameters"].weight_decay.values[:, 0]
    np.testing.assert_array_equal(decay, [0.01, 0.01, 0.01, 0.5, 0.5])


@pytest.mark.parametrize(
    "around", [partial(torch.compile, backend="aot_eager"), partial(torch.compile, backend="eager")]
)
def test_a_compiled_model_keeps_its_names(around):
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, sgd, partial(plain_loop, shape=shape), around=around)
    assert_read(out.rec, out.hand, layers)
    assert set(out.rec.run().weights) == {k for k, _ in out.model.named_parameters()}


def test_buffers_of_any_layout():
    out = watched(OddBuffers, sgd, partial(plain_loop, shape=(6,)))
    assert_read(out.rec, out.hand, ["linear"])
    for name in ("expanded", "transposed", "complex", "flag", "blur"):

        def cheat(snap, name=name):
            buffer = snap.net.get_buffer(name)
            buffer.untyped_storage().fill_(0)  # as batch norm does, without a trace in the counter
            return {"x": 1.0}

        model = OddBuffers()
        optimizer = sgd(model)
        with dyn.watch(model, optimizer, probes={"cheat": dyn.every(1, cheat)}), pytest.raises(DynamicsError):
            plain_loop(model, optimizer, lambda *_: None, Nobody(), shape=(6,), steps=1)


def test_channels_last_weights_are_read_as_they_are():
    make, shape, layers = NETS["groupnorm"]
    out = watched(lambda: make().to(memory_format=torch.channels_last), sgd, partial(plain_loop, shape=shape))
    assert_read(out.rec, out.hand, layers)


def test_a_step_inside_inference_mode():
    """Odd, but torch takes it; tensors made there have no counter of writes."""
    _, shape, layers = NETS["mlp"]

    def loop(model, optimizer, tell, see):
        for step in range(STEPS):
            x, y = batch(step, shape)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            see.before()
            with torch.inference_mode():
                optimizer.step()
            see.stepped()

    out = watched(mlp, partial(sgd, momentum=0.0), loop)
    assert_read(out.rec, out.hand, layers)


def test_autocast_around_the_whole_loop():
    _, shape, layers = NETS["mlp"]

    def loop(*given):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain_loop(*given, shape=shape)

    out = watched(mlp, sgd, loop)
    assert_read(out.rec, out.hand, layers)


# --- other optimizers


class Minimal(torch.optim.Optimizer):
    """A user's own, with neither lr nor state."""

    def __init__(self, params):
        super().__init__(params, {"rate": 0.1, "label": "mine", "nothing": None})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["rate"])


class Shrinking(torch.optim.SGD):
    """A user's own step around torch's, which is a step of an optimizer too."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)
        return loss


class Around(torch.optim.Optimizer):
    """One that lets another do the work, as Lookahead does."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__([p for g in inner.param_groups for p in g["params"]], {"lr": 0.05})

    def step(self, closure=None):
        return self.inner.step(closure)


def test_an_optimizer_of_the_users():
    _, shape, layers = NETS["mlp"]
    out = watched(mlp, lambda m: Minimal(m.parameters()), partial(plain_loop, shape=shape))
    force = out.rec["hyperparameters"]
    assert (force.rate.values == 0.1).all() and np.isnan(force.lr.values).all() and "decoupled" not in force
    assert_read(out.rec, out.hand, layers)
    assert out.rec.run().optimizer == "Minimal"


@pytest.mark.parametrize("loop", [plain_loop, closure_loop])
@pytest.mark.parametrize("make", [Shrinking, lambda p, lr: Around(torch.optim.SGD(p, lr=lr))], ids=["sub", "around"])
def test_a_step_within_a_step_is_one_step(make, loop):
    _, shape, layers = NETS["mlp"]
    torch.optim.SGD(mlp().parameters(), lr=0.1)  # from the first SGD on, torch's own step has hooks as well
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = watched(mlp, lambda m: make(m.parameters(), lr=0.05), partial(loop, shape=shape))
    assert out.rec.steps == STEPS
    for entry in out.hand.lr:
        entry.update(dict.fromkeys(entry, 0.05))
    assert_read(out.rec, out.hand, layers)  # of the whole update


def test_a_step_that_failed_does_not_count():
    _, shape, layers = NETS["mlp"]

    def loop(model, optimizer, tell, see):
        for step in range(STEPS):
            x, y = batch(step, shape)
            if step in (0, 3):
                with pytest.raises(KeyboardInterrupt):
                    optimizer.step(interrupted)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            see.before()
            optimizer.step()
            see.stepped()

    def interrupted():
        raise KeyboardInterrupt

    out = watched(mlp, sgd, loop)
    assert out.rec.steps == STEPS
    assert_read(out.rec, out.hand, layers)


def test_two_optimizers_share_a_model():
    _, shape, layers = NETS["mlp"]
    model = mlp()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    a, b = torch.optim.SGD(matrices, lr=0.1), torch.optim.AdamW(vectors, lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rec, other = dyn.watch(model, a, probes=dyn.standard(1)), dyn.watch(model, b, probes=dyn.standard(2))
        for step in range(4):
            x, y = batch(step, shape)
            a.zero_grad(), b.zero_grad()
            F.cross_entropy(model(x), y).backward()
            a.step(), b.step()
    rec.detach(), other.detach()
    assert rec.steps == other.steps == 4 and rec["angles"].layer.values.tolist() == layers
    assert rec["hyperparameters"].group.values.tolist() == ["group 0", "others"]
    # beside other weights: those of this optimizer's step
    assert (rec["angles"].angle.values > 0).all() and (other["angles"].angle.values == 0).all()


def test_a_loop_that_replaces_its_optimizer_is_told_once():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    rec = dyn.watch(model, sgd(model), probes=dyn.standard(1))
    plain_loop(model, rec.optimizer, rec.batch, Nobody(), shape=shape, steps=3)
    new = torch.optim.Adam(model.parameters())
    with pytest.warns(
        UserWarning, match=r"another optimizer \(Adam\) now updates '0.weight'.*up to step 3.*watch\("
    ) as w:
        plain_loop(model, new, rec.batch, Nobody(), shape=shape, steps=3)
    assert len(w) == 1 and w[0].filename == __file__
    assert rec["norms"].step.values.tolist() == [0, 1, 2]
    again = dyn.watch(model, new, probes=dyn.standard(1))
    plain_loop(model, new, again.batch, Nobody(), shape=shape, steps=2)
    assert again["norms"].step.values.tolist() == [0, 1]
    rec.detach(), again.detach()


# --- the recorder


def test_readings_are_there_at_any_time():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model)
    probes = {**dyn.standard(1), "late": dyn.at([3], dyn.weight_norms)}
    rec = dyn.watch(model, optimizer, probes=probes, chunk_steps=2)
    assert rec.readings == {} and "norms" not in rec and rec.run().readings == {}
    with pytest.raises(DynamicsError, match="the probe 'norms' has not been due yet, after 0 steps"):
        rec["norms"]
    for steps in range(1, 6):
        plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=1)
        for name in ("norms", "angles", "train", "hyperparameters"):
            assert name in rec and rec[name].step.values.tolist() == list(range(steps))
        assert ("late" in rec) == (steps > 3)
        assert rec.run().status == "running" and rec.run().state.step == steps
    with pytest.raises(DynamicsError, match=r"unknown reading 'norm'.*norms"):
        rec["norm"]
    before = rec.readings
    rec.detach()
    assert set(before) == set(rec.readings) and all(before[k].identical(rec[k]) for k in before)
    run = rec.run()
    assert run.status == "finished" and run.recipe is None and run.optimizer == "SGD"
    assert all(run[k].identical(rec[k]) for k in before)
    assert_same(dict(run.weights), {k: p.detach() for k, p in model.named_parameters()})
    assert run["late"].step.values.tolist() == [3]


def test_readings_do_not_change_afterwards():
    _, shape, _ = NETS["mlp"]
    model = mlp()

    @dyn.reads("params", "grads")
    def raw(snap):
        return {"w": (("i", "j"), snap.params["4.weight"]), "g": (("i", "j"), snap.grads["4.weight"])}

    hand = ByHand(model, sgd(model))
    with dyn.watch(model, hand.optimizer, probes={"raw": dyn.every(1, raw)}) as rec:
        plain_loop(model, hand.optimizer, rec.batch, hand, shape=shape)
    np.testing.assert_array_equal(rec["raw"].w.values, np.array([t["4.weight"] for t in hand.theta]))
    np.testing.assert_array_equal(rec["raw"].g.values, np.array([t["4.weight"] for t in hand.grads]))


@pytest.mark.parametrize("chunk_steps", [1, 2, 4, 1000])
def test_a_run_survives_saving_and_chunks(tmp_path, chunk_steps):
    _, shape, _ = NETS["mlp"]
    plain = watched(mlp, sgd, partial(plain_loop, shape=shape), told=True)
    kept = watched(
        mlp, sgd, partial(plain_loop, shape=shape), told=True, out=tmp_path / "kept", chunk_steps=chunk_steps
    )  # fmt: skip
    plain.rec.run().save(tmp_path / "saved")
    runs = [plain.rec.run(), kept.rec.run(), dyn.load_run(tmp_path / "saved"), dyn.load_run(tmp_path / "kept")]
    runs[3].save(tmp_path / "again")
    runs.append(dyn.load_run(tmp_path / "again"))
    for run in runs:
        assert run.status == "finished" and run.state.step == STEPS and run.optimizer == "SGD"
        assert list(run.readings) == list(runs[0].readings)
        assert all(run[k].identical(plain.rec[k]) for k in run.readings)
        assert_same(dict(run.weights), dict(runs[0].weights))
        assert "watched" in repr(run)
    assert runs[0].checkpoints == (0, STEPS)
    assert runs[3].checkpoints == tuple(dict.fromkeys([*range(0, STEPS + 1, chunk_steps), STEPS]))
    seed()
    assert_same(dict(runs[3].state_at(0).params), {k: p.detach() for k, p in mlp().named_parameters()})


def test_an_unfinished_run_can_be_loaded(tmp_path):
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model)
    rec = dyn.watch(model, optimizer, probes=dyn.standard(1), out=tmp_path / "r", chunk_steps=4)
    assert dyn.load_run(tmp_path / "r").readings == {}
    plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape)
    run = dyn.load_run(tmp_path / "r")
    assert run.status == "running" and run["norms"].step.values.tolist() == [0, 1, 2, 3]
    assert run["norms"].identical(rec["norms"].isel(step=slice(4)))
    with pytest.raises(DynamicsError, match="was recorded by watch"):
        dyn.resume(tmp_path / "r")
    mid = rec.run()
    mid.save(tmp_path / "mid")
    assert dyn.load_run(tmp_path / "mid")["norms"].step.size == STEPS
    rec.detach()
    assert dyn.load_run(tmp_path / "r").status == "finished"
    with pytest.raises(DynamicsError, match="exists already"):
        dyn.watch(model, optimizer, out=tmp_path / "r")
    dyn.watch(model, optimizer).detach()  # what was refused left no hooks


def test_a_watch_without_any_step(tmp_path):
    model = mlp()
    with dyn.watch(model, sgd(model), out=tmp_path / "r", budget=0.05) as rec:
        pass
    run = dyn.load_run(tmp_path / "r")
    assert (run.status, run.state.step, run.readings) == ("finished", 0, {}) and rec.run().readings == {}


def hooks(optimizer) -> int:
    own = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return sum(map(len, own)) + len(_global_optimizer_post_hooks)


def test_detaching_takes_every_hook_off():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model)
    forward = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    clean = hooks(optimizer)
    with dyn.watch(model, optimizer, probes=dyn.standard(1)) as rec:
        assert hooks(optimizer) > clean and "watching Sequential under SGD" in repr(rec)
        plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=2)
    assert hooks(optimizer) == clean and forward == [] and "detached from" in repr(rec)
    rec.detach()
    plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=2)
    assert rec.steps == 2 and rec["norms"].step.values.tolist() == [0, 1]
    with dyn.watch(model, optimizer, probes=dyn.standard(1)) as again:
        plain_loop(model, optimizer, again.batch, Nobody(), shape=shape, steps=3)
    assert again["norms"].step.values.tolist() == [0, 1, 2] and rec.steps == 2


def test_an_error_in_the_loop_detaches():
    model = mlp()
    optimizer = sgd(model)
    clean = hooks(optimizer)
    with pytest.raises(ZeroDivisionError), dyn.watch(model, optimizer):
        raise ZeroDivisionError
    assert hooks(optimizer) == clean


def test_a_recorder_that_nobody_holds_goes():
    """A notebook watches again and again: models must not pile up."""
    gc.collect()
    clean = len(_global_optimizer_post_hooks)
    model = mlp()
    gone = weakref.ref(model)
    dyn.watch(model, sgd(model))
    del model
    gc.collect()
    assert gone() is None and len(_global_optimizer_post_hooks) == clean


def test_a_watched_optimizer_can_be_copied_and_its_state_loaded():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model)
    with dyn.watch(model, optimizer, probes=dyn.standard(1)) as rec:
        plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=2)
        twin, other = copy.deepcopy((model, optimizer))
        plain_loop(twin, other, lambda *_: None, Nobody(), shape=shape, steps=1)
        assert rec.steps == 2
        state = copy.deepcopy(optimizer.state_dict())
        state["param_groups"][0]["lr"] = 0.01
        optimizer.load_state_dict(state)
        plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=1)
    np.testing.assert_array_equal(rec["hyperparameters"].lr.values[:, 0], [0.05, 0.05, 0.01])


def test_without_probes_the_standard_set_at_every_tenth_step():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    with dyn.watch(model, sgd(model)) as rec:
        plain_loop(model, rec.optimizer, rec.batch, Nobody(), shape=shape, steps=11)
    assert rec["angles"].step.values.tolist() == [0, 10] and rec["train"].step.size == 11
    with dyn.watch(model, sgd(model), probes={}) as rec:
        plain_loop(model, rec.optimizer, lambda *_: None, Nobody(), shape=shape, steps=2)
    assert list(rec.readings) == ["hyperparameters"]


# --- probes of the user's


@dyn.reads("params", "batch", "loss")
def per_example(snap):
    return {"loss": snap.loss, "examples": len(snap.batch.x), "label": float(snap.batch.y[0])}


def test_a_probe_of_the_batch_says_so_and_gets_it():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model)
    losses = []
    with pytest.warns(UserWarning, match=r"the probe 'mine' reads the batch or the loss: call rec.batch\(") as told:
        rec = dyn.watch(model, optimizer, probes={"mine": dyn.every(2, per_example), **dyn.standard(2)})
    assert len(told) == 1 and told[0].filename == __file__

    def tell(x, y, loss):
        rec.batch(x, y, loss)
        losses.append(float(loss.detach()))

    plain_loop(model, optimizer, tell, Nobody(), shape=shape)
    rec.detach()
    np.testing.assert_array_equal(rec["mine"].loss.values, np.float32(losses[::2]))
    np.testing.assert_array_equal(rec["train"].loss.values, np.float32(losses))
    assert rec["mine"].examples.values.tolist() == [8, 8, 8]
    assert rec["mine"].label.values.tolist() == [float(batch(s, shape)[1][0]) for s in (0, 2, 4)]


def test_a_batch_that_is_not_told_is_warned_of_once_and_left_out():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="reads the batch or the loss"):
        rec = dyn.watch(model, optimizer, probes={"mine": dyn.every(1, per_example), **dyn.standard(1)})
    with pytest.warns(UserWarning, match="the probe 'mine' has no batch or loss at step 0: call rec.batch") as told:
        plain_loop(model, optimizer, lambda *_: None, Nobody(), shape=shape, steps=2)
        plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=1)
        plain_loop(model, optimizer, lambda *_: None, Nobody(), shape=shape, steps=2)  # what was told is of its step
    assert len(told) == 1 and told[0].filename == __file__
    assert rec["mine"].step.values.tolist() == [2] and rec["train"].step.values.tolist() == [2]
    assert rec["norms"].step.size == 5
    rec.detach()


def test_an_undecorated_probe_needs_no_batch():
    _, shape, _ = NETS["mlp"]
    seen = []

    def mine(snap):
        seen.append((snap.batch, snap.loss, snap.recipe, math.isnan(snap.epoch), snap.state.opt.keys()))
        return {"sum": sum(u.sum() for u in snap.updates.values())}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = watched(mlp, sgd, partial(plain_loop, shape=shape), probes={"mine": dyn.every(1, mine)})
    assert out.rec["mine"]["sum"].size == STEPS
    assert seen[0] == (None, None, None, True, set()) and seen[1][4] == {"momentum_buffer"}


def test_momentum_of_a_watched_optimizer():
    """It is the buffer before the step, whatever the step makes of it."""
    _, shape, _ = NETS["mlp"]
    kept = []

    @dyn.reads("params", "opt")
    def mine(snap):
        buffers = snap.state.opt.get("momentum_buffer", {})
        kept.append({k: b.clone() for k, b in buffers.items()})
        return {"n": len(buffers)}

    out = watched(mlp, sgd, partial(plain_loop, shape=shape), probes={"mine": dyn.every(1, mine)})
    velocity = np.zeros((CLASSES, 8))
    for i, (theta, grads) in enumerate(zip(out.hand.theta, out.hand.grads, strict=True)):
        found = kept[i].get("4.weight", torch.zeros(CLASSES, 8)).double().numpy()
        np.testing.assert_allclose(found, velocity, rtol=1e-4, atol=1e-6)
        velocity = 0.9 * velocity + grads["4.weight"] + 1e-2 * theta["4.weight"]
    assert out.rec["mine"].n.values.tolist() == [0, *[6] * (STEPS - 1)]


def test_a_probe_that_remembers():
    _, shape, _ = NETS["mlp"]

    @dyn.reads("params")
    def moved(snap, carry):
        w = snap.params["4.weight"]
        return {"distance": 0.0 if carry is None else (w - carry["w"]).norm().item()}, {"w": w}

    out = watched(mlp, sgd, partial(plain_loop, shape=shape), probes={"moved": dyn.every(2, moved)})
    thetas = [t["4.weight"] for t in out.hand.theta[::2]]
    expected = [0.0, *(np.linalg.norm(b - a) for a, b in pairwise(thetas))]
    np.testing.assert_allclose(out.rec["moved"].distance.values, expected, rtol=1e-5)


def test_a_probe_may_draw_random_numbers():
    _, shape, _ = NETS["mlp"]
    drawn = []

    def mine(snap):
        drawn.append((float(torch.rand(())), np.random.rand(), random.random(), float(torch.randn(3).sum())))
        torch.manual_seed(1)
        return {"x": drawn[-1][0]}

    watched(mlp, sgd, partial(plain_loop, shape=shape), probes={"mine": dyn.every(1, mine)})  # dropout draws too
    assert len(drawn) == STEPS


def test_a_probe_may_evaluate_the_net_at_the_weights_before_the_step():
    _, shape, _ = NETS["mlp"]
    x, y = batch(99, shape)

    def mine(snap):
        state = {**snap.params, **{k: b.clone() for k, b in snap.buffers.items()}}
        with torch.enable_grad():
            w = {k: p.requires_grad_() for k, p in {k: p.clone() for k, p in snap.params.items()}.items()}
            loss = F.cross_entropy(torch.func.functional_call(snap.net, {**state, **w}, (x,)), y)
            (grad,) = torch.autograd.grad(loss, [w["4.bias"]])
        return {"loss": loss.detach(), "grad": grad.norm()}

    out = watched(mlp, sgd, partial(plain_loop, shape=shape), probes={"mine": dyn.every(1, mine)})
    assert np.isfinite(out.rec["mine"].loss.values).all() and (out.rec["mine"].grad.values > 0).all()


def cheat_params(snap):
    snap.params["4.weight"].mul_(1.001)


def cheat_live(snap):
    snap.net[4].weight.mul_(1.001)


def cheat_grads(snap):
    snap.grads["4.weight"].zero_()


def cheat_live_grad(snap):
    snap.net[4].weight.grad.zero_()


def cheat_no_grad(snap):
    snap.net[4].weight.grad = None


def cheat_other_grad(snap):
    snap.net[4].weight.grad = torch.zeros(CLASSES, 8)


def cheat_backward(snap):
    with torch.enable_grad():
        snap.net[4].weight.square().sum().backward()


def cheat_forward(snap):
    snap.net(torch.randn(4, 6))


def cheat_eval(snap):
    snap.net.eval()


def cheat_updates(snap):
    snap.updates["4.weight"].zero_()


def cheat_opt(snap):
    snap.state.opt["momentum_buffer"]["4.weight"].zero_()


@pytest.mark.parametrize(
    "cheat",
    [
        cheat_params, cheat_live, cheat_grads, cheat_live_grad, cheat_no_grad, cheat_other_grad, cheat_backward,
        cheat_forward, cheat_eval, cheat_updates, cheat_opt,
    ],
)  # fmt: skip
def test_a_probe_that_writes_is_named(cheat):
    _, shape, _ = NETS["mlp"]

    def mine(snap):
        cheat(snap)
        return {"x": 1.0}

    model = mlp()
    rec = dyn.watch(model, sgd(model), probes={"norms": dyn.every(1, dyn.weight_norms), "mine": dyn.at([1], mine)})
    with pytest.raises(DynamicsError, match="the probe 'mine' changed"):
        plain_loop(model, rec.optimizer, rec.batch, Nobody(), shape=shape)
    rec.detach()
    assert rec["norms"].step.values.tolist() == [0, 1]


@pytest.mark.parametrize("error", [KeyError("gone"), ValueError(), RuntimeError("two\nlines")])
def test_a_probe_that_fails_is_named(error):
    _, shape, _ = NETS["mlp"]

    def mine(snap):
        raise error

    model = mlp()
    optimizer = sgd(model)
    rec = dyn.watch(model, optimizer, probes={"norms": dyn.every(1, dyn.weight_norms), "mine": dyn.at([1], mine)})
    with pytest.raises(DynamicsError, match=rf"the probe 'mine' failed at step 1 \({type(error).__name__}: ") as told:
        plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape)
    assert told.value.__cause__ is error and "\n" not in str(told.value)
    # the step was taken, and the loop may go on
    plain_loop(model, optimizer, rec.batch, Nobody(), shape=shape, steps=2)
    assert rec["norms"].step.values.tolist() == [0, 1, 2, 3] and rec.steps == 4
    rec.detach()


def test_an_interrupt_in_a_probe_is_an_interrupt():
    _, shape, _ = NETS["mlp"]

    def mine(snap):
        raise KeyboardInterrupt

    model = mlp()
    with dyn.watch(model, sgd(model), probes={"mine": dyn.every(1, mine)}) as rec, pytest.raises(KeyboardInterrupt):
        plain_loop(model, rec.optimizer, rec.batch, Nobody(), shape=shape)


def test_a_probe_that_stops_the_loops_gradients_is_without_effect():
    _, shape, _ = NETS["mlp"]

    def mine(snap):
        torch.set_grad_enabled(True)
        return {"x": 1.0}

    watched(mlp, sgd, partial(plain_loop, shape=shape), probes={"mine": dyn.every(1, mine)})
    assert torch.is_grad_enabled()


# --- bad input, a line each


@contextmanager
def refused(match: str) -> Iterator[None]:
    with pytest.raises(DynamicsError, match=match) as error:
        yield
    assert "\n" not in str(error.value)


def test_a_model_without_parameters():
    with refused("ReLU has no parameters: watch a model that is trained"):
        dyn.watch(nn.ReLU(), sgd(mlp()))


def test_an_optimizer_of_another_model():
    model, other = mlp(), mlp()
    with refused(
        r"the optimizer is of another model: 6 of its tensors .*group 0, number 0, shape \[8, 6\].*parameters\(\)"
    ):
        dyn.watch(model, sgd(other))
    groups = [{"params": list(model.parameters())}, {"params": [model_less := nn.Parameter(torch.zeros(7))]}]
    with refused(r"another model: 1 of its tensors .*group 1, number 0, shape \[7\]"):
        dyn.watch(model, torch.optim.SGD(groups))
    assert model_less.grad is None
    with refused("another model"):  # the optimizer came first, and what it has is no longer in the model
        optimizer = sgd(model)
        model[4] = nn.Linear(8, CLASSES)
        dyn.watch(model, optimizer)
    dyn.watch(nn.ModuleList([model, other]), sgd(other)).detach()  # a part of the model is fine


def test_hooks_attached_twice():
    model = mlp()
    optimizer = sgd(model)
    with dyn.watch(model, optimizer), refused(r"watched already: detach\(\) that recorder first"):
        dyn.watch(model, optimizer)
    with dyn.watch(model, optimizer) as rec:
        assert rec.steps == 0
        dyn.watch(model, sgd(model)).detach()  # another optimizer of the same model


def test_not_a_torch_optimizer():
    model = mlp()
    with refused("watch takes a torch.optim.Optimizer, got SGD"):
        dyn.watch(model, dyn.SGD(0.1))
    with refused("watch takes a torch.nn.Module and its optimizer, got SGD"):
        dyn.watch(sgd(model), model)
    with refused("watch takes a torch.nn.Module"):
        dyn.watch(model.parameters(), sgd(model))


@pytest.mark.parametrize("name", ["train", "hyperparameters", "valid", "ledger", "a b", ""])
def test_names_that_probes_cannot_have(name):
    model = mlp()
    with refused("a probe cannot be called"):
        dyn.watch(model, sgd(model), probes={name: dyn.every(1, dyn.weight_norms)})


@pytest.mark.parametrize("probes", [[dyn.every(1, dyn.angles)], dyn.every(1, dyn.angles), 3])
def test_probes_without_names(probes):
    model = mlp()
    with refused("probes are given by name: probes="):
        dyn.watch(model, sgd(model), probes=probes)


def test_a_probe_without_a_schedule():
    model = mlp()
    optimizer = sgd(model)
    with refused(r"the probe 'norms' has no schedule: write every\(10, weight_norms\)"):
        dyn.watch(model, optimizer, probes={"norms": dyn.weight_norms})
    assert hooks(optimizer) == len(_global_optimizer_post_hooks)


@pytest.mark.parametrize("chunk_steps", [0, -1, 1.5, None])
def test_chunks_of_no_steps(chunk_steps):
    model = mlp()
    with refused("chunk_steps must be a whole number of at least 1"):
        dyn.watch(model, sgd(model), chunk_steps=chunk_steps)


@pytest.mark.parametrize("loss", [torch.ones(3), "0.5", [1.0]])
def test_a_loss_that_is_not_one_number(loss):
    model = mlp()
    with dyn.watch(model, sgd(model)) as rec, refused(r"the loss of a step is one number, got .*: pass loss.mean\(\)"):
        rec.batch(None, None, loss)


def test_losses_of_several_kinds_are_one_series():
    _, shape, _ = NETS["mlp"]
    model = mlp()
    with dyn.watch(model, sgd(model), probes={}) as rec:
        for loss in (1, 2.5, np.float32(0.5), torch.tensor([3.0]), torch.tensor(4.0, dtype=torch.float64)):
            rec.batch(None, None, loss)
            plain_loop(model, rec.optimizer, lambda *_: None, Nobody(), shape=shape, steps=1)
    assert rec["train"].loss.values.tolist() == [1.0, 2.5, 0.5, 3.0, 4.0]


def test_a_lazy_model_that_has_not_run():
    model = nn.Sequential(nn.LazyLinear(3))
    with refused("Sequential has lazy parameters without a shape: run one batch"):
        dyn.watch(model, torch.optim.SGD(model.parameters()))


def test_a_hook_of_the_users_stays():
    _, shape, _ = NETS["mlp"]

    def make(model):
        optimizer = sgd(model)
        optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 0.01) and None)
        return optimizer

    out = watched(mlp, make, partial(plain_loop, shape=shape))
    assert len(out.optimizer._optimizer_step_pre_hooks) == 1
    total = np.sqrt((out.rec["gradients"].norm.values ** 2).sum(1))
    assert (total <= 0.01 * (1 + 1e-4)).all()  # what the optimizer got
