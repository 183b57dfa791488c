"""Pictures taken apart and put together again: what comes back, what stays the same, and what is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_clip
from PIL import Image

from t2i.core.errors import DataError, UsageError
from t2i.pipeline.inputs import Latent
from t2i.pipeline.output import recipe_in
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.clip.model import ClipEncoder

QUICK = {"steps": {"decoder": 10}, "stop_after": "decoder", "progress": False}


def pixels(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


def far(a: object, b: object) -> float:
    return float(np.abs(pixels(a) - pixels(b)).mean())


def picture(seed: int = 0, side: int = 32) -> Image.Image:
    """Blobs, as a small network knows nothing of the world."""
    noise = np.random.RandomState(seed).randint(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def exact(pipe: DALLE2) -> DALLE2:
    """The small pipeline with a decoder that has learned something: data from N(0.2, 0.3²), shifted by z_i, whose best
    denoiser is known in closed form."""
    known = copy.deepcopy(pipe)
    model = known.parts["decoder"]
    full = model.config.diffusion.process()

    def best(x: torch.Tensor, t: torch.Tensor, condition: object) -> torch.Tensor:
        signal, sigma = full.at("sqrt_alpha_bar", t, x), full.at("sqrt_one_minus_alpha_bar", t, x)
        mean = 0.2 + 0.1 * condition.vector[:, :1, None, None].tanh()  # type: ignore[attr-defined]
        gain = signal * 0.09 / (signal**2 * 0.09 + sigma**2)
        x_0 = mean + gain * (x - signal * mean)
        eps = (x - signal * x_0) / sigma
        return torch.cat([signal * eps - sigma * x_0, torch.zeros_like(x)], dim=1)

    model.forward = best  # type: ignore[method-assign]
    return known


@pytest.fixture(scope="module")
def latent(exact: DALLE2) -> Latent:
    return exact.encode([picture(0), picture(1)], steps=10, progress=False)


def test_encode_gives_clips_embedding_and_noise_of_the_decoders_size(exact: DALLE2, latent: Latent) -> None:
    assert latent.z_i.shape == (2, 16)
    assert latent.x_T.shape == (2, 3, 32, 32)
    torch.testing.assert_close(latent.z_i.norm(dim=1), torch.ones(2))
    pixels_of = torch.from_numpy(pixels(picture(1))).permute(2, 0, 1).float()[None] / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(latent.z_i[1:], exact.clip.encode_image(pixels_of))
    alone = exact.encode(picture(1), steps=10, progress=False)
    torch.testing.assert_close(alone.x_T, latent.x_T[1:], atol=1e-4, rtol=1e-4)
    one_by_one = exact.encode([picture(0), picture(1)], steps=10, progress=False, max_batch=1)
    torch.testing.assert_close(one_by_one.x_T, latent.x_T, atol=1e-4, rtol=1e-4)


def test_pictures_come_back_the_nearer_the_more_steps_and_corrections(exact: DALLE2) -> None:
    def error(steps: int, corrections: int) -> float:
        found = exact.encode(picture(), steps=steps, corrections=corrections, progress=False)
        return far(exact.reconstruct(found, **QUICK | {"steps": {"decoder": steps}})[0], picture())

    plain = [error(steps, 0) for steps in (5, 20, 80)]
    assert plain[0] > 2 * plain[1] > 4 * plain[2]
    assert error(20, 1) < plain[1] / 2
    assert error(20, 3) < 1, "one grey level"


def test_a_picture_of_another_size_or_in_a_file_is_the_same_picture(exact: DALLE2, tmp_path: Path) -> None:
    picture(0, 96).save(tmp_path / "a.png")
    large, file = exact.encode(picture(0, 96), steps=4, progress=False), exact.encode(tmp_path / "a.png", steps=4)
    assert torch.equal(large.x_T, file.x_T)
    assert torch.equal(large.z_i, file.z_i)
    assert large.x_T.shape == (1, 3, 32, 32)


def test_the_way_goes_on_through_the_upsamplers(exact: DALLE2) -> None:
    out = exact.reconstruct([picture(0), picture(1)], seed=3, steps={"decoder": 4}, progress=False)
    assert [image.size for image in out] == [(128, 128)] * 2
    assert out.seeds == [3, 4]
    assert set(out.timings) == {"decoder", "up256", "up1024"}
    assert exact.reconstruct(picture(), stop_after="up256", steps=2, progress=False)[0].size == (64, 64)


def test_without_noise_variations_are_the_reconstruction(exact: DALLE2, latent: Latent) -> None:
    back = exact.reconstruct(latent, **QUICK)
    still = exact.variations(latent, 2, eta=0, guidance=1, seed=1, **QUICK)
    for i, image in enumerate(still):
        assert far(image, back[i // 2]) < 0.5
    assert torch.equal(still.embeddings, latent.z_i.repeat_interleave(2, 0))


def test_variations_differ_by_seed_and_more_with_more_noise(exact: DALLE2, latent: Latent) -> None:
    first = latent[:1]
    drawn = exact.variations(first, 3, eta=1.0, guidance=1, seed=5, **QUICK)
    assert drawn.seeds == [5, 6, 7]
    assert len({image.tobytes() for image in drawn}) == 3
    again = exact.variations(first, 1, eta=1.0, guidance=1, seed=6, **QUICK)
    assert far(again[0], drawn[1]) < 0.5
    distance = [far(exact.variations(first, 1, eta=e, guidance=1, seed=5, **QUICK)[0], picture()) for e in (0, 0.3, 1)]
    assert distance[0] < distance[1] < distance[2]


def test_an_interpolation_begins_and_ends_with_its_pictures(exact: DALLE2, latent: Latent) -> None:
    back = exact.reconstruct(latent, **QUICK)
    drawn = exact.interpolate(latent[:1], latent[1:], 5, seed=2, **QUICK)
    assert far(drawn[0], back[0]) < 0.5
    assert far(drawn[4], back[1]) < 0.5
    assert far(drawn[2], back[0]) > 5
    torch.testing.assert_close(drawn.embeddings.norm(dim=1), torch.ones(5))
    steps = (drawn.embeddings[1:] * drawn.embeddings[:-1]).sum(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(4), atol=1e-4, rtol=0)
    assert drawn.seeds == [2] * 5


def test_fixed_noise_is_one_for_all_and_inverts_nothing(exact: DALLE2, latent: Latent) -> None:
    stages: list[str] = []
    how = QUICK | {"seed": 2, "noise": "fixed"}
    fixed = exact.interpolate(picture(0), picture(1), 3, callback=lambda p: stages.append(p.stage), **how)
    assert set(stages) == {"decoder"}
    same = exact.interpolate(latent[:1], latent[1:], 3, **how)
    assert all(far(a, b) < 0.5 for a, b in zip(fixed, same, strict=True))
    assert far(fixed[0], exact.interpolate(picture(0), picture(1), 3, **how | {"seed": 3})[0]) > 5


def test_a_sentence_is_an_end_too(exact: DALLE2, latent: Latent) -> None:
    drawn = exact.interpolate(latent[:1], "a red cube", 3, seed=4, **QUICK)
    said = exact("a red cube", seed=4, stop_after="prior", progress=False)
    torch.testing.assert_close(drawn.embeddings[2:], said.embeddings, atol=1e-6, rtol=0)
    assert far(drawn[0], exact.reconstruct(latent[:1], **QUICK)[0]) < 0.5
    assert drawn.recipe["arguments"]["b"] == ["a red cube"] * 3


def test_the_path_of_a_picture_is_no_sentence(
    exact: DALLE2, latent: Latent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    how = QUICK | {"seed": 4, "noise": "fixed"}
    wanted = exact.interpolate(picture(0), picture(1), 2, **how)
    for name, kind in (("b.PNG", "PNG"), ("a blue cube", "PNG"), ("b.tif", "TIFF")):
        picture(1).save(name, kind)
        drawn = exact.interpolate(picture(0), name, 2, **how)
        assert torch.equal(drawn.embeddings, wanted.embeddings)
        assert "b" not in drawn.recipe["arguments"]
    for name in ("none.png", "none.avif", "none.Tiff"):
        with pytest.raises(DataError, match=f"{name} does not exist"):
            exact.interpolate(picture(0), name, 2, **how)


def test_a_text_diff_begins_with_the_picture_and_turns_towards_the_text(exact: DALLE2, latent: Latent) -> None:
    drawn = exact.text_diff(latent[:1], "a red cube", "a blue cube", theta=0.4, n=3, guidance=1.0, **QUICK)
    back = exact.reconstruct(latent[:1], **QUICK)[0]
    assert far(drawn[0], back) < 0.5
    unturned = {"theta": 0, "n": 1, "guidance": 1.0, **QUICK}
    assert far(exact.text_diff(latent[:1], "a red cube", "a blue cube", **unturned)[0], back) < 0.5
    z_t = exact.clip.encode_text(["a red cube", "a blue cube"]).pooled.detach()
    z_d = F.normalize(z_t[1] - z_t[0], dim=0)
    near = [float(z @ z_d) for z in drawn.embeddings]
    angles = [float(torch.acos(torch.tensor(value))) for value in near]
    whole = float(torch.acos(latent.z_i[0] @ z_d))
    assert angles == pytest.approx([whole, 0.8 * whole, 0.6 * whole], abs=1e-3)
    last = exact.text_diff(latent[:1], "a red cube", "a blue cube", theta=0.4, n=1, **QUICK)
    torch.testing.assert_close(last.embeddings, drawn.embeddings[2:])
    from_nothing = exact.text_diff(latent[:1], "", "a blue cube", n=2, **QUICK)
    assert not torch.allclose(from_nothing.embeddings[1], drawn.embeddings[2], atol=1e-2)


def test_all_components_are_the_picture_and_fewer_are_further_away(exact: DALLE2, latent: Latent) -> None:
    embeddings = F.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    drawn = exact.probe(latent[:1], embeddings, (1, 6, 16), **QUICK)
    assert far(drawn[2], exact.reconstruct(latent[:1], **QUICK)[0]) < 0.5
    cosines = (drawn.embeddings @ latent.z_i[0]).tolist()
    assert cosines[0] < cosines[1] < cosines[2] == pytest.approx(1)
    assert drawn.recipe["arguments"]["components"] == [1, 6, 16]


def test_embeddings_that_are_not_of_unit_norm_stay_as_long_as_they_are(pipe: DALLE2) -> None:
    bare = copy.deepcopy(pipe)
    config = bare.clip.config.model_copy(update={"unit_norm": False})
    clip = ClipEncoder(config)
    clip.load_state_dict(small_clip().state_dict())
    bare.parts["clip"] = clip.eval()
    found = bare.encode(picture(), steps=2, progress=False)
    length = found.z_i.norm(dim=1)
    assert abs(float(length) - 1) > 0.05
    drawn = bare.text_diff(found, "a red cube", "a blue cube", n=3, **QUICK | {"steps": 2})
    torch.testing.assert_close(drawn.embeddings.norm(dim=1), length.expand(3))


def test_a_recipe_tells_all_but_the_picture(exact: DALLE2, latent: Latent, tmp_path: Path) -> None:
    out = exact.variations(latent, 2, eta=0.5, seed=9, max_batch=3, **QUICK)
    recipe = json.loads(json.dumps(out.recipe_of(3)))
    assert recipe["task"] == "variations"
    assert recipe["picture"] == 0
    arguments = recipe["arguments"]
    assert arguments["eta"] == [0.5]
    assert arguments["seed"] == [12]
    assert arguments["steps"] == {"decoder": 10}
    assert arguments["sampler"] == {"decoder": "ddim"}
    for path in out.save(tmp_path / "a.png"):
        with pytest.raises(UsageError, match=r"another picture \(variations\)"):
            recipe_in(path)


def test_a_bar_and_a_callback_see_the_way_there_and_back(exact: DALLE2) -> None:
    seen: list[tuple[str, int]] = []
    how = QUICK | {"steps": {"decoder": 4}, "callback": lambda p: seen.append((p.stage, p.step))}
    exact.reconstruct(picture(), **how)
    assert seen == [("invert", i) for i in (1, 2, 3)] + [("decoder", i) for i in (1, 2, 3, 4)]


def latent_of(z_i: torch.Tensor, size: int = 32) -> Latent:
    return Latent(z_i, torch.zeros(len(z_i), 3, size, size))


UNIT = torch.eye(16)[:1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.variations(Image.new("RGB", (0, 0))), "the picture has no pixels: 0 × 0"),
        (lambda p: p.encode(3), "PIL picture or the path of one, got int"),
        (lambda p: p.encode([]), "no picture given"),
        (lambda p: p.encode(Image.new("RGB", (30, 40))), "must be square, got 30 × 40"),
        (lambda p: p.encode(picture(), steps=0), "steps of decoder"),
        (lambda p: p.encode(picture(), steps=1), "at least 2 to invert a picture, got 1"),
        (lambda p: p.encode(picture(), corrections=-1), "corrections must be a whole number from 0 to 100, got -1"),
        (lambda p: p.encode(picture(), max_batch=0), "max_batch must be a whole number of at least 1"),
        (lambda p: p.reconstruct(latent_of(torch.eye(8)[:1])), r"z_i \(1, 8\)"),
        (lambda p: p.reconstruct(latent_of(UNIT, 16)), r"x_T \(1, 3, 16, 16\) are not this model's"),
        (lambda p: p.interpolate(picture(), latent_of(UNIT, 16)), r"x_T \(1, 3, 16, 16\) are not this model's"),
        (lambda p: p.reconstruct(latent_of(2 * UNIT)), "length 1, but there is a z_i of length 2"),
        (lambda p: p.reconstruct(latent_of(UNIT * torch.nan)), "NaN"),
        (lambda p: p.reconstruct(latent_of(UNIT), stop_after="prior"), "unknown stage 'prior'; stages are decoder"),
        (lambda p: p.reconstruct(latent_of(UNIT), steps={"prior": 3}), "unknown stage 'prior'"),
        (lambda p: p.reconstruct(latent_of(UNIT), seed=[1, 2]), "2 seeds for 1 pictures"),
        (lambda p: p.variations(latent_of(UNIT), eta=1.5), "eta must be a number from 0 to 1, got 1.5"),
        (lambda p: p.variations(latent_of(UNIT), 0), "n must be a whole number of at least 1"),
        (lambda p: p.interpolate(latent_of(UNIT), latent_of(UNIT), 1), "at least 2, got 1"),
        (lambda p: p.interpolate(latent_of(UNIT), latent_of(UNIT), noise="none"), "known are slerp and fixed"),
        (lambda p: p.interpolate([picture(), picture()], picture()), "expected one picture, got 2"),
        (lambda p: p.interpolate(latent_of(UNIT), latent_of(UNIT)), "length 0"),
        (lambda p: p.interpolate(latent_of(UNIT), " ", noise="fixed"), "the prompt is empty"),
        (lambda p: p.text_diff(latent_of(UNIT), "a cube", ""), "the prompt is empty"),
        (lambda p: p.text_diff(latent_of(UNIT), None, "a cube"), "must be a string, got NoneType"),
        (lambda p: p.text_diff(latent_of(UNIT), "a cube", "a cube"), "embedded at the same place"),
        (
            lambda p: p.text_diff(latent_of(UNIT), "a cube", "a sphere", theta=-0.1),
            "theta must be a number from 0 to 1",
        ),
        (lambda p: p.probe(latent_of(UNIT), torch.randn(4, 16), (4,)), "keep 4 of 3 components"),
        (lambda p: p.probe(latent_of(UNIT), torch.randn(20, 8), (4,)), r"are \(N, 16\), got \(20, 8\)"),
        (lambda p: p.probe(latent_of(UNIT), torch.randn(20, 16).tolist(), (4,)), r"are \(N, 16\), got list"),
        (lambda p: p.probe(latent_of(UNIT), torch.randn(20, 16), ()), r"a list of numbers, got \(\)"),
        (lambda p: p.probe(latent_of(UNIT), torch.randn(20, 16), 5), "a list of numbers, got 5"),
        (lambda p: p.probe(latent_of(UNIT), torch.randn(20, 16), (0,)), "components must be a whole number"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(pipe: DALLE2, call: Callable[[DALLE2], object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        call(pipe)
    assert "\n" not in str(error.value)


def test_parts_that_are_missing_are_told(pipe: DALLE2) -> None:
    small = DALLE2({name: pipe.parts[name] for name in ("clip", "prior")}, {}).to("cpu")
    with pytest.raises(UsageError, match="draws embeddings, not pictures"):
        small.variations(picture())
    with pytest.raises(UsageError, match="draws embeddings, not pictures"):
        small.encode(picture())
    wordless = DALLE2({name: pipe.parts[name] for name in ("clip", "decoder")}, {}).to("cpu")
    assert len(wordless.variations(picture(), 2, seed=1, **QUICK)) == 2
    with pytest.raises(UsageError, match="no prior, so it draws no sentences"):
        wordless.interpolate(picture(), "a red cube", **QUICK)
    reads_only = copy.copy(wordless)
    reads_only.parts = wordless.parts | {"clip": ClipEncoder(pipe.clip.config.model_copy(update={"vision": None}))}
    with pytest.raises(UsageError, match="without its image encoder"):
        reads_only.variations(picture(), **QUICK)
