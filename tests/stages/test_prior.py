"""The prior: its causal sequence, its statistics, guidance and the choice among candidates."""

import pytest
import torch
from conftest import captioned, small_clip, small_prior

from t2i.core.errors import DataError
from t2i.core.seed import Streams
from t2i.core.types import TextFeatures
from t2i.diffusion.sampling import Sampling
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.prior.sample import sample
from t2i.stages.prior.task import PriorOptions, PriorTask

CAPTIONS = ["a red cube", "a blue sphere and a green cube"]


def batch(n: int = 4) -> dict:
    return captioned(CAPTIONS, n)


def test_reading_the_sentence_once_equals_one_long_causal_sequence() -> None:
    prior, clip = small_prior(), small_clip()
    text = clip.encode_text(CAPTIONS)
    x_t, t = torch.randn(2, 16), torch.tensor([3, 700])
    fast = prior(x_t, t, prior.condition(text))

    from t2i.nn.layers import timestep_embedding

    caption = prior.text_proj(text.sequence)  # as long as the longest sentence
    positions = torch.cat([prior.positions[:, : caption.shape[1]], prior.positions[:, -4:]], dim=1)
    tail = [prior.clip_text_proj(text.pooled), prior.time_embed(timestep_embedding(t, 32)), prior.noised_proj(x_t)]
    tokens = torch.cat([caption, torch.stack([*tail, prior.answer.expand(2, -1)], dim=1)], dim=1) + positions
    mask = torch.cat([text.mask, torch.ones(2, 4, dtype=torch.bool)], dim=1)
    slow = prior.out(prior.norm(prior.transformer(tokens, mask)[:, -1]))
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_padding_tokens_are_not_looked_at() -> None:
    prior, clip = small_prior(), small_clip()
    text = clip.encode_text(CAPTIONS)
    changed = torch.where(text.mask[..., None], text.sequence, torch.randn_like(text.sequence))
    x_t, t = torch.randn(2, 16), torch.tensor([3, 700])
    other = TextFeatures(text.pooled, changed, text.mask)
    torch.testing.assert_close(prior(x_t, t, prior.condition(text)), prior(x_t, t, prior.condition(other)))


def test_standardising_has_unit_statistics_and_an_inverse() -> None:
    prior = small_prior()
    z = torch.nn.functional.normalize(torch.randn(500, 16), dim=-1)
    prior.calibrate(z)
    x = prior.standardise(z)
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(dim=0), torch.ones(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(prior.restore(x), z, atol=1e-5, rtol=0)


def test_a_prior_without_statistics_is_refused() -> None:
    prior = Prior(PriorConfig(clip_dim=16, text_width=32, context=12, width=32, layers=1, heads=1))
    with pytest.raises(DataError, match="no CLIP statistics"):
        sample(prior, small_clip().encode_text(CAPTIONS), Streams([1, 2]), Sampling(steps=3))
    with pytest.raises(ValueError, match="all finite"):
        prior.calibrate(torch.full((3, 16), torch.nan))


def test_a_training_step_asks_nothing_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the statistics are known is looked at once, before the first step: a look waits for the GPU."""
    task = PriorTask(small_prior(), PriorOptions(num_draws=2), clip=small_clip())
    monkeypatch.setattr(Prior, "calibrated", property(lambda _: pytest.fail("looked at")))
    assert task.loss(batch(2))["loss"].isfinite().all()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width=32 is not a multiple of heads=5"):
        PriorConfig(width=32, heads=5)


def test_the_better_of_several_candidates_is_kept() -> None:
    prior, text = small_prior(), small_clip().encode_text(CAPTIONS)
    options = Sampling(steps=3, sampler="ddpm")
    one = sample(prior, text, Streams([1, 2]), options, num_candidates=1)
    many = sample(prior, text, Streams([1, 2]), options, num_candidates=6)
    gain = ((many - one) * text.pooled).sum(dim=-1)
    assert (gain >= -1e-6).all()
    assert gain.max() > 0
    torch.testing.assert_close(many.norm(dim=-1), torch.ones(2))


def test_guidance_one_is_no_guidance_and_others_need_a_null() -> None:
    prior, clip = small_prior(), small_clip()
    text, null = clip.encode_text(CAPTIONS), clip.encode_text(["", ""])
    plain = sample(prior, text, Streams([1, 2]), Sampling(steps=3))
    torch.testing.assert_close(sample(prior, text, Streams([1, 2]), Sampling(steps=3, guidance=1.0), null=null), plain)
    guided = sample(prior, text, Streams([1, 2]), Sampling(steps=3, guidance=4.0), null=null)
    assert (guided - plain).abs().max() > 1e-3
    with pytest.raises(ValueError, match="guidance"):
        sample(prior, text, Streams([1, 2]), Sampling(steps=3, guidance=4.0))


def test_losses_belong_to_samples_and_not_to_batches() -> None:
    task = PriorTask(small_prior(), PriorOptions(num_draws=3), clip=small_clip())
    whole = task.loss(batch(4))
    assert {name: tuple(x.shape) for name, x in whole.items()} == {"loss": (4,), "cosine": (4,)}
    half = {key: value[2:] for key, value in batch(4).items()}
    torch.testing.assert_close(task.loss(half)["loss"], whole["loss"][2:], rtol=1e-4, atol=1e-5)


def test_training_lowers_the_error() -> None:
    prior = small_prior().train()
    task = PriorTask(prior, PriorOptions(text_drop=0.0), clip=small_clip())
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    task.prepare([batch(4)])
    first = task.loss(batch(4))["loss"].mean().item()
    for _ in range(25):
        optimizer.zero_grad()
        task.loss(batch(4))["loss"].mean().backward()
        optimizer.step()
    assert task.loss(batch(4))["loss"].mean().item() < 0.7 * first


def test_width_of_another_clip_is_refused() -> None:
    prior = Prior(PriorConfig(clip_dim=24, text_width=32, context=12, width=32, layers=1, heads=1))
    with pytest.raises(ValueError, match="24"):
        PriorTask(prior, clip=small_clip())
