"""What a Hessian-vector product and ten eigenpairs cost, and how far they can be trusted, beside three other ways.

    python benchmarks/curvature.py --json              # some 40 minutes on two free cores
    python benchmarks/curvature.py --skip pyhessian    # the same without the longest part
    python benchmarks/curvature.py --full              # and how cost grows with images, width and k

The net is Page's eight-layer one of post 7 at its initial weights, the loss cross-entropy with labels smoothed by 1/3,
the images the first of the embedded training data in one batch, all on the CPU in float32. THE UNIT is one gradient of
the same net with torch's own BatchNorm2d, in channels_last and training mode. It is timed in turn with each other
thing, who goes first alternating; a ratio is the median over n such pairs, with its smallest and largest.

products     one product of `Hessian`, which runs in channels_last: graph kept, and rebuilt (memory=0); and naive
             double backward through torch's layers, contiguous, which suits it better, kept and rebuilt
errors       |product - exact| / |exact|, the largest over a few random vectors; exact is `Hessian` of the float64
             net, itself compared with double backward through torch's layers in float64
eigsh        ten eigenpairs of largest eigenvalue, to residual 1e-3 of the largest, batch norm in training mode:
             `top_eigenpairs` beside scipy's eigsh over the naive product, whose tol is the loosest with which its
             residuals meet the same goal; nothing is compiled. Building the graph is counted on both sides
eigenthings  hessian-eigenthings 1.0 on the same problem, given as many products as ours took without the search for
             missed eigenvalues, which neither of the two others has; eigsh is compared with that too
pyhessian    the same by magnitude, with running statistics, which is all that PyHessian sees; its tol is tightened
             until its residuals meet the goal too, and it is stopped at 22 times our time: then the ratio is a bound.
             It may take 66 times our time in all
memory       peak memory and time of a product over many batches, in a process of its own

Residuals in the tables are true ones: |Hv - λv| / λ1 of unit v, by fresh float64 products.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _common import ROOT, machine, parse, parser, print_header, print_json, print_table
from torch import Tensor, nn

import dynamics as dyn
from dynamics.curvature import Hessian, top_eigenpairs
from dynamics.curvature.eigen import residual_norms
from dynamics.nets import BatchNorm

PARTS = ("products", "errors", "eigsh", "eigenthings", "pyhessian", "memory")
GOAL = 1e-3  # of the largest eigenvalue: what every residual is to meet
ROUGH = 1e-2  # the same where only the growth of cost is asked
PATIENCE = 22.0  # times our time, after which PyHessian is stopped
BEGIN = time.perf_counter()


class Problem(NamedTuple):
    """A net in channels_last with one batch, the same with torch's norms, and that one contiguous."""

    net: nn.Module
    x: Tensor
    y: Tensor
    torchs: nn.Module
    naive: nn.Module

    @property
    def flat_x(self) -> Tensor:
        return self.x.contiguous()


class Ratio(NamedTuple):
    """Times over those of the unit measured beside them: median, smallest, largest; and median seconds."""

    median: float
    low: float
    high: float
    n: int
    seconds: float


class Solved(NamedTuple):
    """Eigenpairs and what they cost; `worst` is the largest true residual over the largest |eigenvalue|."""

    values: Tensor
    vectors: Tensor
    seconds: float
    products: int
    worst: float | None = None


def say(text: str) -> None:
    """A line of progress, beside the tables and not among them."""
    print(f"[{time.perf_counter() - BEGIN:6.0f} s] {text}", file=sys.stderr, flush=True)


# the problem


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=1 / 3)


def with_torchs_norm(net: nn.Module) -> nn.Module:
    """A copy whose norms are torch's BatchNorm2d with the same weights, statistics and settings."""
    net = copy.deepcopy(net)
    for path, norm in [(p, m) for p, m in net.named_modules() if isinstance(m, BatchNorm)]:
        if (norm.weight is None) != (norm.bias is None):
            raise ValueError(f"{path} learns one of scale and bias, which torch's norm cannot")
        theirs = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, affine=norm.weight is not None)
        theirs.load_state_dict(norm.state_dict(), strict=False)  # theirs also counts batches
        above, _, name = path.rpartition(".")
        setattr(net.get_submodule(above), name, theirs.to(norm.running_mean.dtype))
    return net


