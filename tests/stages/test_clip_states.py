"""Decoders that read CLIP's states of a sentence, CLIP without a tower for pictures, upsamplers of two networks."""

from typing import Any

import pytest
import torch
from conftest import given, shaken, small_clip

from t2i.core.errors import UsageError
from t2i.core.seed import Streams
from t2i.core.types import TextFeatures
from t2i.diffusion.sampling import Sampling, draw
from t2i.nn.unet import UNetConfig
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig
from t2i.stages.upsampler.sample import sample
from t2i.stages.upsampler.task import UpsamplerTask

UNET = UNetConfig(channels=32, multipliers=(1, 2), num_blocks=1, attention=(2,), head_channels=32, context_dim=16)
CONV = UNetConfig(image_channels=3, channels=32, multipliers=(1, 2), num_blocks=1, attention=(), mid_attention=False)


def decoder(**changes: Any) -> Decoder:
    torch.manual_seed(0)
    config = {"unet": UNET, "clip_dim": 16, "clip_text_width": 32, "image_size": 32} | changes
    return shaken(Decoder(DecoderConfig.model_validate(config))).eval()  # type: ignore[return-value]


def batch() -> dict[str, Any]:
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"image": image, "caption": ["a red cube", "a blue sphere and a cube"], "seed": [0, 1], "key": ["a", "b"]}


@torch.no_grad()
def test_what_stands_outside_the_mask_does_not_matter() -> None:
    model, text, z = decoder(), small_clip().encode_text(batch()["caption"]), torch.randn(2, 16)
    assert not text.mask.all()
    other = TextFeatures(
        text.pooled, torch.where(text.mask[..., None], text.sequence, torch.randn_like(text.sequence)), text.mask
    )
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    one = model(x, t, model.condition(given(image_embedding=z, clip_text=text)))
    two = model(x, t, model.condition(given(image_embedding=z, clip_text=other.padded(11))))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    moved = text._replace(pooled=text.pooled.flip(0))
    assert (model(x, t, model.condition(given(image_embedding=z, clip_text=moved))) - one).abs().max() > 1e-4


def test_training_reads_captions_with_the_frozen_clip() -> None:
    model = decoder()
    options = DecoderOptions(text_drop=0.0, clip_drop=0.0, sampling=Sampling(steps=2, guidance=2.0))
    task = DecoderTask(model, options, clip=small_clip().requires_grad_(False))
    assert task.keys == ("image", "caption")
    loss = task.loss(batch())["loss"]
    loss.mean().backward()
    assert model.ports.clip_text.states[0].weight.grad.abs().sum() > 0
    changed = task.loss(batch() | {"caption": ["a sphere", "a sphere"]})["loss"]
    assert (changed - loss).abs().min() > 0
    silent = DecoderTask(model, DecoderOptions(text_drop=1.0), clip=small_clip())
    spoken = [silent.loss(batch() | {"caption": captions})["loss"] for captions in (["a cube"] * 2, ["a sphere"] * 2)]
    torch.testing.assert_close(*spoken)
    assert task.sample(batch()).shape == (4, 3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_dim": None}, "ports.clip_text needs ports.clip_image beside it"),
        ({"text": {"width": 16, "layers": 1, "heads": 1}}, "no port for text of its own beside it"),
    ],
)
def test_configs_without_clip_or_with_another_text_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(**changes)


def test_states_are_asked_for() -> None:
    model = decoder()
    with pytest.raises(ValueError, match="clip_text is missing: this network reads what a frozen encoder says"):
        model.condition(given(image_embedding=torch.zeros(1, 16)))
    with pytest.raises(ValueError, match="of the empty sentence too"):
        model.null_condition(1)


def test_a_clip_that_only_reads_says_so() -> None:
    whole = small_clip()
    reads = ClipEncoder(whole.config.model_copy(update={"vision": None, "unit_norm": False})).eval()
    kept = {key: value for key, value in whole.state_dict().items() if not key.startswith("clip.visual.")}
    reads.load_state_dict(kept)
    text, raw = whole.encode_text(["a red cube"]), reads.encode_text(["a red cube"])
    assert (raw.pooled.norm() - 1).abs() > 0.01
    torch.testing.assert_close(torch.nn.functional.normalize(raw.pooled, dim=1), text.pooled)
    assert reads.dim == whole.dim
    with pytest.raises(UsageError, match="reads sentences only"):
        reads.encode_image(torch.zeros(1, 3, 32, 32))


@torch.no_grad()
def test_the_last_network_takes_the_last_step_alone() -> None:
    torch.manual_seed(0)
    config = UpsamplerConfig(unet=CONV, low_size=8, image_size=16, last_step=True)
    model = shaken(Upsampler(config)).eval()
    condition, sampling = model.condition(torch.rand(2, 3, 8, 8)), Sampling(steps=4, sampler="ddpm")
    states: list[torch.Tensor] = []
    x = sample(model, condition, Streams([1, 2]), sampling, callback=lambda *a: states.append(a[2]))
    model.last.requires_grad_(False).conv_out.bias += 0.5
    again: list[torch.Tensor] = []
    y = sample(model, condition, Streams([1, 2]), sampling, callback=lambda *a: again.append(a[2]))
    assert all(torch.equal(a, b) for a, b in zip(states[:3], again[:3], strict=True))
    assert not torch.equal(x, y)
    first = draw(
        model, config.diffusion, condition, None, sampling,
        Streams([1, 2]).normal(3, 16, 16), Streams([1, 2]),
    )  # fmt: skip
    assert not torch.equal(first, x)


def test_two_networks_are_trained_apart() -> None:
    with pytest.raises(ValueError, match="trained apart"):
        UpsamplerTask(Upsampler(UpsamplerConfig(unet=CONV, low_size=8, image_size=16, last_step=True)))
    with pytest.raises(ValueError, match="see a small picture alone"):
        UpsamplerConfig(unet=CONV, low_size=8, image_size=16, last_step=True, num_classes=3)
