from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, first, largest_difference, last, load, toy_recipe, toy_split

import dynamics as dyn
from dynamics.data import batches
from dynamics.errors import DynamicsError
from dynamics.training import batch_loss, initial_state, resolve_precision, tree_map

SPLIT = toy_split()
SCHEDULE = dyn.PiecewiseLinear((0, 1, 4), (0.01, 0.1, 0.0))


def frozen_copy(snap: dyn.Snapshot) -> dict:
    """Everything a snapshot shows, as it was."""
    return {
        **{f"params/{k}": p.clone() for k, p in snap.params.items()},
        **{f"buffers/{k}": b.clone() for k, b in snap.buffers.items()},
        **{f"opt/{k}": v.clone() for k, v in snap.state.opt.get("velocity", {}).items()},
        **{f"grads/{k}": g.clone() for k, g in (snap.grads or {}).items()},
        **{f"updates/{k}": u.clone() for k, u in (snap.updates or {}).items()},
        **({"loss": snap.loss.clone(), "x": snap.batch.x.clone(), "y": snap.batch.y.clone()} if snap.batch else {}),
    }


# --- the loop


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_steps_equal_a_plain_torch_loop(momentum, nesterov, channels_last):
    """The twin: torch.optim.SGD, LambdaLR and model(x) in float64 on the same batches."""
    recipe = toy_recipe(
        optimizer=dyn.SGD(SCHEDULE, momentum=momentum, nesterov=nesterov, weight_decay=5e-3),
        epochs=4, label_smoothing=0.2, precision="float64", channels_last=channels_last, seed=3,
    )  # fmt: skip
    snap = last(dyn.steps(recipe, SPLIT))

    net = recipe.net.build(classes=4, seed=3).double()
    sgd = torch.optim.SGD(net.parameters(), lr=1.0, momentum=momentum, nesterov=nesterov, weight_decay=5e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(sgd, lambda t: SCHEDULE((t + 1) / 3))
    for epoch in range(4):
        for x, y in batches(SPLIT, 20, seed=3, epoch=epoch, augment=dyn.Augment(pad=2)):
            sgd.zero_grad()
            F.cross_entropy(net(x.double()), y, label_smoothing=0.2).backward()
            sgd.step()
            decay.step()
    assert snap.step == 12
    assert largest_difference(snap.params, {k: p.detach() for k, p in net.named_parameters()}) < 1e-12
    assert largest_difference(snap.buffers, dict(net.named_buffers())) < 1e-12


def test_snapshots():
    recipe = toy_recipe(optimizer=dyn.SGD(SCHEDULE, weight_decay=1e-3, groups=(dyn.Group("*.bias", 4.0),)))
    seen, before = [], None
    for t, snap in enumerate(dyn.steps(recipe, SPLIT)):
        assert snap.step == t and snap.epoch == t / 3 and snap.recipe is recipe
        if before is not None:
            moved = {k: before[f"params/{k}"] + before[f"updates/{k}"] for k in snap.params}
            assert_same(moved, {k: p.clone() for k, p in snap.params.items()})
        if snap.updates is not None:
            assert snap.hyperparameters.groups == recipe.optimizer.partition(tuple(snap.params))
            lr = SCHEDULE((t + 1) / 3)
            assert snap.hyperparameters.values["lr"] == (4.0 * lr, lr)
            assert list(snap.grads) == list(snap.updates) == list(snap.params)
            assert not snap.loss.requires_grad and not any(g.requires_grad for g in snap.grads.values())
        before = frozen_copy(snap)
        seen.append(snap)
    assert len(seen) == 7
    end = seen[-1]
    assert [end.batch, end.loss, end.grads, end.updates, end.hyperparameters] == [None] * 5


def test_gradients_and_loss_belong_to_the_batch():
    recipe = toy_recipe(precision="float64")
    for snap in dyn.steps(recipe, SPLIT):
        if snap.updates is None:
            break
        net = recipe.net.build(classes=4).double()
        load(net, snap.state)
        loss = F.cross_entropy(net(snap.batch.x.double()), snap.batch.y)
        loss.backward()
        assert float(snap.loss) == pytest.approx(loss.item(), rel=1e-12)
        assert largest_difference(dict(snap.grads), {k: p.grad for k, p in net.named_parameters()}) < 1e-12


@pytest.mark.parametrize(
    "net", [dyn.Net("resnet9", width=2), dyn.Net("helpers:dropout_net")], ids=["resnet9", "dropout"]
)
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("middle", [2, 3])
def test_a_state_replays_its_snapshot_and_leads_to_the_same_end(net, precision, middle):
    recipe = toy_recipe(net=net, precision=precision)
    for snap in dyn.steps(recipe, SPLIT):
        if snap.step == middle:
            state, expected = snap.state.clone(), frozen_copy(snap)
    end = frozen_copy(snap)
    torch.manual_seed(99)
    assert_same(frozen_copy(first(dyn.steps(recipe, SPLIT, start=state))), expected)
    resumed = list(dyn.steps(recipe, SPLIT, start=state))
    assert len(resumed) == 7 - middle
    assert_same(frozen_copy(resumed[-1]), end)


def test_memory_layout_of_a_state_does_not_matter():
    """What comes back from a file is contiguous; the run goes on bit for bit, optimizer state included."""
    recipe = toy_recipe()
    for snap in dyn.steps(recipe, SPLIT):
        if snap.step == 2:
            state = snap.state.clone()
    flat = tree_map(lambda t: t.contiguous(), state)
    assert_same(frozen_copy(last(dyn.steps(recipe, SPLIT, start=flat))), frozen_copy(snap))
    moving = first(dyn.steps(recipe, SPLIT, start=flat)).state.opt["velocity"]
    assert {k: v.stride() for k, v in moving.items()} == {k: p.stride() for k, p in snap.params.items()}


def test_the_start_is_not_changed():
    recipe = toy_recipe()
    start = initial_state(recipe, SPLIT)
    before = start.clone()
    end = last(dyn.steps(recipe, SPLIT, start=start))
    assert_same(start.params, before.params)
    assert_same(start.buffers, before.buffers)
    assert_same(frozen_copy(end), frozen_copy(last(dyn.steps(recipe, SPLIT))))


def test_same_recipe_same_run_other_seed_other_run():
    a, b, c = (last(dyn.steps(toy_recipe(seed=s), SPLIT)) for s in (0, 0, 1))
    assert_same(frozen_copy(a), frozen_copy(b))
    assert largest_difference(a.params, c.params) > 1e-3


def test_noise_of_the_forward_pass_is_decided_by_seed_and_step():
    def drawn(seed: int) -> list[float]:
        recipe = toy_recipe(net=dyn.Net("helpers:Noisy"), seed=seed)
        return [snap.net.drawn for snap in dyn.steps(recipe, SPLIT) if snap.grads is not None]

    assert drawn(0) == drawn(0)
    assert len({*drawn(0), *drawn(1)}) == 12


def test_recipes_with_one_seed_are_paired():
    """Same weights, order and augmentation, whatever the optimizer."""
    a, b = (first(dyn.steps(toy_recipe(optimizer=o), SPLIT)) for o in (dyn.SGD(0.1), dyn.SGD(0.3, momentum=0.0)))
    assert_same(a.params, b.params)
    assert torch.equal(a.batch.x, b.batch.x) and torch.equal(a.loss, b.loss)


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (0.4, 1), (1, 3), (1.7, 5)])
def test_fractions_of_an_epoch(epochs, steps):
    recipe = toy_recipe(epochs=epochs)
    assert recipe.steps_in(SPLIT) == steps
    seen = [s.step for s in dyn.steps(recipe, SPLIT)]
    assert seen == list(range(steps + 1))


