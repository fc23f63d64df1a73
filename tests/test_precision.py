from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same, first, largest_difference, last, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.data import Batch
from dynamics.errors import DynamicsError
from dynamics.nets import BatchNorm, FrozenNorm, GlobalAvgPool, capture_statistics
from dynamics.training import State, batch_loss, initial_state, precision
from dynamics.training.precision import begin_scale, next_scale, unscale

SPLIT = toy_split()
SMALL = dyn.Net("test_precision:small_net")


def small_net(classes: int) -> nn.Module:
    """Batch norm, draws and little to compile."""
    return nn.Sequential(GlobalAvgPool(), BatchNorm(3), nn.Dropout(0.5), nn.Linear(3, classes))


def scale_of(value: float, good_steps: int = 0) -> dict[str, torch.Tensor]:
    return {"scale": torch.tensor(value), "good_steps": torch.tensor(good_steps)}


def starting_at(recipe: dyn.Recipe, value: float, good_steps: int = 0) -> State:
    return replace(initial_state(recipe, SPLIT), loss_scale=scale_of(value, good_steps))


@pytest.fixture
def fp16(monkeypatch) -> dyn.Recipe:
    """A recipe in float16, on a CPU that is taken for a GPU: torch emulates float16 there, rounding and range alike."""
    monkeypatch.setattr(precision, "has_fp16", lambda device: True)
    return toy_recipe(precision="fp16", epochs=4)


# --- the rule of the loss scale


def test_the_scale_halves_at_an_overflow_and_doubles_after_2000_good_steps():
    assert next_scale(scale_of(1024.0, 5), False) == scale_of(512.0, 0)
    assert next_scale(scale_of(1024.0, 5), True) == scale_of(1024.0, 6)
    assert next_scale(scale_of(1024.0, 1998), True) == scale_of(1024.0, 1999)
    assert next_scale(scale_of(1024.0, 1999), True) == scale_of(2048.0, 0)
    assert begin_scale(None) == scale_of(2.0**15, 0)


def test_the_scale_stays_between_1_and_2_to_the_24():
    assert next_scale(scale_of(1.0), False) == scale_of(1.0)
    assert next_scale(scale_of(2.0**24, 1999), True) == scale_of(2.0**24)
    # a start's own is not cut down
    assert next_scale(scale_of(2.0**30, 1999), True) == scale_of(2.0**30)


def test_the_rule_is_that_of_torchs_grad_scaler(monkeypatch):
    monkeypatch.setattr(precision, "GROW_AFTER", 3)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**15, growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(()))
    sgd, ours = torch.optim.SGD([weight], lr=0.0), begin_scale(None)
    overflows = torch.rand(60, generator=torch.Generator().manual_seed(0)) < 0.3
    for overflow in overflows.tolist():
        sgd.zero_grad()
        theirs.scale(weight * (math.inf if overflow else 1.0)).backward()
        theirs.step(sgd)
        theirs.update()
        ours = next_scale(ours, not overflow)
        assert float(ours["scale"]) == theirs.get_scale()
    assert 0 < overflows.sum() < 60


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, None])
def test_gradients_are_unscaled_exactly_and_one_that_is_not_finite_is_seen(bad):
    plain = {"a": torch.randn(3, 4), "b": torch.randn(()), "c": torch.randn(2, 3, 3, 3)}
    scaled = {k: 4096 * g for k, g in plain.items()}
    if bad is not None:
        scaled["c"][1, 2, 0, 1] = bad
    found, finite = unscale(scaled, scale_of(4096.0))
    assert finite is (bad is None)
    assert_same({k: found[k] for k in "ab"}, {k: plain[k] for k in "ab"})


# --- fp16


def test_fp16_on_a_cpu_is_refused_before_any_training(tmp_path):
    recipe = toy_recipe(precision="fp16")
    for attempt in (
        lambda: dyn.steps(recipe, SPLIT),
        lambda: dyn.train(recipe, SPLIT, out=tmp_path / "run", progress=False),
    ):
        with pytest.raises(DynamicsError, match=r"^fp16 needs a GPU: use bf16 or auto$"):
            attempt()
    assert not (tmp_path / "run").exists()


