from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from helpers import toy_recipe, toy_split

mpl.use("agg")

import matplotlib.pyplot as plt

import dynamics as dyn
from dynamics import DynamicsError, slices
from dynamics.packs import chapter05
from dynamics.slices import ALIGNED, RAW, coordinate_descent, flat_slope, ridge, slice2d, slice_of, slice_recipes

X, Y = 0.05 * 2.0 ** np.arange(7), 32 * 2 ** np.arange(4)
RECIPE = toy_recipe(optimizer=dyn.SGD(dyn.PiecewiseLinear((0, 1, 5), (0, 0.4, 0.1)), momentum=0.9, weight_decay=1e-3))


def simulated(
    seed: int = 0, *, slope: float = 1.0, noise: float = 0.01, skew: float = 0.03, x: np.ndarray = X, seeds: int = 3
) -> xr.Dataset:
    """A slice whose log loss is a skewed valley of a known slope, with noise of cells and of seeds."""
    draw = np.random.RandomState(seed)
    off = np.log(x)[:, None] - (math.log(0.4) + slope * (np.log(Y) - np.log(Y).mean()))[None]
    valley = 0.08 * off**2 + skew * off**3 * (off > 0)
    values = valley[:, :, None] + noise * draw.randn(*off.shape, seeds) + 0.1 * draw.randn(seeds)
    both = (("lr", "batch_size", "seed"), np.exp(values))
    coords = {"lr": x, "batch_size": Y, "seed": range(seeds)}
    return xr.Dataset({"loss": both, "error": both}, coords, {"x": "lr", "y": "batch_size", "flat": 1.0})


def test_theory_s_flat_directions_are_those_of_post_5() -> None:
    assert [flat_slope("lr", y) for y in ("batch_size", "momentum", "weight_decay")] == [1, 1, -1]
    assert flat_slope("weight_decay", "batch_size") == 1
    with pytest.raises(DynamicsError, match="did you mean 'momentum'"):
        flat_slope("lr", "momentun")


def test_along_a_flat_direction_diffusion_per_image_is_the_same_and_along_other_slopes_it_is_not() -> None:
    base = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, "batch_size": 64}

    def per_image(point: Mapping[str, float]) -> float:
        size = point["batch_size"]
        k = 1_000_000 // size
        turned = dyn.theory.angular_diffusion(
            point["lr"], point["weight_decay"], steps=k, momentum=point["momentum"]
        )  # fmt: skip
        return float(turned) / (k * size)

    for name in ("momentum", "weight_decay", "batch_size"):
        assert per_image(slices.moved(base, ALIGNED[name], 2)) == pytest.approx(per_image(base), rel=1e-3)
        assert per_image(slices.moved(base, RAW[name], 2)) != pytest.approx(per_image(base), rel=0.4)


def test_cells_differ_from_the_recipe_in_their_two_hyperparameters_only() -> None:
    cells = slice_recipes(RECIPE, {"lr": [0.1, 0.2]}, {"momentum": [0.5, 0.75]})
    assert list(cells)[1] == "lr=0.2,batch_size=20,momentum=0.5,weight_decay=0.001"
    cell = list(cells.values())[1]
    assert cell.optimizer.lr == dyn.PiecewiseLinear((0, 1, 5), (0, 0.2, 0.05))
    assert slices.with_values(cell, {"lr": 0.4, "momentum": 0.9}) == RECIPE
    assert dyn.Recipe.from_json(cell.to_json()) == cell


def test_slices_through_one_recipe_share_the_row_in_which_they_cross() -> None:
    x = {"lr": [0.2, 0.4]}
    one, other = (slice_recipes(RECIPE, x, y) for y in ({"batch_size": [20, 30]}, {"weight_decay": [1e-3, 2e-3]}))
    assert len(one | other) == 6
    assert all((one | other)[name] == one.get(name, other.get(name)) for name in one | other)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.5, 1.0])
def test_the_ridge_of_a_noiseless_parabola_is_exact(slope: float) -> None:
    x = X if abs(slope) < 1 else 0.05 / 8 * 2.0 ** np.arange(13)
    found = ridge(simulated(slope=slope, noise=0, skew=0, x=x))
    assert found.slope == pytest.approx(slope, abs=1e-9)
    assert found.high - found.low < 1e-6
    line = 0.4 * (Y / np.exp(np.log(Y).mean())) ** slope
    np.testing.assert_allclose(found.best, np.repeat(line[:, None], 3, 1), rtol=1e-9)
    assert found.flat == 1


