from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from helpers import toy_recipe, toy_split

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgba

import dynamics as dyn
from dynamics.errors import DynamicsError

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


def assert_nothing_is_cut(figure) -> None:
    """Titles, labels, tick labels and legends, as drawn, lie within the picture."""
    figure.canvas.draw()
    renderer, inside = figure.canvas.get_renderer(), figure.bbox.padded(1.0)
    for ax in figure.axes:
        parts = {
            "title": ax.title, "x label": ax.xaxis.label, "y label": ax.yaxis.label, "legend": ax.get_legend(),
        }  # fmt: skip
        parts |= {f"legend text {t.get_text()}": t for t in ax.get_legend().get_texts()}
        boxes = {k: v.get_window_extent(renderer) for k, v in parts.items() if v is not None and v.get_visible()}
        boxes |= {"x axis": ax.xaxis.get_tightbbox(renderer), "y axis": ax.yaxis.get_tightbbox(renderer)}
        for name, box in boxes.items():
            inner = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            assert inner, f"{name} of {ax.get_title()!r} at {box.extents.round()} is cut by {figure.bbox.extents}"
        assert ax.bbox.width > 0.4 * figure.bbox.width, "the legend leaves no room for the lines"


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
