"""The ladder: published numbers, what each rung changes, small versions, and the command that prints it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from typer.testing import CliRunner

import dynamics as dyn
from dynamics import Recipe
from dynamics.cli import app
from dynamics.errors import DynamicsError
from dynamics.recipes import BASELINE, FINAL, LADDER, LONG, RECIPES, named, rungs_of, scaled

# Page's posts, table C1: epochs, batch size, peak lr, cutout, per cent, seconds; in the order of the ladder
PUBLISHED = [
    (35, 128, 0.1, 0, 94.0, 356), (35, 128, 0.1, 0, 94.0, 323), (35, 128, 0.1, 0, 94.0, 308),
    (35, 128, 0.1, 0, 94.0, 301), (35, 128, 0.1, 0, 94.0, 297), (35, 512, 0.44, 0, 94.0, 256),
    (35, 512, 0.44, 0, 94.0, 186), (35, 512, 0.44, 8, 94.3, None), (35, 512, 0.4, 8, 94.5, None),
    (30, 512, 0.44, 0, None, 161), (30, 512, 0.4, 8, 94.13, 161), (30, 768, 0.6, 8, 94.06, 154),
    (20, 512, 0.4, 8, 55.9, 36), (20, 512, 0.4, 8, 56.0, 32), (20, 512, 0.4, 8, 85.6, 36),
    (20, 512, 0.4, 8, 89.7, 43), (20, 512, 0.4, 8, 90.7, 47), (20, 512, 0.4, 8, 91.1, 47),
    (60, 512, 0.4, 8, 93.5, 321), (60, 512, 0.4, 12, 95.0, 180), (20, 512, 0.4, 8, 93.8, 66),
    (24, 512, 0.4, 8, 94.08, 79), (24, 512, 0.4, 8, 94.1, 75), (24, 512, 0.4, 8, 94.1, 70),
    (24, 512, 0.4, 8, 94.1, 67), (24, 512, 0.4, 8, 94.0, 62), (25, 512, 0.4, 8, 94.1, 64),
    (25, 512, 0.4, 8, 94.2, None), (23, 512, 0.4, 8, 94.1, 59), (23, 512, 0.4, 8, 94.3, None),
    (20, 512, 0.4, 8, 94.1, 52), (20, 512, 0.4, 8, 94.2, None), (18, 512, 0.6, 8, 94.1, 46),
    (18, 512, 0.6, 8, 94.2, None), (17, 512, 0.6, 8, 94.1, 43), (17, 512, 0.6, 8, 94.4, None),
    (15, 512, 0.6, 8, 94.1, 39), (14, 512, 1.0, 5, 94.1, 36), (14, 512, 1.0, 5, 94.3, None),
    (13, 512, 1.0, 5, 94.1, 34), (13, 512, 1.0, 5, 94.6, None), (10, 512, 1.0, 0, 94.1, 26),
]  # fmt: skip


def test_the_ladder_has_every_published_rung_in_order():
    def of(rung):
        r = rung.recipe
        return (r.epochs, r.batch_size, max(r.optimizer.lr.values), r.augment.cutout, rung.accuracy, rung.seconds)

    assert [of(rung) for rung in LADDER] == PUBLISHED
    assert len({rung.name for rung in (*LADDER, *LONG)}) == len(LADDER) + len(LONG) == 42 + 20


def test_the_last_recipe_is_the_published_one():
    """reference: the final recipe's settings, one by one."""
    arguments = dict(FINAL.net.arguments)
    assert FINAL.optimizer.lr == dyn.PiecewiseLinear((0, 2, 8), (0, 1.0, 0.1)) and FINAL.epochs == 10
    assert FINAL.optimizer.weight_decay == 5e-4 and FINAL.optimizer.momentum == 0.9 and FINAL.optimizer.nesterov
    (biases,) = FINAL.optimizer.groups
    assert (biases.match, biases.lr_factor) == ("*.bias", 64)
    assert biases.weight_decay_factor * 5e-4 == pytest.approx(7.8125e-06, rel=1e-12)
    assert FINAL.label_smoothing == 0.2 and FINAL.average == dyn.EMA(0.99, every=5)
    wanted = {"act": "celu", "celu_alpha": 0.3, "norm": "ghost", "ghost_splits": 16, "norm_scale": False}
    assert arguments == {**wanted, "whiten": True, "order": "pool-norm-act", "logit_scale": 1 / 16, "width": 64}
    assert FINAL.augment == dyn.Augment(pad=4, flip=True, cutout=0, grouped=True)