def brute_ridge(found: xr.Dataset, reach: int) -> float:
    """The slope by normal equations written out, row by row and seed by seed."""
    rows = []
    for b in found.batch_size.values:
        table = np.log(found.loss.sel(batch_size=b).values.astype(np.float64))
        middle = int(table.mean(1).argmin())
        if middle in (0, len(table) - 1):
            continue
        columns = [i for i in range(len(table)) if abs(i - middle) <= reach]
        design = np.array([[np.log(found.lr.values[i]) ** p for p in range(3)] for i in columns])
        for s in range(table.shape[1]):
            _, linear, square = np.linalg.solve(design.T @ design, design.T @ table[columns, s])
            rows.append([np.log(b), s, -linear / (2 * square)])
    rows = np.array(rows)
    design = np.column_stack([rows[:, 0], *((rows[:, 1] == s).astype(float) for s in set(rows[:, 1]))])
    return float(np.linalg.lstsq(design, rows[:, 2], rcond=None)[0][0])


@pytest.mark.parametrize("reach", [1, 2])
def test_the_ridge_is_what_least_squares_written_out_gives(reach: int) -> None:
    found = simulated(3, noise=0.02)
    assert ridge(found, reach=reach).slope == pytest.approx(brute_ridge(found, reach), abs=1e-9)


@pytest.mark.parametrize(("slope", "skew"), [(1.0, 0.03), (0.5, 0.0)])
def test_intervals_of_a_ridge_cover_its_slope(slope: float, skew: float) -> None:
    """93 to 97 % of 400 slices, to their own error; the columns go far enough that no row's window is cut."""
    x = 0.05 / 8 * 2.0 ** np.arange(13)
    fits = [ridge(simulated(s, slope=slope, skew=skew, x=x)) for s in range(400)]
    covered = np.mean([f.low <= slope <= f.high for f in fits])
    assert 0.925 <= covered <= 0.98
    assert np.mean([f.low <= slope - 0.5 <= f.high for f in fits]) < 0.05


def test_rows_whose_minimum_lies_outside_are_left_out_and_too_few_are_refused() -> None:
    cut = simulated(noise=0).isel(lr=slice(0, 4))
    found = ridge(cut)
    assert np.isnan(found.best[-1]).all() and np.isfinite(found.best[0]).all()
    with pytest.raises(DynamicsError, match="widen its range of lr"):
        ridge(cut.isel(batch_size=slice(2, 4)))


def test_columns_in_which_a_seed_diverged_are_left_out() -> None:
    found = simulated(noise=0, skew=0)
    found["loss"] = found.loss.where((found.lr < 0.7) | (found.batch_size > 64) | (found.seed != 1))
    assert ridge(found).slope == pytest.approx(1, abs=1e-9)


def test_momentum_s_ridge_is_over_one_minus_momentum() -> None:
    found = simulated(noise=0, skew=0).rename(batch_size="momentum").assign_coords(momentum=1 - Y / 512)
    found.attrs["y"] = "momentum"
    found = found.assign_coords({"1 - momentum": ("momentum", Y / 512)})
    assert ridge(found).slope == pytest.approx(1, abs=1e-9)
    np.testing.assert_array_equal(ridge(found).y, Y / 512)


def test_a_level_ridge_has_flatness_0_and_a_falling_one_what_it_falls_over_its_sides() -> None:
    x = 0.05 / 8 * 2.0 ** np.arange(13)
    level = simulated(noise=0, skew=0, x=x)
    np.testing.assert_allclose(slices.flatness(level, ridge(level)), 0, atol=1e-9)
    tilt = 0.1 * np.arange(4)
    falling = level.assign(loss=level.loss * xr.DataArray(np.exp(tilt), dims="batch_size"))
    # minima lie half way between columns, and so do points 4 = 2 columns off, where a chord lies above the parabola
    step = math.log(2)
    side = 0.08 * ((1.5 * step) ** 2 + (2.5 * step) ** 2) / 2
    np.testing.assert_allclose(slices.flatness(falling, ridge(falling)), tilt.std() / side, rtol=0.02)


def bowl(point: Mapping[str, float]) -> float:
    """A steep valley across the flat direction, at the bottom of which weight decay has a best value."""
    turning = math.log2(point["lr"] * point["weight_decay"] / (1 - point["momentum"]) / point["batch_size"])
    along = math.log2(point["weight_decay"] / 1e-3) ** 2 + math.log2((1 - point["momentum"]) * 8) ** 2
    return (turning + 16) ** 2 + 0.02 * along


