from __future__ import annotations

import copy
import warnings
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from helpers import assert_same, dropout_net, toy_recipe, toy_split
from torch import nn
from torch.func import functional_call

mpl.use("agg")

import matplotlib.pyplot as plt

import dynamics as dyn
from dynamics.curvature.density import Density
from dynamics.curvature.eigen import Eigenpairs
from dynamics.data import batches
from dynamics.errors import DynamicsError
from dynamics.plots.curvature import plot_density, plot_outputs, plot_sharpness, plot_spectrum
from dynamics.probes.curvature import sharpness, spectrum
from dynamics.runs.edge import edge_of_stability
from dynamics.theory import stability_bound

SPLIT = toy_split(60, side=8)
FIXED = list(batches(SPLIT, 15))
DOUBLE = partial(spectrum, dtype=torch.float64)


def tiny_net(classes: int = 4, seed: int = 0) -> nn.Module:
    """Small enough for dense Hessians: 105 parameters."""
    return nn.Sequential(
        nn.Conv2d(3, 3, 3, stride=2, bias=False), nn.BatchNorm2d(3), nn.Softplus(10), nn.AdaptiveMaxPool2d(1),
        nn.Flatten(), nn.Linear(3, classes), # and logits that matter
    )  # fmt: skip


def tiny_recipe(**changes) -> dyn.Recipe:
    given = {
        "net": dyn.Net("test_curvature_probes:tiny_net"),
        "optimizer": dyn.SGD(0.1, momentum=0.9, weight_decay=5e-3),
        "label_smoothing": 0.2,
        "augment": dyn.Augment(pad=0),
    }
    return toy_recipe(**{**given, **changes})


def run_of(probes: dict | None = None, recipe: dyn.Recipe | None = None, **given) -> dyn.Run:
    return dyn.train(recipe or tiny_recipe(), SPLIT, probes=probes or {}, progress=False, **given)


def dense(
    state: dyn.State, given: list, bn: str = "batch", smoothing: float = 0.2, names: list | None = None
) -> torch.Tensor:
    """The Hessian of the mean loss in float64, row by row."""
    net = tiny_net().double().train(bn == "batch")
    weights = {k: p.detach().double() for k, p in state.params.items()}
    buffers = {k: b.double() if b.is_floating_point() else b for k, b in state.buffers.items()}
    names = names or list(weights)
    shapes, sizes = [weights[k].shape for k in names], [weights[k].numel() for k in names]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        moved = {k: part.view(s) for k, part, s in zip(names, flat.split(sizes), shapes, strict=True)}
        parts = []
        for x, y in given:
            kept = {k: b.clone() for k, b in buffers.items()}
            outputs = functional_call(net, {**weights, **kept, **moved}, (x.double(),))
            parts.append(len(x) * F.cross_entropy(outputs, y, label_smoothing=smoothing))
        return sum(parts) / sum(len(x) for x, _ in given)

    hessian = torch.autograd.functional.hessian(loss, torch.cat([weights[k].flatten() for k in names]))
    return (hessian + hessian.T) / 2


def overlaps(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return (a.T @ b).square().numpy()


@pytest.fixture(scope="module")
def states() -> dict[int, dyn.State]:
    """States of the tiny run by step."""
    return {snap.step: snap.state.clone() for snap in dyn.steps(tiny_recipe(), SPLIT)}


@pytest.fixture(scope="module")
def probed() -> dyn.Run:
    return run_of({"spectrum": dyn.every(2, DOUBLE(4, FIXED)), "sharpness": dyn.every(2, sharpness(FIXED))})


# --- spectrum


@pytest.mark.parametrize(("bn", "which"), [("batch", "largest"), ("batch", "smallest"), ("frozen", "magnitude")])
def test_eigenvalues_along_a_run_are_those_of_the_dense_hessian(states, bn, which):
    run = run_of({"spectrum": dyn.every(3, DOUBLE(3, FIXED, bn=bn, which=which, tol=1e-9))})
    read = run["spectrum"]
    assert read.step.values.tolist() == [0, 3, 6] and read.pair.values.tolist() == [1, 2, 3]
    for step in (0, 6):
        values = torch.linalg.eigvalsh(dense(states[step], FIXED, bn)).flip(0)
        key = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which]
        wanted = values[key.argsort()][:3].numpy()
        found = read.sel(step=step)
        assert np.abs(found.eigenvalue.values - wanted).max() < 1e-8 * float(values.abs().max())
        assert found.converged.values.all() and (found.residual.values < 1e-8 * np.abs(values.numpy()).max()).all()
        assert float(found.products) > 0


