"""The prior of DALLE2-pytorch gives the reference's numbers in eras C and D, which its keys do not tell apart; A and B
differ from C by what is known of them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_tools import check, fill_state_dict, load_case, make_input
from manifests import UNCLIP, manifests, shapes, state
from torch import Tensor

from t2i.convert.convert import convert_files, recognise
from t2i.core.errors import UsageError
from t2i.core.types import Condition, TextFeatures
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.sphere import best_of
from t2i.stages.dalle2_pytorch.grid import grid
from t2i.stages.dalle2_pytorch.prior.convert import config_from, layout
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior, LaionPriorConfig, LargestNorm
from t2i.stages.dalle2_pytorch.prior.sample import chain
from t2i.stages.registry import load_stage

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
    assert grid("prior", 5, 1000)[::-1] == case["facts"]["times"]
    chained, sampling = text(i, "chain_"), Sampling(steps=5)
    z_i = chain(model, model.condition(chained), None, sampling, i["noise"].of(2))
    check(want["final_state"], z_i * model.scale, "final_state")
    check(want["image_embed"], z_i, "image_embed")
    doubled = TextFeatures(*(x.repeat_interleave(2, dim=0) for x in chained))
    four = chain(model, model.condition(doubled), None, sampling, i["best_of_noise"].of(4))
    check(want["best_of_2"], best_of(four.view(2, 2, -1).transpose(0, 1), chained.pooled, by="cosine"), "best_of_2")
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
    assert grid("prior", 5, 1000, first=-1)[::-1] == case["facts"]["times"]
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
    torch.save({"ema_model": weights(old), "model": {"w": torch.zeros(1)}}, tmp_path / "old.pth")
    torch.save(weights(new), tmp_path / "new.pth")
    with pytest.raises(UsageError, match=r"old\.pth: .*give era=B .* era=C .* or era=D"):
        convert_files([tmp_path / "old.pth"], tmp_path / "out")
    done = convert_files([tmp_path / "old.pth"], tmp_path / "out", given=["era=C"])
    assert done.stage == "laion_prior"
    model: Any = load_stage(tmp_path / "out", expect="laion_prior")
    assert model.config.era == "C"
    convert_files([tmp_path / "new.pth"], tmp_path / "new")
    assert load_stage(tmp_path / "new").config.era == "D"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="era=C, but its keys are those of era D"):
        convert_files([tmp_path / "new.pth"], tmp_path / "other", given=["era=C"])


@pytest.fixture
def random_text() -> TextFeatures:
    """Two sentences of five places, the second of two words."""
    draw = torch.Generator().manual_seed(1)
    sequence, mask = torch.randn(2, 5, 16, generator=draw), torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    return TextFeatures(torch.randn(2, 16, generator=draw), sequence, mask)


def older(case: dict[str, Any], gain: str = "g") -> dict[str, Tensor]:
    """Weights of a golden case as they would have been saved before 12 July 2022, with `gain` for the norms."""
    state = {k.replace(".g", f".{gain}"): v for k, v in weights(case).items() if k != "net.null_text_embed"}
    if gain == "gamma":
        state |= {k.replace(".gamma", ".beta"): torch.zeros_like(v) for k, v in state.items() if k.endswith(".gamma")}
        state |= {k: torch.ones(9) for k in ("betas", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef1")}
    return state


@pytest.mark.parametrize(("era", "gain", "factor"), [("A", "gamma", 128.0), ("A", "g", 128.0), ("B", "g", 1 / 8)])
@torch.no_grad()
def test_eras_a_and_b_differ_from_c_by_the_scale_of_the_bias(era: str, gain: str, factor: float) -> None:
    """Norms that divide by the largest value first differ from others by epsilon alone, while that is positive."""
    case = load("dev-d2p-prior-era-c")
    old, state, i = built(case, "C"), older(case, gain), {k: make_input(r) for k, r in case["inputs"].items()}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    config = config_from(shapes, era).model_copy(update={"context": old.config.context})  # type: ignore[arg-type]
    model = LaionPrior(config).eval()
    model.load_state_dict(layout("small", config, gain).convert(state))
    features = text(i)
    words = torch.where(features.mask[..., None], features.sequence, 0.3 * features.sequence[:, :1])
    features = features._replace(sequence=words, mask=torch.ones_like(features.mask))  # padding is different in C
    want = old(i["x"], i["t"], old.condition(features))
    assert not torch.allclose(model(i["x"], i["t"], model.condition(features)), want, rtol=0.05, atol=0.05)
    model.bias.weight.mul_(factor)
    torch.testing.assert_close(model(i["x"], i["t"], model.condition(features)), want, rtol=2e-3, atol=2e-3)


def test_norms_divide_by_the_largest_value_and_its_sign_where_they_did() -> None:
    for era, count in {"A": 0, "B": 4 * 2 + 1, "C": 1, "D": 1}.items():
        config = LaionPriorConfig(era=era, clip_dim=8, layers=2, heads=1, head_width=2)  # type: ignore[arg-type]
        found = [name for name, part in LaionPrior(config).named_modules() if isinstance(part, LargestNorm)]
        assert len(found) == count
        assert count != 1 or found == ["norm"]
    x = torch.tensor([[-3.0, -1.0, -2.0], [3.0, 1.0, 2.0]])
    model = LaionPrior(LaionPriorConfig(era="B", clip_dim=3, layers=1, heads=1, head_width=2))
    negative, positive = model.attentions[0].norm(x)
    torch.testing.assert_close(negative, positive, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(positive, torch.tensor([1.0, -1.0, 0.0]) * 1.5**0.5, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_places_without_a_word_are_hidden_in_eras_a_and_b(random_text: TextFeatures) -> None:
    torch.manual_seed(0)
    config = LaionPriorConfig(era="A", clip_dim=16, context=9, layers=2, heads=2, head_width=8)
    model, x = LaionPrior(config).eval(), torch.randn(2, 16)
    t = torch.tensor([3, 900])
    said = model(x, t, model.condition(random_text))
    hidden = torch.where(random_text.mask[..., None], random_text.sequence, torch.randn(2, 5, 16))
    torch.testing.assert_close(model(x, t, model.condition(random_text._replace(sequence=hidden))), said)
    seen = torch.where(random_text.mask[..., None], torch.randn(2, 5, 16), random_text.sequence)
    assert not torch.allclose(model(x, t, model.condition(random_text._replace(sequence=seen))), said, atol=1e-3)
    null, condition = model(x, t, model.null_condition(2)), model.condition(random_text)
    assert condition.mask is not None
    nobody = Condition(sequence=condition.sequence, mask=torch.zeros_like(condition.mask))
    torch.testing.assert_close(model(x, t, nobody), null)
    assert not torch.allclose(null, said, atol=1e-3)
    both = LaionPrior(config.model_copy(update={"era": "B"})).eval()
    assert both(x, t, both.condition(random_text)).isfinite().all()
    assert both(x, t, both.null_condition(2)).isfinite().all()


@pytest.mark.parametrize(
    ("gain", "eras", "want"),
    [
        ("gamma", "", ("A", "masked")),
        ("g", "era=A .*or era=B", ("B", "masked")),
        ("padding", "era=B .*era=C .*era=D", ("C", "learned")),
        ("padding", "era=B .*era=C .*era=D", ("D", "learned")),
    ],
)
def test_older_files_tell_their_era_or_ask_for_it(gain: str, eras: str, want: tuple[str, str], tmp_path: Path) -> None:
    case = load("dev-d2p-prior-era-c")
    state = weights(case) if gain == "padding" else older(case, gain)
    torch.save(state, tmp_path / "prior.pth")
    if eras:
        with pytest.raises(UsageError, match=eras):
            convert_files([tmp_path / "prior.pth"], tmp_path / "out")
    convert_files([tmp_path / "prior.pth"], tmp_path / "out", given=[f"era={want[0]}"] if eras else [])
    config: Any = load_stage(tmp_path / "out").config
    assert (config.era, config.null_mode) == want
    version = {"A": "0.15.4", "B": "0.23.0", "C": "1.4.2", "D": "1.8.4"}[want[0]]
    torch.save({"model": state, "version": version}, tmp_path / "told.pth")
    convert_files([tmp_path / "told.pth"], tmp_path / "told")
    assert load_stage(tmp_path / "told").config == config


def test_an_era_knows_only_its_own_ways_of_saying_nothing() -> None:
    usual = {era: LaionPriorConfig(era=era).null_mode for era in ("A", "B", "C", "D")}  # type: ignore[arg-type]
    assert usual == {"A": "masked", "B": "masked", "C": "learned", "D": "nulls"}
    with pytest.raises(ValueError, match="null_mode=nulls, but in era A it was masked"):
        LaionPriorConfig(era="A", null_mode="nulls")
