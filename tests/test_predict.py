"""predict() for every optimizer with a theory, ours and torch's, trained and watched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import toy_recipe, toy_split

import dynamics as dyn
from dynamics import theory
from dynamics.data import batches
from dynamics.errors import DynamicsError

SPLIT = toy_split()
SCHEDULE = dyn.PiecewiseLinear((0, 2, 4), (0.001, 0.01, 0.002))
PROBES = {"norms": dyn.every(1, dyn.weight_norms), "gradients": dyn.every(1, dyn.gradients)}
CONV, LINEAR = "layer2.conv", "linear"


def trained(optimizer, **changes) -> dyn.Run:
    recipe = toy_recipe(optimizer=optimizer, epochs=4, precision="float64", **changes)
    return dyn.train(recipe, SPLIT, probes=PROBES, progress=False)


def by_hand(run: dyn.Run, layer: str) -> dict[str, np.ndarray | float]:
    """What the formulas take, for one layer, from the readings."""
    norms, gradients = run["norms"].sel(step=slice(0, 11)), run["gradients"]
    w, g = norms.norm.sel(layer=layer).values, gradients.norm.sel(layer=layer).values
    cosine = gradients.cosine.sel(layer=layer).values
    size = run.weights[f"{layer}.weight"].numel()
    owner = norms.filter_layer.values == layer
    return {
        "w": w, "G": w * g * np.sqrt(1 - cosine**2), "radial": cosine * g / w, "radial_u": cosine * size**0.5 / w,
        "size": size, "lr": np.array([SCHEDULE((t + 1) / 3) for t in range(12)]),
        "G_filters": (norms.filter_norm.values[:, owner] * gradients.filter_norm.values[:, owner]).sum(1)
        * np.sqrt(1 - cosine**2),
    }  # fmt: skip


def assert_laid_over(run: dyn.Run, settled, path, layer: str = CONV) -> None:
    found = dyn.predict(run).sel(layer=layer)
    np.testing.assert_allclose(found.angle.values, np.broadcast_to(settled.angle, 12), rtol=1e-6)
    np.testing.assert_allclose(found.time_constant.values, np.broadcast_to(settled.time_constant, 12), rtol=1e-6)
    np.testing.assert_allclose(found.norm.values, path.norm[:12], rtol=1e-6)
    np.testing.assert_allclose(found.angle_transient.values, path.angle, rtol=1e-6)


@pytest.mark.parametrize("ours", [True, False])
def test_adamw(ours):
    given = {"weight_decay": 0.3}
    optimizer = dyn.AdamW(SCHEDULE, **given) if ours else dyn.TorchOptimizer("AdamW", lr=SCHEDULE, **given)
    run = trained(optimizer)
    assert run.optimizer == "AdamW"
    h = by_hand(run, CONV)
    settled = theory.adamw_equilibrium(h["lr"], 0.3, h["size"], beta1=0.9)
    path = theory.adamw_trajectory(h["w"][0], h["lr"], 0.3, h["size"], gradient=h["G"], radial=h["radial_u"])
    assert_laid_over(run, settled, path)


def test_adam_with_l2():
    run = trained(dyn.Adam(SCHEDULE, weight_decay=0.02))
    h = by_hand(run, CONV)
    settled = theory.adam_equilibrium(h["lr"], 0.02, h["G"], h["size"], beta1=0.9)
    path = theory.adam_trajectory(h["w"][0], h["lr"], 0.02, h["G"], h["size"], radial=h["radial"])
    assert_laid_over(run, settled, path)


def test_lion():
    run = trained(dyn.Lion(SCHEDULE, weight_decay=0.3))
    h = by_hand(run, CONV)
    settled = theory.lion_equilibrium(h["lr"], 0.3, h["size"], beta1=0.9, beta2=0.99)
    path = theory.lion_trajectory(h["w"][0], h["lr"], 0.3, h["size"], gradient=h["G"], radial=h["radial_u"])
    assert_laid_over(run, settled, path)


def test_both_kinds_of_lars():
    for optimizer, layerwise, gradient, rate in (
        (dyn.PageLARS(SCHEDULE, weight_decay=0.02), False, "G_filters", 1.0),
        (dyn.LARS(SCHEDULE, weight_decay=0.02, trust=0.5), True, "G", 0.5),
    ):
        run = trained(optimizer)
        h = by_hand(run, CONV)
        moving = {"momentum": 0.9, "nesterov": not layerwise, "layerwise": layerwise}
        settled = theory.lars_equilibrium(rate * h["lr"], 0.02, h[gradient], **moving)
        path = theory.lars_trajectory(h["w"][0], rate * h["lr"], 0.02, h[gradient], radial=h["radial"], **moving)
        assert_laid_over(run, settled, path)


def test_the_law_that_a_layer_owes_is_what_invariance_says():
    run = trained(dyn.SGD(SCHEDULE))
    law = dyn.predict(run)["law"]
    assert law.sel(layer=LINEAR) == "general"
    assert set(law.values.tolist()) == {"equilibrium", "general"}
    assert (law.drop_sel(layer=LINEAR) == "equilibrium").all()
    frozen = trained(dyn.SGD(SCHEDULE), net=dyn.Net("resnet9", width=2, norm="frozen"))
    assert set(dyn.predict(frozen)["law"].values.tolist()) == {"general"}


def test_a_watched_run_is_predicted_like_a_trained_one_and_asks_for_its_table():
    net = dyn.Net("resnet9", width=2).build(classes=4, seed=0).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    rec = dyn.watch(net, optimizer, probes=PROBES)
    for epoch in range(4):
        for x, y in batches(SPLIT, 20, seed=0, epoch=epoch, augment=dyn.Augment(pad=2)):
            optimizer.zero_grad()
            F.cross_entropy(net(x.double()), y).backward()
            optimizer.step()
    assert set(dyn.predict(rec)["law"].values.tolist()) == {"unknown"}
    table = dyn.invariance(net, F.cross_entropy, (x.double(), y))
    seen = dyn.predict(rec, invariance=table)
    assert seen["law"].sel(layer=LINEAR) == "general" and seen["law"].sel(layer=CONV) == "equilibrium"

    recipe = toy_recipe(
        optimizer=dyn.SGD(0.05, momentum=0.9, weight_decay=0.01), epochs=4, precision="float64", channels_last=False
    )
    run = dyn.train(recipe, SPLIT, probes=PROBES, progress=False)
    mine = dyn.predict(run)
    for name in ("angle", "angle_general", "angle_transient", "norm", "time_constant"):
        np.testing.assert_allclose(seen[name].values, mine[name].values, rtol=1e-6, err_msg=name)


def test_layers_that_the_watched_optimizer_does_not_have_are_left_out():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1, weight_decay=0.1)
    rec = dyn.watch(net, optimizer, probes=PROBES)
    for _ in range(3):
        net.zero_grad()
        net(torch.randn(4, 3, 2, 2)).square().mean().backward()
        optimizer.step()
    assert dyn.predict(rec).layer.values.tolist() == ["1"]


def test_norms_read_at_other_steps_than_gradients_are_interpolated():
    optimizer = dyn.SGD(0.05, weight_decay=0.01)
    apart = {"norms": dyn.every(3, dyn.weight_norms), "gradients": dyn.every(2, dyn.gradients, first=1)}
    run = dyn.train(toy_recipe(optimizer=optimizer, epochs=4), SPLIT, probes=apart, progress=False)
    together = dyn.train(toy_recipe(optimizer=optimizer, epochs=4), SPLIT, probes=PROBES, progress=False)
    found, exact = dyn.predict(run), dyn.predict(together)
    assert found.step.values.tolist() == [1, 3, 5, 7, 9, 11]
    exact = exact.sel(step=found.step)
    np.testing.assert_allclose(found.norm.values, exact.norm.values, rtol=0.02)
    np.testing.assert_allclose(found.angle.values, exact.angle.values, rtol=1e-12)


def test_intrinsic_time_is_the_sum_of_lr_times_weight_decay_before_each_step():
    groups = (dyn.Group("*.bias", 4.0, 0.5),)
    run = trained(dyn.SGD(SCHEDULE, weight_decay=0.01, groups=groups))
    found = dyn.intrinsic_time(run)
    lr = np.array([SCHEDULE((t + 1) / 3) for t in range(12)])
    np.testing.assert_allclose(found.sel(group="default").values, np.cumsum(0.01 * lr) - 0.01 * lr, atol=1e-15)
    np.testing.assert_allclose(found.sel(group="*.bias").values, 2 * (np.cumsum(0.01 * lr) - 0.01 * lr), atol=1e-15)


@pytest.mark.parametrize(
    ("optimizer", "named"),
    [
        (dyn.TorchOptimizer("RMSprop", lr=0.001), "RMSprop"),
        (dyn.TorchOptimizer("Adam", lr=0.001, amsgrad=True), "amsgrad"),
        (dyn.TorchOptimizer("SGD", lr=0.001, momentum=0.9, dampening=0.5), "dampening"),
    ],
)
def test_optimizers_without_a_theory_are_named(optimizer, named):
    with pytest.raises(DynamicsError, match=named) as error:
        dyn.predict(trained(optimizer))
    assert "\n" not in str(error.value)
