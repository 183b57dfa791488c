"""DALL-E 2 with an autoregressive prior: what it draws, what its recipe says, and what it has no use for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_clip, small_decoder
from small import ar_prior

from t2i.core.errors import DataError, UsageError
from t2i.pipeline.arguments import Texts
from t2i.pipeline.base import Pipeline
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.ar_prior.model import ArPrior
from t2i.stages.registry import load_stage, save_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip → autoregressive prior → decoder, put together from folders of stages."""
    path = tmp_path_factory.mktemp("ar")
    for name, kind, model in (
        ("clip", "clip", small_clip()),
        ("prior", "ar_prior", ar_prior()),
        ("decoder", "decoder", small_decoder()),
    ):
        save_stage(path / "stages" / name, kind, model)
    settings = {"steps": {"prior": 7, "decoder": 3}, "guidance": {"prior": 2.0, "decoder": 1.0}}
    stages = {name: path / "stages" / name for name in ("clip", "prior", "decoder")}
    DALLE2.assemble(stages, settings).save_pretrained(path / "model")
    return path


def test_a_pipeline_draws_with_it_from_end_to_end(folder: Path) -> None:
    index = json.loads((folder / "model" / "model_index.json").read_text())
    assert index["prior"] == ["t2i", "ar_prior"]
    assert "prior" not in index["settings"]["steps"]
    pipe = Pipeline.from_pretrained(folder / "model", device="cpu")
    calls: list[tuple[int, int]] = []
    out = pipe(
        "a red cube", num_images_per_prompt=3, seed=5, progress=False,
        callback=lambda p: calls.append((p.step, p.num_steps)) if p.stage == "prior" else None,
    )  # fmt: skip
    assert calls == [(i, 9) for i in range(1, 10)]
    assert [image.size for image in out] == [(32, 32)] * 3
    assert out.embeddings.norm(dim=1).allclose(torch.ones(3))
    alone = pipe("a red cube", seed=7, progress=False, max_batch=1)
    assert np.abs(np.asarray(alone[0]).astype(int) - np.asarray(out[2]).astype(int)).max() <= 1
    guided = pipe("a red cube", seed=7, progress=False, guidance={"prior": 6.0})
    assert not torch.allclose(guided.embeddings, alone.embeddings, atol=1e-3)


def test_its_recipe_repeats_the_picture_and_names_no_steps(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder / "model", device="cpu")
    out = pipe("a red cube", negative_prompt="a sphere", seed=5, steps=2, sampler="ddpm", progress=False)
    arguments = json.loads(json.dumps(out.recipe_of(0)))["arguments"]
    assert (arguments["steps"], arguments["sampler"]) == ({"decoder": 2}, {"decoder": "ddpm"})
    assert arguments["guidance"] == {"prior": 2.0, "decoder": 1.0}
    assert pipe(**arguments, progress=False)[0].tobytes() == out[0].tobytes()


def test_the_progress_bar_counts_its_codes(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder / "model", device="cpu")
    texts = Texts(["a"] * 3, [""] * 3, [False] * 3)
    assert pipe.request({"max_batch": 2, "progress": False}, texts=texts).bar.total == 2 * (9 + 3)


@pytest.mark.parametrize(("what", "value"), [("steps", 5), ("sampler", "ddim")])
def test_steps_for_it_by_name_are_refused(folder: Path, what: str, value: object) -> None:
    pipe = Pipeline.from_pretrained(folder / "model", device="cpu")
    with pytest.raises(UsageError, match=f"{what} of prior: this prior draws 9 codes one by one and has none"):
        pipe("a red cube", seed=1, progress=False, **{what: {"prior": value}})


def test_other_stages_in_its_place_are_refused(folder: Path) -> None:
    assert isinstance(load_stage(folder / "model" / "prior"), ArPrior)
    stages = {name: folder / "stages" / name for name in ("clip", "decoder")}
    with pytest.raises(DataError, match="holds stage decoder, expected prior or ar_prior"):
        DALLE2.assemble(stages | {"prior": folder / "stages" / "decoder"})
    with pytest.raises(DataError, match="holds stage ar_prior, expected decoder"):
        DALLE2.assemble(stages | {"prior": folder / "stages" / "prior", "decoder": folder / "stages" / "prior"})
