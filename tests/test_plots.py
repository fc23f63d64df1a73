from __future__ import annotations

import warnings

import matplotlib as mpl
import numpy as np
import pytest
import torch
import xarray as xr
from helpers import toy_recipe, toy_split

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgba

import dynamics as dyn
from dynamics import plots
from dynamics.errors import DynamicsError
from dynamics.plots.page import running_mean
from dynamics.runs.watch import watch

TRAIN = toy_split()
LAYERS = [
    "prep.conv", "layer1.conv", "layer1.residual.res1.conv", "layer1.residual.res2.conv", "layer2.conv", "layer3.conv",
    "layer3.residual.res1.conv", "layer3.residual.res2.conv", "linear",
]  # fmt: skip
PLOTS = {"norms": dyn.plot_norms, "angles": dyn.plot_angles, "batchnorm": dyn.plot_batchnorm}


def train(recipe: dyn.Recipe | None = None, probes: dict | None = None, **given) -> dyn.Run:
    probes = dyn.standard(1) if probes is None else probes
    return dyn.train(recipe or toy_recipe(), TRAIN, probes=probes, progress=False, **given)


@pytest.fixture(scope="module")
def runs() -> list[dyn.Run]:
    return [train(seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def run(runs) -> dyn.Run:
    return runs[0]


@pytest.fixture(scope="module")
def normless() -> dyn.Run:
    return train(toy_recipe(net=dyn.Net("resnet9", width=2, norm="none"), optimizer=dyn.SGD(0.01)))


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def solid(ax) -> list:
    return [line for line in ax.get_lines() if line.get_linestyle() == "-"]


def dashed(ax) -> list:
    """The dashed lines that have points: the legend's entry is a line without any."""
    return [line for line in ax.get_lines() if line.get_linestyle() == "--" and len(line.get_xdata())]


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def assert_line(line, steps, values) -> None:
    np.testing.assert_array_equal(line.get_xdata(), steps)
    np.testing.assert_array_equal(line.get_ydata(), values)


# --- what is drawn


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_takes_an_axes_and_returns_it(run, name):
    _, (left, right) = plt.subplots(1, 2)
    assert PLOTS[name](run, right) is right
    assert right.get_lines() and not left.get_lines()
    assert len(plt.get_fignums()) == 1
    alone = PLOTS[name](run)
    assert len(plt.get_fignums()) == 2 and alone.figure is not right.figure


def test_norms_are_the_readings_and_dashes_the_prediction(run):
    ax, theory = dyn.plot_norms(run), dyn.predict(run)
    assert len(solid(ax)) == len(dashed(ax)) == len(LAYERS)
    for name, line, dashes in zip(LAYERS, solid(ax), dashed(ax), strict=True):
        assert line.get_label() == name
        assert_line(line, run["norms"].step, run["norms"].norm.sel(layer=name))
        assert_line(dashes, theory.step, theory["norm"].sel(layer=name))
    assert legend(ax) == [*LAYERS, "predicted"]
    assert ax.get_yscale() == "log" and "step" in ax.get_xlabel() and "norm" in ax.get_ylabel()
    assert not dashed(dyn.plot_norms(run, predicted=False))


@pytest.mark.parametrize("law", ["angle", "angle_general", "angle_transient"])
def test_angles_are_the_readings_and_dashes_the_law(run, law):
    ax, theory = dyn.plot_angles(run, law=law), dyn.predict(run)
    for name, line in zip(LAYERS, solid(ax), strict=True):
        assert_line(line, run["angles"].step, run["angles"].angle.sel(layer=name))
    # the plain law is the same for all layers, and one line
    drawn = LAYERS[:1] if law == "angle" else LAYERS
    for name, line in zip(drawn, dashed(ax), strict=True):
        assert_line(line, theory.step, theory[law].sel(layer=name))
    assert "rad" in ax.get_ylabel() and legend(ax) == [*LAYERS, "predicted"]


def test_angles_without_a_law_need_no_prediction():
    run = train(probes={"angles": dyn.every(1, dyn.angles)})
    ax = dyn.plot_angles(run, law=None)
    assert len(solid(ax)) == len(LAYERS) and not dashed(ax) and legend(ax) == LAYERS


def test_a_law_that_differs_between_layers_is_drawn_for_each():
    groups = (dyn.Group("linear.*", 0.25, 2.0),)
    run = train(toy_recipe(optimizer=dyn.SGD(0.1, weight_decay=1e-2, groups=groups)))
    assert len(dashed(dyn.plot_angles(run))) == len(LAYERS)
    assert len(dashed(dyn.plot_angles(run, layers=["prep.conv", "layer1.conv"]))) == 1


@pytest.mark.parametrize("variable", ["scale", "bias", "running_mean", "running_var"])
def test_batch_norm_is_a_line_for_each_channel(run, variable):
    ax, readings = dyn.plot_batchnorm(run, variable=variable), run["batchnorm"]
    assert len(ax.get_lines()) == readings.sizes["channel"] > len(legend(ax))
    assert legend(ax) == list(dict.fromkeys(readings.channel_layer.values.tolist()))
    for i, line in enumerate(ax.get_lines()):  # channels of one layer stand together
        assert_line(line, readings.step, readings[variable].isel(channel=i))
    colors = {to_rgba(line.get_color()) for line in ax.get_lines()}
    assert len(colors) == len(legend(ax))
    assert variable.replace("_", " ") in ax.get_ylabel()


@pytest.mark.parametrize(("name", "variable"), [("norms", "norm"), ("angles", "angle")])
def test_several_runs_are_a_mean_and_a_band(runs, name, variable):
    ax = PLOTS[name](runs)
    values = np.stack([r[name][variable].values for r in runs])
    assert np.ptp(values, axis=0).max() > 0
    assert len(solid(ax)) == len(ax.collections) == len(LAYERS)
    for i, (line, band) in enumerate(zip(solid(ax), ax.collections, strict=True)):
        assert_line(line, runs[0][name].step, values[:, :, i].mean(0))
        corners = band.get_paths()[0].vertices
        for step, low, high in zip(line.get_xdata(), values.min(0)[:, i], values.max(0)[:, i], strict=True):
            here = corners[corners[:, 0] == step, 1]
            assert (here.min(), here.max()) == (low, high)
        assert to_rgba(band.get_facecolor()[0])[:3] == to_rgba(line.get_color())[:3]
    assert legend(ax) == [*LAYERS, "predicted"]


def test_the_predicted_norm_of_several_runs_is_their_mean(runs):
    expected = np.mean([dyn.predict(r)["norm"].values for r in runs], axis=0)
    for i, line in enumerate(dashed(dyn.plot_norms(runs))):
        np.testing.assert_allclose(line.get_ydata(), expected[:, i], rtol=1e-12)


def test_one_run_has_no_band_and_a_list_of_one_is_it(run):
    for given in (run, [run], (r for r in [run])):
        ax = dyn.plot_norms(given)
        assert not ax.collections and len(solid(ax)) == len(LAYERS)


@pytest.mark.parametrize("name", ["norms", "angles"])
def test_layers_select_and_order(run, name):
    wanted = ["linear", "layer2.conv"]
    ax = PLOTS[name](run, layers=wanted)
    assert [line.get_label() for line in solid(ax)] == wanted and legend(ax) == [*wanted, "predicted"]
    if name == "norms":
        theory = dyn.predict(run)
        for line, layer in zip(dashed(ax), wanted, strict=True):
            assert_line(line, theory.step, theory["norm"].sel(layer=layer))


def test_layers_select_batch_norms(run):
    ax = dyn.plot_batchnorm(run, layers=["layer2.norm"])
    of = run["batchnorm"].channel_layer.values.tolist()
    assert legend(ax) == ["layer2.norm"] and len(ax.get_lines()) == of.count("layer2.norm")


# --- bad input


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda r: dyn.plot_norms(r, layers=["layer2.conf"]), "unknown layer 'layer2.conf'.*'layer2.conv'"),
        (lambda r: dyn.plot_angles(r, layers=["prep"]), r"unknown layer 'prep'.*'?prep\.conv"),
        (lambda r: dyn.plot_batchnorm(r, layers=["layer2.nrm"]), "unknown layer 'layer2.nrm'.*'layer2.norm'"),
        (lambda r: dyn.plot_angles(r, law="angle_genral"), "unknown law 'angle_genral': did you mean 'angle_general'"),
        (lambda r: dyn.plot_angles(r, law="layer"), "unknown law 'layer'"),
        (lambda r: dyn.plot_batchnorm(r, variable="scal"), "unknown batch-norm variable 'scal': did you mean 'scale'"),
        (lambda r: dyn.plot_batchnorm(r, variable="channel_layer"), "unknown batch-norm variable 'channel_layer'"),
        (lambda r: dyn.plot_norms([]), "takes a Run, or a list of runs"),
        (lambda r: dyn.plot_norms("runs/first"), "takes a Run, or a list of runs"),
        (lambda r: dyn.plot_norms([r, "runs/first"]), "takes a Run, or a list of runs"),
        (lambda r: dyn.plot_norms(None), "takes a Run"),
        (lambda r: dyn.plot_batchnorm([r]), "takes a Run|takes one Run|one run"),
        (lambda r: dyn.plot_batchnorm("runs/first"), "takes a Run|takes one Run|one run"),
    ],
)  # fmt: skip
def test_unknown_names_and_odd_arguments(run, draw, message):
    with pytest.raises(DynamicsError, match=message) as error:
        draw(run)
    assert "\n" not in str(error.value)


