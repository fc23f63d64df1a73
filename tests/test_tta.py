from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import assert_same, last, plain_net, toy_recipe, toy_split
from torch import nn

import dynamics as dyn
from dynamics.errors import DynamicsError

SPLIT = toy_split()
VALID = toy_split(23, seed=2, like=SPLIT)


@pytest.fixture(scope="module")
def trained() -> dyn.Snapshot:
    return last(dyn.steps(toy_recipe(epochs=4), SPLIT))


def moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """An image [H, W, 3] moved by so many pixels, pixel by pixel, and reflected at its edges."""
    height, width = image.shape[:2]

    def inside(k: int, n: int) -> int:
        return -k if k < 0 else 2 * (n - 1) - k if k >= n else k

    out = torch.empty_like(image)
    for i in range(height):
        for j in range(width):
            out[i, j] = image[inside(i - down, height), inside(j - right, width)]
    return out


def views(image: torch.Tensor, tta: str) -> list[tuple[float, torch.Tensor]]:
    """Each view of an image, with its weight."""
    mirror = image[:, range(image.shape[1] - 1, -1, -1)]
    if tta == "none":
        return [(1, image)]
    if tta == "flip":
        return [(1 / 2, image), (1 / 2, mirror)]
    found = [(1 / 4, image), (1 / 4, mirror)]
    for by in (1, -1):
        there = moved(image, by, by)
        found += [(1 / 8, there), (1 / 8, there[:, range(image.shape[1] - 1, -1, -1)])]
    return found


@pytest.mark.parametrize("tta", ["none", "flip", "flip+translate"])
@pytest.mark.parametrize("batch_size", [5, 1000])
def test_evaluate_equals_a_slow_loop_over_views(trained, tta, batch_size):
    net = copy.deepcopy(trained.net).double().eval()
    losses, right = [], 0
    with torch.no_grad():
        for image, label in zip(VALID.padded().double(), VALID.labels, strict=True):
            logits = sum(
                weight * net(view.permute(2, 0, 1)[None].contiguous())[0] for weight, view in views(image, tta)
            )
            losses.append(float(-logits.log_softmax(0)[label]))
            right += int(logits.argmax() == label)
    scored = dyn.evaluate(net, VALID, tta=tta, batch_size=batch_size, precision="float64")
    assert scored.loss == pytest.approx(math.fsum(losses) / 23, rel=1e-12)
    assert (scored.accuracy, scored.n) == (right / 23, 23)
    single = dyn.evaluate(trained, VALID, tta=tta, batch_size=batch_size, precision="float32")
    assert single.loss == pytest.approx(scored.loss, rel=1e-5)


class Watching(nn.Module):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.shown = plain_net(), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown.append(x.clone())
        return self.net(x)


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flip", 2), ("flip+translate", 6)])
def test_a_net_is_shown_these_views_and_no_others(tta, count):
    net, split = Watching(), VALID[:1]
    dyn.evaluate(net, split, tta=tta, precision="float32")
    expected = [view.permute(2, 0, 1)[None] for _, view in views(split.padded()[0], tta)]
    assert len(net.shown) == len(expected) == count
    for view in expected:
        assert sum(torch.equal(view, x) for x in net.shown) == 1


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
def test_P8_18_averaging_over_an_image_and_its_mirror_image_is_exactly_flip_invariant(precision):
    trained = last(dyn.steps(toy_recipe(epochs=2, precision=precision), SPLIT))
    differ = 0
    for i in range(8):
        image = VALID[i : i + 1]
        mirrored = dyn.Split.from_arrays(image.images.flip(2), image.labels, like=SPLIT)
        a, b = (dyn.evaluate(trained, s, tta="flip") for s in (image, mirrored))
        assert a == b
        plain = [dyn.evaluate(trained, s).loss for s in (image, mirrored)]
        differ += plain[0] != plain[1]
        # up and left, mirrored, is up and right, which is none of the six
        six = [dyn.evaluate(trained, s, tta="flip+translate").loss for s in (image, mirrored)]
        if precision != "bf16":
            assert six[0] != six[1]
            assert six[0] == pytest.approx(six[1], rel=0.2)
    assert differ == 8


def test_flip_is_short_for_tta_flip(trained):
    assert dyn.evaluate(trained, VALID, flip=True) == dyn.evaluate(trained, VALID, tta="flip")
    assert dyn.evaluate(trained, VALID, flip=False) == dyn.evaluate(trained, VALID, tta="none")
    six = dyn.evaluate(trained, VALID, tta="flip+translate")
    assert dyn.evaluate(trained, VALID, flip=True, tta="flip+translate") == six
    assert len({six.loss, dyn.evaluate(trained, VALID).loss, dyn.evaluate(trained, VALID, flip=True).loss}) == 3


def test_the_average_is_evaluated_over_views_too():
    snap = last(dyn.steps(toy_recipe(average=dyn.EMA(0.9, 1), precision="float32"), SPLIT))
    state = dyn.averaged(snap)
    net = copy.deepcopy(snap.net)
    net.load_state_dict({**state.params, **state.buffers})
    scored = dyn.evaluate(snap, VALID, state=state, tta="flip+translate", precision="float32")
    assert scored == dyn.evaluate(net, VALID, tta="flip+translate", precision="float32")
    assert scored != dyn.evaluate(snap, VALID, tta="flip+translate", precision="float32")


def test_views_leave_the_net_alone(trained):
    net = copy.deepcopy(trained.net)
    net.train()
    before = copy.deepcopy(net.state_dict())
    dyn.evaluate(net, VALID, tta="flip+translate")
    assert_same(net.state_dict(), before)
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("tta", "message"),
    [
        ("flips", "unknown tta 'flips': did you mean 'flip'"),
        ("flip+translat", r"unknown tta 'flip\+translat': did you mean 'flip\+translate'"),
        (None, "unknown tta None: did you mean 'none'"),
    ],
)
def test_an_unknown_augmentation(trained, tta, message):
    with pytest.raises(DynamicsError, match=message):
        dyn.evaluate(trained, VALID, tta=tta)
