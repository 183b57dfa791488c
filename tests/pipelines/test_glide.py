"""GLIDE: guidance by words and by CLIP, inpainting both ways, edits, and every kind of bad input."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import MASKED, TOKENIZER, classes, decoder, glide, noised_clip, of, upsampler

from t2i.core.errors import DataError, UsageError
from t2i.diffusion.config import Noise
from t2i.pipeline.base import Pipeline
from t2i.pipelines.glide import GLIDE


@pytest.fixture(scope="module")
def pipe() -> GLIDE:
    return glide()


def pixels(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


def picture(side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (side, side, 3)).astype(np.uint8))


def mask(side: int = 32) -> Image.Image:
    """White in the lower right quarter."""
    white = np.zeros((side, side), np.uint8)
    white[side // 2 :, side // 2 :] = 255
    return Image.fromarray(white)


def test_a_call(pipe: GLIDE) -> None:
    out = pipe(["a red cube", "a blue sphere"], num_images_per_prompt=2, seed=1, progress=False)
    assert [image.size for image in out] == [(32, 32)] * 4
    assert out.prompts == ["a red cube"] * 2 + ["a blue sphere"] * 2
    assert set(out.timings) == {"decoder", "upsampler"}
    alone = pipe("a blue sphere", seed=4, progress=False)
    assert np.abs(pixels(alone[0]) - pixels(out[3])).max() <= 1
    again = pipe(**json.loads(json.dumps(out.recipe_of(2)))["arguments"], progress=False)
    assert again[2].tobytes() == out[2].tobytes()
    assert pipe("a cube", seed=1, stop_after="decoder", progress=False)[0].size == (16, 16)


@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_a_picture_is_the_same_in_any_batch_whatever_the_task(pipe: GLIDE, max_batch: int) -> None:
    prompts = ["a cube", "a red cube", "a blue sphere"]
    how = {"guidance": {"decoder": 2.0, "clip": 20.0}, "progress": False}
    inpainted = {"guidance": {"inpaint": 2.0, "clip": 20.0}, "progress": False}
    for draw in (
        lambda p, **k: pipe(p, **how, **k),
        lambda p, **k: pipe.inpaint(picture(), mask(), p, **inpainted, **k),
        lambda p, **k: pipe.edit(picture(), p, 0.6, **how, **k),
    ):
        together, alone = draw(prompts, seed=5, max_batch=max_batch), draw(prompts[2], seed=7)
        assert np.abs(pixels(alone[0]) - pixels(together[2])).max() <= 1


def test_an_ordinary_upsampler_stands_in_where_none_was_trained_to_inpaint() -> None:
    pipe = glide("inpaint_upsampler")
    out = pipe.inpaint(picture(), mask(), "a cube", seed=3, progress=False)
    assert set(out.timings) == {"inpaint", "upsampler"}
    fresh = np.asarray(mask()) > 0
    assert (pixels(out[0])[~fresh] == pixels(picture())[~fresh]).all()


def test_one_network_may_draw_and_inpaint(pipe: GLIDE) -> None:
    """A decoder that inpaints draws as one that is shown nothing, and sees what is known unless it is told not to."""
    few = {"steps": {"decoder": 3, "upsampler": 2, "inpaint_upsampler": 2}}
    both = GLIDE({"decoder": pipe.parts["inpaint"], "upsampler": pipe.parts["upsampler"]}, few)
    drawn = both("a cube", seed=3, guidance=1.0, stop_after="decoder", progress=False)
    assert drawn[0].size == (16, 16)
    a, b = (
        {
            method: pixels(both.inpaint(given, mask(), "a cube", method=method, seed=3, progress=False)[0])
            for method in ("auto", "trained", "replaced")
        }
        for given in (picture(), Image.new("RGB", (32, 32)))
    )
    assert set(both.inpaint(picture(), mask(), "a cube", progress=False).timings) == {"decoder", "upsampler"}
    more = GLIDE(both.parts | {"inpaint_upsampler": pipe.parts["inpaint_upsampler"]}, few)
    assert set(more.inpaint(picture(), mask(), "a cube", progress=False).timings) == {"decoder", "inpaint_upsampler"}
    fresh = np.asarray(mask()) > 0
    assert (a["auto"][~fresh] == pixels(picture())[~fresh]).all()
    assert (a["trained"] == a["auto"]).all()
    assert (a["replaced"] != a["auto"]).any()
    assert (a["auto"][fresh] != b["auto"][fresh]).any()


def test_the_released_recipe_is_the_default() -> None:
    planner = GLIDE(glide().parts, {}).planner
    chosen, _ = planner.plan({})
    assert (chosen["decoder"].steps, chosen["decoder"].sampler, chosen["decoder"].guidance) == (100, "ddpm", 3.0)
    assert (chosen["upsampler"].steps, chosen["upsampler"].sampler) == ("fast27", "ddim")
    assert (chosen["upsampler"].temperature, chosen["upsampler"].guidance) == (0.997, 1.0)
    painted, _ = planner.plan({}, ("inpaint", "inpaint_upsampler"))
    assert (painted["inpaint"].guidance, painted["inpaint_upsampler"].sampler) == (5.0, "ddpm")


def test_guidance_by_clip_instead_of_words(pipe: GLIDE) -> None:
    def drawn(**guidance: float) -> bytes:
        return pipe("a red cube", seed=2, guidance=guidance, stop_after="decoder", progress=False)[0].tobytes()

    plain = drawn(decoder=1.0)
    assert plain == drawn(decoder=1.0, clip=0.0)
    assert plain != drawn(decoder=1.0, clip=50.0) != drawn(decoder=3.0)
    without = glide("clip")
    assert plain == without("a red cube", seed=2, guidance=1.0, stop_after="decoder", progress=False)[0].tobytes()
    with pytest.raises(UsageError, match="unknown stage 'clip'"):
        without("a red cube", guidance={"clip": 1.0}, progress=False)


def test_words_that_only_clip_lacks_are_told_where_it_guides(pipe: GLIDE) -> None:
    clip = copy.copy(pipe.parts["clip"])
    clip.tokenizer = TOKENIZER.model_copy(update={"words": ("a", "cube")}).build()
    other = GLIDE(pipe.parts | {"clip": clip}, pipe.settings)
    for draw in (other, partial(other.inpaint, picture(), mask()), partial(other.edit, picture())):
        with pytest.warns(UserWarning, match="does not know: red"):
            draw("a red cube", guidance={"clip": 1.0}, seed=1, progress=False)


def test_clip_guidance_raises_similarity(pipe: GLIDE) -> None:
    clip, found = pipe.parts["clip"], []
    z_t = clip.encode_text(*clip.tokenize(["a red cube"]))
    for scale in (0.0, 999.0):
        guidance = {"decoder": 1.0, "clip": scale}
        how = {"guidance": guidance, "sampler": {"decoder": "ddim"}, "stop_after": "decoder"}
        out = pipe("a red cube", seed=2, progress=False, **how)
        x = torch.from_numpy(pixels(out[0])).permute(2, 0, 1)[None].float() / 127.5 - 1
        found.append((clip.encode_image(x, torch.zeros(1, dtype=torch.long)) * z_t).sum().item())
    assert found[1] > found[0]


@pytest.mark.parametrize("method", ["trained", "replaced"])
def test_inpainting_leaves_the_rest_as_it_is(pipe: GLIDE, method: str) -> None:
    out = pipe.inpaint(picture(), mask(), "a red cube", method=method, num_images_per_prompt=2, seed=3, progress=False)
    stages = {"inpaint", "inpaint_upsampler"} if method == "trained" else {"decoder", "upsampler"}
    assert set(out.timings) == stages
    before, fresh = pixels(picture()), np.asarray(mask()) > 0
    for image in out:
        assert (pixels(image)[~fresh] == before[~fresh]).all()
        assert (pixels(image)[fresh] != before[fresh]).mean() > 0.9
    assert out[0].tobytes() != out[1].tobytes()


def test_networks_trained_to_inpaint_see_what_is_known(pipe: GLIDE) -> None:
    """The part that is drawn depends on the part that is not."""
    a = pipe.inpaint(picture(), mask(), "a cube", seed=3, stop_after="inpaint", progress=False)
    b = pipe.inpaint(Image.new("RGB", (32, 32)), mask(), "a cube", seed=3, stop_after="inpaint", progress=False)
    fresh = np.asarray(mask(16)) > 0
    assert (pixels(a[0])[fresh] != pixels(b[0])[fresh]).any()


def test_a_model_without_such_networks_replaces() -> None:
    pipe = glide("inpaint", "inpaint_upsampler")
    assert set(pipe.inpaint(picture(), mask(), "a cube", seed=3, progress=False).timings) == {"decoder", "upsampler"}
    with pytest.raises(UsageError, match="no network that was trained to inpaint"):
        pipe.inpaint(picture(), mask(), "a cube", method="trained", progress=False)


def test_blending_fades_over_some_pixels(pipe: GLIDE) -> None:
    hard, soft = (
        pixels(pipe.inpaint(picture(), mask(), "a cube", seed=3, blend=blend, progress=False)[0]) for blend in (0, 2)
    )
    changed = (hard != soft).any(-1)
    assert changed[14:18, 20:].any()
    assert not changed[:13].any()
    assert not changed[20:, 20:].any()


def test_an_edit_starts_from_the_picture(pipe: GLIDE) -> None:
    kept = pipe.edit(picture(16), "a cube", 0.0, seed=1, stop_after="decoder", progress=False)
    assert (pixels(kept[0]) == pixels(picture(16))).all()
    distance = []
    for strength in (0.25, 1.0):
        out = pipe.edit(picture(16), "a cube", strength, seed=1, stop_after="decoder", progress=False)
        distance.append(np.abs(pixels(out[0]) - pixels(picture(16))).mean())
    assert 0 < distance[0] < distance[1]
    assert pipe.edit(picture(), "a cube", 0.5, seed=1, progress=False)[0].size == (32, 32)


def test_recipes_of_changed_pictures_say_so(pipe: GLIDE) -> None:
    assert pipe.edit(picture(), "a cube", 0.5, seed=1, progress=False).recipe["task"] == "edit"
    assert pipe.inpaint(picture(), mask(), "a cube", seed=1, progress=False).recipe["task"] == "inpaint"


def test_a_picture_is_its_own_mask_where_it_is_transparent_and_files_do_as_well(pipe: GLIDE, tmp_path: Path) -> None:
    few = {"seed": 3, "progress": False, "stop_after": "inpaint_upsampler"}
    wanted = pixels(pipe.inpaint(picture(), mask(), "a cube", **few)[0])
    clear = picture().convert("RGBA")
    clear.putalpha(mask().point(lambda v: 255 - v))
    clear.save(tmp_path / "clear.png")
    path = tmp_path / "clear.png"
    for given in ((clear, None), (path, None), (picture(), str(path)), (str(path), path), (picture(), clear)):
        out = pixels(pipe.inpaint(*given, "a cube", **few)[0])
        assert np.array_equal(out[np.asarray(mask()) == 0], wanted[np.asarray(mask()) == 0])
        assert (out[np.asarray(mask()) > 0] != pixels(picture())[np.asarray(mask()) > 0]).any()
    assert pixels(pipe.edit(str(path), "a cube", 0.5, seed=1, progress=False)[0]).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": mask(16)}, "the mask has 16 × 16 pixels, the picture 32 × 32"),
        ({"mask": Image.new("L", (32, 32), 127)}, "the mask is empty: nothing in it is white"),
        ({"mask": np.zeros((32, 32))}, "a mask is a PIL picture or the path of one, got ndarray"),
        ({"mask": None}, "no mask, and nothing in the picture is transparent"),
        ({"image": picture().crop((0, 0, 32, 20)), "mask": mask().crop((0, 0, 32, 20))}, "must be square, got 32 × 20"),
        ({"image": 7}, "expected a PIL picture or the path of one, got int"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"blend": -1}, "blend must be a number of pixels from 0 to 32, got -1"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"steps": {"decoder": 3}}, "unknown stage 'decoder'"),
    ],
)
def test_bad_input_to_inpainting_is_one_clear_line(pipe: GLIDE, change: dict[str, Any], message: str) -> None:
    arguments = {"image": picture(), "mask": mask(), "prompt": "a cube", "progress": False} | change
    with pytest.raises(UsageError, match=message) as error:
        pipe.inpaint(**arguments)
    assert "\n" not in str(error.value)


def test_a_wide_picture_to_edit_is_one_clear_line(pipe: GLIDE) -> None:
    with pytest.raises(UsageError, match=r"must be square, got 32 × 20$"):
        pipe.edit(picture().crop((0, 0, 32, 20)), "a cube", progress=False)


def test_bad_strengths(pipe: GLIDE) -> None:
    for strength in (-0.1, 1.1, "half"):
        with pytest.raises(UsageError, match="strength must be a number from 0 to 1"):
            pipe.edit(picture(), "a cube", strength, progress=False)


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("decoder", lambda: decoder(), "decoder reads no captions"),
        ("inpaint", lambda: decoder(), "inpaint was trained without ports.masked"),
        (
            "clip",
            lambda: noised_clip(diffusion=Noise(schedule="linear")),
            "clip was trained with schedule=linear, decoder with cosine",
        ),
        (
            "clip",
            lambda: noised_clip(diffusion=Noise(num_steps=100)),
            "clip was trained with num_steps=100, decoder with 1000",
        ),
        ("inpaint", lambda: decoder(unet=of(image_channels=4), ports=MASKED), "inpaint reads no captions"),
        ("upsampler", lambda: upsampler(low_size=8), "upsampler takes pictures of side 8, but decoder gives 16"),
        ("upsampler", lambda: upsampler(ports=classes()), "upsampler needs a class"),
        ("decoder", lambda: decoder(ports=classes()), "decoder needs a class"),
    ],
)
def test_parts_must_fit_together(pipe: GLIDE, name: str, part: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        GLIDE({**pipe.parts, name: part()}, {})


def test_parts_that_may_be_missing(pipe: GLIDE) -> None:
    alone = glide("upsampler", "inpaint", "inpaint_upsampler", "clip")
    assert alone("a cube", seed=0, progress=False)[0].size == (16, 16)
    with pytest.raises(UsageError, match="lacks decoder"):
        GLIDE({"upsampler": pipe.parts["upsampler"]}, {})
    with pytest.raises(DataError, match="inpaint_upsampler without inpaint"):
        GLIDE({n: p for n, p in pipe.parts.items() if n != "inpaint"}, {})
    assert noised_clip().config.image_size == 16


def test_save_and_load(pipe: GLIDE, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert isinstance(loaded, GLIDE)
    a, b = (p("a red cube", seed=4, progress=False)[0].tobytes() for p in (pipe, loaded))
    assert a == b
