"""What the notes on tricks of the trade (T) and the report on faster ResNet training (S) claim."""

from __future__ import annotations

from .entry import HISTORICAL, NEEDS_CIFAR, NEEDS_GPU, NEEDS_GPUS, NEEDS_LONG_RUNS, NOT_YET, Entry

_IDENTITIES, _OPTIM, _RESNET20 = "tests/test_identities_optim.py::", "tests/test_optim.py::", "tests/test_resnet20.py::"

ENTRIES = (
    Entry(
        "T-1", "D", "S", "notes",
        "Loss against learning rate is a valley: small rates are slow, large ones oscillate and then diverge.",
        "a figure only",
        tested=("dynamics/verdicts/valley.py",), formulas=("dynamics.theory:stability_bound",),
    ),
    Entry(
        "T-2", "E", "S", "notes",
        "The step, exponential, cyclic and cosine schedules are given by closed formulas.",
        "formulas (the cyclic one is misprinted)",
        tested=(
            "tests/test_schedules.py::test_T_2_every_schedule_equals_torchs_at_every_step",
            "tests/test_schedules.py::test_B17_cyclic_is_smiths_formula_and_not_the_misprint",
        ),
    ),
    Entry(
        "T-3", "A", "M", "notes",
        "Schedules reach a higher accuracy than a constant learning rate.",
        "figures only",
        untested=NOT_YET,
    ),
    Entry(
        "T-4", "E", "S", "notes",
        "Adam's moments are too small by the factor 1 - beta^t, and dividing by it removes the bias.",
        "1 - beta^t",
        tested=(
            f"{_IDENTITIES}test_T_4_adams_moments_are_biased_by_1_minus_beta_to_the_t_and_the_correction_removes_it",
            f"{_IDENTITIES}test_T_4_the_bias_is_that_of_the_mean_for_gradients_that_vary",
            f"{_IDENTITIES}test_T_4_adams_first_step_is_lr_along_the_sign_of_the_gradient",
        ),
    ),
    Entry(
        "T-5", "A", "M", "notes",
        "Adaptive optimizers converge faster than SGD.",
        "a figure only",
        untested=NOT_YET,
    ),
    Entry(
        "T-6", "D", "M", "notes",
        "The average of SGD's iterates at a high learning rate lies in a flatter place and generalises better than the "
        "last of them.",
        "no numbers",
        tested=(
            "tests/test_averages.py::test_swa_is_the_plain_mean_from_its_start_on",
            "dynamics/verdicts/averages.py",
        ),
    ),
    Entry(
        "T-7", "D", "M", "notes",
        "The three slices through learning rate, batch size, momentum and decay have ridges along lr / batch size, "
        "lr / (1 - momentum) and lr weight_decay.",
        "a figure only (that of post 5)",
        untested=NOT_YET, formulas=("dynamics.theory:angular_diffusion",),
    ),
    Entry(
        "T-8", "E", "S", "notes",
        "Mixup blends two images and their labels with one weight, and its cross-entropy is that blend of the two "
        "labels' losses.",
        "a formula",
        tested=(
            "tests/test_augment.py::test_T_8_cross_entropy_of_mixed_targets_is_the_mixture_of_the_two",
            "tests/test_augment.py::test_mixup_equals_a_slow_loop_over_pairs",
        ),
    ),
    Entry(
        "T-9", "A", "M", "notes",
        "Mixup narrows the gap between training and test accuracy.",
        "a figure only",
        untested=NOT_YET,
    ),
    Entry(
        "T-10", "H", "F", "notes",
        "Half precision with large batches trains ImageNet nets 1.7 to 3 times as fast and as accurately.",
        "ResNet-50 3.0, Inception-V3 2.5, MobileNet 1.7 times as fast",
        tested=("tests/test_precision.py::test_the_scale_keeps_small_gradients_from_vanishing",),
        untested=NEEDS_GPU,
    ),
    Entry(
        "T-11", "H", "M", "notes",
        "A process for each GPU is faster than one process for all, and both compute what SGD with the whole batch "
        "would.",
        "no numbers",
        tested=(
            "tests/test_distributed.py::test_T_11_gradients_of_two_processes_are_those_of_one",
            "tests/test_distributed.py::test_T_11_batch_norm_of_two_processes_is_ghost_norm_with_two_splits",
        ),
        untested=NEEDS_GPUS,
    ),
    Entry(
        "S-1", "A", "F", "report",
        "ResNet-20 reaches 93 % in 200 epochs.",
        "93.0 % in 2 h 42 min",
        tested=(f"{_RESNET20}test_weights_and_macs_of_resnet20_are_those_counted_by_hand",),
        untested=NEEDS_LONG_RUNS,
    ),
    Entry(
        "S-2", "A", "F", "report",
        "Norm and activation before each convolution are slightly better, in the same time.",
        "93.5 % against 93.0 %",
        untested=NEEDS_LONG_RUNS,
    ),
    Entry(
        "S-3", "H", "M", "report",
        "Skipping half of the blocks at random trains faster, in proportion to the number of blocks that remain.",
        "1.8 times as fast; 93.1 %",
        tested=(
            f"{_RESNET20}test_S_3_stochastic_depth_computes_the_expected_number_of_blocks_and_macs",
            f"{_RESNET20}test_S_3_evaluation_is_the_mean_over_training_passes",
        ),
        untested=NOT_YET,
    ),
    Entry(
        "S-4", "H", "F", "report",
        "Four GPUs train 3.3 times as fast as one.",
        "49 min; 92.0 %",
        untested=NEEDS_GPUS,
    ),
    Entry(
        "S-5", "H", "F", "report",
        "On a GPU without units for it, half precision saves no time.",
        "2 h 42 min in both; 92.8 %",
        untested=HISTORICAL,
    ),
    Entry(
        "S-6", "A", "F", "report",
        "Pre-activation, stochastic depth and four GPUs together train five times as fast, and as accurately.",
        "32 min, 5.06 times as fast; 93.4 %",
        untested=NEEDS_GPUS,
    ),
    Entry(
        "S-7", "E", "S", "report",
        "Those gains multiply to more than was reached: 1.8 times 3.3 is 5.94.",
        "5.06 / 5.94 = 0.85 (the text prints 3.9 for 3.3)",
        tested=("tests/test_verdicts.py::test_S_7_the_reports_gains_multiply_to_more_than_it_reached",),
    ),
    Entry(
        "S-8", "A", "F", "report",
        "Boosting a ResNet block by block stops at an accuracy well below that of training it as a whole.",
        "about 88 %",
        tested=("tests/test_boosting.py::test_S_8_boosting_telescopes_to_the_last_classifier",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "S-9", "D", "M", "report",
        "Momentum can be tuned from the range of curvature: heavy ball contracts by sqrt(momentum) wherever "
        "lr times curvature lies within (1 - sqrt(momentum))^2 and (1 + sqrt(momentum))^2.",
        "1.5 times as fast, quoted from elsewhere",
        tested=(
            f"{_OPTIM}test_S_9_heavy_ball_contracts_by_the_root_of_momentum_in_the_robust_region_and_not_beside_it",
            f"{_OPTIM}test_S_9_yellowfins_momentum_holds_its_whole_range_of_curvature_robust",
            "dynamics/verdicts/quadratics.py",
        ),
        formulas=("dynamics.theory:robust_region",),
    ),
    Entry(
        "S-10", "D", "M", "report",
        "Linear layers may keep only the few largest output gradients in their backward pass and lose little accuracy.",
        "not tried",
        tested=(
            "tests/test_meprop.py::test_meprop_keeps_the_k_largest_gradients_of_each_row",
            "benchmarks/meprop.py",
            "dynamics/verdicts/sparse.py",
        ),
    ),
)  # fmt: skip
