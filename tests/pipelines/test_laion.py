"""Stages of DALLE2-pytorch in DALL-E 2's chain."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_clip, small_upsampler
from PIL import Image
from small import laion_decoder
from torch import Tensor

from t2i import Pipeline
from t2i.core.errors import UsageError
from t2i.core.types import Condition
from t2i.io.images import from_pil
from t2i.pipeline.inputs import Latent
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior, LaionPriorConfig

FEW = {"steps": {"prior": 3, "decoder": 2, "up256": 2}, "guidance": {"prior": 1.0, "decoder": 1.7}}


def pipe(**priors: Any) -> DALLE2:
    torch.manual_seed(0)
    prior = LaionPrior(
        LaionPriorConfig(**({"era": "C", "clip_dim": 32, "layers": 1, "heads": 2, "head_width": 8} | priors))
    )
    parts = {
        "clip": small_clip(embed_dim=32),
        "prior": prior.eval(),
        "decoder": laion_decoder(),
        "up256": small_upsampler(32, 64),
    }
    return DALLE2(parts, FEW, "small").to("cpu", "float32")


def test_a_sentence_is_drawn_and_the_chain_is_saved(tmp_path: Path) -> None:
    whole = pipe()
    out = whole(["a red cube", "a blue sphere"], seed=1, progress=False)
    assert [image.size for image in out.images] == [(64, 64)] * 2
    alone = whole("a blue sphere", seed=2, progress=False, max_batch=1)
    torch.testing.assert_close(alone.embeddings[0], out.embeddings[1], atol=1e-5, rtol=1e-5)
    whole.save_pretrained(tmp_path)
    again: Any = Pipeline.from_pretrained(tmp_path, device="cpu")
    redrawn = again(["a red cube", "a blue sphere"], seed=1, progress=False)
    assert [i.tobytes() for i in redrawn.images] == [i.tobytes() for i in out.images]


def test_embeddings_of_this_prior_are_drawn_as_in_the_call() -> None:
    """Although they are not quite of length 1."""
    whole, prompts = pipe(), ["a red cube", "a blue sphere"]
    out = whole(prompts, seed=1, progress=False)
    z_i = whole(prompts, seed=1, stop_after="prior", progress=False).embeddings
    assert z_i is not None
    assert (z_i.norm(dim=1) - 1).abs().max() > 0.01
    again = whole.decode(z_i, prompts, seed=1, progress=False)
    assert [i.tobytes() for i in again.images] == [i.tobytes() for i in out.images]
    latent = Latent(z_i, torch.zeros(2, 3, 32, 32))
    assert len(whole.reconstruct(latent, steps=2, stop_after="decoder", progress=False).images) == 2


def test_what_these_stages_cannot_do_is_refused() -> None:
    whole = pipe()
    with pytest.raises(UsageError, match="guidance must be 1"):
        whole("a red cube", guidance={"prior": 2.0}, progress=False)
    with pytest.raises(UsageError, match="no negative prompts"):
        whole("a red cube", negative_prompt="a sphere", progress=False)
    for bad, message in (
        ({"steps": {"decoder": "ddim50"}}, "steps of decoder: this decoder takes a number of steps, got 'ddim50'"),
        ({"steps": {"prior": 1000}}, "steps of prior: steps must lie in 1…999, got 1000"),
        ({"sampler": {"decoder": "ddpm"}}, "steps of decoder: by ddpm this decoder takes all 1000 steps, got 2"),
        ({"sampler": {"decoder": "dpm_solver_pp_2m"}}, "its own ddpm or ddim, not by dpm_solver_pp_2m"),
    ):
        with pytest.raises(UsageError, match=message):
            whole("a red cube", progress=False, **bad)
    guided = pipe(era="D")("a red cube", seed=0, guidance={"prior": 2.0}, progress=False)
    assert guided.images[0].size == (64, 64)


def test_pictures_are_taken_apart_and_edited() -> None:
    """More steps bring a picture back more exactly, and strength is how far it goes from there."""
    whole, picture = pipe(), Image.radial_gradient("L").convert("RGB").resize((32, 32))
    x_0, model = from_pil(picture), whole.parts["decoder"]
    process = model.config.diffusion.process()

    told: list[Condition] = []

    def best(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Knows data from N(0, 0.5²) exactly."""
        told.append(condition)
        signal, sigma = process.at("sqrt_alpha_bar", t, x), process.at("sqrt_one_minus_alpha_bar", t, x)
        eps = x * sigma / (0.25 * signal**2 + sigma**2)
        return torch.cat([eps, torch.zeros_like(x)], dim=1)

    model.forward = best  # type: ignore[method-assign]

    def error(steps: int) -> float:
        again = whole.reconstruct(picture, steps=steps, stop_after="decoder", progress=False)
        return float((from_pil(again.images[0]) - x_0).square().mean())

    assert error(50) < 0.5 * error(5)
    assert error(50) < 1e-3
    z_i = whole.embed(picture)
    wordless = model.condition(z_i)  # type: ignore[operator]
    for condition in told:  # on both ways
        torch.testing.assert_close(condition.vector, wordless.vector)
        torch.testing.assert_close(condition.sequence, wordless.sequence)
    latent = whole.encode(picture, steps=5, progress=False)
    two = whole.variations(latent, 2, steps=5, seed=3, stop_after="decoder", progress=False)
    assert two.images[0].tobytes() != two.images[1].tobytes()
    changed = [
        whole.edit(
            picture, "a red cube", strength=s, steps={"decoder": 10}, seed=1, stop_after="decoder", progress=False
        )
        for s in (0.0, 0.2, 1.0)
    ]
    far = [float((from_pil(out.images[0]) - x_0).abs().mean()) for out in changed]
    assert far[0] < 1 / 127 < far[1] < far[2]
    with pytest.raises(UsageError, match="steps of decoder: this decoder takes a number of steps"):
        whole.encode(picture, steps="ddim50", progress=False)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    filled = whole.inpaint(picture, mask, "a red cube", seed=1, stop_after="decoder", progress=False).images[0]
    kept = torch.ones(3, 32, 32, dtype=torch.bool)
    kept[:, 8:24, 8:24] = False
    assert torch.equal(from_pil(filled)[kept], x_0[kept])
    assert not torch.equal(from_pil(filled)[~kept], x_0[~kept])
