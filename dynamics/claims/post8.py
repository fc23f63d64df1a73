"""What post 8 of Page's series claims: a bag of tricks."""

from __future__ import annotations

from .entry import NEEDS_CIFAR, NEEDS_GPU, NEEDS_LONG_RUNS, NOT_YET, Entry

_LADDER, _AUGMENT, _AVERAGES = "tests/test_ladder_nets.py::", "tests/test_augment.py::", "tests/test_averages.py::"

ENTRIES = (
    Entry(
        "P8-1", "A", "F", "post 8",
        "The test accuracy of the 24-epoch baseline has a standard deviation of about 0.15 points over seeds, and a "
        "difference of two runs sqrt(2) times that.",
        "0.15 points",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-2", "H", "F", "post 8",
        "Preparing and augmenting the images on the GPU takes seconds off a run.",
        "75 s to 70 s; preparing 3 s to 0.5 s",
        untested=NEEDS_GPU,
    ),
    Entry(
        "P8-3", "E", "S", "post 8",
        "Images may be augmented in shuffled groups of even size, one transformation a group, and every option is then "
        "used equally often.",
        "even groups of the 625 positions of a square of 8, at most 200 an epoch",
        tested=(
            f"{_AUGMENT}test_P8_3_each_option_is_used_floor_or_ceil_of_n_over_options_times_and_labels_stay_aligned",
            f"{_AUGMENT}test_P8_3_an_epoch_uses_at_most_so_many_of_the_625_positions_of_8x8",
            f"{_AUGMENT}test_P8_3_over_epochs_an_image_meets_every_option_equally_often",
        ),
    ),
    Entry(
        "P8-4", "A", "F", "post 8",
        "Weights in half precision reach the same accuracy as mixed precision, which takes a second longer.",
        "no difference; 1 s",
        untested=NEEDS_GPU,
    ),
    Entry(
        "P8-5", "E", "S", "post 8",
        "Max-pooling and a monotone activation may change places.",
        "exact",
        tested=(
            f"{_LADDER}test_P8_5_max_pooling_commutes_with_monotone_activations",
            "tests/test_nets.py::test_pooling_and_relu_commute_exactly",
        ),
    ),
    Entry(
        "P8-6", "A", "F", "post 8",
        "Pooling before batch norm is another function: it costs a tenth of a point and saves more time than the epoch "
        "that wins it back.",
        "94.1 % to 94.0 % (50 runs) and 67 s to 62 s; 94.1 % in 64 s with one epoch more",
        tested=("benchmarks/ladder.py",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-7", "A", "F", "post 8",
        "Label smoothing of 0.2 raises accuracy, or saves two epochs.",
        "94.2 % at 25 epochs; 94.1 % at 23 in 59 s",
        tested=(
            f"{_AUGMENT}test_P8_7_the_loss_with_label_smoothing_is_never_below_the_entropy_of_its_target",
            "tests/test_training.py::test_label_smoothing_is_a_mixture_of_two_losses",
            "benchmarks/ladder.py",
        ),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-8", "A", "F", "post 8",
        "Near 94 %, an epoch more is worth a tenth of a point.",
        "0.1 points an epoch",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-9", "A", "F", "post 8",
        "CELU of alpha 0.075 in place of ReLU raises accuracy, or saves three epochs.",
        "94.3 % at 23 epochs; 94.1 % at 20 in 52 s",
        tested=(f"{_LADDER}test_P8_9_celu_is_smooth", "benchmarks/ladder.py"),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-10", "A", "F", "post 8",
        "Batch norm over parts of 32 images raises accuracy, and allows a learning rate half as large again.",
        "94.2 % at 20 epochs; at lr 0.6 94.1 % at 18 in 46 s",
        tested=("tests/test_nets.py::test_ghost_norm_is_batch_norm_of_each_strided_shard", "benchmarks/ladder.py"),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-11", "D", "S", "post 8",
        "The learned scales of batch norm change mostly by weight decay.",
        "about 1/4 in mid-training",
        tested=(
            "tests/test_theory.py::test_batch_norm_scales_under_pages_eighteen_epochs",
            "dynamics/verdicts/scales.py",
        ),
        formulas=("dynamics.theory:decay_trajectory", "dynamics.theory:decay_product"),
    ),
    Entry(
        "P8-12", "E", "S", "post 8",
        "Scales of 1/4 with CELU of alpha are scales of 1 with CELU of 4 alpha, if biases learn 16 times as fast and "
        "decay 16 times as slowly.",
        "exact (here: with the logits scaled as well)",
        tested=(
            f"{_LADDER}test_P8_12_scales_of_a_quarter_are_scales_of_1_with_four_times_alpha",
            f"{_LADDER}test_P8_12_needs_the_bias_lr_and_the_logits",
        ),
    ),
    Entry(
        "P8-13", "A", "F", "post 8",
        "Scales fixed at 1 raise accuracy if biases learn faster, 64 times a little better than 16.",
        "94.2 % at 18 epochs; 94.1 % at 17 in 43 s",
        tested=("benchmarks/ladder.py",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-14", "E", "S", "post 8",
        "Patches whitened by the eigenvectors of their covariance over sqrt(eigenvalue + eps) have the covariance "
        "eigenvalue / (eigenvalue + eps), which is the identity up to eps.",
        "roots of the eigenvalues from 4.58 to 0.01; eps 0.01",
        tested=("tests/test_whitening.py::test_P8_14_covariance_of_whitened_patches_is_diagonal",),
    ),
    Entry(
        "P8-15", "A", "F", "post 8",
        "A fixed first layer that whitens patches raises accuracy, or saves two epochs, and a third with lr 1 and a "
        "smaller cutout.",
        "94.4 % at 17 epochs; 94.1 % at 15 in 39 s, at 14 in 36 s",
        tested=("benchmarks/ladder.py",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-16", "E", "S", "post 8",
        "An average of weights taken every 5 steps with 0.99^5 has the timescale of one taken every step with 0.99; "
        "but it averages fewer iterates, and is not equal to it.",
        "0.99^5 = 0.951",
        tested=(
            "tests/test_identities_optim.py::"
            "test_P8_16_an_average_every_5_steps_has_the_timescale_of_one_every_step_but_is_not_equal_to_it",
            f"{_AVERAGES}test_an_average_every_5_steps_keeps_more_noise_than_one_every_step",
        ),
    ),
    Entry(
        "P8-17", "A", "F", "post 8",
        "An exponential average of the weights, with a learning rate that stays up to the end, raises accuracy.",
        "94.3 % at 14 epochs; 94.1 % at 13 in 34 s",
        tested=(f"{_AVERAGES}test_ema_equals_its_recursion_from_the_initial_weights", "benchmarks/ladder.py"),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-18", "E", "S", "post 8",
        "Logits averaged over an image and its mirror image are the same for both.",
        "exact",
        tested=(
            "tests/test_tta.py::test_P8_18_averaging_over_an_image_and_its_mirror_image_is_exactly_flip_invariant",
            "tests/test_training.py::test_flip_averaging_is_exactly_flip_invariant",
        ),
    ),
    Entry(
        "P8-19", "A", "M", "post 8",
        "That average is the largest single gain of the ladder.",
        "94.1 % to 94.6 % at 13 epochs; without cutout 94.1 % at 10 in 26 s",
        tested=("benchmarks/ladder.py",),
        untested=NOT_YET,
    ),
    Entry(
        "P8-20", "A", "F", "post 8",
        "With mirror images at test time, the net submitted before would have needed 19 epochs and 60 s.",
        "60 s",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P8-21", "A", "F", "post 8",
        "What makes short runs faster makes long runs better too.",
        "0.3 to 0.7 points more at 24 to 100 epochs; 96.1 % at 80",
        untested=NEEDS_LONG_RUNS,
    ),
    Entry(
        "P8-22", "A", "F", "post 8",
        "The final net reaches 96 % in about 70 epochs and three minutes.",
        "about 180 s",
        untested=NEEDS_LONG_RUNS,
    ),
    Entry(
        "P8-23", "H", "F", "post 8",
        "The final net needs 34 s, or 26 s with mirror images at test time: more than ten times less than the entry of "
        "post 1.",
        "34 s and 26 s against 341 s",
        tested=("benchmarks/gpu.py",),
        untested=NEEDS_GPU,
    ),
)  # fmt: skip
