"""Which weights become half precision, and that networks of them still say the same."""

import copy
from contextlib import nullcontext

import pytest
import torch
from conftest import given, shaken, small_classifier
from torch import Tensor, nn

from t2i.nn.half import half_trunk
from t2i.nn.transformer import TextConfig
from t2i.nn.unet import UNetConfig
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig

SHAPE = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention": (2,), "head_channels": 32}
TEXT = TextConfig(width=32, layers=2, heads=2, vocab_size=50, context=8)
HALF = (
    # the trunk: first, inner and resampling convolutions, those that widen the residual
    "unet.conv_in.",
    ".conv1.", ".conv2.", ".skip.", ".resample.conv.", "unet.fine.unfold.", "unet.fine.conv_in.", "unet.fine.conv_out.",
    # what were 1 × 1 convolutions in the published networks
    ".attention.qkv.", ".attention.proj.", ".attention.context.",
    # the text transformer
    ".mlp.", "text.encoder.tokens.", "text.vector.",
)  # fmt: skip
FLOAT = (
    "unet.time.", ".time.weight", ".time.bias", "classes.", "clip_image.",
    ".norm1.", ".norm2.", ".norm.", "norm_out.", "unet.conv_out.", "text.encoder.norm.", "text.encoder.positions",
    "text.encoder.padding",
    ".positions.",
)  # fmt: skip


def decoder(**changes: object) -> Decoder:
    """Text, and what `changes` say."""
    torch.manual_seed(0)
    unet = UNetConfig(**SHAPE, context_dim=32)  # type: ignore[arg-type]
    return shaken(Decoder(DecoderConfig(**({"unet": unet, "text": TEXT, "image_size": 16} | changes)))).eval()  # type: ignore[arg-type, return-value]


def upsampler(resample: str = "block", scale_shift: bool = True) -> Upsampler:
    torch.manual_seed(1)
    unet = UNetConfig(**SHAPE, image_channels=3, resample=resample, scale_shift=scale_shift)  # type: ignore[arg-type]
    return shaken(Upsampler(UpsamplerConfig(unet=unet, low_size=8, image_size=16, num_classes=3))).eval()  # type: ignore[return-value]


def everything() -> Decoder:
    """A decoder with all that a decoder can have."""
    unet = UNetConfig(**SHAPE, context_dim=32, patch_size=2, fine_channels=16, norm_groups=8, attention_positions=True)  # type: ignore[arg-type]
    return decoder(unet=unet, clip_dim=16)


@pytest.mark.parametrize("make", [decoder, everything, upsampler, lambda: upsampler("conv", False)])
def test_every_weight_is_of_one_list_or_the_other(make: object) -> None:
    model = half_trunk(make())  # type: ignore[operator]
    for name, value in model.state_dict().items():
        halves, floats = any(part in name for part in HALF), any(part in name for part in FLOAT)
        assert halves != floats, name
        assert value.dtype == (torch.float16 if halves else torch.float32), name


def test_a_classifier_keeps_its_head() -> None:
    model = half_trunk(small_classifier())
    trunk = {name for name, value in model.state_dict().items() if value.dtype == torch.float16}
    rest = model.state_dict().keys() - trunk
    assert {name.split(".")[0] for name in trunk} == {"encoder"}
    assert all(".norm" in name or ".time." in name for name in rest if name.startswith("encoder."))
    assert any(not name.startswith("encoder.") for name in rest)


def test_another_half_and_back() -> None:
    model = decoder()
    before = copy.deepcopy(model.state_dict())
    half_trunk(model, torch.bfloat16)
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    half_trunk(model, torch.float32)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert not torch.equal(model.unet.conv_in.weight, before["unet.conv_in.weight"])
    assert torch.equal(model.unet.conv_out.weight, before["unet.conv_out.weight"])


def said(model: nn.Module) -> Tensor:
    """What a network says of two noisy pictures."""
    draw = torch.Generator().manual_seed(2)
    x, t = torch.randn(2, 3, 16, 16, generator=draw), torch.tensor([10, 900])
    if isinstance(model, Upsampler):
        condition = model.condition(torch.randn(2, 3, 8, 8, generator=draw), given(labels=torch.tensor([0, 2])))
    else:
        assert isinstance(model, Decoder)
        tokens, mask = torch.arange(16).reshape(2, 8), torch.arange(8) < torch.tensor([[3], [8]])
        embedding = torch.randn(2, 16, generator=draw) if model.config.ports.clip_image is not None else None
        condition = model.condition(given(tokens, mask, embedding))
    out: Tensor = model(x, t, model.project(condition))
    return out


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "autocast"),
    [
        (make, autocast)
        for make in (decoder, everything, upsampler, lambda: upsampler("conv", False))
        for autocast in (True, False)
    ],
)
def test_half_a_network_says_nearly_the_same(make: object, autocast: bool) -> None:
    model = make()  # type: ignore[operator]
    expected = said(model)
    half_trunk(model)
    with torch.autocast("cpu", torch.float16) if autocast else nullcontext():
        got = said(model)
    assert got.dtype == torch.float32
    error = (got - expected).norm() / expected.norm()
    assert 0 < error < 1e-2