def test_overlaps_are_of_the_dense_eigenvectors_of_two_readings(states, probed):
    read = probed["spectrum"].overlap
    assert read.dims == ("step", "pair", "previous") and np.isnan(read.values[0]).all()
    vectors = [torch.linalg.eigh(dense(states[s], FIXED))[1].flip(1)[:, :4] for s in (0, 2, 4, 6)]
    for i in (1, 2, 3):
        assert np.allclose(read.values[i], overlaps(vectors[i], vectors[i - 1]), atol=2e-4)
    # and they say something: neither all the same nor all new
    assert 0.05 < read.values[1].sum() < 3.999


def test_the_loss_and_the_matrix_stand_beside_the_numbers(probed):
    attrs = probed["spectrum"].eigenvalue.attrs
    assert attrs["bn"] == "batch" and attrs["loss"] == "cross-entropy, label smoothing 0.2"
    assert (attrs["batches"], attrs["images"], attrs["which"]) == (4, 60, "largest")


def test_a_warm_start_takes_fewer_products_and_finds_the_same(states):
    recipe = toy_recipe(net=dyn.Net("plain8", width=2, act="softplus"), optimizer=dyn.SGD(1e-4))
    snaps = list(dyn.steps(recipe, SPLIT))
    measure = spectrum(3, FIXED[:2])
    first, carry = measure(snaps[0], None)
    cold, _ = measure(snaps[-1], None)
    warm, _ = measure(snaps[-1], carry)
    assert warm["products"][1] < 0.8 * cold["products"][1] and first["overlap"][1].isnan().all()
    scale = float(cold["eigenvalue"][1][0])
    assert (warm["eigenvalue"][1] - cold["eigenvalue"][1]).abs().max() < 1e-3 * scale
    assert warm["overlap"][1].diagonal().min() > 0.9


def test_a_custom_loss_and_a_subset_of_parameters(states):
    def halved(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets) / 2

    names = ["5.weight", "5.bias"]
    run = run_of({"s": dyn.at([3], DOUBLE(2, FIXED, loss=halved, params=names, tol=1e-9))})
    wanted = torch.linalg.eigvalsh(dense(states[3], FIXED, smoothing=0, names=names)).flip(0)[:2] / 2
    assert np.allclose(run["s"].eigenvalue.values[0], wanted.numpy(), rtol=1e-8)
    assert run["s"].eigenvalue.attrs["loss"] == "halved"


def test_the_batches_are_copies(states):
    mine = [(x.clone(), y.clone()) for x, y in FIXED]
    measure = DOUBLE(1, mine)
    snap = next(iter(dyn.steps(tiny_recipe(), SPLIT)))
    before, _ = measure(snap, None)
    mine[0][0].zero_()
    after, _ = measure(snap, None)
    assert torch.equal(before["eigenvalue"][1], after["eigenvalue"][1])


def test_a_split_is_one_batch():
    snap = next(iter(dyn.steps(tiny_recipe(), SPLIT)))
    whole, _ = DOUBLE(1, SPLIT, tol=1e-9)(snap, None)
    x = SPLIT.padded().permute(0, 3, 1, 2)
    assert whole["eigenvalue"][1] == pytest.approx(
        torch.linalg.eigvalsh(dense(snap.state, [(x, SPLIT.labels)]))[-1:].numpy(), rel=1e-8
    )