def test_fp16_is_float32_within_rounding(fp16):
    """Gradients in a Snapshot are those of the loss, whatever the scale; master weights stay float32."""
    full = dyn.steps(replace(fp16, precision="float32"), SPLIT)
    for snap, single in zip(dyn.steps(fp16, SPLIT), full, strict=True):
        tensors = [*snap.params.values(), *snap.buffers.values(), *snap.state.opt["velocity"].values()]
        tensors += [*(snap.grads or {}).values(), *(snap.updates or {}).values()]
        assert {t.dtype for t in tensors} == {torch.float32} and not snap.skipped
        assert float(snap.state.loss_scale["scale"]) == 2.0**15
        assert int(snap.state.loss_scale["good_steps"]) == snap.step
        if snap.loss is not None:
            assert 0 < abs(float(snap.loss - single.loss)) < 0.01
        if snap.step == 0:
            low, exact = (torch.cat([g.flatten() for g in s.grads.values()]) for s in (snap, single))
            assert float((low - exact).norm()) < 0.02 * float(exact.norm())


def test_the_scale_keeps_small_gradients_from_vanishing(fp16):
    """T-10: float16 has nothing between 0 and 6e-8."""
    small = replace(fp16, net=dyn.Net("resnet9", width=2, logit_scale=1e-6), epochs=1)

    def zeros(value: float) -> float:
        snap = first(dyn.steps(small, SPLIT, start=starting_at(small, value)))
        return float(torch.cat([g.flatten() == 0 for g in snap.grads.values()]).float().mean())

    assert zeros(1.0) > 0.9 and zeros(2.0**15) < 0.1


def test_steps_that_overflow_are_skipped_and_the_schedule_goes_on(fp16):
    lr = dyn.PiecewiseLinear((0, 4), (0.1, 0.05))
    recipe = replace(fp16, optimizer=replace(fp16.optimizer, lr=lr), average=dyn.EMA(0.5, every=1))
    before, skipped, scale = None, [], scale_of(2.0**22, 7)
    for snap in dyn.steps(recipe, SPLIT, start=starting_at(recipe, 2.0**22, good_steps=7)):
        assert snap.state.loss_scale == scale
        if before is not None:
            stayed = all(torch.equal(p, before.params[k]) for k, p in snap.params.items())
            held = all(torch.equal(v, before.opt["velocity"][k]) for k, v in snap.state.opt["velocity"].items())
            taken = int(snap.state.average["n"]) - int(before.average["n"])
            assert (stayed, held, taken) == ((True, True, 0) if skipped[-1] else (False, False, 1))
        if snap.grads is not None:
            finite = all(bool(g.isfinite().all()) for g in snap.grads.values())
            assert snap.skipped is not finite and bool(snap.loss.isfinite())
            assert any(bool(u.any()) for u in snap.updates.values()) is finite
            assert snap.hyperparameters.values["lr"] == (lr((snap.step + 1) / 3),)
            skipped.append(snap.skipped)
            scale = next_scale(scale, finite)
        before = snap.state.clone()
    assert len(skipped) == 12 and 2 < sum(skipped) < 10


def overflowing(recipe: dyn.Recipe, **given) -> dyn.Run:
    """A run with probes whose first steps overflow."""
    start = starting_at(recipe, 2.0**22)
    return dyn.train(recipe, SPLIT, probes=dyn.standard(1), start=start, progress=False, **given)


def test_skipped_steps_are_recorded_and_what_has_no_update_is_not_read_there(fp16):
    run = overflowing(fp16)
    skipped = run["train"].skipped.values.tolist()
    taken = [t for t in range(12) if not skipped[t]]
    assert run.status == "finished" and 2 < len(taken) < 10
    assert run["train"].loss_scale.values.tolist() == [2.0 ** (22 - sum(skipped[:t])) for t in range(12)]
    assert run["gradients"].step.values.tolist() == run["angles"].step.values.tolist() == taken
    assert run["norms"].step.values.tolist() == list(range(13))
    assert not any(array.isnull().any() for name in ("gradients", "angles") for array in run[name].values())