def images_and_labels(n: int) -> tuple[Tensor, Tensor]:
    train = dyn.load_data("shapes", limit=n, progress=False, device="cpu").train
    if len(train) < n:
        raise SystemExit(f"the embedded data has {len(train)} training images, not {n}")
    return train.padded().permute(0, 3, 1, 2), train.labels  # channels_last as it lies


def make_problem(width: int, act: str, images: int) -> Problem:
    """Norms' running statistics are those of the batch, so that frozen ones are of the right scale."""
    x, y = images_and_labels(images)
    net = dyn.Net("plain8", width=width, act=act).build(classes=10, seed=0).train()
    norms = [(m, m.momentum) for m in net.modules() if isinstance(m, BatchNorm)]
    with torch.no_grad():
        for norm, _ in norms:
            norm.momentum = 1.0
        value = float(loss(net(x.contiguous()), y))
        for norm, momentum in norms:
            norm.momentum = momentum
    naive = with_torchs_norm(net)
    with torch.no_grad():
        theirs = float(loss(copy.deepcopy(naive)(x.contiguous()), y))
    if abs(theirs - value) > 1e-5 * abs(value):
        raise SystemExit(f"the net with torch's norms is another: loss {theirs}, not {value}")
    net = net.to(memory_format=torch.channels_last)
    return Problem(net, x, y, copy.deepcopy(naive).to(memory_format=torch.channels_last), naive)


def gradient_unit(p: Problem) -> Callable[[], Any]:
    params = list(p.torchs.parameters())
    return lambda: torch.autograd.grad(loss(p.torchs(p.x), p.y), params)