def test_what_did_not_converge_is_recorded_and_said_at_the_callers_line():
    with pytest.warns(UserWarning, match="did not converge at some steps") as told:
        run = run_of({"s": dyn.every(3, spectrum(3, FIXED[:1], tol=1e-12, max_products=10))})
    assert {w.filename for w in told} == {__file__}
    assert not run["s"].converged.values.all() and run["s"].products.values.tolist() == [10, 10, 10]


# --- nothing of the run changes


def probes_of_curvature() -> dict[str, dyn.Probe]:
    few = {"tol": 0.05, "max_products": 12}
    return {
        "spectrum": dyn.every(2, spectrum(3, FIXED[:2], **few)),
        "frozen": dyn.every(3, spectrum(2, FIXED[:2], bn="frozen", which="magnitude", **few)),
        "sharpness": dyn.every(2, sharpness(FIXED[:2], **few)),
    }


@pytest.mark.filterwarnings("ignore:a probe of curvature did not converge")
@pytest.mark.parametrize("net", ["tiny", "plain8"])
def test_a_probed_run_ends_bit_identical_to_a_bare_one(net):
    recipe = tiny_recipe(**({} if net == "tiny" else {"net": dyn.Net("plain8", width=2)}))
    random = torch.get_rng_state()
    bare, probed = run_of(recipe=recipe), run_of(probes_of_curvature(), recipe)
    assert_same(bare.state.params, probed.state.params)
    assert_same(bare.state.buffers, probed.state.buffers)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.filterwarnings("ignore:a probe of curvature did not converge")
def test_a_resumed_run_reads_the_same_bits(tmp_path):
    probes = probes_of_curvature()
    recipe = tiny_recipe(net=dyn.Net("plain8", width=2))
    whole = run_of(probes, recipe, out=tmp_path / "whole", chunk_steps=3)
    assert {"spectrum", "frozen", "sharpness"} == set(whole.state_at(3).carries)
    for path in sorted((tmp_path / "whole").glob("chunk-*"))[2:]:
        path.unlink()
    assert dyn.load_run(tmp_path / "whole").status == "running"
    resumed = dyn.resume(tmp_path / "whole", SPLIT, probes=probes, progress=False)
    for name in probes:
        xr.testing.assert_identical(resumed[name], whole[name])


def test_a_watched_loop_is_measured_at_the_weights_before_each_step():
    torch.manual_seed(0)
    net = tiny_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5, nesterov=True)
    seen = []
    with dyn.watch(net, optimizer, probes={"sharpness": dyn.every(1, sharpness(FIXED, dtype=torch.float64))}) as rec:
        for x, y in FIXED[:3]:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            buffers = {k: b.clone() for k, b in net.named_buffers()}
            seen.append(dyn.State(0, {k: p.detach().clone() for k, p in net.named_parameters()}, buffers))
            optimizer.step()
    wanted = [float(torch.linalg.eigvalsh(dense(s, FIXED, smoothing=0))[-1]) for s in seen]
    assert rec["sharpness"].sharpness.values.tolist() == pytest.approx(wanted, rel=1e-6)
    edge = edge_of_stability(rec)
    assert edge.ratio.values == pytest.approx(0.1 * np.array(wanted) * 2 / 3, rel=1e-6)
    assert edge.attrs == {"optimizer": "SGD", "nesterov": 1}


# --- sharpness


def test_sharpness_and_its_standard_error_over_batches_at_fixed_v(states):
    given = [*FIXED[:2], *((x[:7], y[:7]) for x, y in FIXED[2:])]
    run = run_of({"sharpness": dyn.every(3, sharpness(given, dtype=torch.float64, tol=1e-9))})
    for step in (0, 6):
        read = run["sharpness"].sel(step=step)
        values, vectors = torch.linalg.eigh(dense(states[step], given))
        v = vectors[:, -1]
        each = np.array([float(v @ dense(states[step], [b]) @ v) for b in given])
        assert float(read.sharpness) == pytest.approx(float(values[-1]), rel=1e-8)
        assert read.batch_curvature.values == pytest.approx(each, rel=1e-6)
        sizes = np.array([len(x) for x, _ in given]) / sum(len(x) for x, _ in given)
        assert sizes @ each == pytest.approx(float(values[-1]), rel=1e-9)
        error = np.sqrt((sizes**2 * (each - sizes @ each) ** 2).sum() * 4 / 3)
        assert float(read.standard_error) == pytest.approx(error, rel=1e-5)


