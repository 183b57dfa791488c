"""The call: seeds, batches, settings per stage, recipes, saving and loading, and every kind of bad input."""

import copy
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small import with_ports

from t2i.core.errors import DataError, NonFiniteError, UsageError
from t2i.hub.index import Preset, PriorPreset, models
from t2i.io.provenance import read_recipe
from t2i.nn.ports import READ, ClassesConfig, ClipImageConfig, TextPortConfig
from t2i.pipeline.arguments import Texts
from t2i.pipeline.base import Pipeline
from t2i.pipeline.request import chunks
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.prior.model import Prior


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


def test_the_recipe_in_a_png_repeats_the_picture_to_the_byte(pipe: DALLE2, tmp_path: Path) -> None:
    """Float sums depend on what is drawn beside a picture, so its recipe holds that too, and nothing else."""
    prompts = ["a cube", "a red cube and a blue sphere", "a red cube"]
    negatives = ["", "a green cube", "a sphere and a cube"]
    settings = {"steps": 3, "guidance": {"decoder": 2.5}, "max_batch": 4, "progress": False}
    out = pipe(prompts, negative_prompt=negatives, num_images_per_prompt=2, seed=3, **settings)
    paths = out.save(tmp_path / "cubes.png")
    assert [p.name for p in paths] == [f"cubes-{i}.png" for i in range(6)]
    for i in (1, 5):
        recipe = read_recipe(paths[i])
        again = pipe(**recipe["arguments"], progress=False)
        assert again[recipe["picture"]].tobytes() == out[i].tobytes()
        assert again.seeds[recipe["picture"]] == 3 + i
    assert read_recipe(paths[1])["arguments"]["prompt"] == out.prompts[:4]
    assert read_recipe(paths[5])["arguments"]["negative_prompt"] == [negatives[2]] * 2
    assert recipe["arguments"]["max_batch"] == 4
    assert [p.name for p in out.save(tmp_path / "one.png", [4])] == ["one.png"]
    assert [p.name for p in out.save(tmp_path / "some.png", [0, -1])] == ["some-0.png", f"some-{len(out) - 1}.png"]
    for which in (["x"], [5000], [1.5], 3, "0", [None]):
        with pytest.raises(UsageError, match=r"which must be a list of numbers from 0 to \d+, got "):
            out.save(tmp_path / "none.png", which)
    assert not list(tmp_path.glob("none*"))
    assert read_recipe(tmp_path / "one.png")["arguments"]["seed"] == [7, 8]
    with pytest.raises(IndexError):
        out.recipe_of(6)


def test_the_recipe_of_one_picture_is_plain(pipe: DALLE2) -> None:
    out = pipe("a red cube", seed=np.int64(3), stop_after="prior", guidance=np.float32(2), steps=np.int32(2))
    arguments = json.loads(json.dumps(out.recipe_of(0)))["arguments"]
    assert arguments["prompt"] == "a red cube"
    assert (arguments["seed"], arguments["negative_prompt"], arguments["stop_after"]) == ([3], None, "prior")
    assert (arguments["steps"], arguments["guidance"]) == ({"prior": 2}, {"prior": 2.0})


@pytest.mark.parametrize(
    ("count", "group", "size", "expected"),
    [
        (7, 3, 3, [(0, 3), (3, 6), (6, 7)]),
        (7, 3, 2, [(0, 2), (2, 3), (3, 5), (5, 6), (6, 7)]),
        (3, 8, 32, [(0, 3)]),
        (2, 8, 0, [(0, 1), (1, 2)]),
    ],
)
def test_chunks_start_anew_in_every_group(count: int, group: int, size: int, expected: list) -> None:
    assert [(rows.start, rows.stop) for rows in chunks(count, group, size)] == expected