def naive_product(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Double backward through torch's own layers; the graph of the gradient is built here and kept."""
    params = list(net.parameters())
    grads = torch.autograd.grad(loss(net(x), y), params, create_graph=True)
    sizes = [w.numel() for w in params]

    def product(v: Tensor) -> Tensor:
        parts = [part.view_as(w) for part, w in zip(v.split(sizes), params, strict=True)]
        found = torch.autograd.grad(grads, params, parts, retain_graph=True)
        return torch.cat([t.reshape(-1) for t in found])

    return product


def ours(p: Problem, *, bn: str = "batch", memory: int | None = None) -> Hessian:
    return Hessian(p.net, loss, [(p.x, p.y)], bn=bn, memory=memory)


def exact(p: Problem, bn: str = "batch") -> Hessian:
    """The float64 net's, whose layout does not matter. Its graph, twice as large, should not outlive its use."""
    return Hessian(copy.deepcopy(p.net).double(), loss, [(p.x.double(), p.y)], bn=bn)


def random_vectors(n: int, k: int) -> Tensor:
    """Unit vectors [k, n]."""
    return F.normalize(torch.randn(k, n, generator=torch.Generator().manual_seed(1)), dim=1)


def count(net: nn.Module) -> int:
    return sum(w.numel() for w in net.parameters())


# clocks


def seconds(what: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def in_units(unit: Callable[[], Any], things: dict[str, Callable[[], Any]], n: int) -> dict[str, Ratio]:
    """Each thing in turn with the unit, n pairs of each; the unit itself as "gradient", of all its measurements."""
    units: list[float] = []
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in things}
    for what in (unit, *things.values()):  # first calls reserve memory
        what()
    for pair in range(n):
        for name, thing in things.items():
            if pair % 2:
                took, one = seconds(thing), seconds(unit)
            else:
                one, took = seconds(unit), seconds(thing)
            units.append(one)
            times[name].append((took, one))
    middle = median(units)
    found = {"gradient": Ratio(1.0, min(units) / middle, max(units) / middle, len(units), middle)}
    for name, pairs in times.items():
        ratios = [took / one for took, one in pairs]
        found[name] = Ratio(median(ratios), min(ratios), max(ratios), n, median(took for took, _ in pairs))
    return found


def attempt(part: str, what: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a part, or what went wrong: the others go on without it."""
    say(part)
    try:
        return what()
    except Exception as error:
        line = f"{part} failed: {type(error).__name__}: {error}".splitlines()[0]
        print(f"{line}\n", flush=True)
        return {f"{part}_error": line}
    finally:
        gc.collect()


# products and errors


def products(args: argparse.Namespace) -> dict[str, Any]:
    rows = []
    found: dict[str, dict[str, Ratio]] = {}
    for act in ("relu", "softplus"):
        p = make_problem(args.width, act, args.images)
        found[act] = products_of_ours(p, args.repeats) | products_of_torch(p, args.repeats)
        gc.collect()
        rows += [
            (f"{act}: {k}", f"{r.median:.2f}", f"{r.low:.2f} to {r.high:.2f}", r.n, f"{r.seconds:.3f}")
            for k, r in found[act].items()
        ]
        say(f"products, {act}: {found[act]['ours, kept'].median:.2f} gradients with the graph kept")
    print("cost of one product, in gradients (torch's norm, channels_last); eager, nothing is compiled")
    print_table(("", "median", "smallest to largest", "pairs", "seconds"), rows)

    def worse(name: str) -> float:
        return max(ratios[name].median for ratios in found.values())

    return {
        "hvp_in_gradients": worse("ours, kept"),
        "hvp_eager_in_gradients": worse("ours, kept"),
        "hvp_rebuilt_in_gradients": worse("ours, rebuilt"),
        "naive_hvp_in_gradients": worse("naive, kept"),
        "naive_hvp_rebuilt_in_gradients": worse("naive, rebuilt"),
        "compile_seconds": None,
        "products_by_activation": {act: {k: r._asdict() for k, r in ratios.items()} for act, ratios in found.items()},
    }


def products_of_ours(p: Problem, n: int) -> dict[str, Ratio]:
    v, kept, anew = random_vectors(count(p.net), 1)[0], ours(p), ours(p, memory=0)
    return in_units(
        gradient_unit(p), {"ours, kept": lambda: kept.matvec(v), "ours, rebuilt": lambda: anew.matvec(v)}, n
    )


def products_of_torch(p: Problem, n: int) -> dict[str, Ratio]:
    v, x = random_vectors(count(p.net), 1)[0], p.flat_x
    kept = naive_product(p.naive, x, p.y)
    things = {"naive, kept": lambda: kept(v), "naive, rebuilt": lambda: naive_product(p.naive, x, p.y)(v)}
    found = in_units(gradient_unit(p), things, n)
    del found["gradient"]  # shown once, from beside ours
    return found


def errors(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, dict[str, float]] = {}
    for act in ("relu", "softplus"):
        p = make_problem(args.width, act, args.images)
        vectors = random_vectors(count(p.net), args.vectors)
        wanted = exact(p).matmat(vectors.double().T).T
        found[act] = {
            "ours": worst_error(ours(p).matvec, vectors, wanted),
            "naive_contiguous": worst_error(naive_product(p.naive, p.flat_x, p.y), vectors, wanted),
            "naive_channels_last": worst_error(naive_product(p.torchs, p.x, p.y), vectors, wanted),
        }
        gc.collect()
        double = naive_product(copy.deepcopy(p.naive).double(), p.flat_x.double(), p.y)
        found[act]["reference"] = worst_error(double, vectors[:1].double(), wanted[:1])
        del double
        gc.collect()
        say(f"errors, {act}: {found[act]['ours']:.1e}")
    print(f"relative error of float32 products, norm in training mode, largest over {args.vectors} random vectors;")
    print("the last column compares what is taken for exact with double backward in float64, for one of them")
    columns = ("", "ours, channels_last", "naive, contiguous", "naive, channels_last", "exact and torch's")
    print_table(columns, [(act, *(f"{e:.1e}" for e in each.values())) for act, each in found.items()])
    return {
        "relative_error": max(each["ours"] for each in found.values()),
        "naive_relative_error": max(each["naive_contiguous"] for each in found.values()),
        "errors_by_activation": found,
    }


def worst_error(product: Callable[[Tensor], Tensor], vectors: Tensor, wanted: Tensor) -> float:
    found = torch.stack([product(v) for v in vectors]).double()
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


# eigenpairs


def certified(solved: Solved, p: Problem, bn: str = "batch") -> Solved:
    """With the largest true residual, of unit vectors."""
    vectors = F.normalize(solved.vectors.double(), dim=0)
    residuals = residual_norms(exact(p, bn), solved.values, vectors)
    gc.collect()
    return solved._replace(worst=float(residuals.max() / solved.values.abs().max()))


def solve(p: Problem, k: int, *, bn: str, which: str, check: bool = True, tol: float = GOAL) -> Solved:
    begin = time.perf_counter()
    op = ours(p, bn=bn)
    with warnings.catch_warnings():  # what did not converge is seen in the true residuals
        warnings.simplefilter("ignore", UserWarning)
        pairs = top_eigenpairs(op, k, which=which, tol=tol, check=check, progress=False)
    return Solved(pairs.values, pairs.vectors, time.perf_counter() - begin, pairs.products)


def solve_eigsh(p: Problem, args: argparse.Namespace, tol: float, memo: dict[bytes, Any] | None = None) -> Solved:
    """scipy's, over the naive product. memo: products known from calls with another tol, whose vectors are the same
    until one of them stops: with it, finding the right tol costs little, and the seconds mean nothing."""
    import numpy as np
    from scipy.sparse.linalg import LinearOperator, eigsh

    begin = time.perf_counter()
    product, n, made = naive_product(p.naive, p.flat_x, p.y), count(p.naive), 0

    def matvec(v: Any) -> Any:
        nonlocal made
        made += 1
        key = v.tobytes() if memo is not None else b""
        if memo is None or key not in memo:
            out = product(torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32).reshape(-1))).numpy()
            if memo is None:
                return out
            memo[key] = out
        return memo[key]

    start = random_vectors(n, 1)[0].numpy()
    op = LinearOperator((n, n), matvec=matvec, dtype=np.float32)
    values, vectors = eigsh(op, args.k, which="LA", tol=tol, v0=start)
    took = time.perf_counter() - begin
    return Solved(torch.from_numpy(values[::-1].copy()).double(), torch.from_numpy(vectors[:, ::-1].copy()), took, made)


def row_of(name: str, s: Solved, ratio: float | str) -> tuple[str, ...]:
    worst = "" if s.worst is None else f"{s.worst:.1e}"
    return name, f"{s.seconds:.2f}", str(s.products), worst, ratio if isinstance(ratio, str) else f"{ratio:.2f}"


COLUMNS = ("", "seconds", "products", "largest residual / λ1", "time / ours")


def beside_eigsh(p: Problem, args: argparse.Namespace) -> dict[str, Any]:
    checked = certified(solve(p, args.k, bn="batch", which="largest"), p)
    unchecked = certified(solve(p, args.k, bn="batch", which="largest", check=False), p)
    say(f"eigsh: ours took {checked.seconds:.1f} s; looking for eigsh's tol")
    goal = max(GOAL, checked.worst or 0.0)
    memo: dict[bytes, Any] = {}
    theirs = None
    for tol in (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4):
        found = solve_eigsh(p, args, tol, memo)
        # after equally many products they are the same pairs
        theirs = theirs if theirs and theirs.products == found.products else certified(found, p)
        say(f"eigsh: tol {tol:g} gives residual {theirs.worst:.1e} after {theirs.products} products")
        if theirs.worst <= goal:
            break
    met = theirs.worst <= goal
    memo.clear()
    gc.collect()
    times: dict[str, list[float]] = {"eigsh": [], "ours": [], "unchecked": []}
    for repeat in range(args.solves):
        run = {
            "ours": lambda: solve(p, args.k, bn="batch", which="largest"),
            "eigsh": lambda: solve_eigsh(p, args, tol),
            "unchecked": lambda: solve(p, args.k, bn="batch", which="largest", check=False),
        }
        for name in list(run) if repeat % 2 == 0 else reversed(list(run)):
            times[name].append(run[name]().seconds)
            gc.collect()
        say(f"eigsh: round {repeat + 1} of {args.solves}")
    ratio, bare = (median(a / b for a, b in zip(times["eigsh"], times[k], strict=True)) for k in ("ours", "unchecked"))
    ours_, theirs, unchecked = (
        s._replace(seconds=median(times[k]))
        for s, k in ((checked, "ours"), (theirs, "eigsh"), (unchecked, "unchecked"))
    )
    print(
        f"{args.k} largest eigenpairs, batch norm in training mode, residuals to {goal:.1e} λ1 "
        f"(medians of n = {args.solves}; graph building counted; eigsh with scipy's own ncv)"
    )
    if not met:
        print("eigsh never met the goal: its row is for the tightest tol tried, and the ratio too low")
    print_table(
        COLUMNS,
        [
            row_of("ours", ours_, 1.0),
            row_of("ours, no search for missed ones", unchecked, unchecked.seconds / ours_.seconds),
            row_of(f"eigsh over the naive product, tol {tol:g}", theirs, ratio),
        ],
    )
    apart = float((ours_.values - theirs.values).abs().max() / ours_.values.abs().max())
    print(f"eigenvalues of the two differ by at most {apart:.1e} λ1\n", flush=True)
    return {
        "naive_eigsh_ratio": ratio,
        "naive_eigsh_ratio_unchecked": bare,
        "eigsh": {
            "ours_seconds": times["ours"], "unchecked_seconds": times["unchecked"], "eigsh_seconds": times["eigsh"],
            "ours_products": ours_.products, "unchecked_products": unchecked.products,
            "eigsh_products": theirs.products,
            "ours_residual": ours_.worst, "unchecked_residual": unchecked.worst, "eigsh_residual": theirs.worst,
            "eigsh_tol": tol, "eigsh_met_goal": met, "values_differ": apart, "values": ours_.values.tolist(),
            "n": args.solves,
        },
    }  # fmt: skip


def beside_eigenthings(p: Problem, args: argparse.Namespace) -> dict[str, Any]:
    try:
        from hessian_eigenthings.algorithms import lanczos
        from hessian_eigenthings.operators import HessianOperator
    except ImportError as error:
        mend = "pip install --pre 'hessian-eigenthings>=1.0.0a5' in an environment of its own, which needs this one too"
        print(f"hessian-eigenthings 1.0 is left out ({error}): {mend}\n", flush=True)
        return {"eigenthings_ratio": None}
    before = solve(p, args.k, bn="batch", which="largest", check=False)
    say(f"eigenthings: ours took {before.seconds:.1f} s and {before.products} products")
    begin = time.perf_counter()
    op = HessianOperator(p.naive, [(p.flat_x, p.y)], lambda net, batch: loss(net(batch[0]), batch[1]))
    steps = min(before.products, count(p.naive))
    found = lanczos(op, k=args.k, max_iter=steps, tol=GOAL, which="LA", reorthogonalize=True, seed=0)
    took = time.perf_counter() - begin
    vectors = found.eigenvectors.detach().T
    theirs = certified(Solved(found.eigenvalues.detach().double(), vectors, took, found.iterations), p)
    after = solve(p, args.k, bn="batch", which="largest", check=False)
    middle = certified(after._replace(seconds=(before.seconds + after.seconds) / 2), p)
    ratio = theirs.seconds / middle.seconds
    print(
        f"hessian-eigenthings {installed('hessian-eigenthings')} has no stopping rule: it is given as many products "
        "as ours took (n = 1 against 2; graph building counted)"
    )
    print_table(
        COLUMNS, [row_of("ours, no search for missed ones", middle, 1.0), row_of("hessian-eigenthings", theirs, ratio)]
    )
    return {
        "eigenthings_ratio": ratio,
        "eigenthings": {
            "seconds": theirs.seconds, "residual": theirs.worst, "ours_residual": middle.worst,
            "ours_seconds": [before.seconds, after.seconds], "ours_products": before.products,
            "products": theirs.products,
        },
    }  # fmt: skip


class OutOfTime(Exception):
    pass


def solve_pyhessian(p: Problem, args: argparse.Namespace, tol: float, limit: float) -> tuple[Solved, bool]:
    """What it has found (no values where it was stopped), and whether it was stopped. It makes its vector orthogonal
    to those found before each product, which is where its products can be counted and its time ended."""
    from pyhessian import hessian as theirs

    module = sys.modules[theirs.__module__]
    original, made = module.orthnormal, 0
    so_far: list[list[Tensor]] = []

    def counted(w: list[Tensor], found: list[list[Tensor]]) -> list[Tensor]:
        nonlocal made, so_far
        so_far = found
        if time.perf_counter() - begin > limit:
            raise OutOfTime
        made += 1
        return original(w, found)

    net, stopped, values = copy.deepcopy(p.naive), False, []
    torch.manual_seed(0)
    begin = time.perf_counter()
    oracle = None
    try:
        module.orthnormal = counted
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward")
            oracle = theirs(net, loss, data=(p.flat_x, p.y), cuda=False)
        values, so_far = oracle.eigenvalues(maxIter=1_000_000, tol=tol, top_n=args.k)
    except OutOfTime:
        stopped = True
    finally:
        took = time.perf_counter() - begin
        module.orthnormal = original
        if oracle is not None:
            oracle.gradsH = oracle.params = None
        for w in net.parameters():
            w.grad = None  # which breaks the cycle of a parameter and its gradient's graph
    vectors = [torch.cat([t.detach().reshape(-1) for t in v]) for v in so_far]
    columns = torch.stack(vectors, 1) if vectors else torch.empty(count(net), 0)
    return Solved(torch.tensor(values, dtype=torch.float64), columns, took, made), stopped


def beside_pyhessian(p: Problem, args: argparse.Namespace) -> dict[str, Any]:
    solves = [solve(p, args.k, bn="frozen", which="magnitude") for _ in range(2)]
    us = certified(solves[0], p, "frozen")
    scale = float(us.values.abs().max())
    goal, limit = max(GOAL, us.worst or 0.0), PATIENCE * max(s.seconds for s in solves)
    tried: list[dict[str, Any]] = []
    rows: list[tuple[str, Solved]] = []
    for tol in (1e-4, 1e-5, 1e-6):
        say(f"pyhessian: ours took {us.seconds:.1f} s; tol {tol:g}, to be stopped after {limit:.0f} s")
        theirs, stopped = solve_pyhessian(p, args, tol, limit)
        gc.collect()
        off = None
        if len(theirs.values) == args.k:
            off = float((theirs.values.sort().values - us.values.sort().values).abs().max()) / scale
        unit = F.normalize(theirs.vectors.double(), dim=0)
        if unit.shape[1]:  # the values that fit its vectors best: its own are of those one product earlier
            image = exact(p, "frozen").matmat(unit)
            residuals = (image - unit * (unit * image).sum(0)).norm(dim=0)
            theirs = theirs._replace(worst=float(residuals.max()) / scale)
        rows.append((f"PyHessian, tol {tol:g}, {unit.shape[1]} found", theirs))
        tried.append(
            {
                "tol": tol, "seconds": theirs.seconds, "products": theirs.products, "found": unit.shape[1],
                "stopped": stopped, "residual": theirs.worst, "values_differ": off,
            }
        )  # fmt: skip
        met = not stopped and theirs.worst <= goal
        if stopped or met:
            break
    solves.append(solve(p, args.k, bn="frozen", which="magnitude"))
    us = us._replace(seconds=median(s.seconds for s in solves))
    print(
        f"{args.k} eigenpairs of largest magnitude, running statistics, residuals to {goal:.1e} λ1 "
        f"(n = 1 against {len(solves)}; graph building counted)"
    )
    ratio = theirs.seconds / us.seconds
    ratios = [f"{s.seconds / us.seconds:.1f}" for _, s in rows[:-1]] + [f"{'' if met else 'at least '}{ratio:.1f}"]
    table = [row_of("ours", us, 1.0), *(row_of(*row, told) for row, told in zip(rows, ratios, strict=True))]
    print_table(COLUMNS, table)
    for each in tried:
        if each["values_differ"] is not None:
            print(f"at tol {each['tol']:g} its eigenvalues differ from ours by up to {each['values_differ']:.1e} λ1")
    if stopped:
        print(f"PyHessian was stopped at {PATIENCE:g} times our slower time, so that the ratio is a bound")
    elif not met:
        print("PyHessian ended at its tightest tol with larger residuals than the goal, so that the ratio is a bound")
    print(flush=True)
    return {
        "pyhessian_ratio": ratio,
        "pyhessian_ratio_is_bound": not met,
        "pyhessian": {
            "ours_seconds": [s.seconds for s in solves], "ours_products": us.products, "ours_residual": us.worst,
            "ours_values": us.values.tolist(), "tried": tried,
        },
    }  # fmt: skip


# memory


def peak_bytes() -> int:
    """This process's largest resident size. Linux's getrusage would begin with that of the process it came from."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_worker(args: argparse.Namespace) -> None:
    x, y = images_and_labels(args.memory_images)
    net = dyn.Net("plain8", width=args.width, act="softplus").build(classes=10, seed=0).train()
    net = net.to(memory_format=torch.channels_last)
    batches = list(zip(x.split(args.memory_batch), y.split(args.memory_batch), strict=True))
    v = random_vectors(count(net), 1)[0]
    before = peak_bytes()
    params = list(net.parameters())
    torch.autograd.grad(loss(net(batches[0][0]), batches[0][1]), params)
    gradient = peak_bytes()
    limit = int(args.memory_limit * 2**30)
    op = Hessian(net, loss, batches, memory=limit)
    times = [seconds(lambda: op.matvec(v)) for _ in range(2)]
    print(json.dumps({"before": before, "gradient": gradient, "peak": peak_bytes(), "seconds": times}))


def memory(args: argparse.Namespace) -> dict[str, Any]:
    sizes = {k: getattr(args, k) for k in ("width", "memory_images", "memory_batch", "memory_limit")}
    given = [text for k, value in sizes.items() for text in (f"--{k.replace('_', '-')}", str(value))]
    command = [sys.executable, __file__, "--worker", "--threads", str(torch.get_num_threads()), *given]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip() or f"the process ended with {ended.returncode}").splitlines()[-1])
    found = json.loads(ended.stdout.splitlines()[-1])
    first, second = found["seconds"]
    print(
        f"one product over {args.memory_images} images in batches of {args.memory_batch}, softplus, "
        f"memory={args.memory_limit:g} GiB (n = 1)"
    )
    gib = {k: f"{found[k] / 2**30:.2f}" for k in ("before", "gradient", "peak")}
    print_table(
        ("resident memory, GiB", "peak"),
        [
            ("Python, torch, net and images", gib["before"]),
            ("after a gradient of one batch", gib["gradient"]),
            ("after two products", gib["peak"]),
        ],
    )
    print(f"first product, which builds and keeps what fits: {first:.1f} s; each further one: {second:.1f} s\n")
    return {
        "peak_memory_gib": found["peak"] / 2**30,
        "product_seconds_many_images": second,
        "memory": found | {"images": args.memory_images, "batch": args.memory_batch, "limit_gib": args.memory_limit},
    }


