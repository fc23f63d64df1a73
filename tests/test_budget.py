from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same, toy_recipe, toy_split
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.runs import budget as budget_module
from dynamics.runs import measure as measure_module
from dynamics.runs.budget import Ledger


class Clock:
    """Seconds that pass only when somebody says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    CLOCK.now = 0.0
    monkeypatch.setattr(budget_module, "perf_counter", CLOCK)
    monkeypatch.setattr(measure_module, "perf_counter", CLOCK)


def nothing(snap):
    return {"x": 1.0}


@dataclass
class Outcome:
    """What a simulated loop saw, counted by itself and not by the ledger."""

    ledger: Ledger
    taken: dict[str, list[int]]
    due: dict[str, list[int]]
    training: float = 0.0
    recording: float = 0.0
    shares: list[float] = field(default_factory=list)


def simulate(
    probes: dict[str, Any],
    costs: dict[str, float],
    *,
    budget: float | None = 0.05,
    steps: int = 5000,
    other: float = 0.0,
    snapshot: float = 0.0,
    pauses: tuple[int, ...] = (),
) -> Outcome:
    """A loop whose steps take a second; `other` is spent at each step, `snapshot` where a probe is taken."""
    out = Outcome(Ledger(budget, probes), {k: [] for k in probes}, {k: [] for k in probes})
    for step in range(steps):
        out.ledger.stepping()
        CLOCK.now += 1.0 + (10_000.0 if step in pauses else 0.0)
        out.training += 1.0
        out.ledger.recording()
        begun = CLOCK.now
        with out.ledger.elsewhere():
            CLOCK.now += other
        wanted = [name for name, probe in probes.items() if probe.due(step)]
        for name in wanted:
            out.due[name].append(step)
        wanted = [name for name in wanted if out.ledger.due(name)]
        if wanted:
            with out.ledger.elsewhere():
                CLOCK.now += snapshot
        for name in wanted:
            CLOCK.now += costs[name]
            out.ledger.charge(name, costs[name])
            out.taken[name].append(step)
        out.recording += CLOCK.now - begun
        out.shares.append(out.recording / out.training)
    return out


def every(n: int, first: int = 0) -> dyn.Probe:
    return dyn.every(n, nothing, first=first)


SITUATIONS: dict[str, dict[str, Any]] = {
    "one": dict(probes={"a": every(10)}, costs={"a": 3.0}),
    "at every step": dict(probes={"a": every(1)}, costs={"a": 0.2}),
    "a late one": dict(probes={"a": every(10, first=1000)}, costs={"a": 3.0}),
    "equal ones": dict(probes={k: every(10) for k in "abcde"}, costs=dict.fromkeys("abcde", 0.2)),
    "all different": dict(probes={k: every(3 * i + 1) for i, k in enumerate("abcde")},
                          costs={k: 0.1 + 0.3 * i for i, k in enumerate("abcde")}),
    "cheap and expensive": dict(probes={"cheap": every(10), "expensive": every(10)},
                                costs={"cheap": 0.05, "expensive": 10.0}),
    "snapshots cost more than probes": dict(probes={k: every(1) for k in "abc"},
                                            costs=dict.fromkeys("abc", 0.01), snapshot=0.3),
    "hooks cost": dict(probes={"a": every(1)}, costs={"a": 0.1}, other=0.03),
    "orders cost": dict(probes={"a": every(1), "order": dyn.at([0, 700, 900], nothing)},
                        costs={"a": 0.1, "order": 20.0}),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_share_comes_to_the_budget(situation):
    out = simulate(**SITUATIONS[situation])
    assert 0.048 < out.shares[-1] < 0.052
    settled = out.shares[len(out.shares) // 2 :]
    assert min(settled) > 0.04 and max(settled) < 0.06
    assert out.ledger.share == pytest.approx(out.shares[-1])
    assert out.ledger.training == out.training


@pytest.mark.parametrize("budget", [0.001, 0.02, 0.2, 1.0, 3.0])
def test_any_share_may_be_the_budget(budget):
    out = simulate({"a": every(1)}, {"a": 5.0}, budget=budget, steps=20_000)
    assert out.shares[-1] == pytest.approx(budget, rel=0.15)


@given(
    costs=st.lists(st.floats(1e-4, 5.0), min_size=1, max_size=5),
    intervals=st.lists(st.integers(1, 30), min_size=5, max_size=5),
    other=st.floats(0.0, 0.03),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_budget_is_spent_and_not_exceeded(costs, intervals, other):
    """Whatever is due: all of it where it fits, and else as much as fits, to within a reading of each probe."""
    probes = {f"p{i}": every(n) for i, n in enumerate(intervals[: len(costs)])}
    given = {f"p{i}": c for i, c in enumerate(costs)}
    out = simulate(probes, given, other=other, steps=3000)
    wanted = sum(given[k] * len(due) for k, due in out.due.items()) + other * 3000
    slack = sum(costs)
    assert min(wanted, 0.05 * 3000) - slack <= out.recording <= min(wanted, 0.05 * 3000 + slack) + 1e-6


def test_a_probe_that_fits_is_not_thinned_by_one_that_does_not():
    out = simulate(**SITUATIONS["cheap and expensive"])
    assert out.taken["cheap"] == out.due["cheap"]
    assert 20 < len(out.taken["expensive"]) < 30  # what the cheap one leaves: 225 s of 250


def test_what_a_probe_leaves_goes_to_the_others():
    probes, costs = {k: every(10) for k in "abc"}, {"a": 0.01, "b": 0.4, "c": 3.0}
    out = simulate(probes, costs)
    # 250 s: a needs 5; b and c have 122 each, and b asks for 200
    assert len(out.taken["a"]) == 500
    assert [len(out.taken[k]) * costs[k] for k in "bc"] == pytest.approx([122.5, 122.5], rel=0.05)


def test_thinned_readings_are_spread_over_the_run():
    out = simulate(**SITUATIONS["one"])
    gaps = np.diff(out.taken["a"])
    assert set(gaps[1:]) == {60} and gaps[0] <= 120  # 3 s in 60 are 5 %; half a reading early or late
    assert set(out.taken["a"]) <= set(out.due["a"])


def test_what_fits_is_not_touched():
    out = simulate({"a": every(10), "b": every(7)}, {"a": 0.1, "b": 0.1})
    assert out.taken == out.due and out.shares[-1] < 0.03


def test_without_a_budget_everything_is_taken():
    out = simulate({"a": every(1), "b": dyn.at([3], nothing)}, {"a": 9.0, "b": 1.0}, budget=None, steps=50)
    assert out.taken == out.due and out.ledger.share == pytest.approx((50 * 9 + 1) / 50)


def test_first_readings_are_always_taken():
    probes = {k: every(10, first=i) for i, k in enumerate("abc")}
    out = simulate(probes, dict.fromkeys("abc", 1000.0), steps=100)
    assert out.taken == {"a": [0], "b": [1], "c": [2]}


def test_orders_are_never_thinned_and_are_paid_for():
    steps = [0, 1, 2, 500, 501]
    probes = {"order": dyn.at(steps, nothing), "a": every(1)}
    out = simulate(probes, {"order": 20.0, "a": 0.1})
    assert out.taken["order"] == steps
    alone = simulate({"a": every(1)}, {"a": 0.1})
    assert 0.1 * (len(alone.taken["a"]) - len(out.taken["a"])) == pytest.approx(100, abs=1)
    # until its first orders are paid, one that needs more than an even part has its first reading only
    assert out.taken["a"][0] == 0 and out.taken["a"][1] > 1190


def test_an_order_does_not_starve_a_probe_that_fits():
    """Or a spectrum of 500 s at the start would leave a hole in the norms that is hours long."""
    probes = {"order": dyn.at([0], nothing), "norms": every(10), "expensive": every(10)}
    out = simulate(probes, {"order": 500.0, "norms": 0.01, "expensive": 2.0})
    assert out.taken["norms"] == out.due["norms"] and out.taken["expensive"] == [0]


def test_a_schedule_of_the_users_is_an_order():
    probe = dyn.Probe(nothing, lambda step: step % 2 == 0)
    out = simulate({"a": probe}, {"a": 9.0}, steps=100)
    assert out.taken == out.due


def test_hooks_beyond_the_budget_leave_no_room():
    out = simulate({"a": every(1), "late": every(1, first=7)}, {"a": 0.1, "late": 0.1}, other=0.06)
    assert out.taken == {"a": [0], "late": [7]} and out.shares[-1] == pytest.approx(0.06, rel=0.01)


def test_pauses_do_not_buy_readings():
    """Validation, or a reader who thinks, is not training that recording may be charged to."""
    bare = simulate(**SITUATIONS["one"], steps=1000)
    CLOCK.now = 0.0
    paused = simulate(**SITUATIONS["one"], steps=1000, pauses=(100, 500, 900))
    assert paused.ledger.training < 1000 + 3 * 15
    assert len(paused.taken["a"]) - len(bare.taken["a"]) in (0, 1)


def test_a_probe_that_grows_dearer_is_thinned_more():
    probes, costs = {"a": every(10)}, {"a": 0.1}
    ledger, counts = Ledger(0.05, probes), []
    for step in range(20_000):
        if step == 10_000:
            costs["a"] = 5.0
            counts.append(ledger.costs["a"].taken)
        ledger.stepping()
        CLOCK.now += 1.0
        ledger.recording()
        if step % 10 == 0 and ledger.due("a"):
            CLOCK.now += costs["a"]
            ledger.charge("a", costs["a"])
    assert counts == [1000] and ledger.costs["a"].taken < 1250
    assert 0.04 < ledger.share < 0.06


@pytest.mark.parametrize("budget", [0, 0.0, -0.1, math.nan, math.inf, "0.05", "5%", 1, True, [0.05]])
def test_budgets_that_are_none(budget):
    for refuse in (
        lambda: Ledger(budget, {}),
        lambda: train(budget=budget),
        lambda: dyn.watch(net := nn.Linear(2, 2), torch.optim.SGD(net.parameters()), budget=budget),
    ):
        with pytest.raises(DynamicsError, match=r"budget is a share of training time, such as 0.05, got") as error:
            refuse()
        assert "\n" not in str(error.value)


def test_the_ledger_as_text():
    assert "nan" in str(Ledger(None, {"a": every(1)}))
    text = str(simulate(**SITUATIONS["cheap and expensive"], other=0.01).ledger).splitlines()
    assert text[0].split() == ["probe", "due", "taken", "thinned", "ms", "each", "share"]
    cheap, expensive = (line.split() for line in text[1:3])
    assert cheap == ["cheap", "500", "500", "0", "50.000", "0.50%"]
    assert expensive[:2] == ["expensive", "500"] and int(expensive[2]) + int(expensive[3]) == 500
    assert text[3].startswith("hooks, logs and chunks 1.00%; in all 4.90% of 5000.0 s of training") and text[
        3
    ].endswith("budget 5.0%")
    assert len({line.index("   ") for line in text[1:2]}) == 1 and max(map(len, text)) < 100


def test_the_ledger_as_a_reading():
    read = simulate(**SITUATIONS["cheap and expensive"], other=0.01).ledger.reading()
    assert read["probe"] == ["cheap", "expensive"]
    assert read["due"][1].tolist() == [500, 500] and read["taken"][1][0] == 500
    assert read["seconds"][1][0] == pytest.approx(25) and read["seconds"][2] == {"units": "s"}
    assert read["other_seconds"][1] == pytest.approx(50) and read["training_seconds"][1] == 5000
    assert read["share"][1] == pytest.approx((read["seconds"][1].sum() + 50) / 5000)


# --- the same in the loops


class Ticking(nn.Module):
    """A net whose forward pass takes a second."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        CLOCK.now += 1.0
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


