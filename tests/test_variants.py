from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from helpers import assert_same, last, toy_recipe, toy_split

import dynamics as dyn
from dynamics.errors import DynamicsError
from dynamics.nets import plain8
from dynamics.nets.variants import NoisyNorm, last_norm_plain8, noisy_plain8

NOISY = dyn.Net("dynamics.nets.variants:noisy_plain8", width=2)
LAST = dyn.Net("dynamics.nets.variants:last_norm_plain8", width=2)


def inputs(n: int = 64, channels: int = 5) -> torch.Tensor:
    return torch.randn(n, channels, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_noise_is_a_shift_and_a_stretch_of_batch_norms_outputs_for_every_image_and_channel():
    norm, x = NoisyNorm(5, scale=False, bias=False).double(), inputs()
    factor, offset = norm.draw(len(x))
    plain = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = plain * factor.double()[:, :, None, None] + offset.double()[:, :, None, None]
    torch.testing.assert_close(norm(x), expected)


def test_its_draws_have_the_published_distribution():
    norm = NoisyNorm(400)
    factor, offset = norm.draw(500)
    of_channel = offset.mean(0), factor.mean(0)
    assert float(of_channel[0].abs().max()) < 0.5 + 0.02
    assert float(of_channel[0].std()) == pytest.approx(0.5 / 3**0.5, rel=0.1)
    assert float(of_channel[1].min()) > 1 - 0.02 and float(of_channel[1].max()) < 1.25 + 0.02
    assert float((offset - of_channel[0]).std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert float((factor - of_channel[1]).std()) == pytest.approx(0.1, rel=0.05)


def test_every_training_step_draws_anew_and_evaluation_has_no_noise():
    norm, x = NoisyNorm(5).double(), inputs()
    first, second = norm(x), norm(x)
    assert int(norm.step) == 2
    assert float((first - second).detach().abs().max()) > 0.05
    norm.step.zero_()
    assert torch.equal(norm(x), first)
    plain = dyn.nets.BatchNorm(5).double().eval()
    plain.load_state_dict({k: v for k, v in norm.state_dict().items() if k != "step"})
    assert torch.equal(norm.eval()(x), plain(x))
    assert int(norm.step) == 1


def test_channels_of_different_norms_and_seeds_have_different_noise():
    one, other = NoisyNorm(5, name="a"), NoisyNorm(5, name="b")
    assert not torch.equal(one.draw(3)[0], other.draw(3)[0])
    assert not torch.equal(one.draw(3)[0], NoisyNorm(5, name="a", seed=1).draw(3)[0])


def test_the_noisy_net_is_plain8_with_other_norms():
    net, plain = noisy_plain8(2, classes=4, seed=3), plain8(2, classes=4, seed=3)
    assert_same(dict(net.named_parameters()), dict(plain.named_parameters()))
    assert [m.name for m in net.modules() if isinstance(m, NoisyNorm)] == [
        f"{block}.norm" for block in ("prep", "layer1", "layer1x", "layer2", "layer2x", "layer3", "layer3x")
    ]
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
    silent = noisy_plain8(2, classes=4, seed=3, shift=0.0, stretch=1.0, jitter=0.0)
    torch.testing.assert_close(silent.train()(x), plain.train()(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(DynamicsError, match="shift"):
        noisy_plain8(2, shift=float("nan"))


def test_a_run_with_noise_resumes_bit_identical():
    recipe, split = toy_recipe(net=NOISY, epochs=3), toy_split()
    whole = last(dyn.steps(recipe, split))
    half = next(islice(dyn.steps(recipe, split), 4, None)).state.clone()
    assert int(half.buffers["prep.norm.step"]) == 4
    assert_same(whole.params, last(dyn.steps(recipe, split, half)).params)
    assert dyn.Recipe.from_json(recipe.to_json()) == recipe


def test_readings_of_a_fixed_batch_see_the_noise_of_their_step():
    recipe, split = toy_recipe(net=NOISY, epochs=1), toy_split()
    run = dyn.train(recipe, split, probes={"moments": dyn.every(1, dyn.moments(split[:20]))}, progress=False)
    shift = dyn.drift(run["moments"], since="previous")["mean"]
    of_norm = shift.isel(channel=shift.channel_layer.values == "layer1.norm")
    assert float(abs(of_norm).median()) > 0.05
    bare = dyn.train(recipe, split, progress=False)
    assert_same(run.state.params, bare.state.params)


def test_P7_18_one_norm_at_the_end_fixes_mean_and_variance_of_every_logit_and_nothing_else():
    net = last_norm_plain8(2, classes=4, logit_scale=2.0).double().train()
    plain = plain8(2, norm="none", classes=4).double()
    assert_same(dict(net.named_parameters()), dict(plain.named_parameters()))
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = plain(x) / plain.logits.factor
    torch.testing.assert_close(
        net(x), 2.0 * (before - before.mean(0)) / before.std(0, correction=0), rtol=1e-2, atol=1e-3
    )
    assert [path for path, m in net.named_modules() if hasattr(m, "running_var")] == ["norm"]
    assert list(dict(net.named_children()))[-3:] == ["linear", "norm", "logits"]


def test_it_trains_like_any_other_net():
    recipe = replace(toy_recipe(epochs=2), net=LAST)
    assert dyn.train(recipe, toy_split(), progress=False).status == "finished"
