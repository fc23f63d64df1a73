"""Every optimizer's equilibrium at once: angle, norm, step sizes and the time it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._checks import Floats, finite, fraction, nonnegative, positive
from .equilibrium import (
    diffusive_angle,
    equilibrium_angle,
    equilibrium_norm,
    raw_step,
    squared_impulses,
    time_constant,
    window,
)

TERMS = 40  # of the arcsine series


class Equilibrium(NamedTuple):
    """Where a scale-invariant weight settles at constant lr.

    `angle` (rad) is between w before and after one update; `raw_step` is lr times the length of what the optimizer
    makes of one gradient, over |w|, momentum and decay left out; `diffusive_angle` (rad) is the angle per square root
    of a step over many steps; in `time_constant` steps |w| near equilibrium closes all but 1/e of its distance.
    """

    angle: Floats
    norm: Floats
    raw_step: Floats
    diffusive_angle: Floats
    time_constant: Floats


def sgd_equilibrium(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Equilibrium:
    """`equilibrium_angle`, `equilibrium_norm`, `raw_step`, `diffusive_angle` and `time_constant` of SGD together."""
    law = {"momentum": momentum, "decoupled": decoupled, "radial": radial}
    return Equilibrium(
        equilibrium_angle(lr, weight_decay, nesterov=nesterov, **law),
        equilibrium_norm(lr, weight_decay, gradient, **law),
        raw_step(lr, weight_decay, **law),
        diffusive_angle(lr, weight_decay, **law),
        time_constant(lr, weight_decay, **law),
    )


def adamw_equilibrium(
    lr: ArrayLike, weight_decay: ArrayLike, size: ArrayLike, *, beta1: ArrayLike = 0.9, radial: ArrayLike = 0.0
) -> Equilibrium:
    """AdamW: angle sqrt(2ηλ(1-β1)/(1+β1)), norm sqrt(ηC/(2λ)) with C = `size` coordinates, time 1/(2ηλ).

    Raw and diffusive steps are both sqrt(2ηλ). `radial` is <w,u>/|w|^2 averaged over steps, u the normalised gradient,
    which acts as that much more decay; it is about cos(w,g) sqrt(C)/|w|. Needs gradients that are steady for longer
    than 1/(1-β2) steps and far above eps; Gaussian ones make the norm about (1-β2)/2 lower. NaN where the total decay
    is negative, infinite norm where it is zero.
    Source: angle Kosson et al. 2023 (AdamW). Derived here: decoupled heavy ball whose gradients have the length sqrt(C)
    whatever |w| is, so that d|w|^2/dt = η^2 C - 2ηλ|w|^2: |w|^2 is the relaxing variable, not |w|^4.
    """
    lr, size, beta1 = nonnegative("lr", lr), positive("size", size), fraction("beta1", beta1)
    radial = finite("radial", radial)
    decay = nonnegative("weight_decay", weight_decay) + radial
    # the velocity passes on 1/(1-β1) of what it takes in, the average all of it and no more
    angle = equilibrium_angle(lr, weight_decay, momentum=beta1, decoupled=True, radial=(1 - beta1) * radial)
    with np.errstate(invalid="ignore", divide="ignore"):
        step = np.sqrt(2 * lr * decay)
        return Equilibrium(angle, np.sqrt(lr * size / (2 * decay)), step, step, 1 / (2 * lr * decay))


def adamw_diffusion(
    lr: ArrayLike, weight_decay: ArrayLike, *, steps: ArrayLike, beta1: ArrayLike = 0.9, radial: ArrayLike = 0.0
) -> Floats:
    """The squared angle, rad^2, between weights `steps` updates of AdamW apart; compare with -2 ln<cos angle>.

    2ηλ (k - 2β1(1-β1^k)/(1-β1^2)) for k steps. Source: derived here, as `angular_diffusion`, of heavy ball's shape.
    """
    step = adamw_equilibrium(lr, weight_decay, 1.0, beta1=beta1, radial=radial).diffusive_angle
    return step**2 * window(steps, fraction("beta1", beta1), False)


def adam_equilibrium(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    size: ArrayLike,
    *,
    beta1: ArrayLike = 0.9,
    radial: ArrayLike = 0.0,
) -> Equilibrium:
    """Adam with L2: norm (ηsqrt(C)G/(2λ))^(1/3), angle sqrt((1-β1)/(1+β1)) times the raw step (2η^2λC/G)^(1/3).

    C = `size` coordinates and G = |w||g|, g without the L2 term: unlike the other optimizers' its angle depends on the
    gradient's size, so layers are not balanced. The diffusive step is the raw one; the time constant is 2/3 over the
    square of it. `radial` = <w,g>/|w|^2 adds to λ. Needs λ|w| well below |g|, coordinates with gradients alike, and
    |g| steady for longer than 1/(1-β2) steps. NaN where the total decay is negative.
    Source: derived here: the L2 term is divided by the rms of g too, so d|w|^2/dt = η^2 C - 2ηλ sqrt(C)|w|^3/G; Kosson
    et al. 2023 find the dependence on the gradient.
    """
    lr, gradient, size = nonnegative("lr", lr), nonnegative("gradient", gradient), positive("size", size)
    beta1 = fraction("beta1", beta1)
    decay = nonnegative("weight_decay", weight_decay) + finite("radial", radial)
    decay = np.where(decay < 0, np.nan, decay)
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.cbrt(lr * np.sqrt(size) * gradient / (2 * decay))
        step = np.cbrt(2 * lr**2 * decay * size / gradient)
        return Equilibrium(np.sqrt((1 - beta1) / (1 + beta1)) * step, norm, step, step, 1 / (1.5 * step**2))


def adam_diffusion(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    size: ArrayLike,
    *,
    steps: ArrayLike,
    beta1: ArrayLike = 0.9,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The squared angle, rad^2, between weights `steps` updates of Adam with L2 apart: as `adamw_diffusion`."""
    step = adam_equilibrium(lr, weight_decay, gradient, size, beta1=beta1, radial=radial).diffusive_angle
    return step**2 * window(steps, fraction("beta1", beta1), False)


