"""What posts 1 to 4 of Page's series claim: the baseline, batch size, regularisation, architecture."""

from __future__ import annotations

from .entry import HISTORICAL, NEEDS_CIFAR, NEEDS_GPU, NOT_YET, Entry

ENTRIES = (
    Entry(
        "P1-1", "A", "F", "post 1",
        "The fastest single-GPU entry of its day, an 18-layer ResNet, reaches 94 % in 35 epochs when it is rebuilt.",
        "3 of 5 runs reach 94 %; 356 s (the entry: 341 s)",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P1-2", "A", "M", "post 1",
        "Leaving out the second norm and ReLU after the first convolution, and the bend of the schedule at epoch 15, "
        "shortens training and loses no accuracy.",
        "4 of 5 runs reach 94 %; 323 s",
        tested=("tests/test_ladder_nets.py::test_P1_2_the_duplicate_is_one_norm_and_one_activation",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P1-3", "H", "M", "post 1",
        "Padding, normalising and transposing the images once, before training, saves time over doing so every epoch.",
        "323 s to 308 s",
        untested=NOT_YET,
    ),
    Entry(
        "P1-4", "H", "M", "post 1",
        "Augmentation spends its time in calls of the random generator, so one bulk draw an epoch is cheaper, and then "
        "no loader process is faster than one.",
        "308 s to 301 s in bulk, to 297 s without the process",
        untested=NOT_YET,
    ),
    Entry(
        "P1-5", "H", "S", "post 1",
        "A V100 at its full 125 TFLOP/s would need about 40 s for the arithmetic of 35 epochs.",
        "40 s",
        tested=("tests/test_ladder_nets.py::test_P1_5_the_work_of_post_1s_net_is_2_8_GFLOP_an_image",),
    ),
    Entry(
        "P2-1", "A", "M", "post 2",
        "Batches of 512 follow the training curve of batches of 128 once the learning rate per image is raised by a "
        "tenth.",
        "3 of 5 runs reach 94 %; 297 s to 256 s; peak lr 0.44 where linear scaling gives 0.40",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P2-2", "E", "S", "post 2",
        "To first order in the learning rate, splitting a large batch into small ones changes only when updates are "
        "applied: the two trajectories differ at second order.",
        "a difference of order lr^2",
        tested=(
            "tests/test_identities_optim.py::test_P2_2_to_first_order_in_lr_a_small_batch_only_delays_updates",
        ),
    ),
    Entry(
        "P2-3", "D", "S", "post 2",
        "At a fixed learning rate per image, training stays stable while the batch grows, as it would not if curvature "
        "set the limit at small batches.",
        "128 and 512 train alike; 512 is near the edge",
        untested=NOT_YET,
    ),
    Entry(
        "P2-4", "D", "M", "post 2",
        "At too high a learning rate a small-batch run forgets: half of the images without augmentation train as well "
        "as all of them with it, while at a lower rate all of them win.",
        "a figure only",
        untested=NOT_YET,
    ),
    Entry(
        "P2-5", "D", "M", "post 2",
        "The learning rate at which training diverges does not depend on the size of the data set, and the best one at "
        "batch 128 falls as the data set grows, since forgetting, not curvature, limits it there.",
        "a figure only",
        untested=NOT_YET,
    ),
    Entry(
        "P2-6", "Q", "M", "post 2",
        "At batch 512 the validation curve is noisier because the running statistics of batch norm are.",
        "a remark",
        untested=NOT_YET,
    ),
    Entry(
        "P3-1", "H", "F", "post 3",
        "Batch norm with half-precision weights falls into a slow kernel, and single-precision weights avoid it.",
        "256 s to 186 s",
        untested=HISTORICAL,
    ),
    Entry(
        "P3-2", "H", "M", "post 3",
        "Batch norm takes a large share of a step's time, where the optimizer and the loading of data do not.",
        "a figure only",
        untested=NEEDS_GPU,
    ),
    Entry(
        "P3-3", "A", "F", "post 3",
        "Cutting an 8 by 8 square out of every training image raises the accuracy of the 35-epoch run.",
        "median 94.3 %, 5 of 5 runs reach 94 %",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P3-4", "A", "F", "post 3",
        "With cutout, a learning rate that peaks sooner and then falls linearly raises accuracy further.",
        "median 94.5 %",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P3-5", "A", "F", "post 3",
        "In 30 epochs the plain schedule misses 94 % and cutout with the new schedule reaches it, at batch 768 too.",
        "0 of 5 runs without cutout; 94.13 % in 161 s at batch 512, 94.06 % in 154 s at 768, 4 of 5 runs each",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P4-1", "A", "F", "post 4",
        "From the bare backbone, five changes of its layers raise the accuracy after 20 epochs from 56 % to 91 %.",
        "55.9, 56.0, 85.6, 89.7, 90.7, 91.1 %",
        tested=("tests/test_ladder_nets.py::test_backbones_equal_plain_functions", "benchmarks/ladder.py"),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P4-2", "A", "M", "post 4",
        "The 1 by 1 convolutions of stride 2 throw away three pixels of four, and replacing them with 3 by 3 ones is "
        "the largest single gain of the backbone.",
        "29.6 points more",
        tested=(
            "tests/test_ladder_nets.py::test_1x1_convolutions_of_stride_2_see_a_quarter_of_the_pixels",
            "benchmarks/ladder.py",
        ),
        untested=NOT_YET,
    ),
    Entry(
        "P4-3", "A", "F", "post 4",
        "Scales of batch norm that begin at 1, not drawn between 0 and 1, help together with logits times 1/8.",
        "90.7 % to 91.1 %",
        tested=("tests/test_ladder_nets.py::test_P4_3_scales_of_norms_are_drawn_from_0_to_1", "benchmarks/ladder.py"),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P4-4", "A", "F", "post 4",
        "Doubling the width of the shallow net is a poor use of time: 60 epochs do not bring it to 94 %.",
        "93.5 % in 321 s",
        tested=("tests/test_ladder_nets.py::test_double_width_is_a_replacement",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P4-5", "A", "F", "post 4",
        "Among fifteen nets, residual branches in the first and the third stage are best, and for the same time more "
        "layers beat more epochs.",
        "93.8 % at 20 epochs in 66 s; mean 94.08 % at 24 epochs in 79 s, 7 of 10 runs reach 94 %",
        tested=("tests/test_ladder_nets.py::test_the_search_has_fifteen_nets",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P4-6", "A", "F", "post 4",
        "A deep net without any residual branch reaches 95 % when it trains for 60 epochs.",
        "95.0 % in 180 s",
        tested=("tests/test_ladder_nets.py::test_plain8_is_extra_L1_L2_L3",),
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P4-7", "A", "F", "post 4",
        "The submitted net reaches 94 % in about two runs of three, and its median lies just above.",
        "35 of 50 runs reach 94 %; median 94.08 %",
        untested=NEEDS_CIFAR,
    ),
)  # fmt: skip
