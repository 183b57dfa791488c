"""Pipelines without sentences: unconditional, by class, and steered by a classifier."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import MASKED, adm, classes, classifier, ddpm, decoder, of, upsampler

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.diffusion.config import Diffusion, Noise
from t2i.io.provenance import read_recipe
from t2i.pipeline.base import Pipeline
from t2i.pipelines.adm import ADM
from t2i.pipelines.ddpm import DDPM
from t2i.stages.decoder.model import Decoder


def pixels(image: object) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_unconditional_pictures(tmp_path: Path) -> None:
    pipe = ddpm()
    out = pipe(num_images=3, seed=4, progress=False)
    assert [image.size for image in out] == [(16, 16)] * 3
    assert (out.seeds, out.prompts) == ([4, 5, 6], ["", "", ""])
    assert np.abs(pixels(pipe(seed=6, progress=False)[0]) - pixels(out[2])).max() <= 1
    again = pipe(**json.loads(json.dumps(out.recipe_of(1)))["arguments"], progress=False)
    assert again[1].tobytes() == out[1].tobytes()


def test_ancestral_sampling_is_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Algorithm 2 of Ho et al. written out, on the pipeline's network and noise."""
    pipe = ddpm(
        decoder=decoder(unet=of(out_channels=3), diffusion=Diffusion(variance="fixed_small", schedule="linear"))
    )
    model, [drawn] = pipe.parts["decoder"], pipe(seed=9, progress=False)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = [0, 333, 666, 999]
    alpha_bar = torch.cumprod(1 - beta, 0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    streams = Streams([9], "decoder")
    x = streams.normal(3, 16, 16).double()
    for i in reversed(range(4)):
        with torch.no_grad():
            eps = model(x.float(), torch.tensor([kept[i]])).double()
        b = 1 - alpha_bar[i] / before[i]
        x_0 = ((x - (1 - alpha_bar[i]).sqrt() * eps) / alpha_bar[i].sqrt()).clamp(-1, 1)
        mean = before[i].sqrt() * b / (1 - alpha_bar[i]) * x_0
        mean = mean + (1 - b).sqrt() * (1 - before[i]) / (1 - alpha_bar[i]) * x
        noise = streams.normal(3, 16, 16).double() if i else 0
        x = mean + (b * (1 - before[i]) / (1 - alpha_bar[i])).sqrt() * noise
    expected = ((x[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    assert np.abs(expected - pixels(drawn)).max() <= 1


def test_classes_by_number_and_by_name() -> None:
    pipe = adm()
    out = pipe([2, "cube"], num_images=2, seed=1, progress=False)
    assert out.prompts == ["red cube", "red cube", "cube", "cube"]
    assert out.recipe["arguments"]["classes"] == [2, 2, 0, 0]
    by_name = pipe("red cube", num_images=2, seed=1, progress=False)
    assert [image.tobytes() for image in by_name] == [out[0].tobytes(), out[1].tobytes()]
    other = pipe(1, seed=1, progress=False)
    assert other[0].tobytes() != by_name[0].tobytes()


def test_names_that_are_numbers_are_names() -> None:
    """Folders `0`, `1`, `10`, `2` sort as text: class "10" is the third."""
    pipe = adm(decoder=decoder(ports=classes(4, ("0", "1", "10", "2"))))
    assert pipe(["10", "2", 2], seed=0, steps=2, progress=False).recipe["arguments"]["classes"] == [2, 3, 2]


@pytest.mark.parametrize("max_batch", [1, 2, 8])
def test_a_picture_is_the_same_in_any_batch(max_batch: int) -> None:
    pipe = adm(classifier=classifier(), upsampler=upsampler(ports=classes()))
    asked = [0, 1, 2, 1, 0]
    together = pipe(asked, seed=3, guidance=20.0, max_batch=max_batch, progress=False)
    for i in (1, 4):
        alone = pipe(asked[i], seed=3 + i, guidance=20.0, progress=False)
        assert np.abs(pixels(alone[0]) - pixels(together[i])).max() <= 1


def test_seeds_choose_classes_where_none_is_given() -> None:
    pipe = adm()
    out = pipe(num_images=12, seed=0, progress=False, steps=2)
    assert len(set(out.prompts)) == 3
    assert pipe(seed=5, progress=False, steps=2).prompts == [out.prompts[5]]


def test_a_classifier_steers() -> None:
    pipe = adm(classifier=classifier())
    plain = pipe(1, seed=3, guidance=0, progress=False)
    assert plain[0].tobytes() == adm()(1, seed=3, progress=False)[0].tobytes()
    assert plain.recipe["arguments"]["guidance"] == {"decoder": 1.0, "classifier": 0.0}
    judge, found = pipe.parts["classifier"], []
    for scale in (0.0, 30.0, 300.0):
        image = pipe(1, seed=3, guidance=scale, progress=False, sampler="ddim")[0]
        x = torch.from_numpy(pixels(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        found.append(judge.log_probability(x, torch.zeros(1, dtype=torch.long), torch.tensor([1])).item())
    assert found == sorted(found)
    assert found[2] > found[0] + 0.01


def test_an_unconditional_decoder_draws_classes_if_a_classifier_steers_it() -> None:
    pipe = ADM({"decoder": decoder(), "classifier": classifier()}, {"steps": {"decoder": 3}}).to("cpu", "float32")
    a, b = (pipe(c, seed=0, guidance=200.0, progress=False)[0].tobytes() for c in (0, 1))
    assert a != b
    with pytest.raises(UsageError, match="neither a prompt nor a class"):
        ADM({"decoder": decoder()}, {})(1, progress=False)


def test_classifier_free_guidance_needs_an_absent_class() -> None:
    pipe = adm(decoder=decoder(ports=classes(null_class=True)))
    a, b = (pipe(1, seed=0, guidance=g, progress=False)[0].tobytes() for g in (1.0, 4.0))
    assert a != b, "one number is the decoder's guidance where there is no classifier"
    with pytest.raises(UsageError, match="knows no absent class"):
        adm()(1, guidance=2.0, progress=False)
    with pytest.raises(UsageError, match="knows no absent class"):
        adm(classifier=classifier())(1, guidance={"decoder": 2.0}, progress=False)


def test_the_upsampler_is_told_the_class(tmp_path: Path) -> None:
    pipe = adm(upsampler=upsampler(ports=classes(), levels="truncated"), classifier=classifier())
    out = pipe(2, seed=0, progress=False)
    assert out[0].size == (32, 32)
    assert pipe(2, seed=0, stop_after="decoder", progress=False)[0].size == (16, 16)
    out.save(tmp_path / "a.png")
    assert read_recipe(tmp_path / "a.png")["arguments"]["stop_after"] == "upsampler"
    pipe.save_pretrained(tmp_path / "model")
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert isinstance(loaded, ADM)
    assert loaded(2, seed=0, progress=False)[0].tobytes() == out[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 3}, "class 3 is out of range: this model knows 0 … 2"),
        ({"classes": -1}, "class -1 is out of range"),
        ({"classes": "spere"}, "unknown class 'spere', did you mean 'sphere'"),
        ({"classes": "²"}, "unknown class '²'"),
        ({"classes": "--5"}, "unknown class '--5'"),
        ({"classes": 1.5}, "a class must be a whole number or a name, got 1.5"),
        ({"classes": []}, "no class given"),
        ({"classes": True}, "out of range"),
        ({"num_images": 0}, "num_images must be a whole number"),
        ({"steps": 0}, "steps of decoder: cannot read the steps '0'"),
        ({"sampler": "dppm"}, "did you mean 'ddpm'"),
        ({"guidance": {"clasifier": 1.0}}, "did you mean 'classifier'"),
        ({"stop_after": "up"}, "did you mean 'upsampler'|unknown stage 'up'"),
    ],
)
def test_bad_arguments_are_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    pipe = adm(classifier=classifier())
    with pytest.raises(UsageError, match=message) as error:
        pipe(**({"progress": False} | arguments))
    assert "\n" not in str(error.value)


def test_a_model_without_classes_takes_none() -> None:
    with pytest.raises(UsageError, match="neither a prompt nor a class, got 3"):
        ddpm()(3, progress=False)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"upsampler": upsampler(low_size=8)}, "upsampler takes pictures of side 8, but decoder gives 16"),
        ({"upsampler": upsampler(ports=classes(5))}, "upsampler knows 5 classes, but decoder 3"),
        ({"classifier": classifier(5)}, "classifier knows 5 classes, but decoder 3"),
        ({"classifier": classifier(image_size=32)}, "classifier was trained with image_size=32, decoder with 16"),
        ({"classifier": classifier(class_names=("sphere", "cube", "red cube"))}, "call their classes differently"),
        ({"classifier": classifier(diffusion=Noise(schedule="linear"))}, "schedule=linear, decoder with cosine"),
        ({"decoder": decoder(unet=of(image_channels=4), ports=MASKED)}, "decoder reads captions or pictures"),
    ],
)  # fmt: skip
def test_parts_must_fit_together(parts: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        adm(**parts)


def test_ddpm_has_no_place_for_a_classifier() -> None:
    with pytest.raises(UsageError, match="unknown stage 'classifier'"):
        DDPM({"decoder": decoder(), "classifier": classifier()}, {})
    assert isinstance(ddpm().parts["decoder"], Decoder)