# growth


def growth(args: argparse.Namespace) -> dict[str, Any]:
    images, widths, ks = (256, 512, 1024), (8, 16, 32), (5, 10, 20)
    if args.quick:
        images, widths, ks = (32, 64), (4, 6), (2, 4)
    cases = [(n, args.width, args.k) for n in images]
    cases += [(args.images, width, args.k) for width in widths]
    cases += [(args.images, args.width, k) for k in ks]
    rows, found = [], []
    for n, width, k in dict.fromkeys(cases):
        p = make_problem(width, "softplus", n)
        op, v = ours(p), random_vectors(count(p.net), 1)[0]
        cost = in_units(gradient_unit(p), {"ours": lambda op=op, v=v: op.matvec(v)}, min(args.repeats, 3))
        del op
        gc.collect()
        solved = solve(p, k, bn="batch", which="largest", check=False, tol=ROUGH)
        each = cost["ours"]
        rows.append(
            (n, width, k, count(p.net), f"{cost['gradient'].seconds:.3f}", f"{each.median:.2f}", f"{each.seconds:.3f}",
             solved.products, f"{solved.seconds:.2f}")
        )  # fmt: skip
        found.append(
            {
                "images": n, "width": width, "k": k, "params": count(p.net), "gradient": cost["gradient"].seconds,
                "hvp_in_gradients": each.median, "hvp": each.seconds, "products": solved.products,
                "seconds": solved.seconds,
            }
        )  # fmt: skip
        say(f"growth: {n} images, width {width}, k {k}: {solved.seconds:.1f} s")
        gc.collect()
    print(
        f"how cost grows: softplus, graph kept; products n = {min(args.repeats, 3)}; eigenpairs to {ROUGH:g} λ1, "
        "without the search for missed ones, n = 1"
    )
    print_table(
        ("images", "width", "k", "params", "gradient (s)", "product / it", "product (s)", "products", "eigenpairs (s)"),
        rows,
    )
    return {"growth": found}


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--full", action="store_true", help="also how cost grows with images, width and k")
    made.add_argument("--skip", nargs="+", default=[], choices=PARTS, metavar="NAME", help=f"of {', '.join(PARTS)}")
    made.add_argument("--memory", action="store_true", help="the part memory under --quick too, which leaves it out")
    made.add_argument("--width", type=int, default=16)
    made.add_argument("--images", type=int, default=512)
    made.add_argument("--k", type=int, default=10, help="eigenpairs")
    made.add_argument("--repeats", type=int, default=7, help="pairs of a product and the unit")
    made.add_argument("--solves", type=int, default=3, help="rounds of ours and eigsh")
    made.add_argument("--vectors", type=int, default=3, help="random vectors of the relative error")
    made.add_argument("--memory-images", type=int, default=10_000)
    made.add_argument("--memory-batch", type=int, default=500)
    made.add_argument("--memory-limit", type=float, default=2.0, help="GiB that may be kept")
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parse(
        made, width=4, images=64, k=4, repeats=2, solves=1, vectors=1, memory_images=256, memory_batch=64,
        memory_limit=0.01,
    )  # fmt: skip
    about = machine(args.threads)
    if args.worker:
        memory_worker(args)
        return
    about |= {"scipy": installed("scipy"), "pyhessian": installed("pyhessian")}
    about["hessian-eigenthings"] = installed("hessian-eigenthings")
    title = f"Curvature: plain8 of width {args.width}, {args.images} embedded images, float32 on the CPU"
    print_header(title, about, args.quick)
    parts = [part for part in PARTS if part not in args.skip]
    if args.quick and not args.memory and "memory" in parts:
        parts.remove("memory")
    names = ("scipy", "pyhessian", "hessian-eigenthings")
    print(f"{', '.join(f'{name} {about[name]}' for name in names)}; softplus unless it says relu")
    print(f"parts: {', '.join(parts)}{', growth' if args.full else ''}\n", flush=True)

    result: dict[str, Any] = {}
    if "products" in parts:
        result |= attempt("products", lambda: products(args))
    if "errors" in parts:
        result |= attempt("errors", lambda: errors(args))
    p = make_problem(args.width, "softplus", args.images)
    if "eigsh" in parts:
        result |= attempt("eigsh", lambda: beside_eigsh(p, args))
    if "eigenthings" in parts:
        result |= attempt("eigenthings", lambda: beside_eigenthings(p, args))
    if "pyhessian" in parts:
        result |= attempt("pyhessian", lambda: beside_pyhessian(p, args))
    if "memory" in parts:
        result |= attempt("memory", lambda: memory(args))
    if args.full:
        result |= attempt("growth", lambda: growth(args))
    say("done")
    if args.json:
        sizes = {k: getattr(args, k) for k in ("width", "images", "k", "repeats", "quick")}
        print_json(result | sizes | {"seconds": time.perf_counter() - BEGIN}, about)


if __name__ == "__main__":
    main()