def test_a_run_resumed_across_a_skipped_step_is_the_undisturbed_run(fp16, tmp_path):
    whole = overflowing(fp16, out=tmp_path / "whole", chunk_steps=1)
    kept = sorted((tmp_path / "whole").glob("chunk-*"))
    for stopped in (1, 3, 8):
        folder = tmp_path / f"stopped-{stopped}"
        shutil.copytree(tmp_path / "whole", folder)
        for path in kept[stopped + 1 :]:
            (folder / path.name).unlink()
        again = dyn.resume(folder, SPLIT, progress=False)
        assert_same(again.state.params, whole.state.params)
        assert_same(again.state.buffers, whole.state.buffers)
        assert_same(again.state.opt["velocity"], whole.state.opt["velocity"])
        assert_same(again.state.loss_scale, whole.state.loss_scale)
        assert all(again[name].identical(whole[name]) for name in whole.readings)
    assert whole["train"].skipped.values.tolist()[:4] == [1, 1, 1, 1]


def test_other_precisions_have_no_loss_scale(fp16):
    scaled = last(dyn.steps(replace(fp16, epochs=1), SPLIT)).state.clone()
    assert scaled.loss_scale is not None
    for snap in dyn.steps(toy_recipe(), SPLIT, start=scaled):
        assert snap.state.loss_scale is None and not snap.skipped
    run = dyn.train(toy_recipe(), SPLIT, progress=False)
    assert set(run["train"]) == {"loss", "epoch"} and run.state.loss_scale is None


# --- compile


@pytest.fixture
def compiler(monkeypatch, tmp_path) -> Iterator[None]:
    """torch.compile in this process alone, with a cache of the test's own."""
    import torch._inductor.config as config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.utils.counters.clear()
    with config.patch(compile_threads=1):
        yield
    torch.compiler.reset()


def test_compile_changes_nothing_beyond_rounding(compiler):
    """The same draws, statistics, names and readings; and a resumed run ends bit for bit."""
    plain = toy_recipe(net=SMALL)
    fast = replace(plain, compile=True)
    a, b = (dyn.train(r, SPLIT, probes=dyn.standard(1), progress=False, chunk_steps=4) for r in (plain, fast))
    assert list(a.state.params) == list(b.state.params) and list(a.readings) == list(b.readings)
    assert largest_difference(a.state.params, initial_state(plain, SPLIT).params) > 1e-2
    for kind in ("params", "buffers"):
        assert largest_difference(getattr(a.state, kind), getattr(b.state, kind)) < 1e-5
    assert abs(a["train"].loss.values - b["train"].loss.values).max() < 1e-5
    again = last(dyn.steps(fast, SPLIT, start=b.state_at(4)))
    assert_same(dict(again.params), b.state.params)
    assert_same(dict(again.buffers), b.state.buffers)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # both trainings, each in one piece


