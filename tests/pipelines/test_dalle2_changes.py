"""Pictures that users bring to DALL-E 2: parts drawn anew by replacement, edits that start from a noised picture."""

import numpy as np
import pytest
from PIL import Image

from t2i.core.errors import UsageError
from t2i.pipelines.dalle2 import DALLE2


def pixels(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


def picture(side: int = 128) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8))


def mask(side: int = 128) -> Image.Image:
    """White in the lower right quarter."""
    white = np.zeros((side, side), np.uint8)
    white[side // 2 :, side // 2 :] = 255
    return Image.fromarray(white)


def test_what_is_black_in_the_mask_stays_to_the_bit(pipe: DALLE2) -> None:
    out = pipe.inpaint(picture(), mask(), "a red cube", num_images_per_prompt=2, seed=1, progress=False)
    fresh = np.asarray(mask()) > 0
    for image in out:
        assert (pixels(image)[~fresh] == pixels(picture())[~fresh]).all()
        assert (pixels(image)[fresh] != pixels(picture())[fresh]).mean() > 0.9
    assert out[0].tobytes() != out[1].tobytes()
    assert out.recipe["task"] == "inpaint"
    small = pipe.inpaint(picture(), mask(), "a red cube", seed=1, stop_after="decoder", progress=False)
    assert small[0].size == (32, 32)


def test_an_edit_keeps_more_the_weaker_it_is(pipe: DALLE2) -> None:
    def drawn(strength: float) -> np.ndarray:
        return pixels(pipe.edit(picture(32), "a cube", strength, seed=1, stop_after="decoder", progress=False)[0])

    assert (drawn(0.0) == pixels(picture(32))).all()
    far = [np.abs(drawn(strength) - pixels(picture(32))).mean() for strength in (0.2, 1.0)]
    assert 0 < far[0] < far[1]
    steps: list[int] = []
    pipe.edit(picture(32), "a cube", 0.4, seed=1, stop_after="decoder", progress=False,
              callback=lambda p: steps.append(p.num_steps) if p.stage == "decoder" else None)  # fmt: skip
    assert steps == [2, 2], "two of five"


def test_a_call_that_draws_no_pixels_changes_none(pipe: DALLE2) -> None:
    for change in (lambda **k: pipe.inpaint(picture(), mask(), "a", **k), lambda **k: pipe.edit(picture(), "a", **k)):
        with pytest.raises(UsageError, match="draws embeddings, not pictures"):
            change(stop_after="prior", progress=False)
