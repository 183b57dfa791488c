"""Other sizes and tiles: pictures from elsewhere made larger, by networks that see part of them at once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.core.errors import DataError, UsageError
from t2i.io.images import on_white
from t2i.pipeline.arguments import Sentences
from t2i.pipeline.output import check_repeatable, recipe_in
from t2i.pipelines.dalle2 import DALLE2


def picture(width: int = 48, height: int = 32) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def test_pictures_of_any_size_are_drawn_larger(pipe: DALLE2, tmp_path: Path) -> None:
    """Networks for 32 → 64 → 128 pixels, of a magnification of two each."""
    steps = []
    out = pipe.upsample(picture(), seed=4, progress=False, callback=lambda p: steps.append(p.stage))
    assert out[0].size == (192, 128)
    assert (out.seeds, set(out.timings)) == ([4], {"up256", "up1024"})
    assert steps == ["up256"] * 3 + ["up1024"] * 2
    assert out[0].tobytes() == pipe.upsample(picture(), seed=4, progress=False)[0].tobytes()
    assert out[0].tobytes() != pipe.upsample(picture(), seed=5, progress=False)[0].tobytes()
    picture().save(tmp_path / "small.png")
    first = pipe.upsample(tmp_path / "small.png", seed=4, stop_after="up256", progress=False)
    assert first[0].size == (96, 64)
    second = pipe.upsample(picture(), start_at="up1024", seed=4, steps={"up1024": 3}, progress=False)
    assert second[0].size == (96, 64)
    assert second[0].tobytes() != first[0].tobytes()
    with pytest.raises(UsageError, match=r"made from another picture \(upsample\)"):
        recipe_in(out.save(tmp_path / "large.png")[0])


def test_tiles_are_in_the_recipe_and_bound_what_a_network_sees(
    pipe: DALLE2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    forward = pipe.parts["up1024"].unet.forward
    monkeypatch.setattr(
        pipe.parts["up1024"].unet, "forward", lambda x, *rest: (seen.add(tuple(x.shape[2:])), forward(x, *rest))[1]
    )
    whole = pipe("a red cube", seed=1, progress=False)
    tiled = pipe("a red cube", seed=1, progress=False, max_tile=64)
    assert seen == {(128, 128), (64, 64)}
    assert tiled[0].size == (128, 128)
    assert tiled[0].tobytes() != whole[0].tobytes()
    assert "max_tile" not in whole.recipe["arguments"]
    recipe = recipe_in(tiled.save(tmp_path / "cube.png")[0])
    check_repeatable(recipe, {*Sentences.__annotations__, "prompt"}, recipe["weights"], None)
    again = pipe(**json.loads(json.dumps(recipe["arguments"])), progress=False)
    assert again[0].tobytes() == tiled[0].tobytes()
    mask = Image.new("L", (48, 48), 255)
    for out in (
        pipe.upsample(picture(64, 96), seed=1, max_tile=64, progress=False),
        pipe.edit(picture(48, 48), "a red cube", seed=1, max_tile=64, progress=False),
        pipe.inpaint(picture(48, 48), mask, "a red cube", seed=1, max_tile=64, progress=False),
    ):
        assert out.recipe["arguments"]["max_tile"] == 64
    assert seen == {(128, 128), (64, 64)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": picture(46, 32)}, "sides must be multiples of 4, got 46 × 32"),
        ({"image": [picture()]}, "expected a PIL picture or the path of one, got list"),
        ({"start_at": "decoder"}, "no upsampler 'decoder'; this model has up256, up1024"),
        ({"stop_after": "up256", "start_at": "up1024"}, "unknown stage 'up256'"),
        ({"steps": {"decoder": 3}}, "unknown stage 'decoder'"),
        ({"max_tile": 16}, "max_tile of up256: must be at least 32, got 16"),
        ({"max_tile": 64.0}, "max_tile must be a whole number"),
    ],
)
def test_bad_arguments_are_one_clear_line(pipe: DALLE2, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipe.upsample(**({"image": picture(), "progress": False} | arguments))


def test_what_is_transparent_stays_so_and_looks_the_same_on_white(pipe: DALLE2, tmp_path: Path) -> None:
    """A path as text, too; JPEG holds no transparency."""
    clear = picture()
    clear.putalpha(Image.fromarray(np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)))
    clear.save(tmp_path / "clear.png")
    out = pipe.upsample(str(tmp_path / "clear.png"), seed=4, progress=False)[0]
    assert (out.mode, out.size) == ("RGBA", (192, 128))
    alpha = np.asarray(clear.getchannel("A").resize((192, 128), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(out.getchannel("A")), alpha)
    plain = pipe.upsample(on_white(clear), seed=4, progress=False)[0]
    error = np.abs(np.asarray(on_white(out)).astype(int) - np.asarray(plain))
    most = 255 - alpha.astype(int)[..., None]  # what is transparent can be no darker than white seen through it
    assert (error <= np.maximum(1, most - np.asarray(plain))).all()
    assert pipe.upsample(clear.convert("RGB"), seed=4, progress=False)[0].mode == "RGB"
    with pytest.raises(DataError, match=r"none.png does not exist"):
        pipe.upsample("none.png")


def test_a_model_without_upsamplers_says_so(pipe: DALLE2) -> None:
    parts = {name: part for name, part in pipe.parts.items() if not name.startswith("up")}
    with pytest.raises(UsageError, match="this model has no upsamplers"):
        DALLE2(parts, {}).upsample(picture())