@dyn.reads("params")
def costly(snap):
    CLOCK.now += 1.0
    return {"norm": snap.params["linear.weight"].norm()}


@dyn.reads("params", "buffers")
def cheap(snap):
    CLOCK.now += 0.01
    return {"mean": snap.buffers["norm.running_mean"].mean()}


RECIPE = toy_recipe(net=dyn.Net("test_budget:Ticking"), epochs=50)
TRAIN = toy_split()
PROBES = {"costly": dyn.every(5, costly), "cheap": dyn.every(5, cheap), "order": dyn.at([0, 7, 50], costly)}


def train(**given) -> dyn.Run:
    return dyn.train(RECIPE, TRAIN, progress=False, **given)


def assert_same_state(a: dyn.Run, b: dyn.Run) -> None:
    assert_same(dict(a.state.params), dict(b.state.params))
    assert_same(dict(a.state.buffers), dict(b.state.buffers))
    assert_same(a.state.opt["velocity"], b.state.opt["velocity"])
    assert a["train"].identical(b["train"]) and a["hyperparameters"].identical(b["hyperparameters"])


@pytest.fixture(scope="module")
def bare() -> dyn.Run:
    return train()


def test_train_keeps_to_its_budget(bare):
    run = train(probes=PROBES, budget=0.05, chunk_steps=50)
    assert_same_state(run, bare)
    ledger = run["ledger"]
    assert ledger.step.values.tolist() == [50, 100, 150]  # a row a chunk, totals so far
    last = ledger.isel(step=-1)
    # 7.5 s for 150 steps, of which the orders take 3 and the cheap one 0.3
    assert 0.045 < float(last.share) < 0.055
    assert last.due.sel(probe="costly") == 31 and last.taken.sel(probe="costly") == run["costly"].step.size < 6
    assert last.taken.sel(probe="cheap") == run["cheap"].step.size == 31
    assert run["order"].step.values.tolist() == [0, 7, 50]
    assert float(last.training_seconds) == pytest.approx(150, abs=1.5)
    assert set(run["costly"].step.values) <= set(range(0, 151, 5))
    assert run.manifest["budget"] == 0.05