def test_every_rung_changes_something_or_says_that_it_does_not():
    for before, after in pairwise(LADDER):
        same = before.recipe == after.recipe and before.tta == after.tta
        assert same == ("here it is done anyway" in after.change or "on another clock" in after.change), after.name


def test_recipes_are_json_and_back():
    for name, recipe in RECIPES.items():
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe, name


@pytest.mark.parametrize("rung", LADDER, ids=lambda r: r.name)
def test_a_small_rung_trains(rung):
    """One step of a narrow one, images enough for the smallest ghost part."""
    data = dyn.load_data("shapes", limit=64, progress=False).train
    small = scaled(rung.recipe, width=4, epochs=1, batch_size=64)
    *_, last = dyn.steps(replace(small, precision="float32"), data)
    assert last.step == 1 and all(p.isfinite().all() for p in last.params.values())


def test_scaling_keeps_lr_over_batch_size_and_the_images_of_a_ghost_part():
    small = scaled(FINAL, width=8, epochs=4, batch_size=128)
    assert small.optimizer.lr == dyn.PiecewiseLinear((0, 0.8, 3.2), (0, 0.25, 0.025)) and small.epochs == 4
    assert dict(small.net.arguments)["ghost_splits"] == 4 and dict(small.net.arguments)["width"] == 8
    assert scaled(FINAL) == FINAL
    constant = scaled(RECIPES["equilibrium"], batch_size=64)
    assert constant.optimizer.lr == 0.05 and constant.batch_size == 64
    with pytest.raises(DynamicsError, match="does not say how it scales: set the learning rate"):
        scaled(replace(BASELINE, optimizer=dyn.SGD(abs)), batch_size=64)


def test_a_recipe_knows_which_rung_it_is_at_any_size():
    small = replace(scaled(named("8-celu"), width=8, epochs=5, batch_size=128), seed=3, precision="float32")
    assert [r.name for r in rungs_of(small)] == ["8-celu", "8-celu-20"]  # which differ in length alone
    assert [r.name for r in rungs_of(replace(named("8-ghost-18"), batch_size=64))] == ["8-ghost-18"]  # lr as it was
    assert [r.name for r in rungs_of(FINAL)] == ["8-final"]
    assert rungs_of(RECIPES["equilibrium"]) == ()
    assert rungs_of(replace(small, label_smoothing=0.1)) == ()


def test_an_unknown_recipe_is_answered_with_the_nearest_names():
    with pytest.raises(DynamicsError, match="8-whitening"):
        named("8-whitenin")


def test_the_command_prints_the_ladder_beside_what_was_measured(tmp_path):
    data = dyn.load_data("shapes", limit=64, progress=False)
    small = scaled(named("4-max-pool"), width=4, epochs=1, batch_size=64)
    dyn.train(small, data.train, data.test[:50], probes={}, out=tmp_path / "one", progress=False)
    told = CliRunner().invoke(app, ["recipes", "--runs", str(tmp_path)])
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    (line,) = (text for text in lines if text.startswith("4-max-pool"))
    assert "89.7" in line and "(1)" in line and "43" in line
    assert sum("(1)" in text for text in lines) == 1
    listed = json.loads(CliRunner().invoke(app, ["recipes", "--json", "--runs", str(tmp_path)]).output)
    assert [one["name"] for one in listed] == list(RECIPES)
    one = next(o for o in listed if o["name"] == "4-max-pool")
    assert one["published"]["accuracy_percent"] == 89.7 and one["measured"][0]["width"] == 4
    assert Recipe.from_json(one["recipe"]) == named("4-max-pool")


def test_the_command_prints_one_recipe_in_full():
    told = CliRunner().invoke(app, ["recipes", "8-ghost"])
    assert told.exit_code == 0 and '"ghost_splits": 16' in told.output and "post 8" in told.output
    odd = CliRunner().invoke(app, ["recipes", "8-gost"])
    assert isinstance(odd.exception, DynamicsError) and "8-ghost" in str(odd.exception)
