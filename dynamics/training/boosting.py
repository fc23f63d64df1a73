"""BoostResNet: a residual net trained one block after another, each beneath a linear classifier of its own.

Round t trains block t, with what lies between it and the block before, and a classifier on its output, which takes the
place of the blocks that are still missing; what earlier rounds trained stays as it is. With o_t the classifier's
probabilities and h_t = α_t o_t - α_{t-1} o_{t-1}, the sum of the h is boosting's ensemble, and it telescopes to
α_T o_T, which is the whole net. The weights that boosting gives to examples telescope as well, so that each round
minimises an unweighted loss: the exponential one in the paper, and here the cross-entropy of every other training.

Source: Huang et al. 2017, arXiv:1706.04964, algorithms 1 to 4.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn

from ..data import Split
from ..errors import DynamicsError
from ..nets import BatchNorm, Net
from ..nets.blocks import check_number, check_whole
from ..rng import generator
from .evaluation import Evaluation, evaluate
from .loop import initial_state, load_net, steps
from .precision import autocast, resolve_precision
from .recipe import Recipe
from .state import State

LARGEST_EDGE = 1 - 1e-9
"""In size: of a classifier without error, α would be infinite."""


@dataclass(frozen=True)
class Round:
    """What one block came to.

    block: its module path. train: of all training images, without augmentation, in evaluation mode; valid: likewise, if
    given. edge: γ̃_t, how far the classifier is ahead of guessing on examples weighted by the errors of the one before,
    at most 1. alpha: its weight, artanh of the edge. gain: γ_t, what the block adds to the edge, sqrt((γ̃_t² - γ̃_{t-1}²)
    / (1 - γ̃_{t-1}²)), negative where it takes away (γ̃_0 = 0); boosting's theory needs it to be positive. recipe and
    state are of the shallow net, an ordinary recipe: evaluate(round, split) is its classifier.
    """

    block: str
    train: Evaluation
    valid: Evaluation | None
    edge: float
    alpha: float
    gain: float
    recipe: Recipe = field(repr=False)
    state: State = field(repr=False)


@dataclass(frozen=True)
class Boosted:
    """A net trained block by block: evaluate(boosted, split) is the whole net.

    state: of the whole net at step 0, so that it may start a training end to end (the paper's fine-tuning),
    steps(recipe, split, boosted.state); blocks whose round is missing are as initialised.
    """

    recipe: Recipe
    epochs_per_block: float
    rounds: tuple[Round, ...]
    state: State = field(repr=False)


def boost(
    recipe: Recipe,
    train: Split,
    valid: Split | None = None,
    *,
    epochs_per_block: float | None = None,
    blocks: int | None = None,
    start: Boosted | None = None,
    progress: bool = True,
) -> Boosted:
    """Train the residual blocks of a recipe's net one after another (BoostResNet).

    Each round is the recipe stretched to `epochs_per_block`, by default such that all rounds together see as many
    images as the recipe; its optimizer starts afresh, its augmentation is its own, and it keeps no average. blocks: how
    many rounds there are in the end, by default one for each block; start: go on after the rounds of an earlier result.
    All are trained, whatever they gain (the paper stops where that is too little). Raises DynamicsError for a
    net without residual blocks that follow one another in nn.Sequential, for rounds shorter than a batch, for a start
    of another recipe, and for a loss that is not finite.
    """
    net = recipe.net.build(classes=len(train.classes), seed=recipe.seed)
    paths = block_paths(net)
    count = len(paths) if blocks is None else blocks
    check_whole("blocks", count, 1, len(paths))
    if epochs_per_block is not None:
        check_number("epochs_per_block", epochs_per_block, positive=True)
    epochs = recipe.epochs / len(paths) if epochs_per_block is None else epochs_per_block
    recipes = [_recipe_of(recipe, t, epochs) for t in range(count)]
    if recipes[0].steps_in(train) < 1:
        least = 1 / replace(recipe, epochs=1).steps_in(train)
        raise DynamicsError(f"{epochs:g} epochs a block are less than one batch: raise them to at least {least:g}")
    for part in recipes:  # refuses groups that match nothing before any training
        part.optimizer.partition(tuple(dict(_build(part, recipe, train).named_parameters())))
    if start is not None and (start.recipe, start.epochs_per_block) != (recipe, epochs):
        raise DynamicsError("start was boosted by another recipe or epochs_per_block: go on with its own")
    state = initial_state(recipe, train) if start is None else start.state
    rounds = [] if start is None else list(start.rounds)
    todo = sum(part.steps_in(train) for part in recipes[len(rounds) :])
    from tqdm.auto import tqdm

    with tqdm(total=todo, unit="step", disable=not progress, mininterval=0.5) as bar:
        for t in range(len(rounds), count):
            bar.set_description(paths[t], refresh=False)
            for snap in steps(recipes[t], train, _begin(recipes[t], recipe, train, state)):
                bar.update(snap.updates is not None)
            seen = None if valid is None else evaluate(snap, valid)
            trained = replace(snap.state.clone(), opt=None)
            rounds.append(_judged(paths[t], recipes[t], trained, train, seen, rounds[-1] if rounds else None))
            state = _merged(state, trained, _cut(net, t).head)
    return Boosted(recipe, epochs, tuple(rounds), state)


def edge(probabilities: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> float:
    """How far a classifier is ahead of guessing, on costs that grow with the errors of what was there before: γ̃.

    probabilities: of the classifier, [N, C]; scores: of the ensemble before, [N, C], zeros if there is none; labels
    [N]. A wrong class l costs exp(score_l - score_label), the right one minus their sum, and the edge is minus the mean
    cost of the probabilities over that of the wrong classes together: 1 without error, 0 for equal probabilities.
    """
    rows = torch.arange(len(labels), device=labels.device)
    costs = (scores - scores[rows, labels, None]).exp()
    costs[rows, labels] = 0
    wrong = costs.sum(1)
    costs[rows, labels] = -wrong
    return float(-(costs * probabilities).sum() / wrong.sum())


def gain(now: float, before: float) -> float:
    """What a round adds to the edge: sqrt((now² - before²) / (1 - before²)), negative where it takes away."""
    share = (now * abs(now) - before * abs(before)) / (1 - before**2)
    return math.copysign(math.sqrt(abs(share)), share)


class Shallow(nn.Sequential):
    """The first blocks of a net, and a classifier; modules named in `frozen` stay in evaluation mode."""

    frozen: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Shallow:
        super().train(mode)
        for path in self.frozen:
            self.get_submodule(path).eval()
        return self


def shallow(of: Net, block: int, classes: int = 10, seed: int = 0) -> Shallow:
    """The net of round `block` (from 0): the blocks of `of` so far, and its last layers as a classifier.

    Modules have their names in the whole net; parameters of earlier rounds are buffers. Where the block has other
    channels than the last one, norms and linear layers of the classifier are made to fit.
    """
    whole = of.build(classes=classes, seed=seed)
    cut = _cut(whole, block)
    net = Shallow(OrderedDict(whole.named_children()))
    net.frozen = cut.frozen
    for path in cut.frozen:
        for module in net.get_submodule(path).modules():
            for name, p in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, p.detach())
    for path in cut.dropped:
        delattr(*_owner(net, path))
    for path in cut.head:
        setattr(*_owner(net, path), _fitted(net.get_submodule(path), cut.channels, cut.last_channels))
    return net.train()


def block_paths(net: nn.Module) -> list[str]:
    """Module paths of a net's residual blocks, as they are called; raises DynamicsError where there are none."""
    found = [path for path, module in _parts(net) if _adds(module)]
    if not found:
        raise DynamicsError(
            "this net has no residual blocks one after another in nn.Sequential, so there is nothing to boost: "
            "take resnet9 or resnet20"
        )
    return found


class _Cut(NamedTuple):
    """Module paths: trained by earlier rounds; not there yet; the classifier. And the channels that it is given."""

    frozen: tuple[str, ...]
    dropped: tuple[str, ...]
    head: tuple[str, ...]
    channels: int
    last_channels: int


def _cut(net: nn.Module, block: int) -> _Cut:
    parts = _parts(net)
    paths = [path for path, _ in parts]
    ends = [paths.index(path) + 1 for path in block_paths(net)]
    done = ends[block - 1] if block else 0
    if block == len(ends) - 1:
        return _Cut(tuple(paths[:done]), (), (), 0, 0)
    head = max(i + 1 for i, (_, m) in enumerate(parts) if _adds(m) or isinstance(m, nn.Conv2d))
    channels, last_channels = (_convolutions(parts[:end])[-1].out_channels for end in (ends[block], head))
    return _Cut(tuple(paths[:done]), tuple(paths[ends[block] : head]), tuple(paths[head:]), channels, last_channels)


def _parts(net: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """What is called one after another: (path, module), nested nn.Sequential taken apart."""
    if type(net) not in (nn.Sequential, Shallow):
        return [(path, net)]
    return [part for name, m in net.named_children() for part in _parts(m, f"{path}.{name}" if path else name)]


def _adds(module: nn.Module) -> bool:
    """Whether it is a residual block: a module whose outputs are a sum, as `norm_of` wants to know too."""
    return getattr(module, "adds", False) is True


def _convolutions(parts: list[tuple[str, nn.Module]]) -> list[nn.Conv2d]:
    return [m for _, part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]


def _owner(net: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return net.get_submodule(parent), name


def _fitted(module: nn.Module, channels: int, before: int) -> nn.Module:
    """A module of the classifier for other channels; norms as they begin, linear layers with new weights."""
    if channels == before:
        return module
    if isinstance(module, nn.Linear):
        inputs = module.in_features // before * channels
        return nn.Linear(inputs, module.out_features, bias=module.bias is not None)
    twin = copy.deepcopy(module)
    if isinstance(twin, BatchNorm):
        twin.num_features = channels
        for name, p in list(twin.named_parameters(recurse=False)):
            setattr(twin, name, nn.Parameter(p.detach()[:1].repeat(channels)))
        for name, b in list(twin.named_buffers(recurse=False)):
            setattr(twin, name, b[:1].repeat(channels))
    return twin


def _recipe_of(recipe: Recipe, block: int, epochs: float) -> Recipe:
    """The recipe of a round; orders and augmentation are drawn from a seed of its own, or each would see the same."""
    seed = int(torch.randint(2**31, (), generator=generator(recipe.seed, "boost", block)))
    net = Net(f"{__name__}:{shallow.__name__}", of=recipe.net, block=block)
    return replace(recipe.stretch(epochs), net=net, seed=seed, average=None)


def _build(part: Recipe, recipe: Recipe, train: Split) -> nn.Module:
    """A round's net with the initial weights of the whole recipe's."""
    return part.net.build(classes=len(train.classes), seed=recipe.seed).to(train.device)


def _begin(part: Recipe, recipe: Recipe, train: Split, whole: State) -> State:
    """Where a round starts: at the state of the whole net, as far as the two have tensors in common."""
    net, known = _build(part, recipe, train), {**whole.params, **whole.buffers}

    def take(name: str, own: torch.Tensor) -> torch.Tensor:
        there = known.get(name)
        return own.detach() if there is None or there.shape != own.shape else there

    params = {k: take(k, p) for k, p in net.named_parameters()}
    return State(0, params, {k: take(k, b) for k, b in net.named_buffers()})


def _merged(whole: State, trained: State, head: tuple[str, ...]) -> State:
    """The whole net's state with what a round trained, but for its classifier."""
    new = {**trained.params, **trained.buffers}
    new = {k: t for k, t in new.items() if k.rpartition(".")[0] not in head}

    def merge(old: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: new.get(k, t) for k, t in old.items()}

    return replace(whole, params=merge(whole.params), buffers=merge(whole.buffers))


@torch.no_grad()
def _classified(recipe: Recipe, state: State, split: Split, batch_size: int = 1000) -> torch.Tensor:
    """Probabilities of a split's classes in evaluation mode, float64 [N, C]."""
    net, precision = load_net(recipe, split, state)[0].eval(), resolve_precision(recipe.precision, split.device)
    dtype, found = next(net.parameters()).dtype, []
    for first in range(0, len(split), batch_size):
        x = split[first : first + batch_size].padded().permute(0, 3, 1, 2).to(dtype)
        with autocast(precision, split.device):
            found.append(net(x).double().softmax(1))
    return torch.cat(found)


def _judged(
    path: str, recipe: Recipe, state: State, train: Split, valid: Evaluation | None, last: Round | None
) -> Round:
    """What a round came to, after the last one."""
    labels, found = train.labels, _classified(recipe, state, train)
    if not torch.isfinite(found).all():
        raise DynamicsError(f"boosting diverged in {path}: lower the learning rate")
    scores = torch.zeros_like(found) if last is None else last.alpha * _classified(last.recipe, last.state, train)
    ahead = max(-LARGEST_EDGE, min(edge(found, scores, labels), LARGEST_EDGE))
    hits = (found.argmax(1) == labels).sum()
    loss = -found.gather(1, labels[:, None]).log().mean()
    trained = Evaluation(float(loss), int(hits) / len(labels), len(labels))
    gained = gain(ahead, last.edge if last else 0.0)
    return Round(path, trained, valid, ahead, math.atanh(ahead), gained, recipe, state)