def test_thinned_readings_are_those_of_their_steps(bare):
    whole, thinned = train(probes=PROBES), train(probes=PROBES, budget=0.05)
    steps = thinned["costly"].step.values
    assert 1 < len(steps) < whole["costly"].step.size
    assert thinned["costly"].identical(whole["costly"].sel(step=steps))


def test_without_a_budget_there_is_no_ledger(tmp_path):
    a, b = train(probes=PROBES, chunk_steps=50), train(probes=PROBES, chunk_steps=50, out=tmp_path / "r")
    assert "ledger" not in a and list(a.readings) == list(b.readings)
    assert all(a[name].identical(b[name]) for name in a.readings)
    assert a["costly"].step.values.tolist() == list(range(0, 151, 5))


@pytest.mark.parametrize("keep", [1, 3])
def test_a_run_with_a_budget_can_be_resumed(tmp_path, keep, bare):
    folder = tmp_path / "r"
    whole = train(probes=PROBES, budget=0.05, chunk_steps=50, out=folder)
    for path in sorted(folder.glob("chunk-*"))[keep:]:
        path.unlink()
    resumed = dyn.resume(folder, TRAIN, probes=PROBES, progress=False)
    assert_same_state(resumed, whole)
    assert_same_state(resumed, bare)
    assert resumed["ledger"].step.values.tolist() == [50, 100, 150] and resumed.status == "finished"
    assert resumed["ledger"].isel(step=slice(keep - 1)).identical(whole["ledger"].isel(step=slice(keep - 1)))
    assert resumed["cheap"].step.values.tolist() == list(range(0, 151, 5))