def test_no_epochs_yield_the_initial_state():
    (snap,) = dyn.steps(toy_recipe(epochs=0), SPLIT)
    assert snap.updates is None
    assert_same(snap.params, initial_state(toy_recipe(), SPLIT).params)


# --- nothing leaks into the caller, and nothing of the caller leaks in


def surroundings() -> tuple:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        hash(torch.get_rng_state().numpy().tobytes()),
    )


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
@pytest.mark.parametrize("surround", [torch.enable_grad, torch.no_grad])
def test_no_context_is_open_across_a_yield(surround, precision):
    recipe = toy_recipe(net=dyn.Net("helpers:dropout_net"), precision=precision, epochs=1)
    end = frozen_copy(last(dyn.steps(recipe, SPLIT)))
    torch.manual_seed(5)
    with surround():
        before = surroundings()
        for snap in dyn.steps(recipe, SPLIT):
            assert surroundings() == before and snap.params
            assert (torch.ones(1, requires_grad=True) * 2).requires_grad == (surround is torch.enable_grad)
    assert_same(frozen_copy(snap), end)


def test_inside_inference_mode():
    """torch cannot train there; say so in our own words, or step out of it."""
    end = frozen_copy(last(dyn.steps(toy_recipe(epochs=1), SPLIT)))
    with torch.inference_mode():
        try:
            snap = last(dyn.steps(toy_recipe(epochs=1), SPLIT))
        except DynamicsError as error:
            assert "inference_mode" in str(error) and "no_grad" in str(error)
        else:
            assert_same(frozen_copy(snap), end)


