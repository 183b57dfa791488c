"""The autoregressive prior: PCA and buckets, its causal sequence, how codes are drawn and learned."""

import pytest
import torch
import torch.nn.functional as F
from conftest import captioned, small_clip
from small import ar_prior

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.core.types import TextFeatures
from t2i.nn.generate import pick
from t2i.run import load_run
from t2i.stages.ar_prior.model import ArPrior, ArPriorConfig
from t2i.stages.ar_prior.sample import sample
from t2i.stages.ar_prior.task import ArPriorOptions, ArPriorTask

CAPTIONS = ["a red cube", "a blue sphere and a green cube", "a green sphere", "a blue cube"]


def batch(n: int = 4) -> dict:
    return captioned(CAPTIONS, n)


def pairs(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings whose coordinates have very different spreads, and others that know something of them."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -2, 16)[torch.randperm(16, generator=generator)]
    z = torch.randn(n, 16, generator=generator) * spread
    return F.normalize(z, dim=-1), F.normalize(z + torch.randn(n, 16, generator=generator), dim=-1)


def blank(**changes: int) -> ArPrior:
    sizes = {"clip_dim": 16, "num_components": 8, "num_buckets": 16, "text_width": 32, "context": 12}
    small = {"width": 16, "layers": 1, "heads": 1, "encoder_width": 16, "encoder_layers": 1, "encoder_heads": 1}
    return ArPrior(ArPriorConfig(**(sizes | small | changes))).eval()


# -- codes -------------------------------------------------------------------------------------------------------------


def test_components_are_orthonormal_and_the_widest_come_first() -> None:
    z_i, z_t = pairs()
    prior = blank(num_components=16)
    prior.calibrate(z_i, z_t)
    torch.testing.assert_close(prior.components @ prior.components.T, torch.eye(16), atol=1e-5, rtol=0)
    coordinates = (z_i - z_i.mean(dim=0)) @ prior.components.T
    eigenvalues = torch.linalg.eigvalsh(torch.cov(z_i.T)).flip(0)
    torch.testing.assert_close(coordinates.var(dim=0), eigenvalues, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("num_buckets", [16, 1024])
def test_what_comes_back_is_no_further_off_than_half_a_bucket(num_buckets: int) -> None:
    z_i, z_t = pairs()
    prior = blank(num_components=16, num_buckets=num_buckets)
    prior.calibrate(z_i, z_t)
    codes = prior.quantise(z_i, z_t)
    assert codes.shape == (300, 17)
    assert 0 <= codes.min() < codes.max() < num_buckets
    width = (prior.high - prior.low) / num_buckets
    dot = prior.low[0] + (codes[:, 0] + 0.5) * width[0]
    assert ((dot - (z_i * z_t).sum(dim=1)).abs() <= 0.501 * width[0]).all()
    errors = (prior.restore(codes[:, 1:]) - z_i) @ prior.components.T  # restore also projects to unit norm
    allowed = 0.5 * width[1:] + 0.5 * width[1:].norm() + 1e-5
    assert (errors.abs() <= allowed).all()
    torch.testing.assert_close(prior.restore(codes[:, 1:]).norm(dim=1), torch.ones(300))


def test_values_beyond_the_buckets_go_to_the_outermost() -> None:
    prior = ar_prior()
    far = prior.mean + 100 * prior.components[0]
    codes = prior.quantise(torch.stack([far, 2 * prior.mean - far]), torch.zeros(2, 16))
    assert codes[:, 1].tolist() == [15, 0]


def test_components_without_a_code_stay_at_their_mean() -> None:
    prior = ar_prior(unit_norm=False)
    codes = torch.randint(16, (2, 3))
    left = (prior.restore(codes) - prior.mean) @ prior.components[3:].T
    torch.testing.assert_close(left, torch.zeros(2, 5), atol=1e-6, rtol=0)


def test_statistics_need_more_embeddings_than_components_and_finite_ones() -> None:
    z_i, z_t = pairs()
    with pytest.raises(ValueError, match="8 components need at least 9 embeddings, all finite, got 8"):
        blank().calibrate(z_i[:8], z_t[:8])
    with pytest.raises(ValueError, match="all finite"):
        blank().calibrate(z_i, torch.full_like(z_t, torch.nan))


# -- the network -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 4, 7])
def test_a_later_code_never_changes_an_earlier_logit(place: int) -> None:
    prior, text = ar_prior(), small_clip().encode_text(CAPTIONS)
    codes = torch.randint(16, (4, 8))
    changed = codes.clone()
    changed[:, place:] = (changed[:, place:] + 5) % 16
    condition = prior.condition(text)
    before, after = prior(codes, condition), prior(changed, condition)
    assert before.shape == (4, 9, 16)
    torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])
    assert (after[:, place + 1 :] - before[:, place + 1 :]).abs().amin(dim=(0, 2)).max() > 0


