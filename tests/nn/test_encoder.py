"""The encoder alone is the first half of the U-Net, key by key and number by number."""

import pytest
import torch
from torch import Tensor

from t2i.core.types import Condition
from t2i.nn.encoder import Encoder, EncoderConfig
from t2i.nn.unet import UNet, UNetConfig

SHAPE = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention": (2,), "head_channels": 32}


@torch.no_grad()
@pytest.mark.parametrize("resample", ["block", "conv"])
def test_it_is_the_way_down_and_the_middle_of_the_unet(resample: str) -> None:
    torch.manual_seed(0)
    shape = {**SHAPE, "resample": resample, "context_dim": 8, "image_channels": 3}
    unet = UNet(UNetConfig.model_validate(shape)).eval()
    for p in unet.parameters():
        p.add_(0.05 * torch.randn_like(p))
    encoder = Encoder(EncoderConfig.model_validate(shape)).eval()
    beyond = ("up.", "norm_out.", "conv_out.")
    half = {key: value for key, value in unet.state_dict().items() if not key.startswith(beyond)}
    assert list(half) == list(encoder.state_dict())
    encoder.load_state_dict(half)
    seen: list[Tensor] = []
    unet.mid.block2.register_forward_hook(lambda _, __, out: seen.append(out))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10, 500])
    condition = Condition(torch.randn(2, 128), torch.randn(2, 3, 8), image=torch.randn(2, 3, 16, 16))
    unet(x, t, condition)
    assert torch.equal(encoder(x, t, encoder.project(condition)), seen[0])
    assert len(list(encoder.attentions())) == 2  # one going down, one in the middle


def test_what_only_the_way_up_has_is_not_its_own() -> None:
    with pytest.raises(ValueError, match="out_channels"):
        EncoderConfig.model_validate({**SHAPE, "out_channels": 6})
    with pytest.raises(ValueError, match="expected a sequence of width 8, got none"):
        Encoder(EncoderConfig.model_validate({**SHAPE, "context_dim": 8}))(torch.zeros(1, 3, 16, 16), torch.zeros(1))


@torch.no_grad()
def test_a_learned_table_stands_in_for_sinusoids() -> None:
    config = UNetConfig(channels=32, multipliers=(1,), num_blocks=1, attention=(), mid_attention=False, time_table=10)
    unet = UNet(config).eval()
    for p in unet.parameters():
        p.add_(0.05 * torch.randn_like(p))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 9])
    out = unet(x, t)
    sinusoids = UNet(config.model_copy(update={"time_table": None}))
    sinusoids.load_state_dict({k: v for k, v in unet.state_dict().items() if not k.startswith("time_table")})
    assert unet.time_table.weight.shape == (10, 32)
    assert (sinusoids(x, t) - out).abs().max() > 1e-4
    unet.time_table.weight[3] += 1.0
    changed = unet(x, t)
    assert (changed[0] - out[0]).abs().max() > 1e-4
    torch.testing.assert_close(changed[1], out[1])