def test_the_callers_autocast_does_not_change_the_precision():
    end = frozen_copy(last(dyn.steps(toy_recipe(epochs=1), SPLIT)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        snap = last(dyn.steps(toy_recipe(epochs=1), SPLIT))
        scored = dyn.evaluate(snap, SPLIT, precision="float32")
    assert_same(frozen_copy(snap), end)
    assert scored == dyn.evaluate(snap, SPLIT, precision="float32")


def test_the_caller_may_use_the_generator_and_the_net_between_steps():
    recipe = toy_recipe(net=dyn.Net("helpers:dropout_net"))
    end = frozen_copy(last(dyn.steps(recipe, SPLIT)))
    for snap in dyn.steps(recipe, SPLIT):
        torch.rand(snap.step + 1)
        dyn.evaluate(snap, SPLIT)
    assert_same(frozen_copy(snap), end)


# --- precision and loss


def test_bf16_keeps_float32_master_weights():
    low, full = (dyn.steps(toy_recipe(precision=p), SPLIT) for p in ("bf16", "float32"))
    for snap, single in zip(low, full, strict=True):
        tensors = [*snap.params.values(), *snap.buffers.values(), *snap.state.opt["velocity"].values()]
        tensors += [*(snap.grads or {}).values(), *(snap.updates or {}).values()]
        assert {t.dtype for t in tensors} == {torch.float32}
        if snap.loss is not None:
            assert snap.loss.dtype == torch.float32
            # another trajectory, but the same training
            assert 0 < abs(float(snap.loss - single.loss)) < 0.02


def test_float64_is_float64_throughout():
    for snap in dyn.steps(toy_recipe(precision="float64", epochs=1), SPLIT):
        tensors = [*snap.params.values(), *snap.buffers.values(), *snap.state.opt["velocity"].values()]
        assert {t.dtype for t in [*tensors, *(snap.grads or {}).values()]} == {torch.float64}


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.9])
def test_label_smoothing_is_a_mixture_of_two_losses(smoothing):
    """(1 - a) CE + a mean over classes of -log p, and its floor 0.8669 nats at a = 0.2 and ten classes."""
    recipe = toy_recipe(label_smoothing=smoothing, precision="float64")
    logits = torch.randn(20, 10, dtype=torch.float64)
    batch = dyn.data.split.Batch(logits.float(), torch.arange(20) % 10)
    loss = batch_loss(recipe, torch.nn.Identity(), batch, "float64")
    logp = logits.float().double().log_softmax(1)
    expected = -(1 - smoothing) * logp[range(20), batch.y].mean() - smoothing * logp.mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    if smoothing == 0.2:
        best = torch.full((10, 10), math.log(0.02)).fill_diagonal_(math.log(0.82))
        floor = batch_loss(recipe, torch.nn.Identity(), dyn.data.split.Batch(best, torch.arange(10)), "float64")
        assert float(floor) == pytest.approx(0.8669, abs=5e-5)