@torch.no_grad()
def test_one_place_at_a_time_equals_the_whole_sequence() -> None:
    prior, text = ar_prior(), small_clip().encode_text(CAPTIONS)
    codes = torch.randint(16, (4, 8))
    whole = prior(codes, prior.condition(text))
    condition = prior.condition(text)
    token = condition.vector
    for place in range(9):
        logits, condition = prior.step(token, place, condition)
        torch.testing.assert_close(logits, whole[:, place], atol=1e-5, rtol=1e-5)
        token = prior.codes(codes[:, place]) if place < 8 else None
    assert condition.context[0][0].shape[2] == text.mask.shape[1] + 9, "each token was read once"


@torch.no_grad()
def test_it_hears_the_words_and_the_embedding_and_no_padding() -> None:
    prior, text = ar_prior(), small_clip().encode_text(CAPTIONS)
    codes = torch.randint(16, (4, 8))
    base = prior(codes, prior.condition(text))
    noise = torch.randn_like(text.sequence)
    padding = TextFeatures(text.pooled, torch.where(text.mask[..., None], text.sequence, noise), text.mask)
    torch.testing.assert_close(prior(codes, prior.condition(padding)), base)
    torch.testing.assert_close(prior(codes, prior.condition(text.padded(12))), base)
    for other in (text._replace(pooled=text.pooled.flip(0)), text._replace(sequence=text.sequence + noise)):
        assert (prior(codes, prior.condition(other)) - base).abs().amax(dim=(1, 2)).min() > 1e-4


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_buckets_are_drawn_as_often_as_they_are_probable() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    u = (torch.arange(1000) + 0.5) / 1000
    found = torch.bincount(pick(p.log().expand(1000, 4), u), minlength=4)
    assert found.tolist() == [500, 0, 300, 200]


def dots(prior: ArPrior, text: TextFeatures, percentile: float) -> torch.Tensor:
    """Codes of the dot product that `sample` drew."""
    seen: list[torch.Tensor] = []
    codes = prior.codes.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    sample(prior, text, Streams(range(len(text.mask))), dot_percentile=percentile)
    codes.remove()
    return seen[0]


def test_the_dot_product_is_of_the_upper_half_of_what_is_predicted() -> None:
    prior = ar_prior()
    text = small_clip().encode_text(CAPTIONS[:1] * 400)
    with torch.no_grad():
        p = prior.step(prior.condition(text).vector, 0, prior.condition(text))[0][0].softmax(dim=-1)
    cdf = p.cumsum(dim=0)
    for percentile in (0.0, 50.0, 85.0):
        drawn, q = dots(prior, text, percentile), percentile / 100
        assert (cdf[drawn] >= q - 1e-6).all()
        expected = ((cdf - q).clamp(min=0).diff(prepend=torch.zeros(1)) / (1 - q)).clamp(min=0)
        found = torch.bincount(drawn, minlength=16) / 400
        torch.testing.assert_close(found, expected, atol=0.06, rtol=0)


def test_guidance_one_is_no_guidance_and_others_need_a_null() -> None:
    prior, clip = ar_prior(), small_clip()
    text, null = clip.encode_text(CAPTIONS), clip.encode_text([""] * 4)
    plain = sample(prior, text, Streams(range(4)))
    torch.testing.assert_close(sample(prior, text, Streams(range(4)), 1.0, null=null), plain)
    assert (sample(prior, text, Streams(range(4)), 4.0, null=null) - plain).abs().max() > 1e-3
    torch.testing.assert_close(sample(prior, text, Streams(range(4)), 4.0, null=text), plain)
    with pytest.raises(ValueError, match=r"guidance 4\.0 needs an unconditional condition"):
        sample(prior, text, Streams(range(4)), 4.0)


def test_an_embedding_is_the_same_alone_and_in_a_batch() -> None:
    prior, clip = ar_prior(), small_clip()
    texts, null = clip.encode_text(CAPTIONS), clip.encode_text([""] * 4)
    together = sample(prior, texts, Streams(range(4)), 3.0, null=null)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    for i, caption in enumerate(CAPTIONS):
        alone = sample(prior, clip.encode_text([caption]), Streams([i]), 3.0, null=clip.encode_text([""]))
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=0)
    again = sample(prior, texts, Streams([7, 8, 9, 10]), 3.0, null=null)
    assert (again - together).abs().amax(dim=1).min() > 1e-3


def test_cold_draws_are_what_is_most_probable() -> None:
    prior, text = ar_prior(), small_clip().encode_text(CAPTIONS)
    cold = sample(prior, text, Streams(range(4)), temperature=1e-4, dot_percentile=0)
    torch.testing.assert_close(sample(prior, text, Streams(range(4, 8)), temperature=1e-4, dot_percentile=0), cold)


def test_a_callback_sees_the_embedding_grow() -> None:
    prior, text = ar_prior(), small_clip().encode_text(CAPTIONS)
    seen: list[tuple[int, int, torch.Tensor]] = []
    z_i = sample(prior, text, Streams(range(4)), callback=lambda i, n, x, _: seen.append((i, n, x)))
    assert [(i, n) for i, n, _ in seen] == [(i, 9) for i in range(1, 10)]
    torch.testing.assert_close(seen[0][2], F.normalize(prior.mean, dim=0).expand(4, -1))
    torch.testing.assert_close(seen[-1][2], z_i)


