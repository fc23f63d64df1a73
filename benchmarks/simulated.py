"""Do the statistics keep their promises? Simulated runs with a known effect, judged by the functions themselves.

    python benchmarks/simulated.py                   # 2,000 trials a row
    python benchmarks/simulated.py --trials 20000 --json

Three promises: 95 % intervals hold the truth in 93 to 97 % of trials; a claim that is false, if only just, is found
supported in at most 6 %; the power that was foretold is the share of trials that find the effect, to 5 points. A share
of 5 % from 2,000 trials has a standard error of 0.5 points.

Noise of a run is normal unless a row says otherwise. *Accuracies* are whole images out of 2,000, of partners that
share their seed's luck. "Makes no difference" is tested where the difference is exactly the margin. The third table is
of noise for which nothing is promised, since Student's t assumes normal runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from _common import machine, parse, parser, print_header, print_json, print_table

from dynamics import stats

Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]


def normal(n: int, effect: float = 0.0, *, m: int | None = None, sds: tuple[float, float] = (1, 1)) -> Draw:
    """Runs of a and b without common seeds; the truth of a - b is `effect`."""
    return lambda rng: (rng.normal(effect, sds[0], n), rng.normal(0, sds[1], m or n))


def pairs(n: int, effect: float = 0.0, *, noise: str = "normal") -> Draw:
    """Pairs that share the luck of their seed; the sd of a difference is 1 for normal noise."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        luck = rng.normal(0, 2, n)
        if noise == "heavy":
            own = rng.standard_t(3, (2, n))
        elif noise == "skewed":
            own = rng.lognormal(0, 1, (2, n))
        else:
            own = rng.normal(0, math.sqrt(0.5), (2, n))
        return luck + own[0] + effect, luck + own[1]

    return draw


def accuracies(n: int, effect: float = 0.0) -> Draw:
    """Shares of 2,000 test images, about 94 %."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        base = 0.94 + rng.normal(0, 0.0015, n)
        return rng.binomial(2000, base + effect) / 2000, rng.binomial(2000, base) / 2000

    return draw


def answers(n: int, only_a: float, only_b: float) -> Draw:
    """Which of n images each of two models has right; the truth of the difference is only_a - only_b."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        u = rng.random(n)
        both = u > 0.1 + only_a + only_b
        return both | (u < only_a), both | ((u >= only_a) & (u < only_a + only_b))

    return draw


def share(draw: Draw, trials: int, seed: tuple[int, ...], holds: Callable[..., bool]) -> float:
    rng = np.random.default_rng(seed)
    return sum(bool(holds(*draw(rng))) for _ in range(trials)) / trials


def within(interval: Callable[..., tuple], truth: float) -> Callable[..., bool]:
    def holds(a: np.ndarray, b: np.ndarray) -> bool:
        found = interval(a, b)
        return found.low <= truth <= found.high

    return holds


def supported(**arguments: object) -> Callable[..., bool]:
    return lambda a, b: stats.compare(a, b, **arguments).status == "supported"


def coverage_rows() -> list[tuple[str, Draw, Callable[..., bool]]]:
    paired, two = stats.paired_difference, stats.welch
    unpaired_effect = lambda a, b: stats.effect_size(a, b, paired=False)  # noqa: E731
    return [
        ("mean_interval, n = 3", normal(3, 0.7), within(lambda a, b: stats.mean_interval(a), 0.7)),
        *((f"paired_difference, n = {n}", pairs(n, 0.7), within(paired, 0.7)) for n in (2, 3, 5, 10, 30)),
        ("paired_difference, accuracies, n = 5", accuracies(5, 0.003), within(paired, 0.003)),
        ("paired_difference, accuracies, n = 20", accuracies(20, 0.003), within(paired, 0.003)),
        ("welch, n = 5 and 5", normal(5, 0.7), within(two, 0.7)),
        ("welch, n = 5 and 20, sd 1 and 3", normal(5, 0.7, m=20, sds=(1, 3)), within(two, 0.7)),
        ("welch, n = 5 and 20, sd 3 and 1", normal(5, 0.7, m=20, sds=(3, 1)), within(two, 0.7)),
        ("effect_size, d_z, n = 5", pairs(5, 0.7), within(stats.effect_size, 0.7)),
        ("effect_size, g, n = 5 and 5", normal(5, 0.7), within(unpaired_effect, 0.7)),
        ("mcnemar, 2,000 images, 2 % and 3 %", answers(2000, 0.02, 0.03), within(stats.mcnemar, -0.01)),
        ("mcnemar, 100 images, 8 % and 3 %", answers(100, 0.08, 0.03), within(stats.mcnemar, 0.05)),
    ]


