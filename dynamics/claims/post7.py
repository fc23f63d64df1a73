"""What post 7 of Page's series claims: batch norm."""

from __future__ import annotations

from .entry import NEEDS_CIFAR, TOO_NEAR, Entry

_THEORY = "dynamics.theory:"
_NETS, _MOMENTS, _SIGNALS = "tests/test_nets.py::", "tests/test_moments.py::", "tests/test_theory.py::"
_DEPTH = "tests/test_theory_depth.py::"

ENTRIES = (
    Entry(
        "P7-1", "D", "M", "post 7",
        "With batch norm, training endures learning rates more than ten times as large.",
        "batch norm: best 0.853 at lr 0.905, 0.559 at 29, never nan; none: best 0.659 at 0.113, nan from 0.32 on",
        tested=("chapter 09",),
    ),
    Entry(
        "P7-2", "D", "S", "post 7",
        "He's initialisation keeps the variance over all channels of a ReLU net, while the variance over "
        "samples within a channel dies out with depth.",
        "a figure: nearly constant outputs at layer 50",
        tested=(
            f"{_SIGNALS}test_share_within_channels_by_depth",
            f"{_NETS}test_deep_relu_nets_collapse_as_the_correlation_map_says",
            "chapter 08",
        ),
        formulas=(f"{_THEORY}correlation_map", f"{_THEORY}within_channel_share"),
    ),
    Entry(
        "P7-3", "D", "S", "post 7",
        "Linear nets do not collapse so, though products of their weights stretch the leading singular value about "
        "tenfold by layer 50.",
        "about 10",
        tested=(
            f"{_NETS}test_linear_and_shifted_nets_do_not_collapse",
            f"{_DEPTH}test_P7_3_a_product_of_random_matrices_stretches_as_the_edge_of_the_law",
            f"{_DEPTH}test_P7_3_ten_times_at_layer_fifty_is_the_law",
            "chapter 08",
        ),
    ),
    Entry(
        "P7-4", "E", "S", "post 7",
        "ReLU less its mean sqrt(1 / pi), over sqrt(1 - 1 / pi), has mean 0 and variance 1 for "
        "inputs of variance 2, and then channels keep their variance over samples.",
        "sqrt(1 / pi) and 1 - 1 / pi",
        tested=(
            f"{_NETS}test_shifted_relu_has_mean_0_and_variance_1",
            f"{_NETS}test_linear_and_shifted_nets_do_not_collapse",
            "chapter 08",
        ),
        formulas=(f"{_THEORY}relu_moments",),
    ),
    Entry(
        "P7-5", "D", "S", "post 7",
        "A convolutional net with max-pooling collapses faster, on photographs a little less than on noise, and batch "
        "norm prevents it everywhere but in the classifier.",
        "figures only",
        tested=(f"{_SIGNALS}test_share_within_channels_of_a_net", "chapter 08"),
    ),
    Entry(
        "P7-6", "D", "S", "post 7",
        "Moving the weights by 1 % of their norm along the gradient of one class's mean output makes nets without "
        "active batch norm predict that class for most images; with it little happens.",
        "the majority of images; norms of weights 61.2 and 60.0",
        tested=(
            f"{_MOMENTS}test_a_perturbed_net_is_a_copy_moved_by_a_share_of_its_norm",
            f"{_MOMENTS}test_the_mean_moves_as_its_gradient_says",
            "chapter 09",
        ),
    ),
    Entry(
        "P7-7", "D", "S", "post 7",
        "The squared gradient of the mean output is far larger without active batch norm, and spread over the layers; "
        "with it most lies in the classifier.",
        "batch norm 2.76, frozen 19.3, none 38.2; the classifier's share 0.84, 0.12, 0.17",
        tested=(
            f"{_MOMENTS}test_layers_hold_squares_that_add_up_and_post_7_finds_the_mean_in_the_classifier",
            "tests/test_nearby.py::test_P7_7_the_classifiers_part_is_the_mean_of_its_inputs_whether_norms_are_frozen_or_not",
            "chapter 09",
        ),
    ),
    Entry(
        "P7-8", "D", "S", "post 7",
        "Norms that stand behind the ReLU keep those gradients as small when frozen as active ones do.",
        "2.81 against 19.3",
        tested=("chapter 09",),
    ),
    Entry(
        "P7-9", "D", "M", "post 7",
        "The largest eigenvalue of the Hessian is one to two orders larger without active batch norm.",
        "0.50 with it, 8.77 frozen, 13.6 without (mean loss): 17.6 and 27.3 times",
        tested=("chapter 10", "dynamics/verdicts/spectra.py"),
    ),
    Entry(
        "P7-10", "D", "S", "post 7",
        "With frozen norms about one eigenvalue fewer than there are classes stands apart from the rest, and without "
        "norms more do.",
        "9 of 10 classes (893.8, then 435.1); without norms 11 (1305, then 915)",
        tested=(f"{_MOMENTS}test_the_largest_gap_finds_the_published_outliers", "chapter 10"),
        untested=TOO_NEAR,
    ),
    Entry(
        "P7-11", "D", "S", "post 7",
        "The eigenvectors that stand apart lie mostly in the span of the gradients of the classes' mean outputs.",
        "0.836 of their squared length (frozen, first nine); a random vector below 1e-5",
        tested=(
            f"{_MOMENTS}test_shares_agree_with_least_squares_on_the_dense_gradients",
            "chapter 10",
            "dynamics/verdicts/spectra.py",
        ),
    ),
    Entry(
        "P7-12", "D", "S", "post 7",
        "With the gradients of the outputs' variances and third moments, the span holds nearly all of them.",
        "frozen 0.987 (first nine), no norm 0.924, batch norm 0.696 (first ten)",
        tested=("chapter 10", "dynamics/verdicts/spectra.py"),
    ),
    Entry(
        "P7-13", "D", "S", "post 7",
        "Projecting that span out lowers the largest eigenvalue, and most with frozen norms, yet leaves the three nets "
        "unequal.",
        "115.4, 407.4 and 1324.1: 1.11, 5.5 and 2.6 times lower",
        tested=("chapter 10", "dynamics/verdicts/spectra.py"),
    ),
    Entry(
        "P7-14", "E", "S", "post 7",
        "Adding one number to all logits leaves the loss as it is, so that direction has no curvature and ten means "
        "span nine dimensions that matter.",
        "0",
        tested=(
            f"{_MOMENTS}test_a_uniform_shift_of_all_logits_has_no_curvature_and_lies_in_the_span_of_the_means",
            "chapter 10",
        ),
    ),
    Entry(
        "P7-15", "E", "S", "post 7",
        "Gradient descent on a quadratic is stable up to the learning rate 2 over its largest curvature, and momentum "
        "multiplies that by a constant.",
        "2 / curvature",
        tested=(f"{_SIGNALS}test_stability_bound_on_a_quadratic", "chapter 10"),
        formulas=(f"{_THEORY}stability_bound",),
    ),
    Entry(
        "P7-16", "D", "M", "post 7",
        "Where post 7 measured, both nets trained at about 1.2 times the bound of full-batch Nesterov (our arithmetic "
        "from its numbers).",
        "batch norm 1.15, no norm 1.25",
        tested=(
            "tests/test_curvature_probes.py::test_a_quadratic_grows_just_above_the_bound_and_shrinks_just_below",
            "chapter 10",
        ),
        untested=TOO_NEAR, formulas=(f"{_THEORY}stability_bound",),
    ),
    Entry(
        "P7-17", "Q", "F", "post 7",
        "The findings on curvature do not depend on the epoch of the measurement or on the learning rate.",
        "a remark",
        untested=NEEDS_CIFAR,
    ),
    Entry(
        "P7-18", "D", "S", "post 7",
        "A single batch norm at the outputs would not do, since instabilities beyond the moments of the outputs stay.",
        "a prediction, not tried",
        tested=(
            "tests/test_variants.py::test_P7_18_one_norm_at_the_end_fixes_mean_and_variance_of_every_logit_and_nothing_else",
            "chapter 09",
        ),
    ),
)  # fmt: skip
