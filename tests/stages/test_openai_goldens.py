"""Networks of IDDPM, ADM and GLIDE give the reference's numbers, through our converters."""

from typing import Any

import pytest
import torch
from conftest import given
from golden_tools import Stream, check, fill_state_dict, load_case, make_input
from torch import Tensor

from t2i.diffusion.guidance import ClassifierFree
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import ddim, ddpm
from t2i.keymaps.flat import RowOrder, rekey
from t2i.keymaps.levels import PESSER, level_unet
from t2i.nn.transformer import TextConfig
from t2i.nn.unet import UNetConfig
from t2i.stages.decoder.convert import convert as convert_decoder
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.upsampler.convert import convert as convert_upsampler
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig

FILE = "openai_nets.json"
TEXT = TextConfig(width=64, layers=2, heads=4, vocab_size=50257, context=16)
ADM = UNetConfig(channels=32, multipliers=(1, 2, 2), num_blocks=1, attention=(2, 4), head_channels=32)
DDPM = UNetConfig(
    out_channels=3,
    channels=32,
    multipliers=(1, 2),
    num_blocks=1,
    attention=(2,),
    num_heads=1,
    scale_shift=False,
    resample="conv",
    down_padding="right_bottom",
    norm_eps=1e-6,
    time_order="sin_cos",
    time_denominator_shift=1,
)
IDDPM = UNetConfig(channels=32, multipliers=(1, 2), num_blocks=1, attention=(2,), num_heads=4, resample="conv")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(case: dict[str, Any], index: int = 0) -> dict[str, Tensor]:
    return fill_state_dict(case["weights"][index]["keys"])


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    return {name: make_input(rule) for name, rule in case["inputs"].items() if rule["rule"] != "constant"}


def decoder(config: DecoderConfig, state: dict[str, Tensor], order: RowOrder = "legacy") -> Decoder:
    model = Decoder(config).eval()
    model.load_state_dict(convert_decoder(state, config, order))
    return model


def upsampler(config: UpsamplerConfig, state: dict[str, Tensor]) -> Upsampler:
    model = Upsampler(config).eval()
    model.load_state_dict(convert_upsampler(state, config))
    return model


def glide(state: dict[str, Tensor]) -> Decoder:
    unet = ADM.model_copy(update={"context_dim": TEXT.width})
    return decoder(DecoderConfig(unet=unet, text=TEXT), state)


def glide_upsampler(state: dict[str, Tensor], low_size: int) -> Upsampler:
    unet = ADM.model_copy(update={"context_dim": TEXT.width, "image_channels": 3})
    return upsampler(UpsamplerConfig(unet=unet, low_size=low_size, image_size=32, text=TEXT), state)


def layout(model: torch.nn.Module, x: Tensor, channels_last: bool) -> Tensor:
    """Put network and input in one memory layout; the numbers must not depend on it."""
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "order"), [("T1a", "new"), ("T1b", "legacy")])
@torch.no_grad()
def test_adm_classes(name: str, order: RowOrder, channels_last: bool) -> None:
    case = load_case(FILE, name)
    model, i = decoder(DecoderConfig(unet=ADM, num_classes=1000), weights(case), order), inputs(case)
    check(
        case["outputs"]["output"],
        model(layout(model, i["x"], channels_last), i["t"], model.condition(given(labels=i["y"]))),
    )


@torch.no_grad()
def test_adm_read_in_the_wrong_order_differs() -> None:
    case = load_case(FILE, "T1a")
    model, i = decoder(DecoderConfig(unet=ADM, num_classes=1000), weights(case), "legacy"), inputs(case)
    with pytest.raises(AssertionError, match="tolerance"):
        check(case["outputs"]["output"], model(i["x"], i["t"], model.condition(given(labels=i["y"]))))


@torch.no_grad()
def test_adm_upsampler() -> None:
    case = load_case(FILE, "T2")
    config = UpsamplerConfig(unet=ADM.model_copy(update={"image_channels": 3}), low_size=8, image_size=32)
    model, i = upsampler(config, weights(case)), inputs(case)
    check(case["outputs"]["output"], model(i["x"], i["t"], model.condition(i["low_res"])))


@pytest.mark.parametrize(("name", "scale_shift"), [("T4", False), ("T5", True)])
@torch.no_grad()
def test_iddpm(name: str, scale_shift: bool) -> None:
    case = load_case(FILE, name)
    config = DecoderConfig(unet=IDDPM.model_copy(update={"scale_shift": scale_shift}))
    model, i = decoder(config, weights(case)), inputs(case)
    check(case["outputs"]["output"], model(i["x"], i["t"]))


