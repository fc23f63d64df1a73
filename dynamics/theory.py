"""Closed forms for the norms and angles of scale-invariant weights under SGD with momentum and weight decay.

Conventions: the loss is a mean over the batch and lr is the step per unit of mean gradient. Momentum and Nesterov are
torch.optim.SGD's (the velocity is multiplied by the current lr; no dampening). Decay is coupled, torch's SGD, unless
`decoupled`, where w is multiplied by 1 - lr * weight_decay beside the step, as in AdamW. Every argument is a number or
an array and they broadcast; angles are in radians.

In the docstrings η = lr, λ = weight_decay, ρ = momentum, w the weights of one tensor or one filter, g their gradient
and G = |w||g|, its rms over steps: where the loss does not change when w is rescaled, G depends on the direction of w
alone. The closed forms are of leading order in ηλ/(1-ρ) and assume gradients that are tangential to the sphere,
isotropic there and uncorrelated between steps. Two substitutions extend all of them, from the norm balance
"growth by the gradients = loss by decay" (derived here):

- decoupled decay λ equals coupled decay (1-ρ)λ, since it is not amplified by 1/(1-ρ) through the velocity;
- `radial` = <w,g>/|w|^2, averaged over steps, is what remains of the gradient along w where the loss is not exactly
  scale-invariant (frozen or no norm). Along w it acts as that much more coupled decay: λ becomes λ + radial, and for
  decoupled decay (1-ρ)λ becomes (1-ρ)λ + radial, because radial does pass through the velocity.

Sources: D. Page, "How to train your ResNet", posts 5 and 6; R. Wan et al., "Spherical motion dynamics", arXiv
2006.08419; Z. Li and S. Arora, "An exponential learning rate schedule for deep learning", arXiv 1910.07454; Z. Li,
K. Lyu and S. Arora, "Reconciling modern deep learning with traditional optimization analyses", arXiv 2010.02916;
A. Kosson et al., "Rotational equilibrium", arXiv 2305.17212.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DynamicsError

Floats = NDArray[np.float64]


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
    and `radial` as in the module's head; with `radial`, plain SGD takes the leading order as well. NaN where there is
    no equilibrium (the total decay is negative, or ηλ > 2 in plain SGD).
    Source: plain SGD Page, post 6; heavy ball Wan et al. 2021 and Kosson et al. 2023 (SGDM); Nesterov derived here:
    one gradient enters the updates with weights 1+ρ, ρ^2, ρ^3, ..., whose squares sum to (1+ρ)^2 + ρ^4/(1-ρ^2), times
    `raw_step` squared.
    """
    lr, rho = _nonnegative("lr", lr), _momentum(momentum)
    radial = _finite("radial", radial)
    product = lr * _total_decay(weight_decay, rho, decoupled, radial)
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
    lr, rho, gradient = _nonnegative("lr", lr), _momentum(momentum), _nonnegative("gradient", gradient)
    decay = _total_decay(weight_decay, rho, decoupled, _finite("radial", radial))
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
    lr, rho = _nonnegative("lr", lr), _momentum(momentum)
    with np.errstate(invalid="ignore"):
        return np.sqrt(2 * lr * _total_decay(weight_decay, rho, decoupled, _finite("radial", radial)) * (1 - rho))


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
    rho = _momentum(momentum)
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
    steps, rho = _nonnegative("steps", steps), _momentum(momentum)
    delay = rho**2 * (1 + rho - rho**2) if nesterov else rho
    window = steps - 2 * delay * (1 - rho**steps) / (1 - rho**2)
    return diffusive_angle(lr, weight_decay, momentum=rho, decoupled=decoupled, radial=radial) ** 2 * window


def effective_lr(lr: ArrayLike, norm: ArrayLike) -> Floats:
    """The effective learning rate η/|w|^2: the lr that moves w/|w| alike at norm 1.

    Source: Li and Arora 2019 and Li, Lyu and Arora 2020, for scale-invariant weights; no momentum in it.
    """
    return _nonnegative("lr", lr) / _positive("norm", norm) ** 2


