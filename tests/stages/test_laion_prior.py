"""The prior of DALLE2-pytorch gives the reference's numbers in both eras, which its keys do not tell apart."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_tools import check, fill_state_dict, load_case, make_input
from manifests import UNCLIP, manifests, shapes, state
from torch import Tensor

from t2i.convert import convert_files, recognise
from t2i.diffusion.sampling import Sampling
from t2i.errors import DataError, UsageError
from t2i.registry import load_stage
from t2i.stages.laion_prior.convert import config_from, layout
from t2i.stages.laion_prior.model import LaionPrior
from t2i.stages.laion_prior.sample import chain, grid, nearest
from t2i.types import TextFeatures

load = partial(load_case, "unclip_nets.json")


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    return fill_state_dict(case["weights"][0]["keys"], case["weights"][0]["overrides"])


def built(case: dict[str, Any], era: str) -> LaionPrior:
    state = weights(case)
    config = config_from({key: tuple(value.shape) for key, value in state.items()}, era)  # type: ignore[arg-type]
    model = LaionPrior(config).eval()
    model.load_state_dict(layout("small", config).convert(state))
    return model


def text(i: dict[str, Any], prefix: str = "") -> TextFeatures:
    encodings = i[f"{prefix}text_encodings"]
    return TextFeatures(i[f"{prefix}text_embed"], encodings, (encodings != 0).any(dim=-1))


@torch.no_grad()
def test_era_c() -> None:
    case = load("dev-d2p-prior-era-c")
    model, i, want = built(case, "C"), {k: make_input(r) for k, r in case["inputs"].items()}, case["outputs"]
    check(want["forward"], model(i["x"], i["t"], model.condition(text(i))), "forward")
    assert grid(model, 5) == case["facts"]["times"]
    chained, sampling = text(i, "chain_"), Sampling(steps=5)
    z_i = chain(model, model.condition(chained), None, sampling, i["noise"].of(2))
    check(want["final_state"], z_i * model.scale, "final_state")
    check(want["image_embed"], z_i, "image_embed")
    doubled = TextFeatures(*(x.repeat_interleave(2, dim=0) for x in chained))
    four = chain(model, model.condition(doubled), None, sampling, i["best_of_noise"].of(4))
    check(want["best_of_2"], nearest(four.view(2, 2, -1).transpose(0, 1), chained.pooled), "best_of_2")
    with pytest.raises(UsageError, match="guidance must be 1"):
        model.null_condition(2)


@torch.no_grad()
def test_era_d() -> None:
    case = load("dev-d2p-prior-era-d")
    model, i, want = built(case, "D"), {k: make_input(r) for k, r in case["inputs"].items()}, case["outputs"]
    c, null = model.condition(text(i)), model.null_condition(3)
    forward, without = model(i["x"], i["t"], c), model(i["x"], i["t"], null)
    check(want["forward"], forward, "forward")
    check(want["forward_null"], without, "forward_null")
    words_only = type(null)(sequence=null.sequence)
    check(want["forward_text_dropped_only"], model(i["x"], i["t"], words_only), "forward_text_dropped_only")
    check(want["forward_guided"], without + 2.5 * (forward - without), "forward_guided")
    assert grid(model, 5) == case["facts"]["times"]
    condition = model.condition(text(i, "chain_"))
    z_i = chain(model, condition, model.null_condition(2), Sampling(steps=5, guidance=2.5), i["noise"].of(2))
    check(want["image_embed"], z_i, "image_embed")


@torch.no_grad()
def test_the_wrong_era_loads_and_gives_other_numbers() -> None:
    case = load("dev-d2p-prior-era-c")
    model, i = built(case, "C"), {k: make_input(r) for k, r in case["inputs"].items()}
    for attention in model.attentions:
        attention.era = "D"
    with pytest.raises(AssertionError, match="tolerance"):
        check(case["outputs"]["forward"], model(i["x"], i["t"], model.condition(text(i))))


@pytest.mark.parametrize(("manifest", "era", "count"), [("1.1.0", "C", 101_755_024), ("1.15.6", "D", 101_756_560)])
def test_published_key_lists_load_strictly(manifest: str, era: str, count: int) -> None:
    name = f"dalle2-pytorch/prior ({manifest})"
    keys = shapes(name, UNCLIP) | {"clip.clip.visual.proj": (1024, 768)}
    found = layout("published", config_from(keys, era))  # type: ignore[arg-type]
    with torch.device("meta"):
        model = found.model(found.config)
    model.load_state_dict(found.convert(state(keys)), assign=True)
    rotary = 16  # frequencies, which the reference counts
    assert sum(p.numel() for p in model.parameters()) + rotary == manifests(UNCLIP)[name]["n_params"] == count
    if era == "C":
        assert recognise(keys, "latest.pth", "laion-prior").config == found.config


def test_the_era_is_asked_for_where_keys_cannot_tell(tmp_path: Path) -> None:
    old, new = (load(f"dev-d2p-prior-era-{era}") for era in "cd")
    torch.save({"ema_model": weights(old), "model": {"w": torch.zeros(1)}, "version": "1.1.0"}, tmp_path / "old.pth")
    torch.save(weights(new), tmp_path / "new.pth")
    with pytest.raises(UsageError, match=r"old\.pth: .*give era=C .* or era=D"):
        convert_files([tmp_path / "old.pth"], tmp_path / "out")
    done = convert_files([tmp_path / "old.pth"], tmp_path / "out", given=["era=C"])
    assert done.stage == "laion_prior"
    model: Any = load_stage(tmp_path / "out", expect="laion_prior")
    assert model.config.era == "C"
    convert_files([tmp_path / "new.pth"], tmp_path / "new")
    assert load_stage(tmp_path / "new").config.era == "D"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="era=C, but its keys are those of era D"):
        convert_files([tmp_path / "new.pth"], tmp_path / "other", given=["era=C"])
    older = {key: value for key, value in weights(old).items() if key != "net.null_text_embed"}
    torch.save(older, tmp_path / "older.pth")
    with pytest.raises(DataError, match="before 13 July 2022"):
        convert_files([tmp_path / "older.pth"], tmp_path / "other")
