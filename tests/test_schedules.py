"""Schedules: torch's values at every step, stretching, JSON, bad input."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from helpers import toy_recipe, toy_split
from torch.optim import lr_scheduler

import dynamics as dyn
from dynamics import optim
from dynamics.errors import DynamicsError


class Case(NamedTuple):
    """ours(n) is the schedule in epochs of n steps; twin(optimizer) is torch's, in its own steps; lr starts it."""

    ours: Callable[[float], Any]
    twin: Callable[[torch.optim.Optimizer], Any]
    lr: float
    steps: int


CASES = {
    "Step": Case(lambda n: optim.Step(0.3, 0.2, 7 / n), lambda o: lr_scheduler.StepLR(o, 7, gamma=0.2), 0.3, 60),
    "Exponential": Case(
        lambda n: optim.Exponential(0.3, 0.93**n), lambda o: lr_scheduler.ExponentialLR(o, 0.93), 0.3, 60
    ),
    "Exponential, growing": Case(
        lambda n: optim.Exponential(0.01, 1.1**n), lambda o: lr_scheduler.ExponentialLR(o, 1.1), 0.01, 40
    ),
    "Cyclic": Case(
        lambda n: optim.Cyclic(0.02, 0.4, 9 / n),
        lambda o: lr_scheduler.CyclicLR(o, 0.02, 0.4, step_size_up=9, cycle_momentum=False),
        0.1,
        100,
    ),
    "Cosine": Case(
        lambda n: optim.Cosine(0.4, 0.01, 30 / n), lambda o: lr_scheduler.CosineAnnealingLR(o, 30, 0.01), 0.4, 30
    ),
    "Cosine, beyond its period": Case(
        lambda n: optim.Cosine(0.4, 0.01, 30 / n), lambda o: lr_scheduler.CosineAnnealingLR(o, 30, 0.01), 0.4, 130
    ),
    "Cosine, restarts": Case(
        lambda n: optim.Cosine(0.4, 0.01, 12 / n, restarts=1),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 12, 1, 0.01),
        0.4,
        100,
    ),
    "Cosine, longer restarts": Case(
        lambda n: optim.Cosine(0.4, 0.01, 6 / n, restarts=2),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6, 2, 0.01),
        0.4,
        200,
    ),
    "OneCycle": Case(
        lambda n: optim.OneCycle(0.4, 99 / n, (0.3 * 100 - 1) / 99),
        lambda o: lr_scheduler.OneCycleLR(o, 0.4, total_steps=100, cycle_momentum=False),
        0.1,
        99,
    ),
    "OneCycle, linear": Case(
        lambda n: optim.OneCycle(0.4, 119 / n, (0.25 * 120 - 1) / 119, 10, 100, anneal="linear"),
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.4, total_steps=120, pct_start=0.25, div_factor=10, final_div_factor=100, anneal_strategy="linear",
            cycle_momentum=False,
        ),
        0.1,
        119,
    ),
    "Constant": Case(lambda n: dyn.Constant(0.2), lambda o: lr_scheduler.ConstantLR(o, 1.0), 0.2, 20),
    "PiecewiseLinear": Case(
        lambda n: dyn.PiecewiseLinear((0, 20 / n), (0.1, 0.4)),
        lambda o: lr_scheduler.LinearLR(o, 0.25, 1.0, total_iters=20),
        0.4,
        50,
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)
VALUES = [case.ours(3) for case in CASES.values()]
every_schedule = pytest.mark.parametrize("schedule", VALUES, ids=CASES)


def torchs(case: Case) -> list[float]:
    """torch's lr before each of its steps and after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=case.lr)
    scheduler = case.twin(optimizer)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(case.steps):
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@every_case
@pytest.mark.parametrize("per_epoch", [1, 7, 97])
def test_T_2_every_schedule_equals_torchs_at_every_step(name, per_epoch):
    """One scheduler step an epoch, and one a batch with n of them an epoch: torch's t is epoch t / n."""
    case = CASES[name]
    ours, expected = case.ours(per_epoch), torchs(case)
    found = [ours(t / per_epoch) for t in range(case.steps + 1)]
    assert found == pytest.approx(expected, rel=0, abs=1e-12)
    if name != "Constant":
        assert max(expected) > 1.2 * min(expected), "a test of nothing"


def test_B17_cyclic_is_smiths_formula_and_not_the_misprint():
    schedule, s = optim.Cyclic(0.1, 0.5, 4.0), 4.0
    for it in (k / 8 for k in range(200)):
        x = abs(it / s - 2 * math.floor(1 + it / (2 * s)) + 1)
        assert schedule(it) == pytest.approx(0.1 + 0.4 * max(0.0, 1 - x), abs=1e-15)
    # the floor brackets of the misprint take two values only
    assert schedule(0.0) == 0.1 and schedule(2.0) == pytest.approx(0.3) and schedule(4.0) == 0.5


def test_the_loop_reads_a_schedule_one_step_later_than_torch():
    """Step t is at epoch (t + 1) / n, as in Page's code: a one-cycle of E epochs ends at its last step."""
    schedule = optim.OneCycle(0.4, 2.0)
    recipe = toy_recipe(optimizer=dyn.SGD(schedule, 0.0), epochs=2)
    given = [s.hyperparameters.values["lr"][0] for s in dyn.steps(recipe, toy_split()) if s.hyperparameters]
    assert given == [schedule((t + 1) / 3) for t in range(6)]
    assert given[-1] == 0.4 / 25 / 1e4