def momentum_scaled_lr(lr: ArrayLike, momentum: ArrayLike) -> Floats:
    """η/(1-ρ), by which one gradient displaces the weights in the end. Source: Page, post 5; geometric sum."""
    return _nonnegative("lr", lr) / (1 - _momentum(momentum))


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
    rho = _momentum(momentum)
    decay = _total_decay(weight_decay, rho, decoupled, _finite("radial", radial))
    with np.errstate(divide="ignore"):
        return 1 / (4 * momentum_scaled_lr(lr, rho) * decay)


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
    step, norm0, gradient = _nonnegative("step", step), _positive("norm0", norm0), _nonnegative("gradient", gradient)
    rho = _momentum(momentum)
    scaled = momentum_scaled_lr(lr, rho)
    rate = 4 * scaled * _total_decay(weight_decay, rho, decoupled, _finite("radial", radial))
    safe = np.where(rate == 0, 1.0, rate)
    span = np.where(rate == 0, step, -np.expm1(-safe * step) / safe)  # the integral of exp(-rate t) over the steps
    return (norm0**4 * np.exp(-rate * step) + 2 * (scaled * gradient) ** 2 * span) ** 0.25


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
    """|w| before every update and after the last, for any schedule: sqrt of the mean of |w|^2, [T+1] or [T+1, L].

    `norm0` is a number or [L] and the velocity starts at zero. `lr` is [T] or [T, L], one row an update; the others
    are numbers or have the same leading axis of updates (a constant per layer is [1, L]). `gradient` is G = |w||g|,
    tangential part, rms.
    Raises DynamicsError where a leading axis is neither 1 nor T.
    Source: derived here. One update is linear in (w, v, g), so |w|^2, <w,v> and |v|^2 obey a closed recursion in
    expectation when g is tangential, uncorrelated with v, and of mean square G^2/|w|^2. It is exact for steps of any
    size, momentum's delay and lr schedules included, but for one closure: the mean of 1/|w|^2 is taken as one over the
    mean of |w|^2, which holds as far as |w| concentrates (well, in tens of dimensions or more).
    """
    return np.sqrt(_second_moments(norm0, lr, weight_decay, gradient, momentum, nesterov, decoupled, radial)[0])


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
    """The single-step angle of every update, [T] or [T, L], out of equilibrium and for any schedule.

    Arguments, errors and source: `norm_trajectory`. The angle of the mean inner products, which is the rms angle
    while angles are small.
    """
    square, overlap = _second_moments(norm0, lr, weight_decay, gradient, momentum, nesterov, decoupled, radial)
    sine = np.sqrt(np.maximum(square[:-1] * square[1:] - overlap**2, 0.0))
    return np.arctan2(sine, overlap)


def freezes(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    *,
    momentum: ArrayLike = 0.0,
    decoupled: bool = False,
    steps: ArrayLike | None = None,
) -> NDArray[np.bool_]:
    """Where a schedule's lr falls faster than |w| can follow: a mask shaped as `lr`, [T] or [T, ...].

    The equilibrium |w|^4 is proportional to lr, and |w|^4 itself falls no faster than at the rate 1/`time_constant`,
    whatever the gradients; True where -d ln(lr)/dt passes that rate (and where lr stays 0), the last entry judged by
    the interval before it. There |w| is nearly constant and the relative step follows lr instead of sqrt(lr).
    `steps` [T] says at which steps lr was recorded, by default every one. A staircase is marked at the drops only,
    although |w| lags for a time constant after each.
    Raises DynamicsError for fewer than two entries or for `steps` that do not increase. Source: derived here.
    """
    lr = _nonnegative("lr", lr)
    if lr.ndim == 0 or len(lr) < 2:
        raise DynamicsError("freezes() needs the lr of two steps or more: pass the schedule as an array")
    gaps = np.diff(np.arange(len(lr)) if steps is None else _finite("steps", steps))
    if len(gaps) != len(lr) - 1 or np.any(gaps <= 0):
        raise DynamicsError(f"steps must be {len(lr)} increasing step numbers, one for each lr")
    with np.errstate(divide="ignore", invalid="ignore"):
        fall = -np.diff(np.log(lr), axis=0) / gaps.reshape(-1, *[1] * (lr.ndim - 1))
    fall = np.where(np.isnan(fall), np.inf, fall)  # lr 0 twice running: ln(0) - ln(0)
    fall = np.concatenate([fall, fall[-1:]])
    return fall > 1 / time_constant(lr, weight_decay, momentum=momentum, decoupled=decoupled)


def stability_bound(curvature: ArrayLike, *, momentum: ArrayLike = 0.0, nesterov: bool = False) -> Floats:
    """The largest lr at which full-batch SGD is stable along a direction of this curvature (Hessian eigenvalue).

    Gradient descent 2/h; heavy ball 2(1+ρ)/h; Nesterov as torch computes it 2(1+ρ)/((1+2ρ)h). Infinite where the
    curvature is zero or negative. `curvature` is of the mean loss. Source: derived here: the characteristic polynomial
    of the quadratic's recursion has its root at -1 there; the first is Page, post 7's bound.
    """
    curvature, rho = _finite("curvature", curvature), _momentum(momentum)
    gain = 2 * (1 + rho) / (1 + 2 * rho) if nesterov else 2 * (1 + rho)
    return np.where(curvature > 0, gain / np.where(curvature > 0, curvature, 1.0), np.inf)[()]