START = {"lr": 2.0**-10, "momentum": 0.5, "weight_decay": 1e-3 * 2**4, "batch_size": 64}


def test_P5_6_on_a_ridge_aligned_coordinates_end_lower() -> None:
    three = {name: ALIGNED[name] for name in ("lr", "momentum", "weight_decay")}
    raw = coordinate_descent(bowl, START, {name: RAW[name] for name in three})
    aligned = coordinate_descent(bowl, START, three)
    assert aligned.value < 0.05 < raw.value
    assert aligned.runs_to_reach(0.3) < raw.runs_to_reach(0.3)
    assert aligned.point["weight_decay"] == pytest.approx(1e-3) and aligned.point["momentum"] == pytest.approx(7 / 8)


def test_where_nothing_is_tilted_raw_coordinates_are_as_good() -> None:
    def upright(point: Mapping[str, float]) -> float:
        return sum(math.log2(point[n] / v) ** 2 for n, v in (("lr", 0.125), ("weight_decay", 1e-3)))

    two = {name: RAW[name] for name in ("lr", "weight_decay")}
    found = coordinate_descent(upright, START, two)
    assert found.value == pytest.approx(0, abs=1e-12) and found.converged


def test_a_descent_tries_each_point_once_and_counts_only_what_ran() -> None:
    asked = []

    def walled(point: Mapping[str, float]) -> float | None:
        asked.append(dict(point))
        return None if point["lr"] > 0.5 else abs(math.log2(point["lr"] / 4))

    found = coordinate_descent(walled, {"lr": 0.125}, {"lr": RAW["lr"]})
    assert found.point["lr"] == 0.5 and found.runs == 3 and len(asked) == 4
    assert [p["lr"] for p, _ in found.path] == [0.125, 0.25, 0.5]
    assert found.runs_to_reach(4) == 2 and found.runs_to_reach(0) == math.inf


def test_a_descent_ends_at_its_budget_and_steps_over_nan() -> None:
    found = coordinate_descent(lambda p: -p["lr"], {"lr": 1.0}, {"lr": RAW["lr"]}, max_runs=5)
    assert found.runs == 5 and not found.converged
    flaky = coordinate_descent(lambda p: math.nan if p["lr"] > 1 else -p["lr"], {"lr": 0.5}, {"lr": RAW["lr"]})
    assert flaky.point["lr"] == 1


def test_momentum_moves_by_its_distance_from_one_and_stays_at_least_zero() -> None:
    point = {"lr": 0.1, "momentum": 0.75}
    assert slices.moved(point, ALIGNED["momentum"], 2) == {"lr": 0.2, "momentum": 0.5}
    assert slices.moved({"lr": 0.1, "momentum": 0.5}, RAW["momentum"], 2) == {"lr": 0.1, "momentum": 0.0}
    assert slices.moved({"lr": 0.1, "momentum": 0.4}, RAW["momentum"], 2) is None


def test_a_slice_trains_its_cells_and_labels_them(tmp_path: Path) -> None:
    recipe = toy_recipe(
        net=dyn.Net("mlp", width=4, depth=1, inputs=768), optimizer=dyn.SGD(0.1, momentum=0.5), epochs=1
    )
    x, y = {"lr": [0.1, 0.2]}, {"batch_size": [20, 30]}
    data = {"train": toy_split(), "valid": toy_split(20, seed=1, like=toy_split())}
    found = slice2d(recipe, x, y, [0, 1], out=tmp_path / "s", workers=1, progress=False, **data)
    assert dict(found.sizes) == {"lr": 2, "batch_size": 2, "seed": 2} and found.attrs["flat"] == 1
    cell = slices.with_values(recipe, {"lr": 0.2, "batch_size": 30})
    run = dyn.train(cell, data["train"], data["valid"], seed=1, progress=False)
    at = {"lr": 0.2, "batch_size": 30, "seed": 1}
    assert float(found.loss.sel(at)) == pytest.approx(float(run["valid"].loss[-1]), rel=1e-5)
    assert float(found.error.sel(at)) == pytest.approx(1 - float(run["valid"].accuracy[-1]), abs=1e-6)
    table = dyn.sweeps.load_sweep(tmp_path / "s").table()
    assert slice_of(table, recipe, x, y).identical(found)
    with pytest.raises(DynamicsError, match="not in the table"):
        slice_of(table, recipe, {"lr": [0.1, 0.4]}, y)


