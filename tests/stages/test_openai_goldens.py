"""Networks of IDDPM, ADM and GLIDE give the reference's numbers, through our converters."""

from typing import Any

import pytest
import torch
from golden_tools import Stream, check, fill_state_dict, load_case, make_input
from torch import Tensor

from t2i.diffusion.guidance import ClassifierFree
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import ddim, ddpm
from t2i.nn.foreign import RowOrder
from t2i.nn.transformer import TextConfig
from t2i.nn.unet import UNetConfig
from t2i.stages.decoder.convert import convert as convert_decoder
from t2i.stages.decoder.model import PRESETS as DECODERS
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.upsampler.convert import convert as convert_upsampler
from t2i.stages.upsampler.model import PRESETS as UPSAMPLERS
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig

FILE = "openai_nets.json"
TEXT = TextConfig(width=64, layers=2, heads=4, vocab_size=50257, context=16)
ADM = UNetConfig(channels=32, multipliers=(1, 2, 2), num_blocks=1, attention=(2, 4), head_channels=32)
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
    return {name: make_input(rule) for name, rule in case["inputs"].items()}


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
        case["outputs"]["output"], model(layout(model, i["x"], channels_last), i["t"], model.condition(labels=i["y"]))
    )


@torch.no_grad()
def test_adm_read_in_the_wrong_order_differs() -> None:
    case = load_case(FILE, "T1a")
    model, i = decoder(DecoderConfig(unet=ADM, num_classes=1000), weights(case), "legacy"), inputs(case)
    with pytest.raises(AssertionError, match="tolerance"):
        check(case["outputs"]["output"], model(i["x"], i["t"], model.condition(labels=i["y"])))


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
    condition = model.condition(i["tokens"], i["mask"])
    check(case["outputs"]["xf_proj"], condition.vector, "xf_proj")
    check(case["outputs"]["xf_out"], condition.sequence.transpose(1, 2), "xf_out")
    x = layout(model, i["x"], channels_last)
    check(case["outputs"]["output"], model(x, i["t"], condition))
    check(case["outputs"]["output"], model(x, i["t"], model.project(condition)), "with keys and values computed before")


@torch.no_grad()
def test_glide_upsampler() -> None:
    case = load_case(FILE, "T7")
    model, i = glide_upsampler(weights(case), low_size=8), inputs(case)
    check(case["outputs"]["output"], model(i["x"], i["t"], model.condition(i["low_res"], i["tokens"], i["mask"])))


def test_convert_is_strict_both_ways() -> None:
    case = load_case(FILE, "T4")
    config = DecoderConfig(unet=IDDPM.model_copy(update={"scale_shift": False}))
    state = weights(case)
    with pytest.raises(ValueError, match=r"missing: out\.2\.bias$"):
        convert_decoder({k: v for k, v in state.items() if k != "out.2.bias"}, config)
    with pytest.raises(ValueError, match=r"unexpected: label_emb\.weight$"):
        convert_decoder(state | {"label_emb.weight": torch.zeros(10, 128)}, config)
    with pytest.raises(ValueError, match=r"of another shape: unet\.conv_out\.bias \(7,\) != \(6,\)$"):
        convert_decoder(state | {"out.2.bias": torch.zeros(7)}, config)
    with pytest.raises(ValueError, match=r"of another shape: .*\.time\.weight"):
        convert_decoder(state, DecoderConfig(unet=IDDPM))


def test_presets_have_the_published_number_of_parameters() -> None:
    published = {"glide": 385_030_726, "adm-64": 295_904_454, "iddpm-64": 121_063_942}
    published |= {"glide-256": 398_361_286, "adm-256": 311_795_910}
    for name, count in published.items():
        with torch.device("meta"):
            model = Decoder(DECODERS[name]) if name in DECODERS else Upsampler(UPSAMPLERS[name])
        assert sum(p.numel() for p in model.parameters()) == count, name


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
    conditions = [base.project(base.condition(i["tokens"][r : r + 1], i["mask"][r : r + 1])) for r in (0, 1)]
    guided = ClassifierFree(base, *conditions, process, parametrisation, scale=3.0)
    small = ddpm(guided, i["base_noise"][:1], process, noise=FirstRow(i["step_noise"]))
    check(case["outputs"]["base"], small, "base")
    large = glide_upsampler(weights(case, 1), low_size=16)
    process = Process.from_schedule("linear").respace("fast27")
    low_res = i["low_res_levels"].float() / 127.5 - 1
    condition = large.project(large.condition(low_res, i["tokens"][:1], i["mask"][:1]))
    check(
        case["outputs"]["upsampled"],
        ddim(ModelDenoiser(large, condition, process, parametrisation), i["upsampler_noise"], process),
        "upsampled",
    )