def test_costly_stages_take_fewer(pipe: DALLE2) -> None:
    large = copy.copy(pipe.parts["up1024"])
    unet = large.config.unet.model_copy(update={"patch_size": 8})  # 128 × 128 places
    large.config = large.config.model_copy(update={"unet": unet, "image_size": 1024})
    whole, five = DALLE2(pipe.parts | {"up1024": large}), Texts(["a cube"] * 5, [""] * 5, [False] * 5)

    def sizes(stage: str, **draw: Any) -> list[int]:
        request = whole.request({"progress": False, **draw}, texts=five)  # type: ignore[typeddict-item]
        return [rows.stop - rows.start for rows in request.batches(stage)]

    assert sizes("up1024") == [2, 2, 1]
    assert sizes("up1024", max_tile=512) == [5]
    assert sizes("prior", max_tile=512) == [5]


def test_samplers_by_stage_are_in_the_recipe(pipe: DALLE2) -> None:
    base = pipe("a red cube", seed=1, progress=False, stop_after="decoder")
    other = pipe("a red cube", seed=1, progress=False, stop_after="decoder", sampler={"decoder": "ddpm"})
    assert base[0].tobytes() != other[0].tobytes()
    assert base.recipe["arguments"]["sampler"] == {"prior": "ddpm", "decoder": "ddim"}
    again = pipe(**json.loads(json.dumps(other.recipe_of(0)))["arguments"], progress=False)
    assert again[0].tobytes() == other[0].tobytes()


def test_the_recipe_names_the_weights(pipe: DALLE2, tmp_path: Path) -> None:
    copied = copy.deepcopy(pipe)
    copied.save_pretrained(tmp_path / "a")
    opened = Pipeline.from_pretrained(tmp_path / "a", device="cpu")
    assert copied.weights == opened.weights != ""
    assert copied.source == opened.source == str((tmp_path / "a").resolve())
    with torch.no_grad():
        opened.parts["up1024"].unet.conv_out.bias.add_(1)
    opened.save_pretrained(tmp_path / "b")
    assert opened.weights == Pipeline.from_pretrained(tmp_path / "b", device="cpu").weights != copied.weights
    assert opened("a cube", seed=0, stop_after="prior", progress=False).recipe["weights"] == opened.weights
    assert opened.source == str((tmp_path / "b").resolve())


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_a_stage_of_another_clip_is_refused(pipe: DALLE2, name: str) -> None:
    parts = copy.deepcopy(pipe.parts)
    mark = parts["clip"].fingerprint()
    parts[name].config = _of_clip(parts[name].config, tuple(x + 0.002 * (-1) ** i for i, x in enumerate(mark)))
    DALLE2(parts, pipe.settings)
    parts[name].config = _of_clip(parts[name].config, mark[::-1])
    with pytest.raises(DataError, match=f"{name} was trained with another CLIP"):
        DALLE2(parts, pipe.settings)


def _of_clip(config: Any, fingerprint: tuple[float, ...]) -> Any:
    """The config of a stage that learned from the CLIP of this fingerprint."""
    if hasattr(config, "ports"):
        return with_ports(config, clip_image=config.ports.clip_image.model_copy(update={"fingerprint": fingerprint}))
    return config.model_copy(update={"clip_fingerprint": fingerprint})


def test_a_negative_prompt_without_guidance_is_told(pipe: DALLE2) -> None:
    with pytest.warns(UserWarning, match="a negative prompt says nothing where guidance is 1"):
        pipe("a cube", negative_prompt="a sphere", guidance=1.0, seed=1, stop_after="prior", progress=False)


def test_words_that_only_the_decoder_lacks_are_told(pipe: DALLE2) -> None:
    decoder = copy.copy(pipe.parts["decoder"])
    text = decoder.config.ports.text
    few = text.tokenizer.model_copy(update={"words": ("a", "cube")})
    decoder.config = with_ports(decoder.config, text=text.model_copy(update={"tokenizer": few}))
    with pytest.warns(UserWarning, match="does not know: red"):
        DALLE2(pipe.parts | {"decoder": decoder})("a red cube", seed=1, stop_after="prior", progress=False)


def test_max_batch_is_a_maximum(pipe: DALLE2, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, list[int]] = {}

    def count(name: str, model: torch.nn.Module) -> None:
        forward = model.unet.forward
        monkeypatch.setattr(
            model.unet,
            "forward",
            lambda x, *a, **k: (sizes.setdefault(name, []).append(len(x)), forward(x, *a, **k))[1],
        )

    for name in ("decoder", "up1024"):
        count(name, pipe.parts[name])
    pipe("a red cube", num_images_per_prompt=5, max_batch=3, guidance=1.0, progress=False)
    assert set(sizes["decoder"]) == {3, 2}
    assert set(sizes["up1024"]) == {3, 2}