@pytest.mark.parametrize("channels_last", [False, True])
@torch.no_grad()
def test_glide(channels_last: bool) -> None:
    case = load_case(FILE, "T6")
    model, i = glide(weights(case)), inputs(case)
    condition = model.condition(given(i["tokens"], i["mask"]))
    check(case["outputs"]["xf_proj"], condition.vector, "xf_proj")
    check(case["outputs"]["xf_out"], condition.sequence.transpose(1, 2), "xf_out")
    x = layout(model, i["x"], channels_last)
    check(case["outputs"]["output"], model(x, i["t"], condition))
    check(case["outputs"]["output"], model(x, i["t"], model.project(condition)), "with keys and values computed before")


@torch.no_grad()
def test_glide_upsampler() -> None:
    case = load_case(FILE, "T7")
    model, i = glide_upsampler(weights(case), low_size=8), inputs(case)
    check(
        case["outputs"]["output"], model(i["x"], i["t"], model.condition(i["low_res"], given(i["tokens"], i["mask"])))
    )


@torch.no_grad()
def test_glide_inpaint() -> None:
    case = load_case(FILE, "T8")
    unet = ADM.model_copy(update={"context_dim": TEXT.width, "image_channels": 4})
    model, i = decoder(DecoderConfig(unet=unet, text=TEXT, inpaint=True, image_size=32), weights(case)), inputs(case)
    condition = model.condition(given(i["tokens"], i["mask"], known=(i["inpaint_image"], known_rows(10))))
    check(case["outputs"]["output"], model(i["x"], i["t"], condition))
    nothing = model.condition(given(i["tokens"], i["mask"]))
    check(case["outputs"]["output_without_image_and_mask"], model(i["x"], i["t"], nothing))


@torch.no_grad()
def test_glide_upsampler_inpaint() -> None:
    case = load_case(FILE, "T9")
    unet = ADM.model_copy(update={"context_dim": TEXT.width, "image_channels": 7})
    config = UpsamplerConfig(unet=unet, low_size=8, image_size=32, text=TEXT, inpaint=True)
    model, i = upsampler(config, weights(case)), inputs(case)
    known = i["inpaint_image"], known_rows(10)
    check(
        case["outputs"]["output"],
        model(i["x"], i["t"], model.condition(i["low_res"], given(i["tokens"], i["mask"], known=known))),
    )


def known_rows(num: int, side: int = 32, batch: int = 2) -> Tensor:
    """A mask (B, 1, H, W) that is 1 in its first rows."""
    return (torch.arange(side) < num).float()[:, None].expand(batch, 1, side, side)


@torch.no_grad()
def test_ddpm() -> None:
    case = load_case(FILE, "T11")
    config = DecoderConfig(unet=DDPM, image_size=32, variance="fixed_large", schedule="linear")
    model, i = Decoder(config).eval(), inputs(case)
    model.load_state_dict(rekey(weights(case), level_unet(DDPM, PESSER), lambda: Decoder(config)))
    check(case["outputs"]["output"], model(i["x"], i["t"]))


@torch.no_grad()
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_group_norm_eps(eps: float) -> None:
    """The goldens do not show eps; features about as small as its root do: norm(x) = x / sqrt(var + eps)."""
    config = DecoderConfig(unet=DDPM.model_copy(update={"norm_eps": eps}), variance="fixed_small")
    block = Decoder(config).unet.down[0].blocks[0]
    x = 1e-3 * torch.randn(1, 32, 8, 8)
    centred = x - x.mean((2, 3), keepdim=True)  # 32 groups of one channel
    expected = centred / (centred.square().mean((2, 3), keepdim=True) + eps).sqrt()
    torch.testing.assert_close(block.norm1(x), expected)


class FirstRow:
    """Step noise of the first picture, out of a stream that was drawn for a doubled batch."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream.of(2)

    def normal(self, *shape: int) -> Tensor:
        return self.stream.normal(*shape)[:1]


@torch.no_grad()
def test_glide_from_text_to_large_picture() -> None:
    case = load_case(FILE, "T12")
    i, parametrisation = inputs(case), Parametrisation("eps", "learned_range")
    base = glide(weights(case, 0))
    process = Process.from_schedule("cosine").respace("10")
    conditions = [base.project(base.condition(given(i["tokens"][r : r + 1], i["mask"][r : r + 1]))) for r in (0, 1)]
    guided = ClassifierFree(base, *conditions, process, parametrisation, scale=3.0)
    small = ddpm(guided, i["base_noise"][:1], process, noise=FirstRow(i["step_noise"]))
    check(case["outputs"]["base"], small, "base")
    large = glide_upsampler(weights(case, 1), low_size=16)
    process = Process.from_schedule("linear").respace("fast27")
    low_res = i["low_res_levels"].float() / 127.5 - 1
    condition = large.project(large.condition(low_res, given(i["tokens"][:1], i["mask"][:1])))
    check(
        case["outputs"]["upsampled"],
        ddim(ModelDenoiser(large, condition, process, parametrisation), i["upsampler_noise"], process),
        "upsampled",
    )