@every_schedule
def test_stretched_schedules_are_the_same_shape_over_other_epochs(schedule):
    for factor in (0.5, 1.0, 3.7):
        longer = schedule.stretch(factor)
        assert type(longer) is type(schedule)
        for k in range(200):
            epoch = k * 0.173
            assert longer(epoch * factor) == pytest.approx(schedule(epoch), rel=1e-9, abs=1e-12)


@every_schedule
def test_every_schedule_is_a_value_that_a_recipes_json_can_hold(schedule):
    recipe = toy_recipe(optimizer=dyn.SGD(schedule))
    again = dyn.Recipe.from_json(json.loads(json.dumps(recipe.to_json(), allow_nan=False)))
    assert again == recipe and hash(again.optimizer.lr) == hash(schedule)
    assert type(schedule) in optim.KINDS
    assert eval(repr(schedule), {k.__name__: k for k in optim.KINDS}) == schedule


@every_schedule
def test_a_stretched_recipe_stretches_its_schedule(schedule):
    recipe = toy_recipe(optimizer=dyn.SGD(schedule), epochs=4)
    assert recipe.stretch(10).optimizer.lr == schedule.stretch(2.5)


@pytest.mark.parametrize("every", [0.1, 1 / 3, 0.7, 3 / 97])
def test_a_jump_is_at_its_step_whatever_the_rounding_of_epochs(every):
    """Epochs are quotients (0.3 / 0.1 is below 3), yet the n-th jump is at the n-th multiple."""
    step, restarts = optim.Step(1.0, 0.5, every), optim.Cosine(1.0, 0.0, every, restarts=1)
    for n in range(1, 60):
        assert step(n * every) == step(every * n * (1 + 1e-9)) == 0.5**n
        assert restarts(n * every) == pytest.approx(1.0, abs=1e-9)
        assert step(n * every * (1 - 1e-9)) == 0.5 ** (n - 1)
        assert restarts(n * every * (1 - 1e-9)) < 1e-9
    sums = 0.0
    for n in range(1, 60):
        sums += every
        assert step(sums) == 0.5**n


def test_what_ends_has_knots_and_what_goes_on_has_turns():
    assert optim.OneCycle(0.4, 20, 0.25).knots == (0.0, 5.0, 20.0)
    assert optim.Cosine(0.4, 0, 20).knots == (0.0, 20) and optim.Cosine(0.4, 0, 20).turns(100) == ()
    endless = optim.Cosine(0.4, 0, 4, restarts=2)
    assert endless.knots == () and endless.turns(30) == (4, 12, 28) and endless.turns(3.9) == ()
    assert optim.Step(0.1, 0.5, 3).turns(9.5) == (3, 6, 9)
    assert optim.Cyclic(0, 0.4, 2).turns(5) == (0, 2, 4)
    for schedule in (optim.Exponential(0.1, 0.9), dyn.Constant(0.1)):
        assert not hasattr(schedule, "knots") and not hasattr(schedule, "turns")


def test_one_cycle_stays_at_its_end():
    schedule = optim.OneCycle(0.5, 10, 0.4, 5, 20)
    assert [schedule(e) for e in (-1, 0, 4, 10, 11, 1e6)] == pytest.approx([0.1, 0.1, 0.5, 0.005, 0.005, 0.005])
    assert schedule(10) == schedule(1e6) == 0.1 / 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.Step(-0.1, 0.5, 3), "lr must be a number of at least 0, got -0.1"),
        (lambda: optim.Step(0.1, 0.0, 3), "gamma must be a number above 0, got 0.0"),
        (lambda: optim.Step(0.1, 0.5, 0), "every must be a number above 0, got 0"),
        (lambda: optim.Step(0.1, 0.5, "3"), "every must be a number above 0, got '3'"),
        (lambda: optim.Exponential(float("nan"), 0.5), "lr must be a number"),
        (lambda: optim.Exponential(0.1, -0.5), "gamma must be a number above 0"),
        (lambda: optim.Cyclic(0.4, 0.1, 3), "low must be at most high, got low=0.4 and high=0.1: exchange them"),
        (lambda: optim.Cyclic(0.1, 0.4, -1), "half_period must be a number above 0"),
        (lambda: optim.Cyclic(-0.1, 0.4, 1), "low must be a number of at least 0"),
        (lambda: optim.Cosine(0.1, 0.4, 3), "low must be at most high"),
        (lambda: optim.Cosine(0.4, 0.1, float("inf")), "period must be a number above 0"),
        (lambda: optim.Cosine(0.4, 0.1, 3, 0.5), "restarts must be 0 (none) or the factor, at least 1"),
        (lambda: optim.Cosine(0.4, 0.1, 3, float("nan")), "restarts must be"),
        (lambda: optim.OneCycle(-0.4, 3), "high must be a number of at least 0"),
        (lambda: optim.OneCycle(0.4, 0), "epochs must be a number above 0"),
        (lambda: optim.OneCycle(0.4, 3, 1.0), "pct_start must be a fraction above 0 and below 1, got 1.0"),
        (lambda: optim.OneCycle(0.4, 3, anneal="cosine"), "unknown anneal 'cosine': did you mean 'cos'"),
        (lambda: optim.OneCycle(0.4, 3, div_factor=0), "div_factor must be a number above 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(DynamicsError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_are_importable_from_where_they_were():
    from dynamics.optim import base, schedules

    for name in ("PiecewiseLinear", "Constant", "Schedule", "lr_at"):
        assert getattr(base, name) is getattr(schedules, name)