def test_save_and_load(pipe: DALLE2, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    a, b = (p("a red cube", seed=4, progress=False) for p in (pipe, loaded))
    assert a[0].tobytes() == b[0].tobytes()
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["up256"] == ["t2i", "upsampler"]


def test_embeddings_are_drawn_as_a_call_draws_them(pipe: DALLE2) -> None:
    prompts = ["a red cube", "a blue sphere"]
    whole = pipe(prompts, seed=3, progress=False)
    again = pipe.decode(whole.embeddings, prompts, seed=3, progress=False)
    assert [i.tobytes() for i in again] == [i.tobytes() for i in whole]
    assert again.recipe["task"] == "decode"
    wordless = pipe.decode(whole.embeddings, seed=3, stop_after="decoder", progress=False, max_batch=1)
    assert [i.size for i in wordless] == [(32, 32)] * 2
    for embeddings, prompt, message in (
        (torch.zeros(2, 7), None, r"embeddings of this model are \(N, 16\), got \(2, 7\)"),
        (prompts, None, r"\(N, 16\), got list"),
        (2 * whole.embeddings, None, "length 1, but there is a z_i of length 2"),
        (whole.embeddings * torch.nan, None, "holds NaN"),
        (whole.embeddings, ["a red cube"] * 3, "3 prompts for 2 embeddings"),
        (whole.embeddings, "", "empty"),
    ):
        with pytest.raises(UsageError, match=message):
            pipe.decode(embeddings, prompt, progress=False)  # type: ignore[arg-type]


def test_presets_sample_as_others_do(pipe: DALLE2, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    opened = partial(Pipeline.from_pretrained, tmp_path, device="cpu")
    few = {"steps": {"prior": 3, "decoder": 2}, "stop_after": "decoder", "seed": 1, "progress": False}
    with pytest.warns(UserWarning, match="'paper': this prior lacks the variances that t2i calibrate measures"):
        paper = opened(preset="paper")
    assert paper.settings == {
        "steps": {"prior": 64, "decoder": 250, "up256": "fast27", "up1024": 15},  # table 3
        "guidance": {"prior": 1.0, "decoder": 1.25},
        "sampler": {"prior": "ddpm", "decoder": "ddpm", "up256": "ddim", "up1024": "ddim"},
        "candidates": {"prior": 2},
        "clamp": {"prior": False},
        "variance": {"prior": None},
    }
    assert opened(preset="karlo").settings["clamp"] == {"prior": 10.0}
    out = paper("a red cube", **few)
    assert out.recipe["preset"] == "paper"
    assert out.recipe["arguments"]["guidance"] == {"prior": 1.0, "decoder": 1.25}
    paper.save_pretrained(tmp_path / "paper")  # a folder that says so itself
    assert "preset" not in paper("a red cube", **few).recipe
    again = Pipeline.from_pretrained(tmp_path / "paper", device="cpu")("a red cube", **few)
    assert again[0].tobytes() == out[0].tobytes()
    assert "preset" not in again.recipe


def test_a_preset_says_nothing_of_stages_it_lacks(pipe: DALLE2) -> None:
    own = copy.copy(pipe)
    own.settings = {**pipe.settings, "steps": {**pipe.settings["steps"], "up1024": 5}}
    own.parts = pipe.parts | {"prior": copy.deepcopy(pipe.parts["prior"])}
    own.use_preset("karlo")
    assert own.settings["steps"] == {"prior": 25, "decoder": 50, "up256": 7, "up1024": 5}


def test_the_paper_draws_with_analytic_variances(pipe: DALLE2, tmp_path: Path) -> None:
    """Where they were measured; the others draw without them."""
    measured = copy.copy(pipe)
    known: Any = pipe.parts["prior"]
    diffusion = known.config.diffusion.model_copy(update={"variance": "analytic"})
    prior = Prior(known.config.model_copy(update={"diffusion": diffusion})).eval()
    prior.load_state_dict(known.state_dict() | {"x_0_variance": torch.full((diffusion.num_steps,), 0.5)})
    measured.parts = pipe.parts | {"prior": prior}
    measured.save_pretrained(tmp_path / "model")
    drawn = {}
    for preset in ("paper", "laion"):
        chosen: Any = Pipeline.from_pretrained(tmp_path / "model", device="cpu", dtype="float32", preset=preset)
        drawn[preset] = chosen("a red cube", seed=1, steps={"prior": 6}, stop_after="prior", progress=False).embeddings
        chosen.save_pretrained(tmp_path / preset)
        again: Any = Pipeline.from_pretrained(tmp_path / preset, device="cpu", dtype="float32")
        assert again.settings["variance"] == {"prior": {"paper": "analytic", "laion": "fixed_small"}[preset]}
        same = again("a red cube", seed=1, steps={"prior": 6}, stop_after="prior", progress=False).embeddings
        assert torch.equal(same, drawn[preset])
    assert not torch.equal(drawn["paper"], drawn["laion"])


def test_only_the_clamp_tells_two_presets_apart(pipe: DALLE2, tmp_path: Path) -> None:
    """Karlo's and diffusers' priors: the same draws until an x_0 leaves ±5."""
    pipe.save_pretrained(tmp_path)
    drawn = {}
    for preset in ("karlo", "diffusers"):
        chosen = Pipeline.from_pretrained(tmp_path, device="cpu", preset=preset)
        for scale in (1.0, 40.0):
            out = chosen("a red cube", seed=1, guidance=scale, stop_after="prior", progress=False)
            drawn[preset, scale] = out.embeddings
    assert torch.equal(drawn["karlo", 1.0], drawn["diffusers", 1.0])
    assert not torch.equal(drawn["karlo", 40.0], drawn["diffusers", 40.0])


def test_presets_that_cannot_be_are_one_clear_line(pipe: DALLE2, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pipe.settings
    with pytest.raises(UsageError, match=r"unknown preset 'papers'.*did you mean 'paper'"):
        pipe.use_preset("papers")
    own = PriorPreset(clamp=None, variance="fixed_small")
    short = {"paper": Preset(prior=own, settings={"steps": {"decoder": 5000}})}
    monkeypatch.setattr("t2i.pipelines.dalle2.presets", lambda: short)
    with pytest.raises(UsageError, match=r"'paper' is not for this model.*5000"):
        pipe.use_preset("paper")
    assert pipe.settings == before
    assert pipe.preset == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "  "}, "empty"),
        ({"prompt": []}, "no prompt"),
        ({"prompt": "a cube " * 2000}, "14,000 characters"),
        ({"prompt": 3}, "int"),
        ({"prompt": b"a cube"}, "must be a string or a list of them, got bytes"),
        ({"prompt": "a \udcff cube"}, "not valid UTF-8"),
        ({"negative_prompt": 3}, "negative prompt must be a string or a list of them, got int"),
        ({"negative_prompt": ["a", None], "prompt": ["a", "a"]}, "got NoneType"),
        ({"negative_prompt": "a cube " * 2000}, "negative prompt has 14,000 characters"),
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
        ({"seed": 1.5}, "seed must be a whole number.* 1.5"),
        ({"seed": "seven"}, "seven"),
        ({"steps": {1: 2}}, "unknown stage 1"),
        ({"steps": 2.5}, "2.5"),
        ({"stop_after": 3}, "unknown stage 3"),
        ({"max_batch": 2.0}, "max_batch"),
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
    with pytest.warns(UserWarning, match="griffin"):
        pipe("a red cube", negative_prompt="a griffin", seed=1, stop_after="prior", progress=False)
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1, 2]", "unknown kind of pipeline 'a list'"),
        (b'{"_class_name": ["t2i"]}', "unknown kind"),
        ({"settings": []}, "settings must hold"),
        ({"settings": {"steps": 3}}, "settings must hold"),
        ({"settings": {"step": {}}}, "did you mean 'steps'"),
        ({"settings": {"sampler": {"decoder": "dppm"}}}, "did you mean 'ddpm'"),
        ({"settings": {"steps": {"decoder": None}}}, "steps of decoder.*None"),
        ({"decoder": None}, r"decoder must be \[library, kind\] .*, got None"),
        ({"decodre": ["t2i", "decoder"]}, "did you mean 'decoder'"),
    ],
)
def test_a_damaged_index_is_one_clear_line(pipe: DALLE2, tmp_path: Path, content: bytes | dict, message: str) -> None:
    pipe.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    whole = json.loads(path.read_text())
    path.write_bytes(json.dumps(whole | content).encode() if isinstance(content, dict) else content)
    with pytest.raises(DataError, match=message) as error:
        Pipeline.from_pretrained(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["clip", "decoder", "up256"])  # without a prior it varies pictures