def alarm_rows() -> list[tuple[str, Draw, Callable[..., bool]]]:
    def family(a: np.ndarray, b: np.ndarray) -> bool:
        p = [stats.paired_difference(*part).p for part in zip(np.split(a, 10), np.split(b, 10), strict=True)]
        return any(stats.holm(p).rejected)

    return [
        *((f'compare "different", n = {n}', pairs(n), supported()) for n in (2, 5, 10)),
        ('compare "different", accuracies, n = 3', accuracies(3), supported()),
        ('compare "different", accuracies, n = 5', accuracies(5), supported()),
        ('compare "greater", n = 5', pairs(5), supported(claim="greater")),
        ('compare "different", n = 5 and 20, sd 3 and 1', normal(5, m=20, sds=(3, 1)), supported(paired=False)),
        ('compare "same", n = 8, at the margin', pairs(8, 2.0), supported(margin=2.0)),
        ('compare "same", n = 20, at the margin', pairs(20, -1.0), supported(margin=1.0)),
        ('compare "same", accuracies, n = 10, at the margin', accuracies(10, 0.01), supported(margin=0.01)),
        ('compare "same", n = 10 and 10, at the margin', normal(10, 2.0), supported(margin=2.0, paired=False)),
        ("wilcoxon, n = 8", pairs(8), lambda a, b: stats.wilcoxon(a, b).p <= 0.05),
        ("holm, ten hypotheses, n = 5 each", pairs(50), family),
        ("mcnemar, 2,000 images", answers(2000, 0.03, 0.03), lambda a, b: stats.mcnemar(a, b).p <= 0.05),
    ]


def stress_rows() -> list[tuple[str, Draw, Callable[..., bool]]]:
    skewed: Draw = lambda rng: (rng.lognormal(0, 1, 5), rng.lognormal(0, 1, 5))  # noqa: E731
    mean, paired = within(lambda a, b: stats.mean_interval(a), math.exp(0.5)), within(stats.paired_difference, 0)
    return [
        (
            "paired_difference, heavy tails (t, 3 df), n = 5",
            pairs(5, noise="heavy"),
            within(stats.paired_difference, 0),
        ),
        ("paired_difference, lognormal, n = 5", pairs(5, noise="skewed"), paired),
        ("welch, lognormal, n = 5 and 5", skewed, within(stats.welch, 0)),
        ("mean_interval, lognormal, n = 5", skewed, mean),
    ]


def power_rows() -> list[tuple[str, float, Draw, Callable[..., bool]]]:
    rows: list[tuple[str, float, Draw, Callable[..., bool]]] = []
    for effect in (0.5, 1.0, 2.0):
        n = stats.runs_needed(effect, 1)
        rows.append((f"{effect:g} sd, {n} pairs", stats.power_of(n, effect, 1), pairs(n, effect), supported()))
    for n, effect in ((5, 1.0), (3, 1.5)):
        rows.append((f"{effect:g} sd, {n} pairs", stats.power_of(n, effect, 1), pairs(n, effect), supported()))
    for effect in (0.8, 1.5):
        n = stats.runs_needed(effect, 1, paired=False)
        foretold = stats.power_of(n, effect, 1, paired=False)
        rows.append((f"{effect:g} sd, {n} runs a side", foretold, normal(n, effect), supported(paired=False)))
    for margin, effect in ((1.0, 0.0), (1.0, 0.4)):
        n = stats.runs_needed_for_equivalence(margin, 1, effect=effect)
        foretold = stats.equivalence_power(n, effect, 1, margin=margin)
        name = f"same within {margin:g} sd, truly {effect:g}, {n} pairs"
        rows.append((name, foretold, pairs(n, effect), supported(margin=margin)))
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--trials", type=int, default=2000, help="simulated comparisons a row (default 2000)")
    made.add_argument("--seed", type=int, default=0)
    args = parse(made, trials=50)
    about = machine(args.threads)
    print_header(f"Statistics on simulated runs: {args.trials:,} trials a row, seed {args.seed}", about, args.quick)

    def shares(table: int, rows: list[tuple[str, Draw, Callable[..., bool]]]) -> dict[str, float]:
        return {row[0]: share(row[1], args.trials, (args.seed, table, i), row[2]) for i, row in enumerate(rows)}

    covered, alarms, stress = shares(0, coverage_rows()), shares(1, alarm_rows()), shares(3, stress_rows())
    for title, right, table in (
        ("95 % interval", "holds the truth", covered),
        ("false claim", "supported", alarms),
        ("95 % interval, not normal", "holds the truth", stress),
    ):
        print_table((title, right), [(name, f"{100 * part:.1f} %") for name, part in table.items()])
    power = {
        name: {"foretold": foretold, "found": share(draw, args.trials, (args.seed, 2, row), holds)}
        for row, (name, foretold, draw, holds) in enumerate(power_rows())
    }
    print_table(
        ("true effect", "power foretold", "found"),
        [(name, *(f"{100 * part:.1f} %" for part in row.values())) for name, row in power.items()],
    )
    result = {
        "trials": args.trials,
        "coverage": [min(covered.values()), max(covered.values())],
        "false_alarms": max(alarms.values()),
        "power_error": max(abs(row["foretold"] - row["found"]) for row in power.values()),
    }
    print(
        f"coverage {100 * result['coverage'][0]:.1f} to {100 * result['coverage'][1]:.1f} % (promised 93 to 97), "
        f"false alarms at most {100 * result['false_alarms']:.1f} % (6), "
        f"power off by at most {100 * result['power_error']:.1f} points (5)"
    )
    if args.json:
        rows = {"coverage": covered, "false_alarms": alarms, "power": power, "not_normal": stress}
        print_json({**result, "rows": rows}, about)


if __name__ == "__main__":
    main()