def test_auto_precision_is_one_of_two():
    assert resolve_precision("auto", torch.device("cpu")) in ("float32", "bf16")
    assert resolve_precision("float64", torch.device("cpu")) == "float64"


# --- exact symmetries, in float64


def conv_weights(snap: dyn.Snapshot) -> dict[str, torch.Tensor]:
    return {k: p.clone() for k, p in snap.params.items() if k.endswith("conv.weight")}


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("optimizer", [dyn.SGD(SCHEDULE, 0.9, nesterov=True, weight_decay=5e-3), dyn.SGD(0.05, 0.0)])
def test_scale_symmetry(optimizer, norm):
    """P5-7: (lr, wd, w0) -> (c^2 lr, wd / c^2, c w0) on scale-invariant weights is the same function; frozen norms
    break it."""
    c = 2.5
    net = dyn.Net("resnet9", width=2, eps=1e-30, norm=norm)
    recipe = toy_recipe(net=net, optimizer=optimizer, epochs=10, precision="float64")
    scaled = replace(recipe, optimizer=replace(optimizer, groups=(dyn.Group("*conv.weight", c**2, 1 / c**2),)))
    start = tree_map(torch.Tensor.double, initial_state(recipe, SPLIT))
    other = replace(start, params={k: c * p if k.endswith("conv.weight") else p for k, p in start.params.items()})
    a, b = last(dyn.steps(recipe, SPLIT, start=start)), last(dyn.steps(scaled, SPLIT, start=other))
    difference = max(float((c * w - b.params[k]).norm() / (c * w).norm()) for k, w in conv_weights(a).items())
    rest = max(float((a.params[k] - b.params[k]).abs().max()) for k in a.params if not k.endswith("conv.weight"))
    moved = max(float((w - start.params[k]).norm() / w.norm()) for k, w in conv_weights(a).items())
    assert moved > 0.05
    if norm == "batch":
        assert difference < 1e-9 and rest < 1e-9
    else:
        assert not difference < 1e-3


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_gradients_are_orthogonal_to_weights_before_batch_norm(norm):
    """P5-9, per layer and per filter."""
    net = dyn.Net("resnet9", width=2, eps=1e-14, norm=norm)
    worst = 0.0
    for snap in dyn.steps(toy_recipe(net=net, precision="float64", epochs=3), SPLIT):
        for k, w in conv_weights(snap).items() if snap.grads else ():
            w, g = w.flatten(1), snap.grads[k].flatten(1)
            alive = g.norm(dim=1) > 0
            cosines = (w * g).sum(1)[alive] / (w.norm(dim=1) * g.norm(dim=1))[alive]
            worst = max(worst, float(cosines.abs().max()), float((w * g).sum().abs() / (w.norm() * g.norm())))
    assert worst < 1e-10 if norm == "batch" else worst > 1e-2