def test_a_chain_with_a_hole_is_refused(pipe: DALLE2, missing: str) -> None:
    with pytest.raises(UsageError, match=f"lacks {missing}"):
        DALLE2({name: part for name, part in pipe.parts.items() if name != missing}, {})


def test_a_chain_may_end_early(pipe: DALLE2) -> None:
    short = DALLE2({name: pipe.parts[name] for name in ("clip", "prior", "decoder")}, pipe.settings)
    assert short("a red cube", seed=1, progress=False)[0].size == (32, 32)
    with pytest.raises(UsageError, match="stages are prior, decoder"):
        short("a red cube", stop_after="up256", progress=False)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("prior", {"clip_dim": 24}, "prior takes embeddings of width 24, but clip gives 16"),
        ("prior", {"text_width": 64}, "prior takes text states of width 64, but clip gives 32"),
        ("prior", {"context": 8}, "prior reads 8 tokens, but clip gives 12"),
        ("decoder", {"clip_image": ClipImageConfig(dim=24)}, "decoder takes embeddings of width 24, but clip gives 16"),
        ("decoder", {"clip_image": None}, "decoder takes embeddings of width None, but clip gives 16"),
        ("decoder", {"classes": ClassesConfig(num=10)}, "decoder needs a class label"),
        ("up256", {"low_size": 16}, "up256 takes pictures of side 16, but decoder gives 32"),
        ("up1024", {"low_size": 32}, "up1024 takes pictures of side 32, but up256 gives 64"),
        ("up1024", {"text": TextPortConfig()}, "up1024 reads text"),
    ],
)
def test_stages_must_fit_together(pipe: DALLE2, name: str, changes: dict, message: str) -> None:
    part = copy.copy(pipe.parts[name])
    ports = {key: value for key, value in changes.items() if key in READ}
    part.config = with_ports(part.config, **ports) if ports else part.config.model_copy(update=changes)
    with pytest.raises(DataError, match=message):
        DALLE2({**pipe.parts, name: part}, {})