ODD = {
    "longer": lambda: train(toy_recipe(epochs=3)),
    "read at other steps": lambda: train(probes=dyn.standard(2)),
    "of another net": lambda: train(toy_recipe(net=dyn.Net("helpers:plain_net"))),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("draw", [dyn.plot_norms, dyn.plot_angles])
def test_runs_that_do_not_go_together(run, draw, odd):
    """Not of one recipe, or one of them ended early."""
    with pytest.raises(DynamicsError) as error:
        draw([run, ODD[odd]()])
    assert "\n" not in str(error.value)


def test_missing_readings_say_what_to_pass():
    bare, some = train(probes={}), train(probes={k: dyn.standard(1)[k] for k in ("norms", "angles")})
    for name, plot in PLOTS.items():
        with pytest.raises(DynamicsError, match=rf"pass probes=\{{'{name}': every\(10"):
            plot(bare)
    with pytest.raises(DynamicsError, match=r"pass probes=\{'gradients': every\(10"):
        dyn.plot_angles(some)
    ax = dyn.plot_norms(some)  # the prediction is drawn where there is one
    assert len(solid(ax)) == len(LAYERS) and not dashed(ax) and legend(ax) == LAYERS


def test_a_refused_plot_leaves_no_figure(run):
    with pytest.raises(DynamicsError):
        dyn.plot_batchnorm(run, variable="scal")
    with pytest.raises(DynamicsError):
        dyn.plot_norms(train(probes={}))
    assert len(plt.get_fignums()) == 0


def test_a_net_without_norms(normless):
    with pytest.raises(DynamicsError, match=r"has no batch norm to plot: train a net with norm='batch'"):
        dyn.plot_batchnorm(normless)
    for plot in (dyn.plot_norms, dyn.plot_angles):
        ax = plot(normless)
        assert len(solid(ax)) == len(LAYERS)
        ax.figure.canvas.draw()


# --- how it looks


def parts(figure) -> dict:
    """Everything written in a figure, by what it is, drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit is a warning
        if figure.stale:
            figure.canvas.draw()
    found = {"heading": figure._suptitle} if figure._suptitle else {}
    for i, ax in enumerate(figure.axes):
        legend = ax.get_legend()
        found |= {f"{i} title": ax.title, f"{i} x label": ax.xaxis.label, f"{i} y label": ax.yaxis.label}
        found |= {f"{i} text {j}": t for j, t in enumerate(ax.texts)}
        found |= {f"{i} legend {j}": t for j, t in enumerate(legend.get_texts() if legend else ())}
    return {k: v for k, v in found.items() if v.get_visible() and v.get_text()}


def assert_nothing_is_cut(figure) -> None:
    """Titles, labels, tick labels and legends, as drawn, lie within the picture."""
    renderer, inside = figure.canvas.get_renderer(), figure.bbox.padded(1.0)
    boxes = {f"{k} {v.get_text()!r}": v.get_window_extent(renderer) for k, v in parts(figure).items()}
    for i, ax in enumerate(figure.axes):
        if ax.axison:
            boxes |= {f"{i} {k} axis": getattr(ax, f"{k}axis").get_tightbbox(renderer) for k in "xy"}
        if ax.get_legend():
            boxes[f"{i} legend"] = ax.get_legend().get_window_extent(renderer)
    for name, box in boxes.items():
        inner = box is None or (
            inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        )
        assert inner, f"{name} at {box.extents.round()} is cut by {figure.bbox.extents}"
    if len(figure.axes) == 1:
        assert figure.axes[0].bbox.width > 0.4 * figure.bbox.width, "the legend leaves no room for the lines"


def assert_panels_stand_apart(figure) -> None:
    """No panel, with its labels, lies over another, nor a line of text over another in its panel."""
    renderer = figure.canvas.get_renderer()
    boxes = [ax.get_tightbbox(renderer).padded(-1) for ax in figure.axes if ax.axison]
    boxes += [ax.bbox for ax in figure.axes if not ax.axison]
    for ax in figure.axes:
        boxes_of_text = [t.get_window_extent(renderer).padded(-1.5) for t in ax.texts]
        assert not overlapping(boxes_of_text), f"texts {overlapping(boxes_of_text)} of {ax} overlap"
    assert not overlapping(boxes), f"panels {overlapping(boxes)} overlap"


def overlapping(boxes: list) -> list[tuple[int, int]]:
    return [(i, j) for j, b in enumerate(boxes) for i, a in enumerate(boxes[:j]) if a.overlaps(b)]


def assert_legible(figure) -> None:
    """Everything written stands out from the paper."""
    for name, text in parts(figure).items():
        paper = to_rgba(figure.get_facecolor())
        contrast = np.abs(np.subtract(to_rgba(text.get_color())[:3], paper[:3])).max()
        assert contrast > 0.2, f"{name} {text.get_text()!r} has the colour of the paper"


@pytest.mark.parametrize("style", ["default", "dark_background"])
@pytest.mark.parametrize("name", PLOTS)
def test_no_text_is_cut_in_the_default_figure(run, name, style):
    with plt.style.context(style):
        assert_nothing_is_cut(PLOTS[name](run).figure)


def test_a_cut_text_would_be_seen(run):
    figure, ax = plt.subplots(figsize=(8, 4.2))
    dyn.plot_norms(run, ax)
    with pytest.raises(AssertionError, match="is cut"):
        assert_nothing_is_cut(figure)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_dashes_have_the_colour_of_the_themes_text_and_lines_stand_out(run, style):
    with plt.style.context(style):
        ink, paper = to_rgba(mpl.rcParams["text.color"]), to_rgba(mpl.rcParams["axes.facecolor"])
        for ax in (dyn.plot_norms(run), dyn.plot_angles(run, law="angle_transient")):
            assert {to_rgba(line.get_color()) for line in dashed(ax)} == {ink}
            named = dict(zip(legend(ax), ax.get_legend().get_lines(), strict=True))
            assert to_rgba(named["predicted"].get_color()) == ink and named["predicted"].get_linestyle() == "--"
            colors = [to_rgba(line.get_color()) for line in solid(ax)]
            assert len(set(colors)) == len(LAYERS) and ink not in colors
            assert min(np.abs(np.subtract(c[:3], paper[:3])).max() for c in colors) > 0.3


def test_the_legend_shows_thin_pale_lines_plainly(run):
    for line in dyn.plot_batchnorm(run).get_legend().get_lines():
        assert line.get_alpha() == 1.0 and line.get_linewidth() > 1


@pytest.mark.parametrize("name", PLOTS)
def test_settings_are_left_alone(run, name):
    before = dict(mpl.rcParams)
    PLOTS[name](run)
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", PLOTS)
def test_a_run_is_not_changed(run, name):
    before = {k: v.copy(deep=True) for k, v in run.readings.items()}
    PLOTS[name](run)
    assert all(run[k].identical(v) for k, v in before.items())


# --- activations: synthetic readings


CHANNELS = {"conv1": 3, "conv1_norm": 3, "block.conv2": 5, "block.deeper.conv3": 4}
BINS = 24


def by_channel(sizes: dict[str, int]) -> dict:
    return {
        "channel_layer": ("channel", [name for name, n in sizes.items() for _ in range(n)]),
        "channel_index": ("channel", [i for n in sizes.values() for i in range(n)]),
    }


def moments(steps=(0, 1, 2, 5, 10), seed: int = 0, sizes: dict[str, int] | None = None) -> xr.Dataset:
    sizes, draw = sizes or CHANNELS, np.random.RandomState(seed)
    shape, dims = (len(steps), sum(sizes.values())), ("step", "channel")
    values = {"mean": draw.randn(*shape), "variance": draw.rand(*shape) + 0.1, "skew": draw.randn(*shape)}
    coords = {"step": list(steps), **by_channel(sizes)}
    return xr.Dataset({k: (dims, v, {"units": "1"}) for k, v in values.items()}, coords)


def histograms(steps=(0, 10), sizes: dict[str, int] | None = None, clipped: bool = True) -> xr.Dataset:
    sizes, draw = sizes or CHANNELS, np.random.RandomState(1)
    n = sum(sizes.values())
    edge = np.linspace(-6, 6, BINS + 1)
    count = draw.randint(0, 50, (len(steps), n, BINS)) * (np.abs(np.arange(BINS) - 11.5) < 8)
    beyond = np.zeros((2, len(steps), n), int)
    if clipped:
        beyond[0, -1, [0, 7]], beyond[1, -1, 2] = 4, 9
    coords = {"step": list(steps), "edge": edge, "bin": (edge[1:] + edge[:-1]) / 2, **by_channel(sizes)}
    return xr.Dataset(
        {
            "count": (("step", "channel", "bin"), count),
            "below": (("step", "channel"), beyond[0]),
            "above": (("step", "channel"), beyond[1]),
        },
        coords,
    )


@pytest.fixture
def activations() -> dict:
    return {"moments": moments(), "histograms": histograms()}


@pytest.mark.parametrize("variable", ["mean", "variance", "skew"])
def test_moments_are_a_line_for_each_channel(activations, variable):
    ax, readings = plots.plot_moments(activations, variable=variable), activations["moments"]
    assert legend(ax) == list(CHANNELS) and len(ax.get_lines()) == sum(CHANNELS.values())
    for i, line in enumerate(ax.get_lines()):
        assert_line(line, readings.step, readings[variable].isel(channel=i))
    assert variable in ax.get_ylabel() and ax.get_yscale() == ("log" if variable == "variance" else "linear")
    some = plots.plot_moments(activations, variable=variable, layers=["block.conv2"])
    assert len(some.get_lines()) == 5 and legend(some) == ["block.conv2"]


@pytest.mark.parametrize("since", ["first", "previous"])
@pytest.mark.parametrize("variable", ["mean", "log_sd", "skew"])
def test_drift_is_the_median_over_channels_with_its_quartiles(activations, variable, since):
    read = activations["moments"]
    ax = plots.plot_drift(activations, variable=variable, since=since, log=False)
    assert legend(ax) == list(CHANNELS)
    begin = 0 if since == "first" else 1
    for name, line, band in zip(CHANNELS, ax.get_lines(), ax.collections, strict=True):
        corners = band.get_paths()[0].vertices
        for at, t in enumerate(range(begin, read.sizes["step"])):
            then, shifts = 0 if since == "first" else t - 1, []
            for c in np.flatnonzero(read.channel_layer.values == name):
                value = {k: float(read[k].values[t, c]) for k in ("mean", "variance", "skew")}
                was = {k: float(read[k].values[then, c]) for k in ("mean", "variance", "skew")}
                shift = {
                    "mean": (value["mean"] - was["mean"]) / was["variance"] ** 0.5,
                    "log_sd": 0.5 * np.log(value["variance"] / was["variance"]),
                    "skew": value["skew"] - was["skew"],
                }
                shifts.append(abs(shift[variable]))
            assert line.get_xdata()[at] == read.step.values[t]
            assert line.get_ydata()[at] == pytest.approx(np.median(shifts), rel=1e-9, abs=1e-12)
            here = corners[corners[:, 0] == read.step.values[t], 1]
            quartiles = np.quantile(shifts, [0.25, 0.75])
            np.testing.assert_allclose([here.min(), here.max()], quartiles, rtol=1e-9, atol=1e-12)


def test_drift_on_a_logarithmic_axis_leaves_out_the_zeros_of_the_first_reading(activations):
    plain, ax = plots.plot_drift(activations, log=False), plots.plot_drift(activations, log_steps=True)
    assert (plain.get_yscale(), plain.get_xscale()) == ("linear", "linear")
    assert (ax.get_yscale(), ax.get_xscale()) == ("log", "log") and ax.get_xlim()[0] == 1
    for line, other in zip(ax.get_lines(), plain.get_lines(), strict=True):
        assert np.isnan(line.get_ydata()[0]) and other.get_ydata()[0] == 0
        np.testing.assert_array_equal(line.get_ydata()[1:], other.get_ydata()[1:])


def test_drift_of_several_runs_is_side_by_side_on_one_scale():
    bare = {k: n for k, n in CHANNELS.items() if k != "conv1_norm"}
    given = {"batch": {"moments": moments()}, "none": {"moments": moments(seed=3, sizes=bare)}}
    axes = plots.plot_drift(given)
    assert isinstance(axes, np.ndarray) and [ax.get_title() for ax in axes] == ["batch", "none"]
    assert axes[0].get_ylim() == axes[1].get_ylim() and len({ax.figure for ax in axes}) == 1
    assert axes[0].get_legend() is None and legend(axes[1]) == list(CHANNELS)
    colors = [{line.get_label(): line.get_color() for line in ax.get_lines() if len(line.get_xdata())} for ax in axes]
    assert list(colors[0]) == list(CHANNELS) and list(colors[1]) == list(bare)
    assert all(to_rgba(colors[0][name]) == to_rgba(colors[1][name]) for name in bare)
    own = plt.subplots(1, 2)[1]
    assert list(plots.plot_drift(given, own)) == list(own)
    assert own[0].get_ylim() == own[1].get_ylim()
    assert list(plots.plot_drift({"only": given["none"]})[0].get_title()) == list("only")


def test_a_channel_that_never_varies_is_left_out_of_the_drift():
    readings = moments(sizes={"conv": 3, "dead": 2})
    readings["variance"][:, 3:] = 0.0
    ax = plots.plot_drift({"moments": readings})
    assert legend(ax) == ["conv", "dead"] and not len(ax.get_lines()[1].get_xdata())
    ax.figure.canvas.draw()


def panels(figure) -> list:
    return [ax for ax in figure.axes if ax.get_title()]


@pytest.mark.parametrize("step", [None, 0, 10])
def test_histograms_are_a_panel_for_each_layer_with_density_as_colour(activations, step):
    read = activations["histograms"]
    figure = plots.plot_histograms(activations, step=step, sort=False)
    at = {None: 1, 0: 0, 10: 1}[step]
    assert [ax.get_title().replace("\n", "") for ax in panels(figure)] == list(CHANNELS)
    assert f"step {read.step.values[at]}" in figure._suptitle.get_text()
    first = 0
    for ax, n in zip(panels(figure), CHANNELS.values(), strict=True):
        (mesh,) = ax.collections
        drawn = mesh.get_array().filled(0.0)
        assert drawn.shape == (BINS, n) and f"{n} channels" in ax.get_xlabel()
        for c in range(n):
            here = read.isel(step=at, channel=first + c)
            total = int(here["count"].sum() + here.below + here.above)
            for b in range(BINS):
                width = float(read.edge[b + 1] - read.edge[b])
                assert drawn[b, c] == pytest.approx(int(here["count"][b]) / total / width)
        assert mesh.norm is panels(figure)[0].collections[0].norm
        first += n
    assert len({ax.get_ylim() for ax in panels(figure)}) == 1
    assert len(figure.axes) == len(CHANNELS) + 1 and "density" in figure.axes[-1].get_ylabel()


def test_histograms_mark_channels_with_values_beyond_the_range(activations):
    figure = plots.plot_histograms(activations, sort=False)
    low, high = panels(figure)[0].get_ylim()
    assert (low, high) == (-6, 6) and "beyond" in figure._suptitle.get_text()
    marks = {
        (i, line.get_marker(), x, y)
        for i, ax in enumerate(panels(figure)) for line in ax.get_lines() for x, y in zip(*line.get_data(), strict=True)
    }  # fmt: skip
    # channels 0 and 7 have values below, channel 2 above
    assert marks == {(0, "v", 0.5, -6.0), (2, "v", 1.5, -6.0), (0, "^", 2.5, 6.0)}
    plain = plots.plot_histograms({"histograms": histograms(clipped=False)})
    assert not any(ax.get_lines() for ax in plain.axes[:-1]) and "beyond" not in plain._suptitle.get_text()
    assert panels(plain)[0].get_ylim() == (-4, 4)  # where something was seen


def test_channels_of_histograms_are_sorted_by_their_median_or_chosen(activations):
    readings = histograms(sizes={"conv": 4}, clipped=False)
    readings["count"][:] = 0
    peaks = [20, 3, 11, 7]
    for c, peak in enumerate(peaks):
        readings["count"][:, c, peak] = 100
    given = {"histograms": readings}

    def drawn(**options) -> list[int]:
        (mesh,) = panels(plots.plot_histograms(given, **options))[0].collections
        return mesh.get_array().filled(0.0).argmax(0).tolist()

    assert drawn() == sorted(peaks) and drawn(sort=False) == peaks
    assert drawn(channels=2, sort=False) == [20, 3] and drawn(channels=[3, 0], sort=False) == [7, 20]
    assert drawn(channels=100, sort=False) == peaks
    with pytest.raises(DynamicsError, match=r"conv has channels 0 to 3, not \[4\]"):
        drawn(channels=[4])


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_density_goes_away_from_the_paper_also_in_grey(activations, style):
    with plt.style.context(style):
        figure = plots.plot_histograms(activations)
        map_ = panels(figure)[0].collections[0].get_cmap()
        grey = [np.dot(map_(x)[:3], (0.3, 0.59, 0.11)) for x in np.linspace(0, 1, 12)]
        paper = np.dot(to_rgba(mpl.rcParams["axes.facecolor"])[:3], (0.3, 0.59, 0.11))
        assert (np.diff(np.abs(np.array(grey) - paper)) > 0).all()


def test_histograms_of_which_all_is_beyond_the_range_are_drawn():
    readings = histograms()
    readings["count"][:] = 0
    readings["above"][:] = 5
    parts(plots.plot_histograms({"histograms": readings}))


def test_one_reading_alone_is_seen():
    ax = plots.plot_moments({"moments": moments(steps=(0,))})
    assert all(line.get_marker() == "o" for line in ax.get_lines())


# --- schedules


PEAK = dyn.PiecewiseLinear((0, 5, 24), (0, 0.4, 0))


def curve(line) -> dict:
    return dict(zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True))


def test_a_schedule_is_drawn_by_epoch_with_its_knots():
    ax = plots.plot_schedule(PEAK)
    line, knots = ax.get_lines()
    assert all(y == pytest.approx(PEAK(x)) for x, y in curve(line).items()) and {0, 5, 24} <= set(curve(line))
    assert curve(knots) == {0: 0, 5: 0.4, 24: 0} and knots.get_marker() == "o" and knots.get_linestyle() == "None"
    assert ax.get_xlabel() == "epoch" and ax.get_legend() is None
    short = plots.plot_schedule(PEAK, epochs=10).get_lines()
    assert max(curve(short[0])) == 10 and curve(short[1]) == {0: 0, 5: 0.4}


def test_any_callable_is_a_schedule():
    (line,) = plots.plot_schedule(lambda epoch: 0.1 / (1 + epoch), epochs=3).get_lines()
    assert all(y == pytest.approx(0.1 / (1 + x)) for x, y in curve(line).items()) and max(curve(line)) == 3


def test_a_recipe_is_drawn_by_group_over_its_epochs():
    groups = (dyn.Group("*.bias", 4.0, 0.25), dyn.Group("linear.weight", 1.0, 2.0))
    recipe = toy_recipe(epochs=30, optimizer=dyn.SGD(PEAK, groups=groups))
    ax = plots.plot_schedule(recipe)
    lines = [line for line in ax.get_lines() if line.get_marker() == "None"]
    assert legend(ax) == ["*.bias", "linear.weight, default"] and len(lines) == 2
    for factor, line in zip((4.0, 1.0), lines, strict=True):
        assert all(y == pytest.approx(factor * PEAK(x)) for x, y in curve(line).items()) and max(curve(line)) == 30
    # a number is a schedule too
    (line,) = plots.plot_schedule(toy_recipe(optimizer=dyn.SGD(0.1))).get_lines()
    assert set(curve(line).values()) == {0.1} and max(curve(line)) == 2


def test_a_run_is_drawn_by_step(run):
    ax = plots.plot_schedule(run)
    (line,) = ax.get_lines()
    lr = run["hyperparameters"].lr
    assert_line(line, lr.step, lr.isel(group=-1))
    assert ax.get_xlabel() == "step" and ax.get_legend() is None


def test_several_schedules_are_told_apart_without_colour():
    ax = plots.plot_schedule(
        {"24": PEAK, "15": dyn.PiecewiseLinear((0, 4, 15), (0, 0.44, 0)), "flat": dyn.Constant(0.1)}
    )
    lines = [line for line in ax.get_lines() if line.get_marker() == "None"]
    assert legend(ax) == ["24", "15", "flat"] and [max(curve(line)) for line in lines] == [24, 15, 24]
    assert len({str(line._dash_pattern) for line in lines}) == 3


SCHEDULES = {
    "step": dyn.optim.Step(0.4, 0.4, 6),
    "exponential": dyn.optim.Exponential(0.4, 0.88),
    "cyclic": dyn.optim.Cyclic(0.05, 0.35, 3),
    "cosine": dyn.optim.Cosine(0.4, 0.01, 24),
    "cosine, restarts": dyn.optim.Cosine(0.3, 0.02, 4, restarts=2),
    "one-cycle": dyn.optim.OneCycle(0.4, 24),
    "piecewise linear": PEAK,
    "constant": dyn.Constant(0.15),
}
ENDLESS = ("step", "exponential", "cyclic", "cosine, restarts", "constant")
MARKED = {
    "step": [6, 12, 18, 24], "exponential": [], "cyclic": [0, 3, 6, 9, 12, 15, 18, 21, 24], "cosine": [0, 24],
    "cosine, restarts": [4, 12], "one-cycle": [0, 7.2, 24], "piecewise linear": [0, 5, 24], "constant": [],
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_is_drawn_with_the_knots_that_it_has(kind):
    schedule = SCHEDULES[kind]
    for given in (schedule, toy_recipe(epochs=24, optimizer=dyn.SGD(schedule))):
        line, *marks = plots.plot_schedule(given, epochs=24).get_lines()
        assert all(y == pytest.approx(schedule(x)) for x, y in curve(line).items()) and max(curve(line)) == 24
        marked = curve(marks[0]) if marks else {}
        assert list(marked) == pytest.approx(MARKED[kind]) and len(marks) == bool(MARKED[kind])
        assert all(y == pytest.approx(schedule(x)) for x, y in marked.items())


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_with_an_end_is_drawn_to_it_and_one_without_asks_for_it(kind):
    if kind in ENDLESS:
        with pytest.raises(DynamicsError, match="pass epochs="):
            plots.plot_schedule(SCHEDULES[kind])
    else:
        assert max(curve(plots.plot_schedule(SCHEDULES[kind]).get_lines()[0])) == 24
    # beside one that ends, it is drawn as far
    (line, *_) = plots.plot_schedule({kind: SCHEDULES[kind], "to 30": dyn.optim.OneCycle(0.1, 30)}).get_lines()
    assert max(curve(line)) == (30 if kind in ENDLESS else 24)


def test_jumps_are_drawn_upright():
    for schedule in (SCHEDULES["step"], SCHEDULES["cosine, restarts"]):
        x, y = (np.asarray(v, float) for v in plots.plot_schedule(schedule, epochs=20).get_lines()[0].get_data())
        for turn in schedule.turns(20):
            i = int(np.flatnonzero(x == turn)[0])
            assert x[i] - x[i - 1] < 1e-6 and abs(y[i] - y[i - 1]) > 0.01


def test_knots_that_would_hide_the_curve_are_not_marked():
    (line,) = plots.plot_schedule(dyn.optim.Cyclic(0.0, 0.4, 0.1), epochs=20).get_lines()
    assert {0.0, 0.4} <= {round(y, 6) for y in curve(line).values()}, "though every turn is drawn"
    assert len([y for y in curve(line).values() if abs(y - 0.4) < 1e-6]) >= 100


def test_the_lr_of_an_optimizer_inside_another_is_drawn():
    recipe = toy_recipe(epochs=30, optimizer=dyn.optim.Lookahead(dyn.SGD(PEAK, groups=(dyn.Group("*.bias", 2.0),))))
    ax = plots.plot_schedule(recipe)
    assert legend(ax) == ["*.bias", "default"]
    assert curve(ax.get_lines()[1]) == {0: 0, 5: 0.8, 24: 0}


def test_all_schedules_are_told_apart_without_colour():
    ax = plots.plot_schedule(SCHEDULES, epochs=24)
    lines = [line for line in ax.get_lines() if line.get_marker() == "None"]
    assert legend(ax) == list(SCHEDULES)
    assert len({str(line._dash_pattern) for line in lines}) == len(SCHEDULES)


# --- the page


class Live:
    """What a live recorder offers."""

    recipe = None

    def __init__(self, readings: dict) -> None:
        self.readings = readings

    def __getitem__(self, name: str) -> xr.Dataset:
        return self.readings[name]

    def __contains__(self, name: str) -> bool:
        return name in self.readings


@pytest.fixture(scope="module")
def whole() -> dyn.Run:
    """A run with everything that a page shows."""
    probes, valid = dyn.standard(1), toy_split(20, seed=1, like=TRAIN)
    return dyn.train(toy_recipe(epochs=4), TRAIN, valid, probes=probes, progress=False)


def titled(figure, start: str):
    (found,) = [ax for ax in figure.axes if ax.get_title().startswith(start)]
    return found


def told(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[-1].texts]


def test_the_page_shows_what_was_measured(whole):
    figure = plots.plot_run(whole)
    titles = ["Loss", "Accuracy", "Learning rate", "Weight norms", "Step angles", "Measured", "Batch norm scale"]
    for title, ax in zip([*titles, "Batch norm bias", ""], figure.axes, strict=True):
        assert ax.get_title().startswith(title)
    raw, smooth, valid = titled(figure, "Loss").get_lines()
    assert_line(raw, whole["train"].step, whole["train"].loss)
    assert_line(smooth, whole["train"].step, whole["train"].loss)  # twelve steps are not smoothed
    assert_line(valid, whole["valid"].step, whole["valid"].loss)
    assert_line(titled(figure, "Accuracy").get_lines()[0], whole["valid"].step, whole["valid"].accuracy)
    theory = dyn.predict(whole)
    norms, angles, ratio = (titled(figure, k) for k in ("Weight norms", "Step angles", "Measured"))
    for i, name in enumerate(LAYERS):
        assert_line(solid(norms)[i], whole["norms"].step, whole["norms"].norm.sel(layer=name))
        assert_line(dashed(norms)[i], theory.step, theory["norm"].sel(layer=name))
        measured, expected = whole["angles"].angle.sel(layer=name), theory["angle_transient"].sel(layer=name)
        np.testing.assert_allclose(solid(angles)[i].get_ydata(), measured, rtol=1e-6)
        np.testing.assert_allclose(dashed(angles)[i].get_ydata(), expected, rtol=1e-6)
        over = (measured.sel(step=theory.step) / expected).values
        np.testing.assert_allclose(solid(ratio)[i].get_ydata(), over, rtol=1e-6)
    low, high = (
        f(ratio.patches[0].get_extents().transformed(ratio.transData.inverted()).intervaly) for f in (min, max)
    )
    assert (low, high) == (pytest.approx(0.9), pytest.approx(1.1))
    scale, read = titled(figure, "Batch norm scale"), whole["batchnorm"]
    of = read.channel_layer.values == "layer1.norm"
    middle = next(line for line in scale.get_lines() if line.get_label() == "layer1.norm")
    assert_line(middle, read.step, np.median(read["scale"].values[:, of], axis=1))
    ends = scale.get_lines()[scale.get_lines().index(middle) + 1 :][:2]
    assert_line(ends[0], read.step, read["scale"].values[:, of].min(1))
    assert_line(ends[1], read.step, read["scale"].values[:, of].max(1))
    # a norm has the colour of its convolution
    conv = next(line for line in solid(norms) if line.get_label() == "layer1.conv")
    assert to_rgba(conv.get_color()) == to_rgba(middle.get_color())


def test_the_page_orders_layers_by_how_far_they_are_from_theory(whole):
    lines, theory = told(plots.plot_run(whole)), dyn.predict(whole)
    ratio = (whole["angles"].angle.sel(step=theory.step) / theory["angle_transient"]).sel(layer=LAYERS)
    late = ratio.isel(step=slice(3 * len(ratio.step) // 4, None)).median("step")
    order = sorted(LAYERS, key=lambda name: -abs(np.log(float(late.sel(layer=name)))))
    names = [n for line in lines for n in LAYERS if line.split("  ")[0] == n]
    assert names == order
    assert [line for line in lines if line.startswith("×")] == [f"×{float(late.sel(layer=n)):.2f}" for n in order]
    marked = {line.split("  ")[0] for line in lines if "←" in line and line.split("  ")[0] in LAYERS}
    assert marked == {n for n in LAYERS if not 0.9 <= float(late.sel(layer=n)) <= 1.1}
    swatches = [t for t in plots.plot_run(whole).axes[-1].texts if t.get_text() == "■"]
    assert len({to_rgba(t.get_color()) for t in swatches}) == len(LAYERS)


def test_the_page_says_what_the_run_was(whole):
    figure = plots.plot_run(whole)
    assert "finished" in figure._suptitle.get_text() and "12 steps" in figure._suptitle.get_text()
    text = " ".join(" ".join(told(figure)).split())
    assert "resnet9" in text and "SGD(lr=0.05" in text and "batch 20, 4 epochs, seed 0" in text


def test_the_page_of_a_diverged_run_says_where():
    diverged = train(toy_recipe(optimizer=dyn.SGD(1e6), epochs=20))
    assert diverged.status == "diverged"
    figure = plots.plot_run(diverged)
    assert f"diverged at step {diverged.diverged_at}" in figure._suptitle.get_text()
    assert_nothing_is_cut(figure)


PARTS = {
    "loss": ("train",), "norms": ("norms",), "three panels": ("train", "valid", "hyperparameters"),
    "without batch norm": ("train", "valid", "hyperparameters", "norms", "angles", "gradients"),
}  # fmt: skip
PAGES = [(None, "dark_background"), *((some, "default") for some in (None, *PARTS))]


@pytest.mark.parametrize(("some", "style"), PAGES)
def test_a_page_leaves_out_what_was_not_read_without_holes_cuts_or_overlaps(whole, some, style):
    given = whole if some is None else {k: whole[k] for k in PARTS[some]}
    with plt.style.context(style):
        figure = plots.plot_run(given)
        assert_nothing_is_cut(figure)
        assert_panels_stand_apart(figure)
        assert_legible(figure)
    spans = [ax.get_subplotspec() for ax in figure.axes]
    cells = [(r, c) for s in spans for r in s.rowspan for c in s.colspan]
    rows, columns = spans[0].get_gridspec().get_geometry()
    assert sorted(cells) == [(r, c) for r in range(rows) for c in range(columns)]
    if some is not None:
        assert any("No predictions: " in line for line in told(figure))


def test_a_live_recorder_has_a_page_and_plots(whole):
    live = Live({k: v for k, v in whole.readings.items() if k != "valid"})
    assert len(plots.plot_run(live).axes) == 7  # no accuracy, and no ratio without an optimizer
    assert len(solid(plots.plot_norms(live, predicted=False))) == len(LAYERS)
    assert plots.plot_batchnorm(live).get_lines() and plots.plot_schedule(live).get_lines()
    assert plots.plot_moments(Live({"moments": moments()})).get_lines()


def test_a_watched_loop_has_a_page_with_predictions():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-2)
    recorder = watch(net, optimizer, probes=dyn.standard(1))
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        recorder.batch(x, y, loss)
        optimizer.step()
    figure = plots.plot_run(recorder)
    assert_nothing_is_cut(figure)
    assert "Sequential: running, 12 steps" in figure._suptitle.get_text()
    assert "Sequential under SGD, watched" in told(figure)
    assert len(solid(titled(figure, "Measured"))) == 2
    ax = plots.plot_norms(recorder)
    assert len(solid(ax)) == len(dashed(ax)) == 2


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
def test_a_running_mean_is_of_the_finite_readings_around(width):
    values = np.random.RandomState(0).randn(7, 2)
    values[2, 0] = np.nan
    for t in range(7):
        for c in range(2):
            near = [values[s, c] for s in range(t - width // 2, t + (width - 1) // 2 + 1) if 0 <= s < 7]
            expected = np.nan if np.isnan(values[t, c]) else np.mean([v for v in near if np.isfinite(v)])
            assert running_mean(values, width)[t, c] == pytest.approx(expected, nan_ok=True)


def test_many_layers_keep_the_page_and_the_legend_in_the_picture():
    sizes = {f"encoder.layers.{i}.attention.query_projection": 2 for i in range(50)}
    steps = np.arange(6)
    norm = (("step", "layer"), 1 + np.random.RandomState(0).rand(6, 50))
    given = {
        "norms": xr.Dataset({"norm": norm}, {"step": steps, "layer": list(sizes)}),
        "moments": moments(sizes=sizes),
    }
    for figure in (plots.plot_run(given), plots.plot_norms(given).figure, plots.plot_moments(given).figure):
        assert_nothing_is_cut(figure)
    assert any("more" in line for line in told(plots.plot_run(given)))


# --- how the others look


DRAWN = {
    "moments": lambda a: plots.plot_moments(a).figure,
    "drift": lambda a: plots.plot_drift(a, log_steps=True).figure,
    "drifts": lambda a: plots.plot_drift({"batch": a, "none": a, "frozen": a})[0].figure,
    "histograms": plots.plot_histograms,
    "histograms of one layer": lambda a: plots.plot_histograms(a, layers=["conv1"]),
    "histograms of many": lambda a: plots.plot_histograms(
        {"histograms": histograms(sizes={f"layer{i}.residual.res1.conv": 3 for i in range(11)})}
    ),
    "schedule": lambda a: plots.plot_schedule(PEAK).figure,
    "schedules": lambda a: plots.plot_schedule({"one": PEAK, "another one": PEAK}).figure,
    "all schedules": lambda a: plots.plot_schedule(SCHEDULES, epochs=24).figure,
}


ON_PAPER = [(name, "dark_background") for name in DRAWN] + [(name, "default") for name in ("drift", "histograms")]


@pytest.mark.parametrize(("name", "style"), ON_PAPER)
def test_pictures_are_whole_and_legible_on_light_and_dark_paper(activations, name, style):
    with plt.style.context(style):
        figure = DRAWN[name](activations)
        assert_nothing_is_cut(figure)
        assert_panels_stand_apart(figure)
        assert_legible(figure)


def test_new_plots_take_an_axes_and_return_it(activations):
    for draw in (plots.plot_moments, plots.plot_drift, lambda a, ax: plots.plot_schedule(PEAK, ax)):
        _, ax = plt.subplots()
        assert draw(activations, ax) is ax and ax.get_lines()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda a: plots.plot_moments(a, variable="men"), "unknown moment 'men': did you mean 'mean'"),
        (lambda a: plots.plot_moments(a, layers=["conv"]), "unknown layer 'conv': did you mean 'conv1'"),
        (lambda a: plots.plot_moments(a, layers="conv1"), r"write layers=\['conv1'\]"),
        (lambda a: plots.plot_moments(a, name="moment"), "no 'moment' readings in this run .it has moments"),
        (lambda a: plots.plot_moments([a]), "plot_moments takes one Run"),
        (lambda a: plots.plot_moments(a["moments"]), "plot_moments takes one Run"),
        (lambda a: plots.plot_moments({"moments": moments().drop_vars("channel_layer")}), "are not by channel"),
        (lambda a: plots.plot_moments({"moments": moments(steps=())}), "are empty so far"),
        (lambda a: plots.plot_moments(np.zeros(3)), "no 'moments' readings"),
        (lambda a: plots.plot_drift(a, variable="variance"), "unknown drift 'variance'"),
        (lambda a: plots.plot_drift(a, since="last"), "unknown reference 'last'"),
        (lambda a: plots.plot_drift({}), "was given no runs"),
        (lambda a: plots.plot_drift([a, a]), "as a dict label -> Run"),
        (lambda a: plots.plot_drift({"a": a, "b": 3}), "takes a Run"),
        (lambda a: plots.plot_drift({"a": a}, plt.subplots(1, 2)[1]), "2 axes for 1 runs"),
        (lambda a: plots.plot_drift({"moments": moments(steps=(0,))}), "fewer than two"),
        (lambda a: plots.plot_drift(a, layers=["conv"]), "unknown layer 'conv'"),
        (lambda a: plots.plot_histograms(a, step=4), "no histograms were read at step 4: the nearest is step=0"),
        (lambda a: plots.plot_histograms(a, step="last"), "no histograms were read at step 'last'"),
        (lambda a: plots.plot_histograms(a, name="moments"), "have no variable 'count'"),
        (lambda a: plots.plot_histograms(a, channels=0), "has channels 0 to 2, not 0"),
        (lambda a: plots.plot_histograms(a, channels=[-1]), r"has channels 0 to 2, not \[-1\]"),
        (lambda a: plots.plot_histograms({"b": a}), "plot_histograms takes one Run"),
        (lambda a: plots.plot_schedule(dyn.Constant(0.1)), "pass epochs="),
        (lambda a: plots.plot_schedule(toy_recipe(optimizer=dyn.optim.YellowFin())), "sets its lr while it trains"),
        (lambda a: plots.plot_schedule(0.1), "takes a schedule .* not float"),
        (lambda a: plots.plot_schedule({}), "was given nothing"),
        (lambda a: plots.plot_schedule(PEAK, epochs=0), "epochs=0"),
        (lambda a: plots.plot_schedule(PEAK, epochs="all"), "epochs='all'"),
        (lambda a: plots.plot_schedule({"a": PEAK, "b": a}), "on two axes"),
        (lambda a: plots.plot_schedule(a), "no 'hyperparameters' readings"),
        (lambda a: plots.plot_schedule(lambda epoch: 1 / (epoch - epoch), epochs=1), "fails at epoch 0 .*division"),
        (lambda a: plots.plot_schedule(lambda epoch: "much", epochs=1), "fails at epoch 0"),
        (lambda a: plots.plot_run(a), "nothing was recorded"),
        (lambda a: plots.plot_run([a, a]), "plot_run takes one Run"),
        (lambda a: plots.plot_run(a, law="angel"), "unknown law 'angel': did you mean 'angle'"),
        (lambda a: plots.plot_run(a, layers=["conv1"]), "no weights were recorded"),
        (lambda a: plots.plot_norms(a), "no 'norms' readings in this run"),
        (lambda a: plots.plot_norms({"moments": moments(), "norms": moments()}), "have no variable 'norm'"),
    ],
)  # fmt: skip
def test_bad_input_to_the_new_plots_is_refused_in_one_line(activations, draw, message):
    before = len(plt.get_fignums())
    with pytest.raises(DynamicsError, match=message) as error:
        draw(activations)
    assert "\n" not in str(error.value)
    assert len(plt.get_fignums()) <= before + 1


def test_a_prediction_of_bare_readings_is_refused(whole):
    bare = dict(whole.readings)
    for draw in (plots.plot_norms, plots.plot_angles):
        with pytest.raises(DynamicsError, match="do not say which optimizer"):
            draw(bare)
    assert plots.plot_norms(bare, predicted=False).get_lines() and plots.plot_angles(bare, law=None).get_lines()


def test_new_plots_leave_settings_and_readings_alone(whole, activations):
    kept = {k: v.copy(deep=True) for k, v in {**whole.readings, **activations}.items()}
    before = dict(mpl.rcParams)
    plots.plot_run(whole)
    for draw in DRAWN.values():
        draw(activations)
    assert dict(mpl.rcParams) == before
    assert all({**whole.readings, **activations}[k].identical(v) for k, v in kept.items())