def loop(model, optimizer, steps, *, closure=False, pause=None):
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        x, y = torch.randn(4, 3, 4, 4, generator=draw), torch.arange(4)
        if step == pause:
            CLOCK.now += 10_000.0

        def loss(x=x, y=y):
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model(x), y)
            value.backward()
            return value

        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()


def build(closure: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Ticking(4)
    kind = torch.optim.LBFGS if closure else torch.optim.AdamW
    return model, kind(model.parameters(), lr=0.01, **({"max_iter": 2} if closure else {}))


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("pause", [None, 75])
def test_watch_keeps_to_its_budget(closure, pause):
    left, steps = [], 150
    for follow in (False, True):
        CLOCK.now = 0.0
        model, optimizer = build(closure)
        if follow:
            rec = dyn.watch(model, optimizer, probes=PROBES, budget=0.05, chunk_steps=50)
        loop(model, optimizer, steps, closure=closure, pause=pause)
        left.append({k: p.detach() for k, p in model.named_parameters()})
        if not follow:
            seconds = CLOCK.now - (10_000 if pause else 0)
    assert_same(*left)
    rec.detach()
    ledger = rec["ledger"].isel(step=-1)
    # the first forward pass is over before the recorder hears of the loop; a pause counts as ten intervals at most
    assert seconds - 1 <= float(ledger.training_seconds) <= seconds + (10 * seconds / steps if pause else 0)
    assert 0.045 < float(ledger.share) < 0.06
    assert rec["cheap"].step.size == 30 and rec["order"].step.values.tolist() == [0, 7, 50]
    assert rec["costly"].step.size == int(ledger.taken.sel(probe="costly")) < 30
    assert "budget 5.0%" in str(rec.ledger)


def test_the_ledger_of_a_watched_run_at_any_time(tmp_path):
    model, optimizer = build()
    rec = dyn.watch(model, optimizer, probes=PROBES, budget=0.05, chunk_steps=2, out=tmp_path / "r")
    for steps in range(1, 7):
        loop(model, optimizer, 1)
        assert rec["ledger"].step.values.tolist() == [*range(2, steps, 2), steps]
        assert int(rec["ledger"].due.sel(probe="cheap")[-1]) == 1 + (steps > 5)
        assert rec.run()["ledger"].identical(rec["ledger"])
    rec.detach()  # at the step of the last chunk: the totals are there already
    assert rec["ledger"].step.values.tolist() == [2, 4, 6]
    run = dyn.load_run(tmp_path / "r")
    assert run.status == "finished" and run["ledger"].identical(rec["ledger"]) and run.manifest["budget"] == 0.05


def test_a_watch_without_a_budget_has_a_ledger_to_look_at_and_none_in_the_run():
    model, optimizer = build()
    with dyn.watch(model, optimizer, probes=PROBES) as rec:
        loop(model, optimizer, 11)
    assert "ledger" not in rec and "ledger" not in rec.run()
    assert rec["costly"].step.values.tolist() == [0, 5, 10]
    assert rec.ledger.share == pytest.approx((5 * 1 + 3 * 0.01) / 10) and "no budget" in str(rec.ledger)


def test_no_clock_is_read_outside_of_the_two_modules_that_these_tests_replace():
    """Or the tests above would see another machine's load."""
    sources = Path(dyn.__file__).parent.joinpath("runs").glob("*.py")
    assert {p.stem for p in sources if "perf_counter" in p.read_text()} == {"budget", "measure"}