def test_without_a_compiler_compile_is_refused_before_any_training(tmp_path):
    import torch._inductor.config as config

    with (
        config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(DynamicsError, match=r"^compile=True needs a C\+\+ compiler.*CXX, or train with compile=False$"),
    ):
        dyn.train(toy_recipe(compile=True), SPLIT, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_net_that_cannot_be_compiled_is_told_in_one_line(monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def failing(batch):
        raise TorchDynamoException("no rule for this\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda *args, **given: failing)
    with pytest.raises(DynamicsError, match=r"^torch cannot compile this net \(no rule for this\): .*compile=False$"):
        last(dyn.steps(toy_recipe(compile=True), SPLIT))


# --- recipes on disk


def test_recipes_keep_the_json_that_they_had():
    value = dyn.Recipe().to_json()
    assert set(value) == {
        "kind", "net", "optimizer", "batch_size", "epochs", "augment", "label_smoothing", "precision", "channels_last",
        "average", "seed",
    }  # fmt: skip
    assert value["augment"] == {"kind": "Augment", "pad": 4, "flip": True}
    stages = dyn.Net("helpers:told_net", stages=(dyn.Stage(8),))
    (stage,) = dyn.Recipe(stages).to_json()["net"]["arguments"]["stages"]
    assert stage == {"kind": "Stage", "channels": 8, "pool": True, "branch": None}


@pytest.mark.parametrize("recipe", [toy_recipe(compile=True), toy_recipe(precision="fp16")])
def test_what_is_new_in_a_recipe_is_written(recipe):
    value = json.loads(json.dumps(recipe.to_json()))
    assert dyn.Recipe.from_json(value) == recipe != toy_recipe()


def test_compile_is_a_flag():
    with pytest.raises(DynamicsError, match="compile must be True or False, got 'yes'"):
        toy_recipe(compile="yes")


# --- what does not fit is refused before training


def test_ghost_splits_that_do_not_divide_the_batch_are_refused_before_training(tmp_path):
    recipe = toy_recipe(net=dyn.Net("resnet9", width=2, norm="ghost", ghost_splits=3))
    with pytest.raises(DynamicsError, match="ghost norm cannot split a batch of 20 images into 3 equal parts: choose"):
        dyn.train(recipe, SPLIT, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DynamicsError, match=r"a batch of 5 images \(of 4 processes each\) into 2 equal parts"):
        dyn.steps(replace(recipe, net=recipe.net.replace(ghost_splits=2)), SPLIT, parts=4)
    assert last(dyn.steps(replace(recipe, net=recipe.net.replace(ghost_splits=5), epochs=1), SPLIT)).step == 3


# --- labels that are shares, states that are fitted, passes that leave weights out


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_mixed_labels_is_the_mixture_of_losses(smoothing):
    recipe = toy_recipe(label_smoothing=smoothing, precision="float64")
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 10, generator=draws)
    one, two = torch.randint(10, (2, 20), generator=draws)

    def loss(labels: torch.Tensor) -> float:
        return float(batch_loss(recipe, torch.nn.Identity(), Batch(logits, labels), "float64"))

    mixed = (0.25 * F.one_hot(one, 10) + 0.75 * F.one_hot(two, 10)).float()
    assert loss(mixed) == pytest.approx(0.25 * loss(one) + 0.75 * loss(two), rel=1e-12)
    assert loss(F.one_hot(one, 10).float()) == pytest.approx(loss(one), rel=1e-12)


def test_a_net_trains_on_mixed_images():
    run = dyn.train(
        toy_recipe(augment=dyn.Augment(pad=2, mixup=1.0)), SPLIT, toy_split(20, seed=1, like=SPLIT),
        probes=dyn.standard(1), progress=False,
    )  # fmt: skip
    assert run.status == "finished" and 0 <= run["valid"].accuracy.values[-1] <= 1


@pytest.mark.parametrize("norm", ["batch", "frozen", "none"])
def test_initial_states_are_what_they_were(norm):
    """The slow way: build, and let frozen norms capture the first 512 images."""
    recipe = toy_recipe(net=dyn.Net("resnet9", width=2, norm=norm))
    net = recipe.net.build(classes=4, seed=0).eval()
    images = SPLIT[:512].padded().permute(0, 3, 1, 2).contiguous()
    if any(isinstance(m, FrozenNorm) for m in net.modules()):
        with torch.no_grad():
            capture_statistics(net, images)
    state = initial_state(recipe, SPLIT)
    assert_same(state.params, {k: p.detach() for k, p in net.named_parameters()})
    assert_same(state.buffers, dict(net.named_buffers()))


def test_whitening_filters_are_fitted_before_the_first_step():
    recipe = toy_recipe(net=dyn.Net("resnet9", width=2, whiten=True), epochs=1)
    fitted = initial_state(recipe, SPLIT).buffers
    assert any(k.endswith("weight") and bool(b.any()) for k, b in fitted.items())
    for snap in dyn.steps(recipe, SPLIT):
        assert_same({k: b for k, b in snap.buffers.items() if "running" not in k},
                    {k: b for k, b in fitted.items() if "running" not in k})  # fmt: skip


def test_weights_that_a_pass_leaves_out_have_zero_gradients():
    """Stochastic depth drops branches: their gradients are zeros, and weight decay goes on."""
    recipe = toy_recipe(net=dyn.Net("resnet20", width=2, survival=0.5), epochs=1)
    zero = dict.fromkeys(initial_state(recipe, SPLIT).params, 0)
    for snap in dyn.steps(recipe, SPLIT):
        for k, g in (snap.grads or {}).items():
            zero[k] += not g.any()
    assert {k: n for k, n in zero.items() if n} and not zero["linear.weight"]
