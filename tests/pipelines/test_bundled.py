"""The bundled model draws what it is asked for, as a reader that knows nothing of it sees."""

import pytest
import torch
import torch.nn.functional as F

from t2i.data.shapes.scene import COLOURS, SHAPES
from t2i.evals.captions import captions
from t2i.evals.compose import load_reader, prompts, score
from t2i.hub.index import models
from t2i.io.images import from_pil
from t2i.pipeline.base import Pipeline


@pytest.mark.parametrize(
    ("model", "task", "every", "least"),
    [
        ("shapes", "colours", 2, 9),
        ("shapes", "two objects", 1, 12),
        ("shapes", "position", 2, 7),
        ("shapes-dalle3", "colour attribution", 2, 6),
    ],
)
def test_bundled_models_draw_what_they_are_asked_for(model: str, task: str, every: int, least: int) -> None:
    """Ten prompts a task or twenty, where chance would be right in one in sixty at most."""
    asked = [prompt for prompt in prompts() if prompt.task == task][::every]
    pipe = Pipeline.from_pretrained(model, device="cpu")
    drawn = pipe([p.text for p in asked], seed=0, stop_after="decoder", progress=False)  # type: ignore[operator]
    pictures = torch.stack([from_pil(image) for image in drawn.images])  # (N, 3, 64, 64), or 256 px
    right = [score(prompt, found)[0] for prompt, found in zip(asked, load_reader().read(pictures), strict=True)]
    assert sum(right) >= least


@pytest.mark.slow
def test_a_large_picture_is_the_same_alone_and_in_a_batch() -> None:
    """Through all five stages, where rounding between them could make a small difference large."""
    pipe = Pipeline.from_pretrained("shapes", device="cpu")
    together = pipe("a red cube", num_images_per_prompt=2, seed=20, progress=False)  # type: ignore[operator]
    alone = pipe("a red cube", seed=21, progress=False)  # type: ignore[operator]
    assert (from_pil(together.images[1]) - from_pil(alone.images[0])).abs().max() * 127.5 < 1.5, "one of 255"


@pytest.mark.parametrize(
    ("name", "steps"), [("shapes-ar", None), ("shapes-adm", 25), ("shapes-glide", 15), ("shapes-dalle3", 12)]
)
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
    assert {"shapes", "shapes-ar", "shapes-bsr", "shapes-glide", "shapes-dalle3"} <= set(bundled)
    weights = {Pipeline.from_pretrained(name, device="cpu").weights for name in bundled}
    assert len(weights) == len(bundled)


@pytest.mark.parametrize("name", ["shapes-ddpm", "shapes-iddpm"])
def test_unconditional_models_draw_one_thing(name: str) -> None:
    pipe = Pipeline.from_pretrained(name, device="cpu")
    drawn = pipe(num_images=4, seed=0, steps=25, progress=False)  # type: ignore[operator]
    pictures = F.interpolate(torch.stack([from_pil(image) for image in drawn.images]), (64, 64), mode="bilinear")
    assert sum(len(found) == 1 for found in load_reader().read(pictures)) >= 2


@pytest.mark.parametrize(("kind", "row"), [("short", "main subject named"), ("descriptive", "every object named")])
def test_the_bundled_captioners_say_what_is_there(kind: str, row: str) -> None:
    """Two of a hundred are wrong, or five."""
    found = captions(f"weights/shapes-dalle3/captioner-{kind}", num=24, device="cpu")
    assert found.facts["shares"][row]["correct"] >= 20


def test_the_bundled_rewriter_keeps_what_was_asked_for() -> None:
    asked = ["a red cube", "a blue cone to the left of a red sphere", "two green cones", "a small black torus"]
    drawn = Pipeline.from_pretrained("shapes-dalle3", device="cpu")(  # type: ignore[operator]
        asked, upsample_prompt="lm", steps={"decoder": 1}, stop_after="decoder", seed=0, progress=False
    )
    for prompt, written in zip(asked, drawn.prompts, strict=True):
        assert 10 <= len(written.split()) <= 80
        assert [word for word in prompt.split() if word in (*COLOURS, *SHAPES) and word not in written] == []
