"""SGD's equilibrium: angles, norm, step sizes and the time it takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Floats, finite, fraction, nonnegative, positive, total_decay


def equilibrium_angle(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The angle between w before and after one update, in equilibrium.

    Plain SGD: arccos(1-ηλ), exact; heavy ball sqrt(2ηλ/(1+ρ)); Nesterov sqrt(2ηλ(1+2ρ-2ρ^3)/(1+ρ)). Decoupled decay
    and `radial` as in the package's head; with `radial`, plain SGD takes the leading order as well. NaN where there is
    no equilibrium (the total decay is negative, or ηλ > 2 in plain SGD).
    Source: plain SGD Page, post 6; heavy ball Wan et al. 2021 and Kosson et al. 2023 (SGDM); Nesterov derived here:
    one gradient enters the updates with weights 1+ρ, ρ^2, ρ^3, ..., whose squares sum to (1+ρ)^2 + ρ^4/(1-ρ^2), times
    `raw_step` squared.
    """
    lr, rho = nonnegative("lr", lr), fraction("momentum", momentum)
    radial = finite("radial", radial)
    product = lr * total_decay(weight_decay, rho, decoupled, radial)
    spread = 1 + 2 * rho - 2 * rho**3 if nesterov else 1.0
    with np.errstate(invalid="ignore"):
        leading = np.sqrt(2 * product * spread / (1 + rho))
        exact = 2 * np.arcsin(np.sqrt(product / 2))  # arccos(1 - product) without its cancellation
    return np.where((rho == 0) & (radial == 0), exact, leading)[()]


def equilibrium_norm(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The norm |w| in equilibrium, (ηG^2/(2λ(1-ρ)))^(1/4), with `gradient` the rms of G = |w||g|.

    Decoupled: (ηG^2/(2λ(1-ρ)^2))^(1/4). Nesterov has heavy ball's norm: a gradient moves w by η/(1-ρ) in all, either
    way. Infinite without decay, NaN where the total decay is negative.
    Source: Page, post 6 (ρ = 0); Wan et al. 2021; norm balance with momentum and decoupled decay derived here.
    """
    lr, rho, gradient = nonnegative("lr", lr), fraction("momentum", momentum), nonnegative("gradient", gradient)
    decay = total_decay(weight_decay, rho, decoupled, finite("radial", radial))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (lr * gradient**2 / (2 * decay * (1 - rho))) ** 0.25


def raw_step(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The raw gradient step η|g|/|w| (rms) in equilibrium, sqrt(2ηλ(1-ρ)), no angle of any update unless ρ = 0.

    It is also the local learning rate at which LARS, with the same momentum, takes SGD's equilibrium steps.
    NaN where the total decay is negative. Source: Page, post 6 (ρ = 0); with momentum derived here: growth
    (η/(1-ρ))^2|g|^2 equals loss 2η/(1-ρ)λ|w|^2.
    """
    lr, rho = nonnegative("lr", lr), fraction("momentum", momentum)
    with np.errstate(invalid="ignore"):
        return np.sqrt(2 * lr * total_decay(weight_decay, rho, decoupled, finite("radial", radial)) * (1 - rho))


def diffusive_angle(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The angle per square root of a step over many more than 1/(1-ρ) steps, in equilibrium: sqrt(2ηλ/(1-ρ)).

    NaN where the total decay is negative. Source: derived here: each gradient displaces w by η/(1-ρ) in all, so the
    angle is `raw_step`/(1-ρ); its flat directions are those of Page, post 5. Shorter windows: `angular_diffusion`.
    """
    rho = fraction("momentum", momentum)
    return raw_step(lr, weight_decay, momentum=rho, decoupled=decoupled, radial=radial) / (1 - rho)


def angular_diffusion(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    steps: ArrayLike,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The squared angle, rad^2, between weights `steps` updates apart, in equilibrium; compare with -2 ln<cos angle>.

    2ηλ/(1-ρ) (k - 2ρ(1-ρ^k)/(1-ρ^2)) for k steps of heavy ball; Nesterov has 2ρ^2(1+ρ-ρ^2) for 2ρ. At k = 1 it is
    `equilibrium_angle` squared, at large k it is k times `diffusive_angle` squared. Coupled decay passes through the
    velocity too, which makes long windows wider by a further 1 + ηλρ/(1-ρ)^2, left out here (4.5 % at ρ = 0.9 and
    ηλ = 5e-4). NaN where the total decay is negative.
    Source: derived here: sum the squares of the weights with which each gradient enters the window.
    """
    rho = fraction("momentum", momentum)
    angle = diffusive_angle(lr, weight_decay, momentum=rho, decoupled=decoupled, radial=radial)
    return angle**2 * window(steps, rho, nesterov)


def effective_lr(lr: ArrayLike, norm: ArrayLike) -> Floats:
    """The effective learning rate η/|w|^2: the lr that moves w/|w| alike at norm 1.

    Source: Li and Arora 2019 and Li, Lyu and Arora 2020, for scale-invariant weights; no momentum in it.
    """
    return nonnegative("lr", lr) / positive("norm", norm) ** 2


def momentum_scaled_lr(lr: ArrayLike, momentum: ArrayLike) -> Floats:
    """η/(1-ρ), by which one gradient displaces the weights in the end. Source: Page, post 5; geometric sum."""
    return nonnegative("lr", lr) / (1 - fraction("momentum", momentum))


def time_constant(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """Steps in which |w|^4 closes all but 1/e of its distance to equilibrium: (1-ρ)/(4ηλ), decoupled 1/(4ηλ).

    |w| near equilibrium has the same time constant; |w|^2 far above it decays in twice that. Infinite without decay,
    negative where the total decay is. Source: derived here, from d|w|^4/dt = 2(η/(1-ρ))^2 G^2 - 4η/(1-ρ) λ|w|^4;
    its scale 1/(ηλ) is Li, Lyu and Arora 2020.
    """
    rho = fraction("momentum", momentum)
    decay = total_decay(weight_decay, rho, decoupled, finite("radial", radial))
    with np.errstate(divide="ignore"):
        return 1 / (4 * momentum_scaled_lr(lr, rho) * decay)


def window(steps: ArrayLike, rho: Floats, nesterov: bool) -> Floats:
    """The steps of a diffusion that a window of so many updates amounts to: fewer, as both its ends are smoothed."""
    steps = nonnegative("steps", steps)
    delay = rho**2 * (1 + rho - rho**2) if nesterov else rho
    return steps - 2 * delay * (1 - rho**steps) / (1 - rho**2)


def squared_impulses(rho: Floats, nesterov: bool) -> Floats:
    """The sum of squares of the weights with which one gradient enters the updates, of sum 1/(1-ρ)."""
    return (1 + 2 * rho - 2 * rho**3 if nesterov else 1.0) / (1 - rho**2)
