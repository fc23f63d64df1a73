"""Norms and angles out of equilibrium, under any schedule: one recursion of second moments for every optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DynamicsError
from ._checks import Floats, finite, fraction, nonnegative, positive, total_decay
from .equilibria import lion_excess
from .equilibrium import momentum_scaled_lr, time_constant


def norm_transient(
    step: ArrayLike,
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """|w| before update number `step`, from `norm0` before update 0, at constant lr and G.

    |w|^4 = y + (norm0^4 - y) exp(-step/`time_constant`), y the fourth power of `equilibrium_norm`; without decay |w|^4
    grows by 2(ηG/(1-ρ))^2 a step. Continuous in time, so it does not know the velocity's delay: at ρ = 0.9 and
    ηλ = 2e-4 it is within 2 % of a simulated walk from two or three times equilibrium, but in the first 20 steps up to
    15 % high from half of it and 42 % from 0.3 of it, and larger steps are worse; `norm_trajectory` is within 0.3 %.
    Source: derived here, as `time_constant`; the growth |w| ~ step^(1/4) is Page, post 6.
    """
    step, norm0, gradient = nonnegative("step", step), positive("norm0", norm0), nonnegative("gradient", gradient)
    rho = fraction("momentum", momentum)
    scaled = momentum_scaled_lr(lr, rho)
    rate = 4 * scaled * total_decay(weight_decay, rho, decoupled, finite("radial", radial))
    safe = np.where(rate == 0, 1.0, rate)
    span = np.where(rate == 0, step, -np.expm1(-safe * step) / safe)  # the integral of exp(-rate t) over the steps
    return (norm0**4 * np.exp(-rate * step) + 2 * (scaled * gradient) ** 2 * span) ** 0.25


class Trajectory(NamedTuple):
    """`norm`: |w| before every update and after the last, [T+1] or [T+1, L]; `angle` (rad) of every update, [T] or
    [T, L]."""

    norm: Floats
    angle: Floats


def sgd_trajectory(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Trajectory:
    """|w| and the single-step angle under any schedule of SGD: roots of mean squares over the noise.

    `norm0` is a number or [L] and the velocity starts at zero. `lr` is [T] or [T, L], one row an update; the others
    are numbers or have the same leading axis of updates (a constant per layer is [1, L]). `gradient` is G = |w||g|,
    tangential part, rms.
    Raises DynamicsError where a leading axis is neither 1 nor T.
    Source: derived here. One update is linear in (w, v, g), so |w|^2, <w,v> and |v|^2 obey a closed recursion in
    expectation when g is tangential, uncorrelated with v, and of mean square G^2/|w|^2. It is exact for steps of any
    size, momentum's delay and lr schedules included, but for one closure: the mean of 1/|w|^2 is taken as one over the
    mean of |w|^2, which holds as far as |w| concentrates (well, in tens of dimensions or more). The angle is that of
    the mean inner products, which is the rms angle while angles are small.
    """
    norm0, _, (lr, decay, gradient, rho, radial) = _rows(
        norm0,
        lr=nonnegative("lr", lr),
        weight_decay=nonnegative("weight_decay", weight_decay),
        gradient=nonnegative("gradient", gradient),
        momentum=fraction("momentum", momentum),
        radial=finite("radial", radial),
    )
    pull = radial if decoupled else decay + radial
    carry, step = _velocity(lr, rho, nesterov)
    keep = 1 - step * pull - (lr * decay if decoupled else 0.0)
    return _trajectory(
        norm0,
        len(lr),
        lambda t, ww, vv: _Update(keep[t], carry[t], step[t], pull[t], rho[t], 1.0, gradient[t] ** 2 / ww),
    )


def adamw_trajectory(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    size: ArrayLike,
    *,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.999,
    gradient: ArrayLike | None = None,
    eps: ArrayLike = 0.0,
    radial: ArrayLike = 0.0,
) -> Trajectory:
    """|w| and the single-step angle under any schedule of AdamW; `size` (a number or [L]) counts its coordinates.

    Shapes and errors: `sgd_trajectory`; both averages start at zero and are corrected for it. Without `gradient` the
    normalised gradient has mean square 1 a coordinate throughout. With G = |w||g| it follows the second-moment
    average, which lags by 1/(1-β2) updates where |g| changes: from two or three times equilibrium, 15 % in the norm.
    `radial` = <w,u>/|w|^2, u the normalised gradient. Gaussian gradients, which sit in their own average, make norms
    about (1-β2)/2 lower.
    Source: derived here: the recursion of `sgd_trajectory` with m <- β1 m + (1-β1) u for the velocity.
    """
    norm0, size, (lr, decay, rho, beta2, radial, given, eps) = _rows(
        norm0,
        positive("size", size),
        lr=nonnegative("lr", lr),
        weight_decay=nonnegative("weight_decay", weight_decay),
        beta1=fraction("beta1", beta1),
        beta2=fraction("beta2", beta2),
        radial=finite("radial", radial),
        gradient=nonnegative("gradient", 1.0 if gradient is None else gradient),
        eps=nonnegative("eps", eps),
    )
    lr_hat = lr / (1 - np.cumprod(rho, axis=0))
    average = _SecondMoment(beta2, eps)

    def update(t: int, ww: Floats, vv: Floats) -> _Update:
        if gradient is None:
            noise = size
        else:
            square = given[t] ** 2 / ww / size
            noise = size * square * average.inverse(t, square) ** 2
        gain = 1 - rho[t]
        step = lr_hat[t] * gain
        keep = 1 - lr[t] * decay[t] - step * radial[t]
        return _Update(keep, lr_hat[t] * rho[t], step, gain * radial[t], rho[t], gain, noise)

    return _trajectory(norm0, len(lr), update)


def adam_trajectory(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    size: ArrayLike,
    *,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.999,
    eps: ArrayLike = 0.0,
    radial: ArrayLike = 0.0,
) -> Trajectory:
    """|w| and the single-step angle under any schedule of Adam with an L2 term, which is normalised with the gradient.

    `size` (a number or [L]) counts the coordinates; `gradient` is G = |w||g| without the L2 term and
    `radial` = <w,g>/|w|^2, as for SGD. Shapes and errors: `sgd_trajectory`. Norms are within 2 % of a simulated walk
    while λ|w| is well below |g|, and up to 11 % low where they are alike, as at three times equilibrium: λw is not
    spread evenly over the coordinates.
    Source: derived here, as `adamw_trajectory`; the L2 term λw is divided by the rms of the gradient a coordinate,
    taken equal over coordinates.
    """
    norm0, size, (lr, decay, gradient, rho, beta2, radial, eps) = _rows(
        norm0,
        positive("size", size),
        lr=nonnegative("lr", lr),
        weight_decay=nonnegative("weight_decay", weight_decay),
        gradient=nonnegative("gradient", gradient),
        beta1=fraction("beta1", beta1),
        beta2=fraction("beta2", beta2),
        radial=finite("radial", radial),
        eps=nonnegative("eps", eps),
    )
    lr_hat = lr / (1 - np.cumprod(rho, axis=0))
    average = _SecondMoment(beta2, eps)

    def update(t: int, ww: Floats, vv: Floats) -> _Update:
        tangential, along = gradient[t] ** 2 / ww, decay[t] + radial[t]
        inverse = average.inverse(t, (tangential + along**2 * ww) / size)
        gain = 1 - rho[t]
        step = lr_hat[t] * gain
        pull = along * inverse
        return _Update(
            1 - step * pull, lr_hat[t] * rho[t], step, gain * pull, rho[t], gain, tangential * inverse**2
        )  # fmt: skip

    return _trajectory(norm0, len(lr), update)


def lion_trajectory(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    size: ArrayLike,
    *,
    beta1: ArrayLike = 0.9,
    beta2: ArrayLike = 0.99,
    gradient: ArrayLike | None = None,
    radial: ArrayLike = 0.0,
) -> Trajectory:
    """|w| and the single-step angle under any schedule of Lion; `size` (a number or [L]) counts its coordinates.

    Shapes and errors: `sgd_trajectory`. Without `gradient`, |g| is constant; with G = |w||g| the average m remembers
    the gradients' sizes of the last 1/(1-β2) updates. `radial` = <w,g>/|w|^2 over the rms of g a coordinate.
    Source: derived here: c = β1 m + (1-β1) g is nearly Gaussian, so sign(c) is sqrt(2/π)/σ c plus a part uncorrelated
    with everything linear (Bussgang 1952), and the recursion of `sgd_trajectory` closes; steps correlate by the arcsine
    law instead of linearly, for which their correlation is raised by the ratio that it has in equilibrium.
    """
    norm0, size, (lr, decay, beta1, beta2, radial, given) = _rows(
        norm0,
        positive("size", size),
        lr=nonnegative("lr", lr),
        weight_decay=nonnegative("weight_decay", weight_decay),
        beta1=fraction("beta1", beta1),
        beta2=fraction("beta2", beta2),
        radial=finite("radial", radial),
        gradient=nonnegative("gradient", 1.0 if gradient is None else gradient),
    )
    raised = np.sqrt(lion_excess(beta1, beta2))

    def update(t: int, ww: Floats, vv: Floats) -> _Update:
        noise = size if gradient is None else given[t] ** 2 / ww
        linear = beta1[t] ** 2 * vv + (1 - beta1[t]) ** 2 * noise  # E|c|^2
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(linear > 0, np.sqrt(2 / np.pi * size / linear), 0.0) * raised[t]
        rms = np.sqrt(noise / size)
        pull = radial[t] * rms
        carry, step = lr[t] * gain * beta1[t], lr[t] * gain * (1 - beta1[t])
        rest = lr[t] ** 2 * np.where(linear > 0, size - gain**2 * linear, 0.0)
        return _Update(
            1 - lr[t] * decay[t] - step * pull, carry, step, (1 - beta2[t]) * pull, beta2[t], 1 - beta2[t], noise, rest
        )  # fmt: skip

    return _trajectory(norm0, len(lr), update)


def lars_trajectory(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    layerwise: bool = False,
    lr_in_velocity: bool = False,
    eps: ArrayLike = 0.0,
    radial: ArrayLike = 0.0,
) -> Trajectory:
    """|w| and the single-step angle under any schedule of LARS; `lr` is its local rate, the trust coefficient included.

    The ratio that multiplies g + λw is |w|/(|g| + eps), Page's, or with `layerwise` |w|/(|g| + λ|w| + eps), You et
    al.'s. |w| and |g| are those of what the optimizer normalises, a filter or a layer (for a layer of F filters alike
    under Page's, eps is sqrt(F) times the filter's). `lr_in_velocity` where the velocity adds up lr * ratio * (g + λw),
    as both authors have it, and not ratio * (g + λw) to be multiplied by the lr of the day. Other arguments, shapes and
    errors: `sgd_trajectory`.
    Source: derived here, as `sgd_trajectory`; You, Gitman and Ginsburg 2017 (arXiv 1708.03888); Page, post 6.
    """
    norm0, _, (lr, decay, gradient, rho, radial, eps) = _rows(
        norm0,
        lr=nonnegative("lr", lr),
        weight_decay=nonnegative("weight_decay", weight_decay),
        gradient=nonnegative("gradient", gradient),
        momentum=fraction("momentum", momentum),
        radial=finite("radial", radial),
        eps=nonnegative("eps", eps),
    )
    inside, outside = (lr, np.ones_like(lr)) if lr_in_velocity else (np.ones_like(lr), lr)
    carry, step = _velocity(outside, rho, nesterov)

    def update(t: int, ww: Floats, vv: Floats) -> _Update:
        norm = np.sqrt(ww)
        size = gradient[t] / norm
        below = size + eps[t] + (decay[t] * norm if layerwise else 0.0)
        ratio = np.divide(norm, below, out=np.zeros_like(norm), where=below > 0)
        pull = inside[t] * ratio * (decay[t] + radial[t])
        noise = (inside[t] * ratio * size) ** 2
        return _Update(1 - step[t] * pull, carry[t], step[t], pull, rho[t], 1.0, noise)

    return _trajectory(norm0, len(lr), update)


def norm_trajectory(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The norms of `sgd_trajectory`, [T+1] or [T+1, L]: same arguments, errors and source."""
    kind = {"momentum": momentum, "nesterov": nesterov, "decoupled": decoupled, "radial": radial}
    return sgd_trajectory(norm0, lr, weight_decay, gradient, **kind).norm


