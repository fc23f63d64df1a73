"""What needs no training: scales under decay alone, and how a net's signals lose contrast with depth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DynamicsError, unknown
from ._checks import Floats, finite, fraction, nonnegative, positive


def decay_trajectory(
    initial: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    lr_in_velocity: bool = False,
) -> Floats:
    """A parameter that weight decay alone moves, before every update of SGD and after the last: [T+1] or [T+1, L].

    Such as a batch-norm scale whose gradients average out. `initial` is a number or [L]; `lr` is [T] or [T, L] and the
    others are numbers or alike. The velocity starts at zero. `lr_in_velocity` is Page's form, in which it adds up
    lr * (g + λw). Raises DynamicsError for an lr without an axis of updates or of another length than the others.
    Source: the optimizer's own recursion at zero gradient, exact; the effect is Page, post 8.
    """
    initial, lr = finite("initial", initial), nonnegative("lr", lr)
    decay, rho = nonnegative("weight_decay", weight_decay), fraction("momentum", momentum)
    if lr.ndim == 0:
        raise DynamicsError("a trajectory needs an lr for each update: pass an array, such as np.full(steps, lr)")
    try:
        lr, decay, rho, start = np.broadcast_arrays(lr, decay, rho, initial)
    except ValueError:
        raise DynamicsError("initial, lr, weight_decay and momentum disagree in shape: lr is [T] or [T, L]") from None
    w, v = start[0] if len(start) else initial, 0.0
    values = [w]
    for rate, shrink, mass in zip(lr, decay, rho, strict=True):
        inside, outside = (rate, 1.0) if lr_in_velocity else (1.0, rate)
        d = 0.0 if decoupled else inside * shrink * w
        v = mass * v + d
        w = (w * (1 - rate * shrink) if decoupled else w) - outside * (d + mass * v if nesterov else v)
        values.append(w)
    return np.stack(values)


def decay_product(
    initial: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike, *, momentum: ArrayLike = 0.0, decoupled: bool = False
) -> Floats:
    """`decay_trajectory` without the velocity's delay: initial times the running product of 1 - ηλ/(1-ρ), [T+1, ...].

    Decoupled: of 1 - ηλ. Source: Page, post 8, observes the decay; the product is the rate at which coupled decay acts
    once the velocity has caught up.
    """
    initial, lr, rho = finite("initial", initial), nonnegative("lr", lr), fraction("momentum", momentum)
    if lr.ndim == 0:
        raise DynamicsError("a trajectory needs an lr for each update: pass an array, such as np.full(steps, lr)")
    factor = 1 - lr * nonnegative("weight_decay", weight_decay) / (1.0 if decoupled else 1 - rho)
    return initial * np.concatenate([np.ones_like(factor[:1]), np.cumprod(factor, axis=0)])


class Moments(NamedTuple):
    """Mean, variance, and mean of the square."""

    mean: Floats
    variance: Floats
    square: Floats


def relu_moments(std: ArrayLike) -> Moments:
    """Moments of relu(x) for x ~ N(0, std^2): mean std/sqrt(2π), mean square std^2/2.

    The constants of the shift and scale relu -> (relu - mean)/sqrt(variance), which undoes the collapse at
    initialisation, are those at std = sqrt(2), He's pre-activations: 1/sqrt(π) and sqrt(1 - 1/π).
    Source: half of a Gaussian's moments; the use Page, post 7.
    """
    std = nonnegative("std", std)
    mean, square = std / np.sqrt(2 * np.pi), std**2 / 2
    return Moments(mean, square - mean**2, square)


def correlation_map(correlation: ArrayLike, *, activation: str = "relu") -> Floats:
    """The correlation (uncentred) of two inputs' pre-activations one layer on, in a wide net at initialisation.

    "relu": (sqrt(1-c^2) + (π - arccos c)c)/π with He's weights, fixed point 1; "linear": c; "shifted", relu after the
    shift and scale of `relu_moments`: (relu's map - 1/π)/(1 - 1/π), fixed points 0 and 1.
    Raises DynamicsError for another activation or correlations beyond 1.
    Source: Cho and Saul 2009, the arc-cosine kernel of degree 1; Page, post 7; "shifted" derived here: less the means.
    """
    c = finite("correlation", correlation)
    if np.any(np.abs(c) > 1):
        raise DynamicsError(f"correlation must lie in [-1, 1], got {c.flat[np.argmax(np.abs(c))]:g}")
    if activation == "linear":
        return c[()]
    if activation not in ("relu", "shifted"):
        raise unknown("activation", activation, ("relu", "linear", "shifted"))
    mapped = np.minimum((np.sqrt((1 - c) * (1 + c)) + (np.pi - np.arccos(c)) * c) / np.pi, 1.0)
    return mapped if activation == "relu" else (mapped - 1 / np.pi) / (1 - 1 / np.pi)


def within_channel_share(layers: int, *, activation: str = "relu", correlation: ArrayLike = 0.0) -> Floats:
    """The share of a channel's spread that is between inputs, Var_x/(Var_x + (E_x)^2), at layers 1 to `layers`.

    Of pre-activations, averaged over channels, in a wide net at initialisation: 1 - c for inputs of `correlation` c at
    layer 1 (a number or [...]); [layers, ...]. With relu it falls as `collapse_asymptote`, with "linear" it stays.
    Raises DynamicsError for fewer than one layer, and as `correlation_map`.
    Source: Page, post 7, shows the collapse; derived here: with weights of mean zero E(E_x)^2 is c times the total.
    """
    if layers < 1:
        raise DynamicsError(f"layers must be at least 1, got {layers}")
    c = finite("correlation", correlation)
    shares = []
    for _ in range(int(layers)):
        shares.append(1 - c)
        c = correlation_map(c, activation=activation)
    return np.stack(shares)


def collapse_asymptote(layer: ArrayLike) -> Floats:
    """What `within_channel_share` of a relu net tends to at deep layers: 9π^2/(2 layer^2).

    Source: derived here: near c = 1 the map takes 1-c to (1-c) - (2 sqrt(2)/(3π)) (1-c)^(3/2).
    """
    return 9 * np.pi**2 / (2 * positive("layer", layer) ** 2)
