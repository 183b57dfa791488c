"""The decoder in latent space: what it learns from, what it draws, and neighbours and latents that are others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import captioned
from small import TEXT, Codec, decoder, latent_decoder, of, t5

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.core.types import LatentCodec, TextFeatures
from t2i.data.config import DataConfig
from t2i.diffusion import losses
from t2i.diffusion.sampling import Sampling
from t2i.nn.ports import Given, PortsConfig
from t2i.run import load_run, start_from
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.policy import complete, draw, example, fits, start
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.registry import load_stage, save_stage, stage
from t2i.stages.stage import How, Inputs
from t2i.train.start import take_what_fits

CAPTIONS = ["a red cube", "a blue sphere and a red cube"]
OPTIONS = DecoderOptions(text_drop=0.5, sampling=Sampling(steps=3, guidance=2.0))
SHAPES = DataConfig(source="shapes", size=32)


def batch(num: int = 4) -> dict[str, Any]:
    data = captioned(CAPTIONS, num)
    return data | {"image": torch.nn.functional.interpolate(data["image"][..., :8, :8], size=32)}


def task(options: DecoderOptions = OPTIONS, **neighbours: Any) -> DecoderTask:
    given = {"text": t5(), "autoencoder": Codec()} | neighbours
    return DecoderTask(latent_decoder(), options, **given)


def test_the_stand_in_is_an_autoencoder() -> None:
    assert isinstance(Codec(), LatentCodec)


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_all_targets_learn(target: str) -> None:
    model = latent_decoder(diffusion={"space": "latents", "target": target})
    trained = DecoderTask(model.train(), OPTIONS, text=t5(), autoencoder=Codec())
    losses = trained.loss(batch())
    assert losses.keys() == {"loss", "mse", "vb"}
    losses["loss"].mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_cached_latents_and_states_give_the_loss_of_pictures_and_captions() -> None:
    data, both = batch(), task()
    text = t5().encode_text(data["caption"])
    cached = {key: data[key] for key in ("caption", "seed", "key")} | {
        "latents": Codec().encode_latents(data["image"]),
        "states": text.sequence,
        "states_mask": text.mask,
    }
    alone = task(text=None, autoencoder=None)
    assert both.keys == ("image", "caption")
    assert alone.keys == ("latents", "caption", "states")
    assert task(OPTIONS.model_copy(update={"cached": True})).keys == ("latents", "caption")
    torch.testing.assert_close(alone.loss(cached)["loss"], both.loss(data)["loss"])
    assert alone.sample(cached) is None
    assert not alone.takes_prompts


def test_the_last_term_of_the_bound_counts_no_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents have no 8 bits: at step 0 the bound is a density."""
    monkeypatch.setattr(losses, "draw_steps", lambda streams, *_: torch.zeros(len(streams), dtype=torch.long))
    before = task().loss(batch())["vb"]
    monkeypatch.setattr(losses, "discretised_log_likelihood", lambda *_: pytest.fail("levels were counted"))
    assert torch.equal(task().loss(batch())["vb"], before)
    monkeypatch.setattr(losses, "gaussian_log_density", lambda x, *_: torch.zeros_like(x))
    assert not task().loss(batch())["vb"].any()


def test_a_dropped_caption_is_an_empty_one_and_the_null_state() -> None:
    made = task()
    with torch.no_grad():
        dropped = made.condition(batch() | {"caption": ["", *CAPTIONS, " "]})
        null = made.model.null_condition(4)
        half = DecoderTask(made.model, OPTIONS.model_copy(update={"text_drop": 1.0}), text=t5(), autoencoder=Codec())
        every = half.condition(batch(), Streams([0, 1, 2, 3], "decoder"))
    torch.testing.assert_close(dropped.vector[[0, 3]], null.vector[:2])
    assert (dropped.vector[1] - null.vector[1]).abs().max() > 1e-3
    torch.testing.assert_close(every.vector, null.vector)


def test_grids_are_pictures_through_the_autoencoder() -> None:
    made, data = task(), batch()
    grid = made.sample(data)
    assert grid is not None
    assert grid.shape == (8, 3, 32, 32)
    assert torch.equal(grid[:4], data["image"])
    assert grid.abs().max() <= 1
    latents = {key: data[key] for key in ("caption", "seed")} | {"latents": Codec().encode_latents(data["image"])}
    cached = task(OPTIONS.model_copy(update={"cached": True})).sample(latents)
    torch.testing.assert_close(cached, grid)  # pictures of this batch are what their latents say
    assert made.takes_prompts
    assert made.draw_prompts(data | {"caption": ["a cube", "", "a red sphere"], "seed": [1, 2, 3]}).shape[0] == 3


