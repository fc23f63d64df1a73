"""Measure the properties of the embedded data set that data/README.md states.

Run `python benchmarks/shapes_card.py` for a table (about two minutes on two cores), with `--json` for one JSON object
as the last line besides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import time
from collections import deque
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dynamics.data.shapes import CLASSES, PAIRS, make_shapes
from dynamics.data.split import Augment, Split
from dynamics.nets import Net
from dynamics.optim import SGD, PiecewiseLinear
from dynamics.training import Recipe, evaluate, resolve_precision, steps


def digest(*arrays: np.ndarray) -> str:
    """sha256 of arrays in little-endian byte order, one after the other."""
    sha = hashlib.sha256()
    for a in arrays:
        sha.update(np.ascontiguousarray(a.astype(a.dtype.newbyteorder("<"))).data)
    return sha.hexdigest()


def whitening_spectrum(images: np.ndarray) -> np.ndarray:
    """Square roots of the eigenvalues of the uncentred covariance of 3x3 patches, [27], largest first."""
    x = images.astype(np.float64)
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2)).reshape(-1, 27)
    return np.sqrt(np.linalg.eigvalsh(patches.T @ patches / (len(patches) - 1))[::-1])


def spectral_exponent(images: np.ndarray) -> float:
    """The exponent a of amplitude ~ 1/f^a of brightness, by least squares in log-log over 1 to 16 cycles an image."""
    bright = images.mean(-1)
    power = (np.abs(np.fft.fft2(bright - bright.mean((1, 2), keepdims=True))) ** 2).mean(0)
    f = 32 * np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    rings = [power[(f >= k) & (f < k + 1)].mean() for k in range(1, 17)]
    return float(-np.polyfit(np.log(np.arange(1, 17) + 0.5), np.log(rings), 1)[0] / 2)


def flat(images: np.ndarray, like: np.ndarray) -> torch.Tensor:
    mean, std = like.mean((0, 1, 2)), like.std((0, 1, 2))
    return torch.from_numpy(((images - mean) / std).reshape(len(images), -1)).float()


def logistic_accuracy(x: torch.Tensor, y: torch.Tensor, xt: torch.Tensor, yt: torch.Tensor, decay: float) -> float:
    """Test accuracy of multinomial logistic regression with penalty decay/2 |W|^2, fitted by L-BFGS."""
    weight, bias = torch.zeros(x.shape[1], 10, requires_grad=True), torch.zeros(10, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=60, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return float(((xt @ weight + bias).argmax(1) == yt).float().mean())


def recipe(width: int, epochs: float, seed: int) -> Recipe:
    lr = PiecewiseLinear((0, epochs / 5, epochs), (0, 0.4, 0))
    optimizer = SGD(lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    net = Net("resnet9", width=width)
    return Recipe(net, optimizer, batch_size=128, epochs=epochs, augment=Augment(pad=4, flip=True), seed=seed)


def net_accuracy(train: Split, test: Split, width: int, epochs: float, seed: int) -> tuple[float, np.ndarray]:
    """Test accuracy without test-time augmentation, and the 10 x 10 table of (class, prediction) shares."""
    [last] = deque(steps(recipe(width, epochs, seed), train), maxlen=1)
    accuracy = evaluate(last, test).accuracy
    shares = np.zeros((10, 10))
    net = last.net.eval()
    with torch.no_grad():
        guess = torch.cat([net(x) for x in test.padded().permute(0, 3, 1, 2).split(500)]).argmax(1)
    np.add.at(shares, (test.labels.numpy(), guess.numpy()), 1 / len(test))
    return accuracy, shares


def measure(seeds: int, seen: int, width: int, say: Any) -> dict[str, Any]:
    start = time.process_time()
    x, y, xt, yt = make_shapes()
    card: dict[str, Any] = {
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "precision": resolve_precision("auto", torch.device("cpu")),
        "seconds_to_make": round(time.process_time() - start, 2),
        "sha256": digest(x, y, xt, yt),
        "n": [len(x), len(xt)],
        "images_a_class": [np.bincount(y).tolist(), np.bincount(yt).tolist()],
        "distinct_images": len({image.tobytes() for image in (*x, *xt)}),
        "channel_mean": x.mean((0, 1, 2)).round(2).tolist(),
        "channel_std": x.std((0, 1, 2)).round(2).tolist(),
        "share_of_values_clipped": round(float(((x == 0) | (x == 255)).mean()), 4),
        "whitening_sqrt_eigs": whitening_spectrum(x).round(3).tolist(),
        "spectral_exponent": round(spectral_exponent(x), 3),
    }
    for key, value in card.items():
        say(key, value)

    def record(key: str, value: Any) -> None:
        card[key] = value
        say(key, value)

    a, b, ya, yb = flat(x, x), flat(xt, x), torch.from_numpy(y), torch.from_numpy(yt)
    colour, colour_test = (z.view(len(z), -1, 3).mean(1) for z in (a, b))
    record("logistic_mean_colour", round(logistic_accuracy(colour, ya, colour_test, yb, 0.0), 4))
    record("logistic_pixels", {d: round(logistic_accuracy(a, ya, b, yb, d), 4) for d in (0.01, 0.1, 1.0, 10.0)})
    nearest = torch.cdist(b, a).topk(10, largest=False).indices
    record("nearest_neighbour_pixels", round(float((ya[nearest[:, 0]] == yb).float().mean()), 4))
    del a, b

    train = Split.from_arrays(x, y, classes=CLASSES)
    test = Split.from_arrays(xt, yt, classes=CLASSES, like=train)
    runs = [net_accuracy(train, test, width, seen / len(x), seed) for seed in range(seeds)]
    accuracy, shares = [r[0] for r in runs], np.mean([r[1] for r in runs], axis=0)
    shape, texture = np.array(PAIRS).T
    other_shape, other_texture = shape[:, None] != shape, texture[:, None] != texture
    record(f"resnet9_width_{width}_after_{seen}", [round(v, 4) for v in accuracy])
    record("mean", round(statistics.mean(accuracy), 4))
    if seeds > 1:
        record("standard_deviation_over_seeds", round(statistics.stdev(accuracy), 4))
    record("share_wrong_shape_only", round(float(shares[other_shape & ~other_texture].sum()), 4))
    record("share_wrong_texture_only", round(float(shares[~other_shape & other_texture].sum()), 4))
    record("share_wrong_both", round(float(shares[other_shape & other_texture].sum()), 4))
    record("accuracy_by_class", {c: round(10 * float(shares[k, k]), 3) for k, c in enumerate(CLASSES)})
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the properties of the embedded data set.")
    parser.add_argument("--seeds", type=int, default=3, help="training runs")
    parser.add_argument("--images", type=int, default=100_000, help="training images seen by each run")
    parser.add_argument("--width", type=int, default=8, help="of resnet9")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    card = measure(args.seeds, args.images, args.width, lambda k, v: print(f"{k:32s}{v}", flush=True))
    if args.json:
        print(json.dumps(card))


if __name__ == "__main__":
    main()