def test_float32_unless_asked_otherwise(pipe: DALLE2, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is fast at bfloat16 must not draw other pictures by default."""
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, check, lambda: True, raising=False)
    fresh = DALLE2(pipe.parts, pipe.settings)
    assert fresh.to("cpu").dtype == torch.float32
    assert fresh.to("cpu", "bfloat16").dtype == fresh.to("cpu", torch.bfloat16).dtype == torch.bfloat16
    assert fresh("a red cube", seed=1, stop_after="decoder", progress=False).recipe["dtype"] == "bfloat16"


def test_offloaded_stages_are_on_the_device_only_while_they_draw(pipe: DALLE2, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[str, str]] = []

    def note(name: str, part: torch.nn.Module, place: object = None, **_: object) -> torch.nn.Module:
        if place is not None:
            moves.append((name, str(place)))
        return part

    fresh = DALLE2(pipe.parts, pipe.settings)
    for name, part in pipe.parts.items():
        monkeypatch.setattr(part, "to", partial(note, name, part))
    fresh.to("cpu:0", offload=True)  # stands for a GPU
    assert dict(moves) == dict.fromkeys(("clip", "prior", "decoder", "up256", "up1024"), "cpu")
    reads = [("clip", "cpu:0"), ("clip", "cpu")]
    moves.clear()
    fresh("a red cube", seed=1, progress=False, stop_after="up256")
    draws = [(name, place) for name in ("decoder", "up256") for place in ("cpu:0", "cpu")]
    assert moves == [("prior", "cpu:0"), *reads, ("prior", "cpu"), *draws]
    moves.clear()
    fresh.encode(Image.new("RGB", (32, 32)), steps=2, progress=False)
    assert moves == [*reads, ("decoder", "cpu:0"), ("decoder", "cpu")]
    moves.clear()
    with pytest.raises(KeyboardInterrupt):
        fresh("a red cube", seed=1, progress=False, callback=_interrupt)
    assert moves == [("prior", "cpu:0"), *reads, ("prior", "cpu")], "also where it is stopped"


def _interrupt(_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offloading_saves_memory_and_changes_nothing(pipe: DALLE2) -> None:
    fresh, peaks, drawn = DALLE2(copy.deepcopy(pipe.parts), pipe.settings), [], []
    for offload in (False, True):
        fresh.to("cuda", offload=offload)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        drawn.append(fresh("a red cube", seed=1, progress=False)[0].tobytes())
        peaks.append(torch.cuda.max_memory_allocated())
    assert drawn[0] == drawn[1]
    assert peaks[1] < peaks[0]


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_devices_are_checked_before_anything_is_loaded(
    pipe: DALLE2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    pipe.save_pretrained(tmp_path)
    monkeypatch.setattr("t2i.pipeline.base.load_stage", lambda *_, **__: pytest.fail("loaded a stage"))
    with pytest.raises(UsageError, match=f"no device '{device}'"):
        Pipeline.from_pretrained(tmp_path, device=device)
    with pytest.raises(UsageError, match=r"unknown dtype 'float33'.*did you mean 'float32'"):
        Pipeline.from_pretrained(tmp_path, device="cpu", dtype="float33")


def test_two_models_share_a_stage(pipe: DALLE2, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pipe.save_pretrained(first)
    index = json.loads((first / "model_index.json").read_text())
    for place in ("clip", "decoder", "up256", "up1024"):
        index[place] = [*index[place], f"../first/{place}"]
    second.mkdir()
    (first / "prior").rename(second / "prior")
    (second / "model_index.json").write_text(json.dumps(index))
    shared = Pipeline.from_pretrained(second, device="cpu")
    assert shared.weights == pipe.weights
    assert (
        shared("a red cube", seed=1, progress=False)[0].tobytes()
        == pipe("a red cube", seed=1, progress=False)[0].tobytes()
    )
    for wrong in ([3], [str(first / "clip")], ["../first/clip", "more"]):
        index["clip"][2:] = wrong
        (second / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(DataError, match=r"clip lies at .* which is no relative path"):
            Pipeline.from_pretrained(second)
    index["clip"][2:] = ["../nowhere"]
    (second / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="nowhere"):
        Pipeline.from_pretrained(second)


def test_recipes_name_the_model_wherever_they_are_read(
    pipe: DALLE2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = DALLE2.assemble(_saved(pipe, tmp_path / "first"))
    assert made.source == ""
    made.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert made.source == "", "other weights than those that draw"
    made.save_pretrained(tmp_path / "second")
    assert made.source == str(tmp_path / "second")
    monkeypatch.chdir(tmp_path)
    assert Pipeline.from_pretrained("second", device="cpu").source == str(tmp_path / "second")


def _saved(pipe: DALLE2, folder: Path) -> dict[str, Path]:
    pipe.save_pretrained(folder)
    return {name: folder / name for name in pipe.parts}


def test_a_bundled_model_keeps_its_name(pipe: DALLE2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.hub.hub.asset", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr("t2i.hub.hub.models", lambda: {"shapes": models()["shapes"]})
    with pytest.raises(DataError, match=r"'shapes' are missing from .*weights"):
        Pipeline.from_pretrained("shapes")
    pipe.save_pretrained(tmp_path / "weights" / "shapes")
    assert Pipeline.from_pretrained("shapes", device="cpu").source == "shapes"


def test_unknown_names_get_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'shapes'"):
        Pipeline.from_pretrained("shape")
    with pytest.raises(UsageError, match="model_index"):
        Pipeline.from_pretrained(tmp_path)