def test_gradient_steps_grow_the_norm_by_pythagoras():
    """P5-10: without decay and momentum |w|^2 grows by lr^2 |g|^2, so it never falls; decay alone shrinks it."""
    recipe = toy_recipe(
        net=dyn.Net("resnet9", width=2, eps=1e-14), optimizer=dyn.SGD(0.1, 0.0, weight_decay=0.0), epochs=5,
        precision="float64",
    )  # fmt: skip
    before = None
    for snap in dyn.steps(recipe, SPLIT):
        now = {k: float(w.square().sum()) for k, w in conv_weights(snap).items()}
        for k in before or ():
            assert now[k] > before[k][0]
            assert now[k] - before[k][0] == pytest.approx(before[k][1], rel=1e-8)
        before = {k: (now[k], 0.01 * float(snap.grads[k].square().sum())) for k in now} if snap.grads else None
    still = replace(recipe, optimizer=dyn.SGD(0.1, 0.0, weight_decay=0.5))
    snap = first(dyn.steps(still, SPLIT))
    for k, w in conv_weights(snap).items():
        decayed = w + snap.updates[k]
        shrunk = (1 - 0.1 * 0.5) ** 2 * w.square().sum() + 0.01 * snap.grads[k].square().sum()
        assert float(decayed.square().sum()) == pytest.approx(float(shrunk), rel=1e-9)


# --- starts


def test_a_fork_with_another_optimizer():
    recipe = toy_recipe()
    for snap in dyn.steps(recipe, SPLIT):
        if snap.step == 3:
            state = snap.state.clone()
    plain = replace(recipe, optimizer=dyn.SGD(0.1, 0.0))
    with pytest.raises(DynamicsError, match=r"does not fit SGD .*replace\(state, opt=None\)"):
        last(dyn.steps(plain, SPLIT, start=state))
    fork = list(dyn.steps(plain, SPLIT, start=replace(state, opt=None)))
    assert [s.step for s in fork] == [3, 4, 5, 6]
    # and afresh means with no velocity
    fresh = first(dyn.steps(recipe, SPLIT, start=replace(state, opt=None)))
    assert not any(v.any() for v in fresh.state.opt["velocity"].values())


def test_a_float32_state_starts_a_float64_run():
    for snap in dyn.steps(toy_recipe(), SPLIT):
        if snap.step == 3:
            state = snap.state.clone()
    snap = last(dyn.steps(toy_recipe(precision="float64"), SPLIT, start=state))
    assert {v.dtype for v in snap.state.opt["velocity"].values()} == {torch.float64}
    wide = replace(
        state,
        params={k: p.double() for k, p in state.params.items()},
        opt={"velocity": {k: v.double() for k, v in state.opt["velocity"].items()}},
    )
    assert_same(snap.params, last(dyn.steps(toy_recipe(precision="float64"), SPLIT, start=wide)).params)


def test_an_optimizer_state_of_other_shapes_is_refused():
    state = first(dyn.steps(toy_recipe(), SPLIT)).state.clone()
    wide = first(dyn.steps(toy_recipe(net=dyn.Net("resnet9", width=4)), SPLIT)).state.clone()
    with pytest.raises(DynamicsError, match="opt=None"):
        last(dyn.steps(toy_recipe(), SPLIT, start=replace(state, opt=wide.opt)))


def test_a_start_of_another_net_is_refused():
    state = initial_state(toy_recipe(), SPLIT)
    wide = toy_recipe(net=dyn.Net("resnet9", width=4))
    with pytest.raises(DynamicsError, match=r"parameters do not fit Net\('resnet9', width=4\).*'prep.conv.weight'"):
        first(dyn.steps(wide, SPLIT, start=state))
    with pytest.raises(DynamicsError, match="do not fit"):
        first(dyn.steps(toy_recipe(net=dyn.Net("resnet9", width=2, norm="none")), SPLIT, start=state))


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(DynamicsError, match="batch_size 61 does not fit 60 training images"):
        first(dyn.steps(toy_recipe(batch_size=61), SPLIT))


# --- recipes


@dataclass(frozen=True)
class Halving:
    """A schedule of the test's own."""

    start: float

    def __call__(self, epoch: float) -> float:
        return self.start * 0.5**epoch


