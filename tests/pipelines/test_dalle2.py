"""The call: seeds, batches, settings per stage, recipes, saving and loading, and every kind of bad input."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from t2i.pipelines.dalle2 import DALLE2

from t2i.errors import DataError, NonFiniteError, UsageError
from t2i.images import read_recipe
from t2i.pipeline import Pipeline


def pixels(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_sizes_seeds_and_order(pipe: DALLE2) -> None:
    out = pipe(["a red cube", "a blue sphere"], num_images_per_prompt=2, seed=7, progress=False)
    assert [image.size for image in out] == [(128, 128)] * 4
    assert out.seeds == [7, 8, 9, 10]
    assert out.prompts == ["a red cube", "a red cube", "a blue sphere", "a blue sphere"]
    assert out.embeddings is not None
    assert out.embeddings.shape == (4, 16)
    assert set(out.timings) == {"prior", "decoder", "up256", "up1024"}
    assert len({image.tobytes() for image in out}) == 4


@pytest.mark.parametrize("max_batch", [1, 3, 8])
def test_a_picture_is_the_same_alone_and_in_any_batch(pipe: DALLE2, max_batch: int) -> None:
    together = pipe("a red cube", num_images_per_prompt=5, seed=20, progress=False, max_batch=max_batch)
    alone = pipe("a red cube", seed=23, progress=False)
    assert np.abs(pixels(together[3]) - pixels(alone[0])).max() <= 1


def test_a_list_of_seeds(pipe: DALLE2) -> None:
    out = pipe("a red cube", num_images_per_prompt=2, seed=[5, 5], progress=False)
    assert out[0].tobytes() == out[1].tobytes()
    random = pipe("a red cube", progress=False, stop_after="decoder")
    again = pipe("a red cube", seed=random.seeds, progress=False, stop_after="decoder")
    assert random[0].tobytes() == again[0].tobytes()


def test_stop_after(pipe: DALLE2) -> None:
    assert pipe("a red cube", seed=1, stop_after="decoder", progress=False)[0].size == (32, 32)
    only = pipe("a red cube", seed=1, stop_after="prior", progress=False)
    assert only.images == []
    assert only.embeddings is not None


def test_steps_and_guidance_by_stage(pipe: DALLE2) -> None:
    calls: list[tuple[str, int, int]] = []
    pipe(
        "a red cube", seed=1, progress=False, steps={"decoder": 7, "up256": "2"}, stop_after="up256",
        callback=lambda p: calls.append((p.stage, p.step, p.num_steps)),
    )  # fmt: skip
    assert [c for c in calls if c[0] == "decoder"] == [("decoder", i, 7) for i in range(1, 8)]
    assert [c for c in calls if c[0] == "up256"] == [("up256", 1, 2), ("up256", 2, 2)]
    assert len([c for c in calls if c[0] == "prior"]) == 8  # two candidates of four steps
    base = pipe("a red cube", seed=1, progress=False, stop_after="decoder")
    for guidance in (1.0, {"decoder": 1.0}, {"prior": 6.0}):
        other = pipe("a red cube", seed=1, guidance=guidance, progress=False, stop_after="decoder")
        assert other[0].tobytes() != base[0].tobytes()


def test_preview_shows_the_present_guess(pipe: DALLE2) -> None:
    seen = []
    pipe("a red cube", seed=1, progress=False, callback=lambda p: seen.append(p.preview()), stop_after="decoder")
    assert seen[-1][0].size == (32, 32)


def test_a_negative_prompt_changes_the_picture(pipe: DALLE2) -> None:
    plain = pipe("a red cube", seed=1, progress=False, stop_after="decoder")
    negative = pipe("a red cube", negative_prompt="a blue sphere", seed=1, progress=False, stop_after="decoder")
    assert plain[0].tobytes() != negative[0].tobytes()


def test_the_recipe_in_a_png_repeats_the_picture(pipe: DALLE2, tmp_path: Path) -> None:
    out = pipe(
        ["a red cube", "a cube"], num_images_per_prompt=2, seed=3, steps=3, guidance={"decoder": 2.5}, progress=False
    )
    paths = out.save(tmp_path / "cubes.png")
    assert [p.name for p in paths] == [f"cubes-{i}.png" for i in range(4)]
    recipe = read_recipe(paths[3])
    again = pipe(**recipe["arguments"], progress=False)
    assert np.abs(pixels(again[0]) - pixels(out[3])).max() <= 1
    assert again.seeds == [6]


def test_save_and_load(pipe: DALLE2, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    a, b = (p("a red cube", seed=4, progress=False) for p in (pipe, loaded))
    assert a[0].tobytes() == b[0].tobytes()
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["up256"] == ["t2i", "upsampler"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "  "}, "empty"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": "a cube " * 2000}, "14,000 characters"),
        ({"prompt": 3}, "int"),
        ({"steps": -1}, "-1"),
        ({"steps": 0}, "0"),
        ({"steps": 5000}, "5000"),
        ({"steps": {"decodre": 5}}, "did you mean 'decoder'"),
        ({"guidance": {"up256": 2.0}}, "up256"),
        ({"guidance": -1}, "-1"),
        ({"guidance": float("nan")}, "nan"),
        ({"stop_after": "up512"}, "did you mean 'up"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"max_batch": 0}, "max_batch"),
        ({"seed": [1, 2]}, "2 seeds for 1"),
        ({"negative_prompt": ["a", "b"]}, "2 negative"),
    ],
)
def test_bad_arguments_are_one_clear_line(pipe: DALLE2, arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        pipe(**({"prompt": "a red cube", "progress": False} | arguments))
    assert "\n" not in str(error.value)


def test_unknown_words_and_cut_prompts_are_told(pipe: DALLE2) -> None:
    with pytest.warns(UserWarning, match="unicorn"):
        pipe("a red unicorn", seed=1, stop_after="prior", progress=False)
    with pytest.warns(UserWarning, match="only the first 10"):
        out = pipe(
            ["a cube", "a red cube and a blue cube and a green cube and a"], seed=1, stop_after="prior", progress=False
        )
    assert out.truncated == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("a red cube", seed=1, stop_after="prior", progress=False)


def test_values_that_are_not_finite_name_the_stage(pipe: DALLE2) -> None:
    weight = pipe.parts["up256"].unet.conv_out.weight
    kept = weight.data.clone()
    try:
        weight.data.fill_(torch.nan)
        with pytest.raises(NonFiniteError, match="up256"):
            pipe("a red cube", seed=1, progress=False)
    finally:
        weight.data.copy_(kept)


def test_broken_folders_are_one_clear_line(pipe: DALLE2, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    weights = folder / "decoder" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="decoder"):
        Pipeline.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(DataError, match="decoder"):
        Pipeline.from_pretrained(folder)
    weights.write_bytes(whole)
    config = folder / "prior" / "config.json"
    changed = json.loads(config.read_text())
    changed["model"]["width"] = 64
    config.write_text(json.dumps(changed))
    with pytest.raises(DataError, match="prior"):
        Pipeline.from_pretrained(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(DataError, match="model_index"):
        Pipeline.from_pretrained(folder)


def test_unknown_names_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'shapes'"):
        Pipeline.from_pretrained("shape")
    with pytest.raises(UsageError, match="model_index"):
        Pipeline.from_pretrained(tmp_path)