def test_the_standard_error_of_equal_batches_is_that_of_a_mean(probed):
    read = probed["sharpness"]
    plain = read.batch_curvature.values.std(1, ddof=1) / 2
    assert read.standard_error.values == pytest.approx(plain, rel=1e-9)


def test_the_mean_over_batches_of_their_own_largest_eigenvalues_is_biased_upward(states):
    # claim B18: convexity of λ1, so the bias is of one sign whatever the net
    for step in (0, 6):
        whole = dense(states[step], FIXED)
        values, vectors = torch.linalg.eigh(whole)
        own = [torch.linalg.eigvalsh(dense(states[step], [b]))[-1] for b in FIXED]
        fixed = [vectors[:, -1] @ dense(states[step], [b]) @ vectors[:, -1] for b in FIXED]
        assert float(sum(own) / 4) > 1.02 * float(values[-1])
        assert float(sum(fixed) / 4) == pytest.approx(float(values[-1]), rel=1e-10)
        assert all(o >= f for o, f in zip(own, fixed, strict=True))


def test_one_batch_has_no_standard_error():
    snap = next(iter(dyn.steps(tiny_recipe(), SPLIT)))
    reading, _ = sharpness(FIXED[:1])(snap, None)
    assert np.isnan(reading["standard_error"][1]) and float(reading["sharpness"][1]) > 0


# --- the edge of stability


