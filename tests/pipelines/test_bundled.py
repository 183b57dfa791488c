"""The bundled model draws what it is asked for, as a reader that knows nothing of it sees."""

import pytest
import torch
import torch.nn.functional as F

from t2i.evals.compose import load_reader, prompts, score
from t2i.hub.index import models
from t2i.io.images import from_pil
from t2i.pipeline.base import Pipeline


@pytest.mark.parametrize(("task", "every", "least"), [("colours", 2, 9), ("two objects", 1, 12), ("position", 2, 7)])
def test_the_bundled_model_draws_what_it_is_asked_for(task: str, every: int, least: int) -> None:
    """Ten prompts a task or twenty, where chance would be right in one in sixty at most."""
    asked = [prompt for prompt in prompts() if prompt.task == task][::every]
    pipe = Pipeline.from_pretrained("shapes", device="cpu")
    drawn = pipe([p.text for p in asked], seed=0, stop_after="decoder", progress=False)  # type: ignore[operator]
    pictures = torch.stack([from_pil(image) for image in drawn.images])  # (N, 3, 64, 64)
    right = [score(prompt, found)[0] for prompt, found in zip(asked, load_reader().read(pictures), strict=True)]
    assert sum(right) >= least


@pytest.mark.slow
def test_a_large_picture_is_the_same_alone_and_in_a_batch() -> None:
    """Through all five stages, where rounding between them could make a small difference large."""
    pipe = Pipeline.from_pretrained("shapes", device="cpu")
    together = pipe("a red cube", num_images_per_prompt=2, seed=20, progress=False)  # type: ignore[operator]
    alone = pipe("a red cube", seed=21, progress=False)  # type: ignore[operator]
    assert (from_pil(together.images[1]) - from_pil(alone.images[0])).abs().max() * 127.5 < 1.5, "one of 255"


@pytest.mark.parametrize(("name", "steps"), [("shapes-ar", None), ("shapes-adm", 25), ("shapes-glide", 15)])
def test_other_priors_and_families_draw_what_they_are_asked_for(name: str, steps: int | None) -> None:
    """Six plain things, where chance would be right in one in sixty."""
    things = ["red cube", "blue sphere", "green cone", "yellow torus", "purple pyramid", "orange cylinder"]
    asked = things if name == "shapes-adm" else [f"{'an' if t[0] == 'o' else 'a'} {t}" for t in things]
    pipe = Pipeline.from_pretrained(name, device="cpu")
    chosen = {} if steps is None else {"steps": {"decoder": steps}, "sampler": {"decoder": "ddim"}}
    drawn = pipe(asked, seed=0, stop_after="decoder", progress=False, **chosen)  # type: ignore[operator]
    pictures = F.interpolate(torch.stack([from_pil(image) for image in drawn.images]), (64, 64), mode="bilinear")
    found = [seen[0] if seen else None for seen in load_reader().read(pictures)]
    right = [seen is not None and f"{seen.colour} {seen.shape}" == t for seen, t in zip(found, things, strict=True)]
    assert sum(right) >= 4


def test_every_bundled_model_opens() -> None:
    """Those that share stages with others, too."""
    bundled = [name for name, entry in models().items() if not entry.published]
    assert {"shapes", "shapes-ar", "shapes-bsr", "shapes-glide"} <= set(bundled)
    weights = {Pipeline.from_pretrained(name, device="cpu").weights for name in bundled}
    assert len(weights) == len(bundled)


@pytest.mark.parametrize("name", ["shapes-ddpm", "shapes-iddpm"])
def test_unconditional_models_draw_one_thing(name: str) -> None:
    pipe = Pipeline.from_pretrained(name, device="cpu")
    drawn = pipe(num_images=4, seed=0, steps=25, progress=False)  # type: ignore[operator]
    pictures = F.interpolate(torch.stack([from_pil(image) for image in drawn.images]), (64, 64), mode="bilinear")
    assert sum(len(found) == 1 for found in load_reader().read(pictures)) >= 2