def angle_trajectory(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    nesterov: bool = False,
    decoupled: bool = False,
    radial: ArrayLike = 0.0,
) -> Floats:
    """The single-step angles of `sgd_trajectory`, [T] or [T, L]: same arguments, errors and source."""
    kind = {"momentum": momentum, "nesterov": nesterov, "decoupled": decoupled, "radial": radial}
    return sgd_trajectory(norm0, lr, weight_decay, gradient, **kind).angle


def outpaces(lr: ArrayLike, time_constant: ArrayLike, *, steps: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Where a schedule's lr falls faster than |w| can follow, -d ln(lr)/dt above 1/`time_constant`: a mask like `lr`.

    `lr` is [T] or [T, ...] and `time_constant` that of the optimizer's equilibrium at each lr. True where lr stays 0;
    the last entry is judged by the interval before it. `steps` [T] says at which steps lr was recorded, by default
    every one. Raises DynamicsError for fewer than two entries or for `steps` that do not increase.
    Source: derived here. Without any gradients |w| falls at the rate of its decay; the equilibrium |w| is a power of lr
    such that keeping up with it asks for more exactly there, for SGD, AdamW, Lion, Adam with L2 and LARS alike.
    """
    lr = nonnegative("lr", lr)
    if lr.ndim == 0 or len(lr) < 2:
        raise DynamicsError("freezes() needs the lr of two steps or more: pass the schedule as an array")
    gaps = np.diff(np.arange(len(lr)) if steps is None else finite("steps", steps))
    if len(gaps) != len(lr) - 1 or np.any(gaps <= 0):
        raise DynamicsError(f"steps must be {len(lr)} increasing step numbers, one for each lr")
    with np.errstate(divide="ignore", invalid="ignore"):
        fall = -np.diff(np.log(lr), axis=0) / gaps.reshape(-1, *[1] * (lr.ndim - 1))
        fall = np.where(np.isnan(fall), np.inf, fall)  # lr 0 twice running: ln(0) - ln(0)
        return np.concatenate([fall, fall[-1:]]) > 1 / np.asarray(time_constant, dtype=np.float64)


def freezes(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    decoupled: bool = False,
    steps: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Where a schedule's lr falls faster than |w| can follow under SGD: a mask shaped as `lr`, [T] or [T, ...].

    The equilibrium |w|^4 is proportional to lr, and |w|^4 itself falls no faster than at the rate 1/`time_constant`,
    whatever the gradients; True where -d ln(lr)/dt passes that rate (and where lr stays 0), the last entry judged by
    the interval before it. There |w| is nearly constant and the relative step follows lr instead of sqrt(lr).
    `steps` [T] says at which steps lr was recorded, by default every one. A staircase is marked at the drops only,
    although |w| lags for a time constant after each.
    Raises DynamicsError for fewer than two entries or for `steps` that do not increase. Source: derived here.
    """
    lr = nonnegative("lr", lr)
    return outpaces(lr, time_constant(lr, weight_decay, momentum=momentum, decoupled=decoupled), steps=steps)


class _Update(NamedTuple):
    """One update as a linear map, w <- keep w - carry v - step n + e and v <- pull w + rho v + gain n.

    `noise` is E|n|^2 and `rest` E|e|^2; n and e are uncorrelated with w, with v and with one another.
    """

    keep: Floats
    carry: Floats
    step: Floats
    pull: Floats
    rho: Floats
    gain: Floats | float
    noise: Floats
    rest: Floats | float = 0.0


def _trajectory(norm0: Floats, steps: int, update: Callable[[int, Floats, Floats], _Update]) -> Trajectory:
    """The recursion of E|w|^2, E<w,v> and E|v|^2, given what update t is at these |w|^2 and |v|^2."""
    square = np.empty((steps + 1, *norm0.shape))
    overlap = np.empty((steps, *norm0.shape))
    square[0] = norm0**2
    ww, wv, vv = square[0], np.zeros(norm0.shape), np.zeros(norm0.shape)
    for t in range(steps):
        u = update(t, ww, vv)
        overlap[t] = u.keep * ww - u.carry * wv
        ww, wv, vv = (
            u.keep**2 * ww - 2 * u.keep * u.carry * wv + u.carry**2 * vv + u.step**2 * u.noise + u.rest,
            u.pull * overlap[t] + u.rho * (u.keep * wv - u.carry * vv) - u.step * u.gain * u.noise,
            u.pull**2 * ww + 2 * u.pull * u.rho * wv + u.rho**2 * vv + u.gain**2 * u.noise,
        )
        square[t + 1] = ww
    sine = np.sqrt(np.maximum(square[:-1] * square[1:] - overlap**2, 0.0))
    return Trajectory(np.sqrt(square), np.arctan2(sine, overlap))


def _velocity(lr: Floats, rho: Floats, nesterov: bool) -> tuple[Floats, Floats]:
    """What an update takes of the old velocity and of the gradient."""
    return (lr * rho**2, lr * (1 + rho)) if nesterov else (lr * rho, lr)


class _SecondMoment:
    """Adam's average of squared gradients a coordinate, in expectation and corrected for its start at zero."""

    def __init__(self, beta2: Floats, eps: Floats) -> None:
        self.beta2, self.eps, self.sum = beta2, eps, 0.0
        self.weight = 1 - np.cumprod(beta2, axis=0)

    def inverse(self, t: int, square: Floats) -> Floats:
        """What update t multiplies the gradient by, at this mean square; zero where there was no gradient yet."""
        self.sum = self.beta2[t] * self.sum + (1 - self.beta2[t]) * square
        below = np.sqrt(self.sum / self.weight[t]) + self.eps[t]
        return np.divide(1.0, below, out=np.zeros_like(below), where=below > 0)


def _rows(norm0: ArrayLike, size: ArrayLike = 1.0, **values: Floats) -> tuple[Floats, Floats, list[Floats]]:
    """`norm0` and `size` of shape [...], and the values one row an update, [T, ...]; `lr` says how many."""
    norm0, size, lr = positive("norm0", norm0), np.asarray(size), values["lr"]
    if lr.ndim == 0:
        raise DynamicsError("a trajectory needs an lr for each update: pass an array, such as np.full(steps, lr)")
    for name, value in values.items():
        if value.ndim and len(value) not in (1, len(lr)):
            raise DynamicsError(f"{name} has {len(value)} rows for {len(lr)} updates: its first axis is updates or 1")
    try:
        shape = np.broadcast_shapes(norm0.shape, size.shape, *(value.shape[1:] for value in values.values()))
    except ValueError:
        message = "norm0 and the per-update arrays disagree after their first axis: give all of them the same L"
        raise DynamicsError(message) from None
    rows = [np.broadcast_to(_align(value, len(shape)), (len(lr), *shape)) for value in values.values()]
    return np.broadcast_to(norm0, shape), np.broadcast_to(size, shape), rows


def _align(value: Floats, axes: int) -> Floats:
    """Room for `axes` trailing axes after the axis of updates, the value's own ones last."""
    value = np.atleast_1d(value)
    return value.reshape(value.shape[0], *[1] * (axes + 1 - value.ndim), *value.shape[1:])
