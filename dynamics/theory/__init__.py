"""Closed forms and recursions for the norms and angles of scale-invariant weights, for stability, and for signals.

Conventions: the loss is a mean over the batch and lr is the step per unit of mean gradient. Momentum and Nesterov are
torch.optim.SGD's (the velocity is multiplied by the current lr; no dampening). Decay is coupled, torch's SGD, unless
`decoupled`, where w is multiplied by 1 - lr * weight_decay beside the step, as in AdamW. Every argument is a number or
an array and they broadcast; angles are in radians.

`<optimizer>_equilibrium` is where a weight settles, `<optimizer>_diffusion` how far it turns in a window of steps, and
`<optimizer>_trajectory` its norm and angle under a schedule, for sgd, adam (with L2), adamw, lion and lars; SGD's
closed forms also stand alone (`equilibrium_angle` and the like).

In the docstrings η = lr, λ = weight_decay, ρ = momentum, w the weights of one tensor or one filter, g their gradient
and G = |w||g|, its rms over steps: where the loss does not change when w is rescaled, G depends on the direction of w
alone. C = size counts the coordinates of w: what Adam and Lion step by has the length sqrt(C) whatever |g| is, where
SGD's has |g| and LARS's |w|. The closed forms are of leading order in ηλ/(1-ρ), where nothing else is said, and assume
gradients that are tangential to the sphere, isotropic there and uncorrelated between steps. Two substitutions extend
SGD's, from the norm balance "growth by the gradients = loss by decay" (derived here):

- decoupled decay λ equals coupled decay (1-ρ)λ, since it is not amplified by 1/(1-ρ) through the velocity;
- `radial` = <w,g>/|w|^2, averaged over steps, is what remains of the gradient along w where the loss is not exactly
  scale-invariant (frozen or no norm). Along w it acts as that much more coupled decay: λ becomes λ + radial, and for
  decoupled decay (1-ρ)λ becomes (1-ρ)λ + radial, because radial does pass through the velocity.

Sources: D. Page, "How to train your ResNet", posts 5 and 6; R. Wan et al., "Spherical motion dynamics", arXiv
2006.08419; Z. Li and S. Arora, "An exponential learning rate schedule for deep learning", arXiv 1910.07454; Z. Li,
K. Lyu and S. Arora, "Reconciling modern deep learning with traditional optimization analyses", arXiv 2010.02916;
A. Kosson et al., "Rotational equilibrium", arXiv 2305.17212. What a function adds to them it cites itself.
"""

from __future__ import annotations

from .equilibria import (
    Equilibrium,
    adam_diffusion,
    adam_equilibrium,
    adamw_diffusion,
    adamw_equilibrium,
    equivalent_lars_rate,
    lars_diffusion,
    lars_equilibrium,
    lion_diffusion,
    lion_equilibrium,
    sgd_equilibrium,
)
from .equilibrium import (
    angular_diffusion,
    diffusive_angle,
    effective_lr,
    equilibrium_angle,
    equilibrium_norm,
    momentum_scaled_lr,
    raw_step,
    time_constant,
)
from .signals import (
    Moments,
    collapse_asymptote,
    correlation_map,
    decay_product,
    decay_trajectory,
    relu_moments,
    within_channel_share,
)
from .stability import (
    batch_sharpness,
    robust_region,
    stability_bound,
)
from .transients import (
    Trajectory,
    adam_trajectory,
    adamw_trajectory,
    angle_trajectory,
    freezes,
    lars_trajectory,
    lion_trajectory,
    norm_trajectory,
    norm_transient,
    outpaces,
    sgd_trajectory,
)

__all__ = [
    "Equilibrium",
    "Moments",
    "Trajectory",
    "adam_diffusion",
    "adam_equilibrium",
    "adam_trajectory",
    "adamw_diffusion",
    "adamw_equilibrium",
    "adamw_trajectory",
    "angle_trajectory",
    "angular_diffusion",
    "batch_sharpness",
    "collapse_asymptote",
    "correlation_map",
    "decay_product",
    "decay_trajectory",
    "diffusive_angle",
    "effective_lr",
    "equilibrium_angle",
    "equilibrium_norm",
    "equivalent_lars_rate",
    "freezes",
    "lars_diffusion",
    "lars_equilibrium",
    "lars_trajectory",
    "lion_diffusion",
    "lion_equilibrium",
    "lion_trajectory",
    "momentum_scaled_lr",
    "norm_trajectory",
    "norm_transient",
    "outpaces",
    "raw_step",
    "relu_moments",
    "robust_region",
    "sgd_equilibrium",
    "sgd_trajectory",
    "stability_bound",
    "time_constant",
    "within_channel_share",
]