def test_chapter_05_s_pack_has_every_cell_of_its_slices_and_lines() -> None:
    recipes, base = chapter05.RECORDING.recipes, slices.hyperparameters(chapter05.BASE)

    def held(point: Mapping[str, float]) -> float:
        return math.prod((1 - v if k == "momentum" else v) ** slices.EXPONENTS[k] for k, v in point.items())

    assert chapter05.BASE in recipes.values()
    for x, y in chapter05.SLICES.values():
        assert slice_recipes(chapter05.BASE, x, y).items() <= recipes.items()
    for name in chapter05.FARTHER:
        line = chapter05.along(name)
        assert list(line) == sorted(line) and max(line) >= 8 * next(k for k, r in line.items() if r == chapter05.BASE)
        for recipe in line.values():
            assert recipe in recipes.values()
            assert held(slices.hyperparameters(recipe)) == pytest.approx(held(base))


def test_a_run_that_diverged_has_no_scores_in_chapter_05_s_pack() -> None:
    recipe = toy_recipe(optimizer=dyn.SGD(0.1))
    run = dyn.train(recipe, toy_split(), toy_split(20, seed=1, like=toy_split()), progress=False)
    assert set(chapter05.scores(run)) == {"loss", "accuracy"} and all(
        map(math.isfinite, chapter05.scores(run).values())
    )
    assert all(map(math.isnan, chapter05.scores(SimpleNamespace(status="diverged")).values()))


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ({"lr": [0.1, 0.2]}, {"lr": [0.1, 0.2]}, "twice"),
        ({"lr": [0.1]}, {"batch_size": [20, 30]}, "at least two"),
        ({"lr": [0.2, 0.1]}, {"batch_size": [20, 30]}, "increase"),
        ({"lr": [0.0, 0.1]}, {"batch_size": [20, 30]}, "logarithm"),
        ({"lr": [0.1, 0.2]}, {"momentum": [0.9, 1.0]}, "below 1"),
        ({"lr": [0.1, 0.2]}, {"batch_size": [20.5, 30]}, "whole number"),
        ({"lr": [0.1, 0.2]}, {"width": [20, 30]}, "choose one of"),
        ({"lr": [0.1, 0.2], "momentum": [0.1]}, {"batch_size": [20, 30]}, "one name"),
    ],
)
def test_axes_that_make_no_slice_are_refused(x: dict, y: dict, told: str) -> None:
    with pytest.raises(DynamicsError, match=told):
        slice_recipes(RECIPE, x, y)


def test_optimizers_and_schedules_without_these_hyperparameters_are_refused() -> None:
    with pytest.raises(DynamicsError, match="has no momentum"):
        slices.hyperparameters(toy_recipe(optimizer=dyn.AdamW(0.1)))
    with pytest.raises(DynamicsError, match="PiecewiseLinear"):
        slices.hyperparameters(toy_recipe(optimizer=dyn.SGD(dyn.Exponential(0.1, 0.9))))
    with pytest.raises(DynamicsError, match="above 1"):
        coordinate_descent(bowl, START, RAW, factor=1.0)
    with pytest.raises(DynamicsError, match="has no batch_size"):
        coordinate_descent(bowl, {"lr": 1.0, "momentum": 0, "weight_decay": 1}, RAW)


def test_a_plotted_slice_shows_cells_flat_direction_and_ridge() -> None:
    found = simulated()
    fitted = ridge(found)
    ax = dyn.plot_slice(found, fitted)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert any("slope 1" in label for label in labels)
    assert any(f"{fitted.slope:.2f} ({fitted.low:.2f} to {fitted.high:.2f})" in label for label in labels)
    dashed = next(line for line in ax.get_lines() if line.get_linestyle() == "--")
    x, y = (np.log(v) for v in dashed.get_data())
    assert (x[-1] - x[0]) / (y[-1] - y[0]) == pytest.approx(1)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "lr" and ax.get_ylabel() == "batch_size"
    plt.close("all")


def test_a_slice_can_be_plotted_without_its_ridge_and_with_cells_that_diverged() -> None:
    found = simulated()
    found["loss"] = found.loss.where(found.lr < 2)
    ax = dyn.plot_slice(found, measure="loss")
    assert len(ax.get_lines()) == 1
    with pytest.raises(DynamicsError, match="measure"):
        dyn.plot_slice(found, measure="speed")
    plt.close("all")