def test_what_cannot_be_drawn_from_is_refused() -> None:
    text, streams = small_clip().encode_text(CAPTIONS), Streams(range(4))
    with pytest.raises(DataError, match="no PCA and no buckets"):
        sample(blank(), text, streams)
    for wrong in ({"temperature": 0.0}, {"dot_percentile": 100.0}, {"dot_percentile": -1.0}):
        with pytest.raises(ValueError, match="temperature must be above 0 and dot_percentile in 0…100"):
            sample(ar_prior(), text, streams, **wrong)


# -- training ----------------------------------------------------------------------------------------------------------


def test_losses_belong_to_samples_and_not_to_batches() -> None:
    task = ArPriorTask(ar_prior(), ArPriorOptions(text_drop=0.5), clip=small_clip())
    whole = task.loss(batch())
    assert {name: tuple(x.shape) for name, x in whole.items()} == {"loss": (4,), "dot": (4,)}
    half = {key: value[2:] for key, value in batch().items()}
    torch.testing.assert_close(task.loss(half)["loss"], whole["loss"][2:], rtol=1e-4, atol=1e-5)


def test_a_dropped_caption_is_the_empty_one_and_keeps_its_dot_product() -> None:
    prior, clip = ar_prior(), small_clip()
    loss = ArPriorTask(prior, ArPriorOptions(text_drop=1.0), clip=clip).loss(batch())["loss"]
    z_i, z_t = clip.encode_image(batch()["image"]), clip.encode_text(batch()["caption"]).pooled
    codes = prior.quantise(z_i, z_t)
    logits = prior(codes[:, :-1], prior.condition(clip.encode_text([""] * 4)))
    expected = -logits.log_softmax(dim=-1).gather(2, codes[..., None])[..., 0].mean(dim=1)
    torch.testing.assert_close(loss, expected)


def test_a_loss_without_buckets_is_not_a_number() -> None:
    assert ArPriorTask(blank(), clip=small_clip()).loss(batch())["loss"].isnan().all()


def test_a_training_step_asks_nothing_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ArPriorTask(ar_prior(), clip=small_clip())
    monkeypatch.setattr(ArPrior, "calibrated", property(lambda _: pytest.fail("looked at")))
    assert task.loss(batch())["loss"].isfinite().all()


def test_statistics_are_measured_once_unless_asked_for_anew() -> None:
    prior = blank(num_components=4)
    task = ArPriorTask(prior, clip=small_clip())
    task.prepare([batch(6), batch(3)])
    assert prior.calibrated
    before = prior.low.clone()
    other = batch(9) | {"caption": CAPTIONS[1:2] * 9, "image": -batch(9)["image"]}
    task.prepare([other])
    assert torch.equal(prior.low, before)
    task.prepare([other], anew=True)
    assert not torch.equal(prior.low, before)


def test_a_few_pairs_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    clip = small_clip()
    rows = batch(12)
    z_i = F.normalize(torch.randn(12, 16), dim=-1)  # an untrained CLIP sees all pictures alike
    clip.encode_image = lambda image: z_i[: len(image)]  # type: ignore[method-assign]
    task = ArPriorTask(blank(width=32, heads=2, layers=2).train(), ArPriorOptions(text_drop=0.0), clip=clip)
    few = {key: value[:4] for key, value in rows.items()}
    task.prepare([rows])
    optimizer = torch.optim.Adam(task.model.parameters(), lr=3e-3)
    first, untrained = task.loss(few)["loss"].mean().item(), task.metrics(few)
    for _ in range(300):
        optimizer.zero_grad()
        task.loss(few)["loss"].mean().backward()
        optimizer.step()
    learned = task.metrics(few)
    assert task.loss(few)["loss"].mean().item() < 0.1 * first
    assert learned["cosine_image"] > untrained["cosine_image"] + 0.3
    assert learned["cosine_image"] > 0.95 * learned["cosine_codes"]
    grid = task.sample(few)
    torch.testing.assert_close(grid[4:], grid[:4])


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.heads=3", "width=128 is not a multiple of heads=3"),
        ("model.encoder_heads=5", "encoder_width=128 is not a multiple of encoder_heads=5"),
        ("model.num_buckets=1", "model.num_buckets: input should be greater than or equal to 2"),
        ("model.num_componets=3", "did you mean 'model.num_components'"),
        ("task.text_drop=2", "task.text_drop"),
    ],
)
def test_bad_configs_are_one_line(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_run("configs/shapes/ar-prior.yaml", [change])
    assert "\n" not in str(caught.value)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_components=17 of embeddings of width 16"):
        blank(num_components=17)
    with pytest.raises(ValueError, match="the prior is of width 24, CLIP of 16"):
        ArPriorTask(blank(clip_dim=24), clip=small_clip())