def lion_equilibrium(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    size: ArrayLike,
    *,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.99,
    radial: ArrayLike = 0.0,
) -> Equilibrium:
    """Lion: angle near sqrt(πηλq), norm near sqrt(ηC/(πλq)), q = (1-β1)^2 + β1^2(1-β2)/(1+β2), time 1/(2ηλ).

    C = `size` coordinates. Those leading forms are Kosson et al.'s (2023); what is computed has two corrections that
    matter for β2 near 1, decay within Lion's memory of 1/(1-β2) steps and the arcsine law of signs. It is the angle and
    norm of a walk of signs of a Gaussian c = β1 m + (1-β1) g, exactly, and sign descent's at β1 = 0. `raw_step` is
    η sqrt(C)/|w|, the length of the whole update; the diffusive step is sqrt(2ηλ). `radial` = <w,g>/|w|^2 over the rms
    of g a coordinate, about cos(w,g) sqrt(C)/|w|, taken to act at once (it passes through the memory: 8 % off in the
    norm where it is as large as λ and ηλ/(1-β2) = 0.4; `lion_trajectory` knows). NaN where the total decay is negative
    or ηλ reaches 1.
    Source: derived here: signs of Gaussians that correlate by r correlate by 2/π arcsin r (Van Vleck and Middleton
    1966), c's correlation k steps apart is proportional to β2^k, and |w|^2 is the sum over pairs of past steps, each
    discounted by 1-ηλ a step.
    """
    lr, size = nonnegative("lr", lr), positive("size", size)
    keep, beta1, beta2 = _lion(lr, weight_decay, beta1, beta2, radial)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = 1 + 2 * keep * sum(share / (1 - keep * lag) for share, lag in _sign_correlation(beta1, beta2))
        norm = np.sqrt(lr**2 * size * spread / (1 - keep**2))
        chord = (1 - keep) * ((1 + keep) / spread - (1 - keep)) / (2 * keep)  # 1 - cos, without its cancellation
        return Equilibrium(
            2 * np.arcsin(np.sqrt(chord / 2)),
            norm,
            np.sqrt((1 - keep**2) / spread),
            np.sqrt(2 * (1 - keep)),
            1 / (2 * (1 - keep)),
        )