def test_grids_of_classes_are_guided_away_from_no_class() -> None:
    ports = {"states": latent_decoder().config.ports.states, "classes": {"num": 3, "null_class": True}}
    made = DecoderTask(latent_decoder(ports=ports), OPTIONS, text=t5(), autoencoder=Codec())
    grid = made.sample(batch() | {"label": torch.tensor([0, 1, 2, 0])})
    assert grid is not None
    assert grid.shape == (8, 3, 32, 32)


def encoded(model: Any, *texts: list[str]) -> list[TextFeatures]:
    return [model.encode_text(sentences) for sentences in texts]


def drawn(
    model: Decoder, prompts: list[str], negatives: list[str], guidance: float = 2.0, seed: int = 3
) -> torch.Tensor:
    encoder = t5()
    num = len(prompts)
    inputs = Inputs(num, prompts=prompts, negatives=negatives, encode=lambda *texts: encoded(encoder, *texts))
    how = How(Sampling(steps=3, guidance=guidance), Streams(range(seed, seed + num), "decoder"))
    return draw(model, inputs, how)


def test_a_chain_draws_latents_that_hear_both_sentences() -> None:
    model = latent_decoder()
    z = drawn(model, CAPTIONS, ["", ""])
    assert z.shape == (2, 4, 8, 8)
    assert z.abs().max() > 1, "no clamp"
    torch.testing.assert_close(drawn(model, CAPTIONS[1:], [""], seed=4)[0], z[1], atol=1e-4, rtol=1e-4)
    assert (drawn(model, CAPTIONS[::-1], ["", ""]) - z).abs().max() > 1e-4
    negative = drawn(model, CAPTIONS, ["a green cube", ""])
    assert (negative[0] - z[0]).abs().max() > 1e-5
    torch.testing.assert_close(negative[1], z[1], atol=1e-4, rtol=1e-4)
    nothing = drawn(model, ["", ""], ["", ""], guidance=5.0)
    torch.testing.assert_close(nothing, drawn(model, ["", ""], ["", ""], guidance=1.0), atol=1e-4, rtol=1e-4)
    steps = example(model)
    steps.step(steps.once())


def test_facts_of_neighbours_are_filled_in_and_saved(tmp_path: Path) -> None:
    bare = latent_decoder().config.model_dump() | {"ports": {"states": {"layers": 1, "heads": 2}}, "latents": None}
    full = complete(DecoderConfig.model_validate(bare), {"text": t5(), "autoencoder": Codec()}, SHAPES)
    assert full == latent_decoder().config
    save_stage(tmp_path, "decoder", latent_decoder())
    assert load_stage(tmp_path).config == full


@pytest.mark.parametrize(
    ("neighbours", "message"),
    [
        ({"text": None}, "learns from a text encoder: name its folder, needs.text=FOLDER"),
        ({"autoencoder": None}, "learns from an autoencoder: name its folder, needs.autoencoder=FOLDER"),
        ({"text": t5(width=32, head_width=16)}, r"model.ports.states.dim=16 is 32 in the text encoder"),
        ({"autoencoder": Codec(mark=0.7)}, r"model.latents.fingerprint=.* is .*0.7.* in the autoencoder; leave it out"),
    ],
)
def test_other_neighbours_than_those_of_the_config_are_one_line(neighbours: dict[str, Any], message: str) -> None:
    given = {"text": t5(), "autoencoder": Codec()} | neighbours
    with pytest.raises(UsageError, match=message):
        complete(latent_decoder().config, {k: v for k, v in given.items() if v is not None}, SHAPES)


def test_fewer_positions_than_the_text_encoder_reads_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match=r"ports\.states\.positions=11: the text encoder reads 12 tokens"):
        complete(latent_decoder(positions=11).config, {"text": t5(), "autoencoder": Codec()}, SHAPES)


def test_neighbours_that_nothing_needs_are_refused() -> None:
    with pytest.raises(UsageError, match=r"needs.text=…: this decoder has no ports.states"):
        complete(decoder().config, {"text": t5()}, SHAPES)
    with pytest.raises(UsageError, match=r"needs.autoencoder=…: this decoder draws pixels"):
        complete(decoder().config, {"autoencoder": Codec()}, SHAPES)


