"""What posts 5 and 6 of Page's series claim: hyperparameters, weight decay."""

from __future__ import annotations

from .entry import NEEDS_CIFAR, NOT_YET, Entry

_THEORY = "dynamics.theory:"

ENTRIES = (
    Entry(
        "P5-1", "D", "M", "post 5",
        "Test accuracy over learning rate and batch size is flat along a constant ratio of the two.",
        "a figure only",
        tested=("chapter 05",), formulas=(f"{_THEORY}angular_diffusion",),
    ),
    Entry(
        "P5-2", "D", "S", "post 5",
        "Over learning rate and momentum it is flat where lr / (1 - momentum) is constant.",
        "a figure only",
        tested=("chapter 05",), formulas=(f"{_THEORY}angular_diffusion", f"{_THEORY}momentum_scaled_lr"),
    ),
    Entry(
        "P5-3", "D", "S", "post 5",
        "Over learning rate and weight decay it is flat where the product of the two is constant.",
        "a figure only",
        tested=("chapter 05",), formulas=(f"{_THEORY}angular_diffusion",),
    ),
    Entry(
        "P5-4", "D", "S", "post 5",
        "The flat directions end where curvature makes a step unstable, and where momentum averages over a time "
        "comparable with the schedule.",
        "a remark: curvature matters little in the region shown",
        tested=("chapter 05",), formulas=(f"{_THEORY}stability_bound",),
    ),
    Entry(
        "P5-5", "A", "F", "post 5",
        "Doubling or halving one hyperparameter after the other, from a very bad start, arrives at the accuracy of the "
        "tuned baseline.",
        "30.6 % to 94.2 % (one run) in 22 runs",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P5-6", "D", "M", "post 5",
        "That search needs fewer runs when its coordinates follow the flat directions.",
        "22 runs",
        tested=("tests/test_slices.py::test_P5_6_on_a_ridge_aligned_coordinates_end_lower", "chapter 05"),
    ),
    Entry(
        "P5-7", "E", "S", "post 5",
        "For scale-invariant weights, lr times c^2 with decay over c^2 and initial weights times c leads to the same "
        "function at every step.",
        "exact",
        tested=(
            "tests/test_identities_optim.py::"
            "test_P5_7_lr_and_decay_and_size_of_scale_invariant_weights_trade_exactly",
            "tests/test_training.py::test_scale_symmetry",
            "chapter 05",
            "chapter 06",
        ),
    ),
    Entry(
        "P5-8", "D", "S", "post 5",
        "How large the weights were at first, and with it how a fixed product is split between lr and decay, is "
        "forgotten after about 1 / (lr weight_decay) steps.",
        "a remark",
        tested=("chapter 06",), formulas=(f"{_THEORY}norm_transient", f"{_THEORY}time_constant"),
    ),
    Entry(
        "P5-9", "E", "S", "post 5",
        "The gradient of weights that batch norm follows is orthogonal to them, filter by filter.",
        "an inner product of 0",
        tested=(
            "tests/test_training.py::test_gradients_are_orthogonal_to_weights_before_batch_norm",
            "chapter 00",
            "chapter 06",
        ),
    ),
    Entry(
        "P5-10", "D", "S", "post 5",
        "A step along the gradient lengthens scale-invariant weights and decay shortens them, so their norm settles at "
        "a stable value.",
        "|w|^2 grows by lr^2 |g|^2",
        tested=("tests/test_training.py::test_gradient_steps_grow_the_norm_by_pythagoras", "chapter 06"),
        formulas=(f"{_THEORY}equilibrium_norm",),
    ),
    Entry(
        "P5-11", "A", "F", "post 5",
        "In a large region of hyperparameters the accuracies cannot be told apart, and finer tuning gains nothing.",
        "no improvement was found",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P6-1", "D", "S", "post 6",
        "In equilibrium a layer moves by the same share of its norm at each step, sqrt(2 lr weight_decay) for SGD, "
        "whatever its size, its initialisation and the scale of its gradient.",
        "sqrt(2 lr weight_decay)",
        tested=(
            "tests/test_theory.py::test_equilibrium_norm_angle_and_raw_step",
            "chapter 06",
            "benchmarks/equilibrium.py",
        ),
        formulas=(f"{_THEORY}equilibrium_angle",),
    ),
    Entry(
        "P6-2", "D", "S", "post 6",
        "Relative steps of different layers come together in equilibrium, though their norms and gradients differ by "
        "orders of magnitude.",
        "a figure: the layers' curves coincide",
        tested=("chapter 00", "chapter 06", "benchmarks/equilibrium.py"),
    ),
    Entry(
        "P6-3", "D", "S", "post 6",
        "The transient at the start lasts about 1 / (lr weight_decay) steps, with lr scaled by momentum, and "
        "longer the further the initial norm is from equilibrium.",
        "of the order 1 / (lr weight_decay)",
        tested=("tests/test_theory.py::test_transient_with_momentum", "chapter 06"),
        formulas=(f"{_THEORY}norm_transient", f"{_THEORY}time_constant"),
    ),
    Entry(
        "P6-4", "D", "S", "post 6",
        "SGD with weight decay behaves in equilibrium like LARS with the trust sqrt(2 lr weight_decay (1 - momentum)).",
        "a figure: curves nearly alike",
        tested=(
            "tests/test_theory.py::test_equilibria_agree_where_optimizers_do",
            "tests/test_chapter07.py::test_P6_4_a_random_walk_under_sgd_settles_at_the_angle_of_lars",
            "chapter 07",
        ),
        formulas=(f"{_THEORY}equivalent_lars_rate",),
    ),
    Entry(
        "P6-5", "D", "S", "post 6",
        "Batch and learning rate n times as large make each equilibrium step sqrt(n) times as large and "
        "leave the angle turned in an epoch as it was.",
        "a step times sqrt(n), an epoch the same",
        tested=("tests/test_theory.py::test_angle_over_a_window", "chapter 07"),
        formulas=(f"{_THEORY}angular_diffusion",),
    ),
    Entry(
        "P6-6", "D", "S", "post 6",
        "Gradients of different steps are nearly orthogonal to one another, which the Pythagorean sum of steps needs.",
        "about 0",
        tested=("chapter 07",),
    ),
    Entry(
        "P6-7", "D", "M", "post 6",
        "Since decay makes steps relative, as LARS does, one learning rate suits every layer, width and architecture.",
        "a remark",
        untested=NOT_YET,
    ),
    Entry(
        "P6-8", "Q", "S", "post 6",
        "A bad early phase could be mended by initial norms at their equilibrium values, by more momentum or "
        "a lower lr in noisy layers, or by smoother gradient norms.",
        "suggested, not tried",
        tested=("chapter 07",), formulas=(f"{_THEORY}equilibrium_norm",),
    ),
    Entry(
        "P6-9", "D", "S", "post 6",
        "Where the learning rate falls faster than norms can follow, norms stay as they are and "
        "the relative step falls in proportion to lr, below its equilibrium.",
        "seen in a figure; the condition is derived here",
        tested=(
            "tests/test_theory.py::test_where_the_schedule_freezes_the_norm_stays_and_the_step_follows_lr",
            "chapter 06",
        ),
        formulas=(f"{_THEORY}freezes",),
    ),
)  # fmt: skip