def lion_diffusion(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    steps: ArrayLike,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.99,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The squared angle, rad^2, between weights `steps` updates of Lion apart: -2 ln<cos angle> of the same walk.

    Grows nearly as the square of `steps` within the memory of 1/(1-β2) steps, and by 2ηλ a step beyond it.
    Source: derived here, as `lion_equilibrium`.
    """
    steps = nonnegative("steps", steps)
    keep, beta1, beta2 = _lion(nonnegative("lr", lr), weight_decay, beta1, beta2, radial)
    spread, joint = 1.0, 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        for share, lag in _sign_correlation(beta1, beta2):
            lag = np.where(np.abs(keep - lag) < 1e-7, keep - 1e-7, lag)  # the limit of equal rates
            seen = share / (1 - keep * lag)
            spread = spread + 2 * keep * seen
            joint = joint + seen * (keep**steps - lag**steps) / (keep - lag)
        return np.maximum(-2 * np.log(keep**steps + (1 - keep**2) / spread * joint), 0.0)


def lars_equilibrium(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    layerwise: bool = False,
    radial: ArrayLike = 0.0,
) -> Equilibrium:
    """LARS with local rate R = `lr`, trust coefficient included: raw step R, angle R/sqrt(1-ρ^2), R/(1-ρ) diffusive.

    Nesterov's angle is R sqrt((1+2ρ-2ρ^3)/(1-ρ^2)). The angles are there from the first steps, whatever |w| and the
    decay; the norm sqrt(RG/(2λ(1-ρ))), G = |w||g|, takes (1-ρ)^2/R^2 steps, at the end of a logistic curve of |w|^2.
    That is for the ratio |w|/|g| (Page's); with `layerwise`, |w|/(|g| + λ|w|) (You et al.'s), R becomes R/(1+s) and the
    time is times (1+s)/(1+2s), s = λ|w|/|g| the root of s(1+s) = R/(2(1-ρ)) and |w|^2 = sG/λ. Without decay |w| grows
    by R^2/(2(1-ρ)^2) of itself a step for ever: norm and time are infinite. `radial` = <w,g>/|w|^2 adds to the λ that
    pulls. NaN where the total decay is negative. eps is left out.
    Source: derived here: with a = R/(1-ρ), d|w|^2/dt = a^2|w|^2 - 2aλ|w|^4/G; You, Gitman and Ginsburg 2017; Page,
    post 6. The rate that equals SGD's equilibrium: `equivalent_lars_rate`.
    """
    lr, decay, gradient = (
        nonnegative("lr", lr),
        nonnegative("weight_decay", weight_decay),
        nonnegative("gradient", gradient),
    )
    rho = fraction("momentum", momentum)
    total = decay + finite("radial", radial)
    total = np.where(total < 0, np.nan, total)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(decay > 0, decay / total, 0.0) if layerwise else 0.0
        ratio = (np.sqrt(1 + 2 * share * lr / (1 - rho)) - 1) / 2
        step = np.where(np.isnan(total), np.nan, lr / (1 + ratio))[()]
        diffusive = step / (1 - rho)
        time = np.where(total == 0, np.inf, (1 + ratio) / (1 + 2 * ratio) / diffusive**2)[()]
        norm = np.sqrt(diffusive * gradient / (2 * total))
    return Equilibrium(step * np.sqrt(squared_impulses(rho, nesterov)), norm, step, diffusive, time)


def lars_diffusion(
    lr: ArrayLike,
    *,
    steps: ArrayLike,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
) -> Floats:
    """The squared angle, rad^2, between weights `steps` updates of LARS (Page's ratio) apart: as `angular_diffusion`.

    (R/(1-ρ))^2 in place of 2ηλ/(1-ρ), R = `lr` with the trust coefficient included. Source: derived here.
    """
    rho = fraction("momentum", momentum)
    return (nonnegative("lr", lr) / (1 - rho)) ** 2 * window(steps, rho, nesterov)


def equivalent_lars_rate(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The local rate at which LARS, with the same momentum, takes SGD's equilibrium steps: sqrt(2ηλ(1-ρ)).

    Decoupled decay: sqrt(2ηλ)(1-ρ). For the ratio |w|/|g|. NaN where the total decay is negative.
    Source: Page, post 6, and derived here: LARS's raw step is its rate, SGD's is `raw_step`.
    """
    return raw_step(lr, weight_decay, momentum=momentum, decoupled=decoupled, radial=radial)


def _lion(
    lr: Floats, weight_decay: ArrayLike, beta1: ArrayLike, beta2: ArrayLike, radial: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """1 - ηλ with all that acts as decay (NaN where no equilibrium is), and both checked coefficients."""
    beta1, beta2 = fraction("beta1", beta1), fraction("beta2", beta2)
    gain = np.sqrt(2 / (np.pi * lion_variance(beta1, beta2)))  # E sign(c) for one g of unit rms, over all the steps
    product = lr * (nonnegative("weight_decay", weight_decay) + gain * finite("radial", radial))
    return np.where((product < 0) | (product >= 1), np.nan, 1 - product), beta1, beta2


def lion_variance(beta1: Floats, beta2: Floats) -> Floats:
    """E c^2 for unit gradients, c = β1 m + (1-β1) g."""
    return (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)


def lion_lag1(beta1: Floats, beta2: Floats) -> Floats:
    """The correlation of c with the c of the next step; of the one k steps on, times β2^(k-1)."""
    return beta1 * (1 - beta2) * (1 - beta1 + beta1 * beta2 / (1 + beta2)) / lion_variance(beta1, beta2)


def _sign_correlation(beta1: Floats, beta2: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Pairs (a, b): the signs of c, k steps apart, correlate by the sum of a b^(k-1), the series of 2/π arcsin."""
    lag1, coefficient = lion_lag1(beta1, beta2), 2 / np.pi
    for n in range(1, 2 * TERMS, 2):
        yield coefficient / n * lag1**n, beta2**n
        coefficient *= n / (n + 1)


def lion_excess(beta1: Floats, beta2: Floats) -> Floats:
    """The sum of the signs' correlations over all lags, over what it is where arcsine is taken as linear."""
    exact = sum(share / (1 - lag) for share, lag in _sign_correlation(beta1, beta2))
    linear = 2 / np.pi * lion_lag1(beta1, beta2) / (1 - beta2)
    return np.divide(exact, linear, out=np.ones_like(np.asarray(linear)), where=linear > 0)
