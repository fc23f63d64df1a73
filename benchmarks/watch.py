"""Is `watch` right, and cheap, on a loop and a network that the package has never seen?

    python benchmarks/watch.py
    python benchmarks/watch.py --json

A small vision Transformer whose queries and keys are normalised per head, trained by torch.optim.AdamW at constant lr
in a plain loop. First, `invariance` says to which weights the loss is scale-invariant; then the step angles of every
matrix, after eight time constants, over the equilibrium law of AdamW: it is owed to the query and key projections
alone, and it takes successive gradients as uncorrelated noise, which small batches are closer to (try --batch 64). Then
what watching costs: the standard set at every tenth step, and an expensive probe under budget=0.05. Time
inside the hooks over the time of the rest of the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _common import machine, parse, parser, print_header, print_json, print_table
from torch import nn

import dynamics as dyn
from dynamics import theory
from dynamics.data import batches
from dynamics.stats import rms

LR, DECAY, BETAS = 2e-3, 0.5, (0.9, 0.999)
MODEL, HEADS, LAYERS, PATCH = 64, 4, 2, 4
LAGS = (1, 2, 4, 8, 16)
OWED = [f"blocks.{i}.{name}.weight" for i in range(LAYERS) for name in ("query", "key")]


class Block(nn.Module):
    """Pre-norm attention with normalised queries and keys (Henry et al. 2020, arXiv 2010.04245), then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(MODEL, MODEL, bias=False) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(MODEL), nn.LayerNorm(MODEL)
        self.mlp = nn.Sequential(nn.Linear(MODEL, 4 * MODEL), nn.GELU(), nn.Linear(4 * MODEL, MODEL))
        self.temperature = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        size = (MODEL // HEADS,)
        q, k, v = (part(h).unflatten(-1, (HEADS, *size)).transpose(1, 2) for part in (self.query, self.key, self.value))
        q, k = F.rms_norm(q, size, eps=1e-6), F.rms_norm(k, size, eps=1e-6)
        attended = F.scaled_dot_product_attention(q * self.temperature, k, v, scale=1 / MODEL**0.5)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Images [B, 3, 32, 32] -> logits [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, MODEL, PATCH, PATCH)
        self.place = nn.Parameter(0.02 * torch.randn(1, (32 // PATCH) ** 2, MODEL))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(MODEL), nn.Linear(MODEL, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2) + self.place)
        return self.head(self.norm(x.mean(1)))


def loop(
    split: dyn.Split, steps: int, seed: int, *, batch: int, augment: dyn.Augment | None = None, **watching: Any
) -> tuple[nn.Module, dyn.Recorder]:
    """The user's own loop: nothing in it but the one line knows that it is watched."""
    torch.manual_seed(seed)
    model = Transformer()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    rec = dyn.watch(model, optimizer, **watching)
    done, epoch = 0, 0
    while done < steps:
        for x, y in batches(split, batch, seed=seed, epoch=epoch, augment=augment):
            loss = F.cross_entropy(model(x.contiguous()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
        epoch += 1
    rec.detach()
    return model, rec


@dyn.reads("params", "updates")
def head_angles(snap: dyn.Snapshot) -> dict[str, Any]:
    """The single-step angle of every head's query and key projection."""
    before = torch.stack([snap.params[k].reshape(HEADS, -1) for k in OWED])
    after = before + torch.stack([snap.updates[k].reshape(HEADS, -1) for k in OWED])
    u, v = F.normalize(before, dim=-1), F.normalize(after, dim=-1)
    angle = 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))
    return {"matrix": OWED, "angle": (("matrix", "head"), angle, {"units": "rad"})}


@dyn.reads("params")
def spectra(snap: dyn.Snapshot) -> dict[str, Any]:
    """Every matrix's largest singular value, the slow way: an expensive probe."""
    values = [torch.linalg.svdvals(p.flatten(1).double())[0] for p in snap.params.values() if p.ndim >= 2]
    return {"largest": (("matrix",), torch.stack(values))}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=6000, help="steps of the run whose angles are judged")
    made.add_argument("--batch", type=int, default=16, help="images a batch: fewer make gradients more like noise")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument(
        "--no-augment", action="store_true", help="the same images every epoch: gradients less like noise"
    )
    arguments = parse(made, steps=600)
    about = machine(arguments.threads)
    print_header("watch: AdamW on a small Transformer with query-key norm", about, arguments.quick)
    split = dyn.load_data("shapes").train

    x, y = next(iter(batches(split, 64, seed=0, epoch=0)))
    probes = {
        "norms": dyn.every(5, dyn.weight_norms),
        "gradients": dyn.every(5, dyn.gradients),
        "angles": dyn.every(1, dyn.angles),
        "heads": dyn.every(1, head_angles),
        "memory": dyn.at(range(arguments.steps - 500, arguments.steps), dyn.gradient_autocorrelation(LAGS)),
    }
    augment = None if arguments.no_augment else dyn.Augment()
    model, rec = loop(split, arguments.steps, arguments.seed, batch=arguments.batch, augment=augment, probes=probes)
    table = dyn.invariance(model, F.cross_entropy, (x, y))
    print(table, flush=True)
    print(f"\nscale-invariant: {', '.join(table.invariant)}; as expected: {sorted(table.invariant) == sorted(OWED)}\n")

    settled = int(8 * theory.adamw_equilibrium(LR, DECAY, 1.0, beta1=BETAS[0]).time_constant)
    settled = min(settled, arguments.steps // 2) if arguments.quick else settled
    predicted = dyn.predict(rec, invariance=table)
    law = predicted["angle"].sel(step=slice(settled, None))
    angles = rec["angles"].angle.sel(step=law.step)
    ratios = rms(angles.values, axis=0) / rms(law.values, axis=0)
    owed = dict(zip(predicted.layer.values.tolist(), predicted["law"].values.tolist(), strict=True))
    # nan where the measured gradient pulls outward more than decay pulls in: no norm is an equilibrium there
    at_general = predicted["angle_general"].sel(step=law.step).values
    general = rms(angles.values, axis=0) / np.sqrt(np.mean(at_general**2, axis=0))
    path = rms(angles.values, axis=0) / rms(predicted["angle_transient"].sel(step=law.step).values, axis=0)
    memory = rec["memory"].cosine.mean("step").sel(layer=angles.layer).sum("lag").values
    print(f"angles over the law, rms over {len(law.step)} readings after {settled} steps; over the law that needs no")
    print("invariance; over the one that follows |g|; and the sum of the gradient's cosines with itself at lags", LAGS)
    print_table(
        ("layer", "law", "angle", "angle/law", "angle/general", "angle/path", "memory"),
        [
            (name, owed[name], f"{a:.5f}", *(f"{v:.3f}" for v in rest))
            for name, a, *rest in zip(
                angles.layer.values.tolist(), rms(angles.values, axis=0), ratios, general, path, memory, strict=True
            )
        ],
    )
    judged = [r for name, r in zip(angles.layer.values.tolist(), ratios, strict=True) if f"{name}.weight" in OWED]
    heads = rec["heads"].angle.sel(step=slice(settled, None))
    by_head = rms(heads.values, axis=0) / float(rms(law.values, axis=None))
    heads_too = f"by head {by_head.min():.3f} to {by_head.max():.3f}"
    print(f"query and key projections: {min(judged):.3f} to {max(judged):.3f}; {heads_too}\n")

    _, standard = loop(split, arguments.steps // 4, arguments.seed, batch=64)
    print(f"the standard set at every tenth step\n{standard.ledger}\n")
    costly = {**dyn.standard(10), "spectra": dyn.every(1, spectra)}
    _, kept = loop(split, arguments.steps // 4, arguments.seed, batch=64, probes=costly, budget=0.05)
    print(f"the same and an expensive probe at every step, under budget=0.05\n{kept.ledger}\n")
    if arguments.json:
        worst = float(np.max(np.abs(np.array(judged) - 1)))
        result = {
            "invariant": list(table.invariant),
            "as_expected": sorted(table.invariant) == sorted(OWED),
            "angle_over_law": dict(zip(angles.layer.values.tolist(), map(float, ratios), strict=True)),
            "by_head": by_head.tolist(),
            "worst_off": worst,
            "standard_every_10": standard.ledger.share,
            "under_budget_5_percent": kept.ledger.share,
            "steps": arguments.steps,
            "batch": arguments.batch,
        }
        print_json(result, about)


if __name__ == "__main__":
    main()