RECIPES = [
    dyn.Recipe(),
    toy_recipe(),
    toy_recipe(
        optimizer=dyn.SGD(
            dyn.PiecewiseLinear((0, 5, 24.5), (0, 0.4, 0.001)), nesterov=True, decoupled=True,
            groups=(dyn.Group("*.bias", 64.0, 1 / 64), dyn.Group("norm*")),
        ),
        augment=dyn.Augment(3, False), epochs=0.1 + 0.2, label_smoothing=0.2, channels_last=False, seed=-7,
    ),
    toy_recipe(optimizer=dyn.SGD(dyn.Constant(1 / 3)), precision="bf16"),
    toy_recipe(optimizer=dyn.SGD(Halving(0.3))),
    toy_recipe(net=dyn.Net("helpers:told_net", widths=(3, 4), stages=(dyn.Stage(8, branch="residual"),), a=None)),
    *(toy_recipe(optimizer=kind(0.01, groups=(dyn.Group("*.bias"),)))
      for kind in (dyn.PageLARS, dyn.LARS, dyn.Adam, dyn.AdamW, dyn.Lion)),
    toy_recipe(optimizer=dyn.TorchOptimizer("SGD", lr=dyn.Constant(0.1), momentum=0.9, nesterov=True)),
    toy_recipe(optimizer=dyn.TorchOptimizer("NAdam", betas=(0.8, 0.99), groups=(dyn.Group("*.bias"),))),
    toy_recipe(average=dyn.EMA(0.95, 3)),
    toy_recipe(average=dyn.SWA(1.5, 2)),
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_json_round_trip(recipe):
    text = json.dumps(recipe.to_json(), allow_nan=False)
    back = dyn.Recipe.from_json(json.loads(text))
    assert back == recipe and hash(back) == hash(recipe)
    assert json.dumps(back.to_json()) == text


def test_recipes_differ_where_they_differ():
    assert len(set(RECIPES)) == len(RECIPES)
    assert toy_recipe() == toy_recipe() != toy_recipe(seed=1)


def test_bad_recipe_json():
    value = toy_recipe().to_json()
    with pytest.raises(DynamicsError, match="unknown field of Recipe 'batchsize': did you mean 'batch_size'"):
        dyn.Recipe.from_json({**value, "batchsize": 3})
    with pytest.raises(DynamicsError, match="'os:Anything', which is not loaded: import its module first"):
        dyn.Recipe.from_json({**value, "optimizer": {"kind": "os:Anything"}})
    with pytest.raises(DynamicsError, match="not a recipe"):
        dyn.Recipe.from_json({"kind": "Augment", "pad": 1, "flip": True})
    with pytest.raises(DynamicsError, match="cannot hold"):
        toy_recipe(optimizer=dyn.SGD(lambda epoch: 0.1)).to_json()


@pytest.mark.parametrize("value", [{}, {"recipe": 3}, {"kind": "PiecewiseLinear"}, []])
def test_json_that_is_no_recipe(value):
    with pytest.raises(DynamicsError):
        dyn.Recipe.from_json(value)


def test_stretch():
    recipe = toy_recipe(optimizer=dyn.SGD(SCHEDULE), epochs=4)
    longer = recipe.stretch(10)
    assert longer.epochs == 10 and longer.optimizer.lr.knots == (0.0, 2.5, 10.0)
    assert toy_recipe().stretch(7) == toy_recipe(epochs=7)
    with pytest.raises(DynamicsError, match="epochs must be above 0"):
        recipe.stretch(0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "fp32"}, "unknown precision 'fp32'"),
        ({"epochs": -1}, "epochs must be a number of at least 0, got -1"),
        ({"epochs": math.nan}, "epochs must be"),
        ({"epochs": math.inf}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"net": "resnet9"}, "Net('resnet9')"),
    ],
)
def test_recipe_errors(given, message):
    with pytest.raises(DynamicsError) as error:
        toy_recipe(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


# --- evaluate


@pytest.fixture(scope="module")
def trained() -> dyn.Snapshot:
    return last(dyn.steps(toy_recipe(epochs=4), SPLIT))


def test_evaluate_equals_a_slow_loop(trained):
    valid = toy_split(37, seed=2, like=SPLIT)
    net = copy.deepcopy(trained.net).double().eval()
    losses, right = [], 0
    with torch.no_grad():
        for x, y in zip(valid.padded(), valid.labels, strict=True):
            logits = net(x.double().permute(2, 0, 1)[None])[0]
            losses.append(float(-logits.log_softmax(0)[y]))
            right += int(logits.argmax() == y)
    for batch_size in (10, 37, 1000):
        scored = dyn.evaluate(trained, valid, batch_size=batch_size, precision="float32")
        assert scored.loss == pytest.approx(sum(losses) / 37, rel=1e-5)
        assert (scored.accuracy, scored.n) == (right / 37, 37)
    assert 0.3 < scored.accuracy < 1
    low = dyn.evaluate(trained, valid, precision="bf16")
    assert low.loss == pytest.approx(scored.loss, rel=0.05)


def test_evaluate_in_float64_is_in_float64():
    snap = last(dyn.steps(toy_recipe(precision="float64"), SPLIT))
    net = copy.deepcopy(snap.net).eval()
    with torch.no_grad():
        expected = F.cross_entropy(net(SPLIT.padded().permute(0, 3, 1, 2).double()), SPLIT.labels)
    assert dyn.evaluate(snap, SPLIT, precision="float64").loss == pytest.approx(float(expected), rel=1e-12)


def test_evaluate_of_a_module_leaves_it_alone(trained):
    net = copy.deepcopy(trained.net)
    net.train()
    net.layer1.eval()
    modes = [m.training for m in net.modules()]
    before, versions = copy.deepcopy(net.state_dict()), [t._version for t in net.state_dict().values()]
    scored = dyn.evaluate(net, SPLIT, precision="float32")
    assert [m.training for m in net.modules()] == modes
    assert_same(net.state_dict(), before)
    assert [t._version for t in net.state_dict().values()] == versions
    assert not any(p.grad is not None for p in net.parameters())
    assert scored == dyn.evaluate(trained, SPLIT, precision="float32")


def test_evaluate_of_a_snapshot_uses_the_statistics_of_its_state():
    """Within a step the net's own running statistics have already moved on."""
    recipe = toy_recipe(precision="float32")
    for snap in dyn.steps(recipe, SPLIT):
        if snap.step == 2:
            state, scored = snap.state.clone(), dyn.evaluate(snap, SPLIT, precision="float32")
            moved = dict(snap.net.named_buffers())["prep.norm.running_mean"]
            assert not torch.equal(moved, snap.buffers["prep.norm.running_mean"])
    net = recipe.net.build(classes=4).to(memory_format=torch.channels_last)
    load(net, state)
    assert scored == dyn.evaluate(net, SPLIT, precision="float32")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_flip_averaging_is_exactly_flip_invariant(trained, precision):
    """P8-18."""
    valid = toy_split(20, seed=2, like=SPLIT)
    mirrored = dyn.Split.from_arrays(valid.images.flip(2), valid.labels, like=SPLIT)
    a, b = (dyn.evaluate(trained, s, flip=True, precision=precision) for s in (valid, mirrored))
    assert a == b
    plain = [dyn.evaluate(trained, s, precision=precision) for s in (valid, mirrored)]
    assert plain[0].loss != plain[1].loss


def test_flip_averages_logits(trained):
    valid = toy_split(20, seed=2, like=SPLIT)
    x = valid.padded().permute(0, 3, 1, 2)
    net = copy.deepcopy(trained.net).eval()
    with torch.no_grad():
        expected = F.cross_entropy((net(x) + net(x.flip(3))) / 2, valid.labels)
    scored = dyn.evaluate(trained, valid, flip=True, precision="float32")
    assert scored.loss == pytest.approx(float(expected), rel=1e-6)