OPTIMIZERS = {
    "gradient descent": (dyn.SGD(0.1, momentum=0.0, weight_decay=5e-3), 2.0),
    "heavy ball": (dyn.SGD(0.1, momentum=0.9, weight_decay=5e-3), 3.8),
    "nesterov": (dyn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-3), 3.8 / 2.8),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_ratio_is_lr_times_curvature_over_the_optimizers_gain(kind):
    optimizer, gain = OPTIMIZERS[kind]
    run = run_of({"sharpness": dyn.every(2, sharpness(FIXED))}, tiny_recipe(optimizer=optimizer))
    edge, read = edge_of_stability(run), run["sharpness"]
    assert edge.step.values.tolist() == [0, 2, 4]  # no update follows the last
    curvature = read.sharpness.values[:3].astype(float) + 5e-3
    assert edge.ratio.values == pytest.approx(0.1 * curvature / gain, rel=1e-9)
    assert edge.standard_error.values == pytest.approx(0.1 * read.standard_error.values[:3] / gain, rel=1e-9)
    assert edge.critical.values == pytest.approx(gain / 0.1 - 5e-3, rel=1e-9)
    # at the critical sharpness, decay included, the bound is the lr in force
    again = stability_bound(edge.critical.values + 5e-3, momentum=optimizer.momentum, nesterov=optimizer.nesterov)
    assert again == pytest.approx(edge.lr.values, rel=1e-9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_quadratic_grows_just_above_the_bound_and_shrinks_just_below(kind):
    optimizer, _ = OPTIMIZERS[kind]
    h = 3.0
    curvature = h + optimizer.weight_decay
    bound = float(stability_bound(curvature, momentum=optimizer.momentum, nesterov=optimizer.nesterov))
    sizes = []
    for factor in (0.98, 1.02):
        sgd = dyn.SGD(factor * bound, momentum=optimizer.momentum, nesterov=optimizer.nesterov, weight_decay=5e-3)
        params = {"w": torch.ones(1, dtype=torch.float64)}
        opt = sgd.init(params)
        for _ in range(1500):
            updates, opt = sgd.update({"w": h * params["w"]}, opt, params, 0.0)
            params = {"w": params["w"] + updates["w"]}
        sizes.append(float(params["w"].abs()))
    assert sizes[0] < 1e-3 and sizes[1] > 1e3


def test_a_schedule_that_ends_at_zero_is_never_at_its_bound():
    recipe = tiny_recipe(optimizer=dyn.SGD(dyn.PiecewiseLinear((0, 1, 2), (0.1, 0.0, 0.0)), momentum=0.0))
    edge = edge_of_stability(run_of({"sharpness": dyn.every(2, sharpness(FIXED))}, recipe))
    assert edge.ratio.values[-1] == 0 and np.isinf(edge.critical.values[-1]) and np.isfinite(edge.ratio).all()


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (dyn.AdamW(1e-3), "no stability bound for AdamW"),
        (dyn.SGD(0.1, momentum=0.9, decoupled=True, weight_decay=1e-3), "decoupled weight decay"),
        (dyn.SGD(0.1, groups=(dyn.Group("*.bias", lr_factor=64.0),)), "differ in their lr"),
    ],
)
def test_optimizers_without_one_bound_are_refused(optimizer, told):
    run = run_of({"sharpness": dyn.every(2, sharpness(FIXED[:1]))}, tiny_recipe(optimizer=optimizer))
    with pytest.raises(DynamicsError, match=told):
        edge_of_stability(run)
    axes = plot_sharpness(run)
    assert not [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    plt.close("all")


def test_runs_without_sharpness_are_told_how_to_get_it(probed):
    with pytest.raises(DynamicsError, match="every\\(10"):
        edge_of_stability(run_of())
    with pytest.raises(DynamicsError, match="not of the probe sharpness"):
        edge_of_stability(probed, name="spectrum")


# --- bad input


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: spectrum(0, FIXED), "at least 1"),
        (lambda: spectrum(2, []), "no batches"),
        (lambda: spectrum(2, [FIXED[0][0]]), "is \\(x, y\\)"),
        (lambda: spectrum(2, FIXED, bn="eval"), "unknown bn mode"),
        (lambda: spectrum(2, FIXED, which="top"), "unknown which"),
        (lambda: spectrum(2, FIXED, loss="mse"), "loss is a function"),
        (lambda: sharpness(FIXED, dtype=torch.float16), "float64"),
        (lambda: sharpness(toy_split(4100, side=2)), "split\\[:512\\]"),
        (lambda: run_of({"s": dyn.every(1, spectrum(1000, FIXED))}), "k must be"),
        (lambda: run_of({"s": dyn.every(1, sharpness(FIXED, params=["nothing"]))}), "unknown parameter"),
    ],
)
def test_bad_input_is_one_line_that_names_the_mend(make, told):
    with pytest.raises(DynamicsError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- plots


def dashed(axes) -> list:
    return [line for line in axes.get_lines() if line.get_linestyle() == "--" and len(line.get_xdata())]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def pairs_of(values: list[float], residual: float = 0.1) -> Eigenpairs:
    values = torch.tensor(values, dtype=torch.float64)
    k = len(values)
    return Eigenpairs(values, torch.zeros(5, k), torch.full((k,), residual), torch.ones(k, dtype=torch.bool), 7)


def test_a_spectrum_shows_every_eigenvalue_its_residual_and_the_largest_gap():
    axes = plot_spectrum({"frozen": pairs_of([9.0, 8.0, 2.0, 1.5, -1.0]), "bare": [3.0, 2.0]})
    assert axes.get_yscale() == "log" and texts(axes) == ["frozen: 2 above a gap of ×4", "bare: 1 above a gap of ×1.5"]
    drawn = [c.lines[0] for c in axes.containers]
    assert [line.get_ydata().tolist() for line in drawn] == [[9, 8, 2, 1.5], [1.0], [3, 2], []]
    assert drawn[1].get_markerfacecolor() == "none"
    bars = axes.containers[0].lines[2][0].get_segments()
    assert bars[0][:, 1].tolist() == pytest.approx([8.9, 9.1], rel=1e-6)
    (first, second) = dashed(axes)
    assert first.get_ydata()[0] == pytest.approx(4.0) and first.get_xdata() == pytest.approx((1.6, 3.4))
    assert second.get_ydata()[0] == pytest.approx(6**0.5)
    assert not dashed(plot_spectrum(pairs_of([9.0, 8.0]), outliers=False))


def test_a_density_has_a_band_and_integrates_as_given():
    grid = torch.linspace(-1, 3, 401, dtype=torch.float64)
    bump = torch.exp(-0.5 * (grid / 0.1) ** 2) / (0.1 * (2 * np.pi) ** 0.5)
    density = Density(grid, bump, bump / 5, torch.zeros(4, 3), torch.zeros(4, 3), 0.1, 12)
    axes = plot_density({"batch": density})
    assert axes.get_lines()[0].get_ydata().max() == pytest.approx(float(bump.max()))
    band = axes.collections[0].get_paths()[0].vertices[:, 1].max()
    assert band == pytest.approx(float(bump.max()) * 1.1)  # spread / sqrt(4 probes)
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] > 0