def _total_decay(weight_decay: ArrayLike, rho: Floats, decoupled: bool, radial: Floats) -> Floats:
    """The coupled decay that would balance as much growth: see the two substitutions in the module's head."""
    decay = _nonnegative("weight_decay", weight_decay)
    return decay * (1 - rho) + radial if decoupled else decay + radial


def _second_moments(
    norm0: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    gradient: ArrayLike,
    momentum: ArrayLike,
    nesterov: bool,
    decoupled: bool,
    radial: ArrayLike,
) -> tuple[Floats, Floats]:
    """E|w_t|^2 for t = 0..T, and E<w_t, w_(t+1)> for t = 0..T-1."""
    norm0, lr = _positive("norm0", norm0), _nonnegative("lr", lr)
    if lr.ndim == 0:
        raise DynamicsError("a trajectory needs an lr for each update: pass an array, such as np.full(steps, lr)")
    values = {
        "lr": lr,
        "weight_decay": _nonnegative("weight_decay", weight_decay),
        "gradient": _nonnegative("gradient", gradient),
        "momentum": _momentum(momentum),
        "radial": _finite("radial", radial),
    }
    for name, value in values.items():
        if value.ndim and len(value) not in (1, len(lr)):
            raise DynamicsError(f"{name} has {len(value)} rows for {len(lr)} updates: its first axis is updates or 1")
    try:
        shape = np.broadcast_shapes(norm0.shape, *(value.shape[1:] for value in values.values()))
    except ValueError:
        message = "norm0 and the per-update arrays disagree after their first axis: give all of them the same L"
        raise DynamicsError(message) from None
    rows = (len(lr), *shape)
    lr, decay, gradient, rho, radial = (np.broadcast_to(_align(value, len(shape)), rows) for value in values.values())

    # One update, (w, v) -> (keep w - carry v - step g,  pull w + rho v + g), with torch's velocity v.
    pull = radial if decoupled else decay + radial
    step = lr * (1 + rho) if nesterov else lr
    carry = lr * rho**2 if nesterov else lr * rho
    keep = 1 - step * pull - (lr * decay if decoupled else 0.0)

    square = np.empty((len(lr) + 1, *shape))
    overlap = np.empty(rows)
    square[0] = norm0**2
    ww, wv, vv = square[0], np.zeros(shape), np.zeros(shape)
    for t in range(len(lr)):
        noise = gradient[t] ** 2 / ww
        overlap[t] = keep[t] * ww - carry[t] * wv
        ww, wv, vv = (
            keep[t] ** 2 * ww - 2 * keep[t] * carry[t] * wv + carry[t] ** 2 * vv + step[t] ** 2 * noise,
            pull[t] * overlap[t] + rho[t] * (keep[t] * wv - carry[t] * vv) - step[t] * noise,
            pull[t] ** 2 * ww + 2 * pull[t] * rho[t] * wv + rho[t] ** 2 * vv + noise,
        )
        square[t + 1] = ww
    return square, overlap


def _align(value: Floats, axes: int) -> Floats:
    """Room for `axes` trailing axes after the axis of updates, the value's own ones last."""
    value = np.atleast_1d(value)
    return value.reshape(value.shape[0], *[1] * (axes + 1 - value.ndim), *value.shape[1:])


def _finite(name: str, value: ArrayLike) -> Floats:
    value = np.asarray(value, dtype=np.float64)
    if not np.all(np.isfinite(value)):
        raise DynamicsError(f"{name} has nan or infinite entries: select the finite ones first")
    return value


def _nonnegative(name: str, value: ArrayLike) -> Floats:
    value = _finite(name, value)
    if np.any(value < 0):
        raise DynamicsError(f"{name} must not be negative, got {value.min():g}: check its sign")
    return value


def _positive(name: str, value: ArrayLike) -> Floats:
    value = _finite(name, value)
    if np.any(value <= 0):
        raise DynamicsError(f"{name} must be positive, got {value.min():g}: leave out weights that are all zero")
    return value


def _momentum(value: ArrayLike) -> Floats:
    value = _nonnegative("momentum", value)
    if np.any(value >= 1):
        raise DynamicsError(f"momentum must be below 1, got {value.max():g}: pass the coefficient, such as 0.9")
    return value
