"""Images per second of the training loop, against the plain way of writing the same training and against a loop
written inline for speed.

plain   a Dataset with per-image transforms, DataLoader, contiguous float32, loss.backward, torch.optim.SGD
inline  the same batches, precision and layout as ours, and the optimizer as five in-place operations in the loop
ours    for snap in dynamics.steps(recipe, split): pass

Windows of equally many steps are timed in pairs, ours beside the other, the first of a pair alternating; all loops
stay alive between their windows. The ratios are geometric means over pairs, with Student's 95 % interval of the logs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from _common import as_json, machine, parse, parser, print_header, print_json, print_table, random_split, span
from torch.utils.data import DataLoader, Dataset

import dynamics as dyn
from dynamics.stats import Interval, ratio_interval
from dynamics.training import resolve_precision

BATCH, LR, MOMENTUM, DECAY = 128, 0.01, 0.9, 5e-4
Loop = Iterator[torch.Tensor]


def ours(net: dyn.Net, split: dyn.Split) -> Loop:
    """Yields the loss of every step, as the other two do."""
    sgd = dyn.SGD(LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    for snap in dyn.steps(dyn.Recipe(net, sgd, batch_size=BATCH, epochs=100_000), split):
        yield snap.loss


def inline(net: dyn.Net, split: dyn.Split) -> Loop:
    """The same computation, with nothing kept that the next step does not need."""
    bf16 = resolve_precision("auto", split.device) == "bf16"
    model = net.build(seed=0).to(memory_format=torch.channels_last).train()
    params = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in params]
    epoch = 0
    while True:
        for x, y in dyn.batches(split, BATCH, seed=0, epoch=epoch, augment=dyn.Augment()):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y)
            grads = torch.autograd.grad(loss, params)
            with torch.no_grad():
                torch._foreach_add_(grads, params, alpha=DECAY)
                torch._foreach_mul_(velocity, MOMENTUM)
                torch._foreach_add_(velocity, grads)
                torch._foreach_add_(grads, velocity, alpha=MOMENTUM)
                torch._foreach_add_(params, grads, alpha=-LR)
            yield loss.detach()
        epoch += 1


class Images(Dataset):
    """uint8 images [N, 32, 32, 3], padded, cropped, flipped and normalised one by one."""

    def __init__(self, split: dyn.Split) -> None:
        self.images, self.labels = split.images, split.labels
        self.mean, self.std = torch.tensor(split.mean).view(3, 1, 1), torch.tensor(split.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.images[i].permute(2, 0, 1).float()
        x = F.pad(x[None], (4, 4, 4, 4), mode="reflect")[0]
        top, left = torch.randint(9, (2,)).tolist()
        x = x[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            x = x.flip(2)
        return (x - self.mean) / self.std, self.labels[i]


def plain(net: dyn.Net, split: dyn.Split, workers: int = 0) -> Loop:
    """The training loop of any tutorial."""
    model = net.build(seed=0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    loader = DataLoader(Images(split), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    while True:
        for x, y in loader:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.detach()


def advance(loop: Loop, steps: int) -> float:
    """The seconds that this many steps take."""
    begin = time.perf_counter()
    for _ in range(steps):
        next(loop)
    return time.perf_counter() - begin


def paired(a: Loop, b: Loop, steps: int, pairs: int) -> tuple[list[float], list[float]]:
    """Seconds of each window of a and of b, measured in turns; who goes first alternates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[which].append(advance((a, b)[which], steps))
    return seconds


def compare(width: int, args: argparse.Namespace, split: dyn.Split) -> dict[str, Interval | float | int]:
    """Both comparisons at one width."""
    net = dyn.Net("resnet9", width=width)
    our, hand = ours(net, split), inline(net, split)
    # both begin at the same weights and see the same batches: until rounding grows, they have the same losses
    losses = [(float(next(our)), float(next(hand))) for _ in range(3)]
    worst = max(abs(a - b) / b for a, b in losses)
    if worst > 1e-3:
        raise SystemExit(f"ours and inline are not the same training: losses differ by {worst:.1e}, {losses}")
    advance(our, 2)
    steps = max(2, round(args.seconds / (advance(our, 3) / 3)))
    advance(hand, 5)
    t_ours, t_inline = paired(our, hand, steps, args.pairs)
    del hand
    result = {
        "steps": steps,
        "loss_difference": worst,
        "inline": ratio_interval(t_ours, t_inline),
        "inline_images": args.pairs * steps * BATCH / sum(t_inline),
        "ours_images": args.pairs * steps * BATCH / sum(t_ours),
    }
    usual = plain(net, split, args.workers)
    advance(usual, 3)
    few = max(2, round(steps * args.plain_seconds / args.seconds))
    t_ours, t_plain = paired(our, usual, few, args.plain_pairs)
    return result | {
        "plain_steps": few,
        "plain": ratio_interval(t_plain, t_ours),
        "plain_images": args.plain_pairs * few * BATCH / sum(t_plain),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    arguments.add_argument("--pairs", type=int, default=30, help="pairs of ours and inline")
    arguments.add_argument("--plain-pairs", type=int, default=8, help="pairs of ours and plain")
    arguments.add_argument("--seconds", type=float, default=1.2, help="of one of our windows beside inline")
    arguments.add_argument("--plain-seconds", type=float, default=0.8, help="of one of our windows beside plain")
    arguments.add_argument("--images", type=int, default=10_000)
    arguments.add_argument("--workers", type=int, default=0, help="DataLoader processes of plain")
    args = parse(arguments, pairs=4, plain_pairs=2, seconds=0.4, plain_seconds=0.4)
    if min(args.pairs, args.plain_pairs) < 2:
        arguments.error("an interval needs at least 2 pairs")
    about = machine(args.threads)
    print_header(f"Training speed: resnet9, batch {BATCH}, {args.images} random 32×32 images", about, args.quick)
    split = random_split(args.images)
    split.padded(dyn.Augment().pad)
    found = {w: compare(w, args, split) for w in args.widths}

    precision = resolve_precision("auto", split.device)
    print(f"ours and inline: {precision}, channels_last; plain: float32, contiguous, num_workers={args.workers}")
    print_table(
        ("width", "ours", "inline", "plain", "images/s"),
        [(w, *(f"{r[f'{k}_images']:,.0f}" for k in ("ours", "inline", "plain")), "") for w, r in found.items()],
    )
    print_table(
        ("ratio of times", "mean", "95 % interval", "pairs", "steps a window"),
        [
            row
            for w, r in found.items()
            for row in (
                (f"plain / ours, width {w}", f"{r['plain'].mean:.2f}", span(r["plain"], 2), r["plain"].n,
                 r["plain_steps"]),
                (f"ours / inline, width {w}", f"{r['inline'].mean:.3f}", span(r["inline"]), r["inline"].n, r["steps"]),
            )
        ],
    )  # fmt: skip
    worst = max(found, key=lambda w: found[w]["inline"].high)
    print(f"upper end of ours / inline at the worse width, {worst}: {found[worst]['inline'].high:.3f}")
    if args.json:
        print_json(
            {
                "plain_ratio": {str(w): r["plain"].mean for w, r in found.items()},
                "inline_ratio": found[worst]["inline"].high,
                "plain": {str(w): as_json(r["plain"]) for w, r in found.items()},
                "inline": {str(w): as_json(r["inline"]) for w, r in found.items()},
                "images_per_second": {
                    str(w): {k: r[f"{k}_images"] for k in ("ours", "inline", "plain")} for w, r in found.items()
                },
                "num_workers": args.workers,
                "quick": args.quick,
            },
            about,
        )


if __name__ == "__main__":
    main()
