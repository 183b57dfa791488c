"""Karlo, diffusers' unCLIP and Kandinsky's prior give the reference's numbers, through our converters."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import given
from golden_tools import check, fill_state_dict, load_case, make_input
from torch import Tensor, nn

from t2i.core.types import Prediction, TextFeatures
from t2i.diffusion.guidance import ClassifierFree
from t2i.diffusion.prediction import Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import ddpm
from t2i.diffusion.sampling import Hooks, Sampling, draw
from t2i.keymaps.flat import Layout
from t2i.stages.decoder import convert as decoders
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.prior import convert as priors
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.upsampler import convert as upsamplers
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig

load = partial(load_case, "unclip_nets.json")


def weights(case: dict[str, Any], index: int = 0) -> dict[str, Tensor]:
    return fill_state_dict(case["weights"][index]["keys"], case["weights"][index].get("overrides"))


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    return {name: make_input(rule) for name, rule in case["inputs"].items()}


def built(layout: Layout, state: dict[str, Tensor]) -> Any:
    model: nn.Module = layout.model(layout.config)
    model.load_state_dict(layout.convert(state))
    return model.eval()


def text(i: dict[str, Any], prefix: str = "", batch: int | None = None) -> TextFeatures:
    """Features of the sentences whose inputs start with `prefix`, one row of them for a whole batch."""
    rows = (i[f"{prefix}{name}"] for name in ("text_emb", "text_enc", "mask"))
    return TextFeatures(*(x if batch is None else x.expand(batch, *x.shape[1:]) for x in rows))


class Seen:
    """A callback that keeps the state after every step, and the last x_0."""

    def __init__(self) -> None:
        self.states: list[Tensor] = []

    def __call__(self, done: int, num_steps: int, x: Tensor, prediction: Prediction) -> None:
        self.states.append(x)
        self.x_0 = prediction.x_0


# -- the prior ---------------------------------------------------------------------------------------------------------


def prior(case: dict[str, Any], **changes: Any) -> Prior:
    net, state = case["config"], weights(case)
    if "PriorTransformer" in net:
        config = priors.config_from(net["PriorTransformer"], net["UnCLIPScheduler"]["clip_sample_range"])
        return built(priors.diffusers_layout("small", config.model_copy(update=changes)), state)
    n = net["net"]
    config = PriorConfig(
        clip_dim=n["clip_dim"],
        text_width=n.get("clip_xf_width", n["clip_dim"]),
        context=n["text_ctx"],
        width=n["xf_width"],
        layers=n["xf_layers"],
        heads=n["xf_heads"],
        clamp=net["sampling"]["x0_clamp"],
        unit_norm=False,
    ).model_copy(update=changes)
    i = inputs(case)
    return built(priors.karlo_layout("small", config), state | {name: i[name] for name in priors.STATISTICS})


def drawn(model: Prior, case: dict[str, Any], null: str) -> tuple[Seen, Tensor]:
    """The chain of a case: what was seen, and the embeddings."""
    i, seen, noise = inputs(case), Seen(), inputs(case)["noise"].of(2)
    process = Process.from_schedule("cosine").respace("5")
    conditions = [model.condition(text(i, "chain_")), model.condition(text(i, null, 2))]
    denoise = ClassifierFree(
        model, *conditions, process, Parametrisation("x0", "fixed_small"), scale=4.0, clamp=model.config.clamp
    )
    x_0 = ddpm(denoise, noise.normal(model.config.clip_dim), process, noise=noise, callback=seen)
    return seen, model.restore(x_0)


@pytest.mark.parametrize(
    ("name", "null"),
    [("dev-karlo-prior", "uncond_"), ("dev-diffusers-prior", "uncond_"), ("dev-kandinsky21-prior", "negative_")],
)
@torch.no_grad()
def test_prior(name: str, null: str) -> None:
    case = load(name)
    model, i, want = prior(case), inputs(case), case["outputs"]
    check(want["forward"], model(i["x"], i["t"], model.condition(text(i))), "forward")
    seen, z_i = drawn(model, case, null)
    check(want["state_after_2_steps"], seen.states[1], "state_after_2_steps")
    check(want["x0_last_step"], seen.x_0, "x0_last_step")
    check(want["image_embedding"], z_i, "image_embedding")


@pytest.mark.parametrize("name", ["dev-karlo-prior", "dev-diffusers-prior"])
@torch.no_grad()
def test_another_clamp_is_another_prior(name: str) -> None:
    case = load(name)
    seen, _ = drawn(prior(case, clamp=7.0), case, "uncond_")
    with pytest.raises(AssertionError, match="tolerance"):
        check(case["outputs"]["x0_last_step"], seen.x_0)


# -- the decoder -------------------------------------------------------------------------------------------------------


def karlo_decoder(case: dict[str, Any]) -> Decoder:
    n = case["config"]["net"]
    unet = {
        "channels": n["num_channels"],
        "multipliers": [int(m) for m in n["channel_mult"].split(",")],
        "num_blocks": n["num_res_blocks"],
        "attention": [2],
        "head_channels": n["num_head_channels"],
        "context_dim": n["xf_width"],
    }
    config = DecoderConfig.model_validate(
        {"unet": unet, "clip_dim": n["clip_dim"], "clip_text_width": n["clip_dim"], "image_size": n["image_size"]}
    )
    return built(decoders.karlo_layout("small", config), weights(case))


def decoded(model: Decoder, i: dict[str, Any], prefix: str, z_i: Tensor, steps: int, x_T: Tensor, noise: Any) -> Seen:
    seen, num = Seen(), len(z_i)
    condition = model.condition(given(image_embedding=z_i, clip_text=text(i, prefix)))
    draw(
        model,
        model.config.diffusion,
        model.project(condition),
        model.project(model.condition(given(clip_text=text(i, "uncond_", num)))),
        Sampling(steps=steps, sampler="ddpm", guidance=3.0),
        x_T,
        noise,
        callback=seen,
    )
    return seen


@torch.no_grad()
def test_karlo_decoder() -> None:
    case = load("dev-karlo-decoder")
    model, i, want = karlo_decoder(case), inputs(case), case["outputs"]
    condition = model.condition(given(image_embedding=i["image_emb"], clip_text=text(i)))
    check(want["forward"], model(i["x"], i["t"], condition), "forward")
    check(want["forward"], model(i["x"], i["t"], model.project(condition)), "with keys and values computed before")
    noise = i["noise"].of(2)
    seen = decoded(model, i, "chain_", i["chain_image_emb"], 4, noise.normal(3, 16, 16), noise)
    check(want["state_after_1_steps"], seen.states[0], "state_after_1_steps")
    check(want["state_after_2_steps"], seen.states[1], "state_after_2_steps")
    check(want["image"], seen.states[3], "image")


# -- super-resolution --------------------------------------------------------------------------------------------------


def enlarged(model: Upsampler, low_res: Tensor, x_T: Tensor, noise: Any) -> Seen:
    seen, hooks, sampling = Seen(), Hooks(last=model.last), Sampling(steps=7, sampler="ddpm")
    condition = model.condition(low_res)
    draw(model, model.config.diffusion, condition, None, sampling, x_T, noise, hooks=hooks, callback=seen)
    return seen


def karlo_upsampler(case: dict[str, Any]) -> Upsampler:
    n = case["config"]["net"]
    karlo = upsamplers.PRESETS["karlo-256"]
    changes = {"channels": n["channels"], "multipliers": n["channels_multiple"], "num_blocks": n["depth"]}
    config = UpsamplerConfig.model_validate(
        karlo.model_dump() | {"unet": karlo.unet.model_dump() | changes, "low_size": 8, "image_size": 32}
    )
    return built(upsamplers.karlo_layout("small", config), weights(case))


@torch.no_grad()
def test_karlo_super_resolution() -> None:
    case = load("dev-karlo-sr")
    model, i, want = karlo_upsampler(case), inputs(case), case["outputs"]
    condition = model.condition(i["image_small"])
    check(want["low_res_upsampled"], condition.image, "low_res_upsampled")
    check(want["forward_first_steps"], model(i["x"], i["t"], condition), "forward_first_steps")
    assert model.last is not None
    check(want["forward_last_step"], model.last(i["x"], i["t"], condition), "forward_last_step")
    noise = i["noise"].of(2)
    seen = enlarged(model, i["image_small"], noise.normal(3, 32, 32), noise)
    check(want["state_after_3_steps"], seen.states[2], "state_after_3_steps")
    check(want["state_after_6_steps"], seen.states[5], "state_after_6_steps")
    check(want["image"], seen.states[6], "image")


# -- the whole of diffusers' pipeline ----------------------------------------------------------------------------------


@torch.no_grad()
def test_diffusers_unclip() -> None:
    case = load("dev-diffusers-unclip-pipeline")
    c, i, want = case["config"], inputs(case), case["outputs"]
    config = priors.config_from(c["prior"], c["prior_scheduler"]["clip_sample_range"])
    model = built(priors.diffusers_layout("small", config), weights(case))
    seen, noise = Seen(), i["prior_noise"].of(2)
    draw(
        model,
        model.config.diffusion,
        model.condition(text(i)),
        model.condition(text(i, "uncond_", 2)),
        Sampling(steps=5, sampler="ddpm", guidance=4.0, clamp=5.0),
        i["prior_latents"],
        noise,
        callback=seen,
    )
    check(want["image_embedding"], model.restore(seen.states[-1]), "image_embedding")

    layout = decoders.diffusers_layout("small", decoders.config_from(c["decoder"], c["text_proj"]))
    decoder = built(layout, weights(case, 1) | weights(case, 2))
    seen = decoded(
        decoder, i, "", i["image_embedding_given"], 4, i["decoder_latents"], i["decoder_noise"].of(2)
    )  # fmt: skip
    check(want["decoder_state_after_1_steps"], seen.states[0], "decoder_state_after_1_steps")
    check(want["decoder_final"], seen.states[-1], "decoder_final")

    layout = upsamplers.diffusers_layout("small", upsamplers.config_from(c["super_res_first"], low_size=16))
    upsampler = built(layout, weights(case, 3) | weights(case, 4))
    noise = i["super_res_noise"].of(2)
    seen = enlarged(upsampler, i["image_small_given"], i["super_res_latents"], noise)
    check(want["super_res_state_after_3_steps"], seen.states[2], "super_res_state_after_3_steps")
    check(want["super_res_final"], seen.states[-1], "super_res_final")
    check(want["images"], (seen.states[-1] / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), "images")
