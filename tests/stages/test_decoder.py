"""Training and sampling the decoder."""

from typing import Any

import pytest
import torch
from conftest import given, small_clip, small_decoder, with_diffusion
from small import decoder, of
from torch import Tensor

from t2i.core.seed import Streams
from t2i.core.types import Batch
from t2i.diffusion.sampling import Sampling
from t2i.nn.unet import UNetConfig
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.sample import sample
from t2i.stages.decoder.task import DecoderOptions, DecoderTask

CAPTIONS = ("a red cube", "a blue sphere")


def flat(count: int) -> Batch:
    """Pictures of one colour, red and blue by turns, with their captions."""
    colours = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])
    turns = [i % 2 for i in range(count)]
    return {
        "image": colours[turns][:, :, None, None].expand(-1, -1, 32, 32).contiguous(),
        "caption": [CAPTIONS[i] for i in turns],
        "seed": list(range(count)),
    }


class Colour:
    """An encoder that knows red from blue."""

    dim = 16

    def encode_image(self, image: Tensor) -> Tensor:
        red = (image[:, :1].mean((2, 3)) > 0).float()
        return torch.cat([red, 1 - red, torch.zeros(len(image), 14)], dim=1)


class Blind(Colour):
    def encode_image(self, image: Tensor) -> Tensor:
        return torch.eye(16)[:1].expand(len(image), -1)


def losses(encoder: Any, captions: tuple[str, str], **options: Any) -> Tensor:
    batch = flat(4)
    batch["caption"] = [captions[i % 2] for i in range(4)]
    return DecoderTask(small_decoder(), DecoderOptions(**options), clip=encoder).loss(batch)["loss"]


def test_an_empty_caption_is_no_caption() -> None:
    task, batch = DecoderTask(small_decoder(), clip=small_clip()), flat(2)
    empty = task.condition(batch | {"caption": ["", " "]})
    task.options = DecoderOptions(text_drop=1.0, clip_drop=0.0)
    dropped = task.condition(batch, Streams(batch["seed"], "drops"))
    assert empty.sequence is not None
    torch.testing.assert_close(empty.sequence, dropped.sequence)
    torch.testing.assert_close(empty.vector, dropped.vector)


def test_losses_belong_to_samples_and_not_to_batches() -> None:
    task = DecoderTask(small_decoder(), clip=small_clip())
    whole = task.loss(flat(4))
    assert {"loss", "mse", "vb", "loss_t0_249", "share_t750_999"} <= whole.keys()
    assert {tuple(x.shape) for x in whole.values()} == {(4,)}
    half = {key: value[2:] for key, value in flat(4).items()}
    torch.testing.assert_close(task.loss(half)["loss"], whole["loss"][2:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_dropped_leaves_no_trace_and_what_is_kept_does() -> None:
    red_red = (CAPTIONS[0], CAPTIONS[0])
    no_text = {"text_drop": 1.0, "clip_drop": 0.0}
    assert torch.equal(losses(Colour(), CAPTIONS, **no_text), losses(Colour(), red_red, **no_text))
    assert not torch.equal(losses(Colour(), CAPTIONS, **no_text), losses(Blind(), CAPTIONS, **no_text))
    no_clip = {"text_drop": 0.0, "clip_drop": 1.0}
    assert torch.equal(losses(Colour(), CAPTIONS, **no_clip), losses(Blind(), CAPTIONS, **no_clip))
    assert not torch.equal(losses(Colour(), CAPTIONS, **no_clip), losses(Colour(), red_red, **no_clip))


@pytest.mark.parametrize(("shift", "share"), [(1.0, 0.25), (9.0, 0.75)])
@torch.no_grad()
def test_time_shift_trains_noisy_steps_more_often(shift: float, share: float) -> None:
    task = DecoderTask(small_decoder(), DecoderOptions(time_shift=shift), clip=small_clip())
    times: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda _, args: times.append(args[1]))
    task.loss(flat(400))
    assert (torch.cat(times) >= 750).float().mean().item() == pytest.approx(share, abs=0.07)  # three sigma


def test_a_trained_decoder_listens_to_captions_and_to_embeddings() -> None:
    config = with_diffusion(small_decoder().config, target="x0")
    torch.manual_seed(0)
    model = Decoder(config).train()
    task = DecoderTask(model, DecoderOptions(clip_drop=0.4, text_drop=0.4, vb_weight=0.001), clip=Colour())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for i in range(120):
        batch = flat(16) | {"seed": list(range(16 * i, 16 * i + 16))}
        optimizer.zero_grad()
        task.loss(batch)["loss"].mean().backward()
        optimizer.step()

    model.eval()
    two = flat(2)
    tokens, mask = task.tokenizer(two["caption"])
    for name, condition in (
        ("captions", model.condition(given(tokens, mask))),
        ("embeddings", model.condition(given(image_embedding=Colour().encode_image(two["image"])))),
    ):
        drawn = sample(model, condition, Streams([3, 3]), Sampling(steps=8, guidance=2.0))
        error = (drawn - two["image"]).abs().mean((1, 2, 3))
        assert (error < 0.15).all(), f"{name} alone: {error}"


def test_what_is_known_of_a_picture_is_known_with_and_without_words() -> None:
    """Guidance moves away from the empty caption, not from the picture."""
    model = decoder(unet=of(image_channels=4), inpaint=True)
    known = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    drawn = [
        sample(
            model, model.condition(given(known=known)), Streams([1, 2], "s"), Sampling(steps=2, guidance=3.0), null=null
        )
        for null in (None, model.null_condition(2, known))
    ]
    assert torch.equal(*drawn)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="embeddings of width 16, CLIP gives None"):
        DecoderTask(small_decoder())
    unet = UNetConfig(channels=32, multipliers=(1,), attention=(), mid_attention=False)
    labelled = Decoder(DecoderConfig(unet=unet, num_classes=3, image_size=8))
    with pytest.raises(ValueError, match=r"sampling.guidance must be 1, got 2\.0"):
        DecoderTask(labelled)