def test_pictures_and_latents_of_another_size_are_one_line() -> None:
    neighbours = {"text": t5(), "autoencoder": Codec()}
    fits(latent_decoder(), SHAPES, OPTIONS, neighbours)
    with pytest.raises(UsageError, match=r"size=64 must equal model.image_size=8 times the autoencoder's factor 4"):
        fits(latent_decoder(), SHAPES.model_copy(update={"size": 64}), OPTIONS, neighbours)
    with pytest.raises(DataError, match="latents are 4 × 16 × 16, this decoder is over 4 × 8 × 8"):
        task().loss(batch() | {"latents": torch.randn(4, 4, 16, 16)})


def test_latents_of_another_scale_are_one_line() -> None:
    task().prepare(iter([batch()]))
    with pytest.raises(DataError, match=r"latents have a standard deviation of .*, expected about 1"):
        task(autoencoder=Codec(scale=20.0)).prepare(iter([batch()]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion": {"space": "pixels"}}, "latents are given, so diffusion.space must be 'latents', got 'pixels'"),
        ({"latents": {"channels": 16}}, "unet.in_channels=4, latents have 16 channels"),
        ({"ports": {"clip_image": {"dim": 8}}}, "has no ports that see pictures"),
        ({"ports": {"states": {}, "clip_image": {}, "clip_text": {}}}, "both are what one frozen encoder says"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_decoder(**changes)


def test_tasks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="reads states of width 16, the encoder gives 32"):
        task(text=t5(width=32, head_width=16))
    plain = Sampling(steps=3, guidance=1.0)
    with pytest.raises(ValueError, match="cached=true is for decoders over latents"):
        DecoderTask(decoder(), DecoderOptions(cached=True, sampling=plain))


def test_a_condition_is_read_once_whatever_its_length() -> None:
    model = latent_decoder(layers=0)
    read = t5().encode_text(CAPTIONS)
    with torch.no_grad():
        condition = model.condition(Given(2, states=read.padded(11)))
    assert condition.sequence.shape == (2, 11, 32)


def test_it_starts_from_trunk_and_text_transformer_of_a_decoder_in_pixels() -> None:
    text = TEXT.model_copy(update={"attend_padding": False})
    pixels = decoder(5, unet=of(in_channels=3, context_dim=32), ports=PortsConfig(text=text))
    latents, given = latent_decoder(positions=20), pixels.state_dict()
    new = {name: value.clone() for name, value in latents.state_dict().items()}
    taken = take_what_fits(latents, start(given, latents), given)
    after = latents.state_dict()
    block = "transformer.blocks.0.attention.qkv.weight"
    for ours, theirs in (
        (f"ports.states.{block}", f"ports.text.encoder.{block}"),
        ("ports.states.norm.weight", "ports.text.encoder.norm.weight"),
        ("ports.states.vector.weight", "ports.text.vector.weight"),
        ("unet.time.0.weight", "unet.time.0.weight"),
    ):
        assert torch.equal(after[ours], given[theirs])
    for name in ("unet.conv_in.weight", "ports.states.states.0.weight"):
        assert torch.equal(after[name], new[name]), "what does not fit keeps its own values"
    rows, num = "ports.states.positions", text.context
    assert torch.equal(after[rows][:num], given["ports.text.encoder.positions"])
    assert torch.equal(after[rows][num:], new[rows][num:]), "of longer sentences"
    assert "ports.states.states" in " ".join(taken.anew)
    assert "ports.text.encoder.tokens" in taken.unused
    assert "ports.text.encoder.norm" not in " ".join(taken.unused)
    own = latent_decoder(seed=9, positions=20)
    assert len(take_what_fits(own, start(after, own), after).taken) == len(after)


def test_starting_from_a_decoder_over_other_latents_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_stage(tmp_path, "decoder", latent_decoder())
    run = load_run("configs/shapes/dalle3.yaml", [])
    start_from(str(tmp_path), run, stage("decoder"), latent_decoder(seed=9))
    assert "another" not in caplog.text
    facts = {"channels": 4, "factor": 4, "fingerprint": Codec(mark=5.0).fingerprint()}
    start_from(str(tmp_path), run, stage("decoder"), latent_decoder(latents=facts))
    assert "learned from another autoencoder than that of runs/shapes/autoencoder" in caplog.text
    assert "another text" not in caplog.text