def test_sharpness_is_drawn_with_two_standard_errors_and_the_bound_dashed(probed):
    axes, read = plot_sharpness(probed), probed["sharpness"]
    assert axes.get_lines()[0].get_ydata() == pytest.approx(read.sharpness.values)
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(float((read.sharpness + 2 * read.standard_error).max()), rel=1e-6)
    (bound,) = dashed(axes)
    assert bound.get_ydata() == pytest.approx(edge_of_stability(probed).critical.values)
    assert texts(axes) == ["sharpness λ₁", "at the stability bound"]
    seeds = [run_of({"sharpness": dyn.every(2, sharpness(FIXED))}, seed=s) for s in (0, 1)]
    band = plot_sharpness(seeds).collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(float(r["sharpness"].sharpness.max()) for r in seeds))


def test_outputs_are_drawn_by_class_and_by_net():
    draws = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    axes = plot_outputs({"before": draws, "after": draws + 1}, bins=20)
    assert texts(axes) == [f"{when} {c}" for when in ("before", "after") for c in range(3)]
    heights, edges, _ = axes.patches[0].get_data()
    assert heights == pytest.approx(np.histogram(draws[:, 0].numpy(), edges, density=True)[0])


@pytest.mark.parametrize(
    ("draw", "told"),
    [
        (lambda run: plot_spectrum({}), "dict label"),
        (lambda run: plot_spectrum([0.0, 0.0]), "not all zero"),
        (lambda run: plot_spectrum("many"), "Eigenpairs"),
        (lambda run: plot_spectrum([1.0, float("nan")]), "finite"),
        (lambda run: plot_density([1.0]), "spectral_density"),
        (lambda run: plot_sharpness(run, name="spectrum"), "no variable 'sharpness'"),
        (lambda run: plot_outputs(torch.zeros(3)), "\\[N, C\\]"),
    ],
)
def test_plots_refuse_what_they_cannot_draw(draw, told, probed):
    with pytest.raises(DynamicsError, match=told) as caught:
        draw(probed)
    assert "\n" not in str(caught.value)


def test_no_plot_warns(probed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_sharpness(probed).figure.canvas.draw()
        plot_spectrum(pairs_of([5.0, 1.0, -0.01], residual=10.0)).figure.canvas.draw()


def test_dropout_cannot_make_two_readings_differ():
    # refused by name or drawn alike: never a random number
    snap = dyn.Snapshot(
        dyn.State(0, *(dict(p) for p in (dropout_net(4).named_parameters(), dropout_net(4).named_buffers()))),
        copy.deepcopy(dropout_net(4)), {}, None, 0.0,
    )  # fmt: skip
    try:
        first, second = (spectrum(1, FIXED)(snap, None)[0]["eigenvalue"][1] for _ in range(2))
    except DynamicsError as error:
        assert "ropout" in str(error)
    else:
        assert torch.equal(first, second)
