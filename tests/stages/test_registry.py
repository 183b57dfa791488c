"""Every stage that the registry knows: builds small, learns, saves, and loads to the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from codec import SmallCodec
from conftest import given, small_classifier, small_clip, small_decoder, small_noised_clip, small_prior, small_upsampler
from small import ar_prior, autoencoder, captioner, consistency_decoder, rewriter, t5
from torch import nn

from t2i.core.errors import DataError, UsageError
from t2i.core.seed import upload
from t2i.core.types import Condition
from t2i.data import shapes
from t2i.nn.transformer import TextConfig
from t2i.pipeline.base import Pipeline
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder, LaionDecoderConfig
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior, LaionPriorConfig
from t2i.stages.decoder.model import Decoder
from t2i.stages.prior.model import Prior
from t2i.stages.reader.model import Reader, ReaderConfig
from t2i.stages.registry import STAGES, load_stage, outline, save_stage, stage

SMALL: dict[str, Callable[[], nn.Module]] = {
    "clip": small_clip,
    "prior": small_prior,
    "ar_prior": ar_prior,
    "laion_prior": lambda: LaionPrior(LaionPriorConfig(era="D", clip_dim=32, layers=2, heads=2, head_width=8)).eval(),
    "laion_decoder": lambda: LaionDecoder(
        LaionDecoderConfig(
            era="D",
            channels=16,
            multipliers=(1, 2),
            num_blocks=1,
            attention=(1,),
            heads=2,
            head_width=8,
            context_dim=16,
            clip_dim=16,
            clip_text_width=32,
            context=12,
            image_size=32,
        )
    ).eval(),
    "decoder": small_decoder,
    "upsampler": lambda: small_upsampler(8, 32),
    "reader": lambda: Reader(ReaderConfig(widths=(8, 8, 16), blocks=(0, 1, 1))).eval(),
    "rewriter": rewriter,
    "classifier": small_classifier,
    "noised_clip": small_noised_clip,
    "t5": t5,
    "autoencoder": autoencoder,
    "consistency_decoder": consistency_decoder,
    "captioner": captioner,
}
NEIGHBOURS: dict[str, Callable[[], Any]] = {"autoencoder": SmallCodec, "teacher": lambda: None}
"""By name, where they are not a CLIP."""


def test_no_stage_is_forgotten_here() -> None:
    assert SMALL.keys() == STAGES.keys()


def batch(count: int = 4) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(count, 3, 32, 32, generator=generator) * 2 - 1,
        "caption": ["a red cube", "a blue sphere", "a cube", "a green cube and a red sphere"][:count],
        "short": ["a red cube", "a blue sphere", "a cube", "a green cube"][:count],
        "descriptive": ["a red cube and a cube", "a blue sphere", "a", "a green cube and a red sphere"][:count],
        "label": torch.arange(count),
        "seed": list(range(count)),
        "key": [str(i) for i in range(count)],
    }


@pytest.mark.parametrize("name", STAGES)
def test_contract_of_a_task(name: str) -> None:
    encoder = small_clip(embed_dim=32 if name == "laion_prior" else 16).requires_grad_(False)
    model = SMALL[name]()
    neighbours = {need: NEIGHBOURS.get(need, lambda: encoder)() for need in stage(name).task.needs}
    task = stage(name).task(model, stage(name).options(), **neighbours)
    data = shapes.batch(range(4), 32) if name == "reader" else batch()  # what stands in its pictures must be known
    losses = task.loss(data)
    assert "loss" in losses
    assert {tuple(x.shape) for x in losses.values()} == {(4,)}
    losses["loss"].mean().backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    grid = task.sample(data)
    assert grid is None or (grid.ndim == 4 and grid.shape[1] == 3 and torch.isfinite(grid).all())
    assert grid is None or (len(grid) == 4 * len(task.groups) and torch.equal(grid[:4], data["image"]))
    if task.takes_prompts:
        own = task.draw_prompts({**data, "caption": ["a cube", "a red cube", "a sphere"], "seed": [5, 6, 5]})
        assert (own.shape[:2], torch.isfinite(own).all()) == ((3, 3), True)
    assert all(isinstance(v, float) for v in task.metrics(data).values())


@pytest.mark.parametrize("name", SMALL)
def test_save_and_load_give_the_same_stage(name: str, tmp_path: Path) -> None:
    model = SMALL[name]()
    save_stage(tmp_path, name, model)
    loaded = load_stage(tmp_path, expect=name)
    assert loaded.config == model.config
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert not loaded.training


@pytest.mark.parametrize("name", STAGES)
def test_an_outline_is_that_of_the_stage_and_draws_no_random_number(name: str) -> None:
    model: Any = SMALL[name]()
    torch.manual_seed(0)
    weights = outline(stage(name), model.config)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert {k: (v.shape, v.dtype) for k, v in weights.items()} == {
        k: (v.shape, v.dtype) for k, v in model.state_dict().items()
    }
    assert all(weight.is_meta for weight in weights.values())


def test_half_precision_on_disk_is_float32_in_memory(tmp_path: Path) -> None:
    model = small_upsampler(8, 32)
    save_stage(tmp_path, "upsampler", model, dtype=torch.bfloat16)
    loaded = load_stage(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    a, b = model.unet.conv_in.weight, loaded.unet.conv_in.weight
    torch.testing.assert_close(a, b, rtol=1 / 128, atol=1e-6)
    assert not torch.equal(a, b)


def test_another_stage_or_none_is_refused(tmp_path: Path) -> None:
    save_stage(tmp_path, "upsampler", small_upsampler(8, 32))
    with pytest.raises(DataError, match="holds stage upsampler, expected decoder"):
        load_stage(tmp_path, expect="decoder")
    with pytest.raises(UsageError, match="did you mean 'prior'"):
        stage("priro")


def test_the_decoder_hears_all_its_conditions() -> None:
    decoder: Decoder = small_decoder()
    tokens, mask = decoder.config.ports.text.tokenizer.build()(["a red cube", "a blue sphere"])
    x_t, t, z = torch.randn(2, 3, 32, 32), torch.tensor([10, 500]), torch.randn(2, 16)
    base = decoder(x_t, t, decoder.condition(given(tokens, mask, z)))
    for changed in (
        decoder.condition(given(tokens.flip(0), mask.flip(0), z)),
        decoder.condition(given(tokens, mask, z.flip(0))),
        decoder.condition(given(tokens, mask, z, clip_keep=torch.tensor([False, False]))),
        decoder.condition(given(tokens, mask, z, text_keep=torch.tensor([False, False]))),
    ):
        assert (decoder(x_t, t, changed) - base).abs().max() > 1e-4
    nothing = decoder(x_t, t, decoder.null_condition(2))
    drop = torch.zeros(2, dtype=torch.bool)
    both = decoder(x_t, t, decoder.condition(given(tokens, mask, z, clip_keep=drop, text_keep=drop)))
    torch.testing.assert_close(nothing, both)


def test_an_upsampler_takes_any_size() -> None:
    upsampler = small_upsampler(8, 32)
    for side in (8, 12, 20):
        condition = upsampler.condition(torch.rand(1, 3, side, side))
        assert upsampler(torch.randn(1, 3, 4 * side, 4 * side), torch.tensor([5]), condition).shape[-1] == 4 * side


def test_statistics_travel_with_the_prior(tmp_path: Path) -> None:
    prior = small_prior()
    save_stage(tmp_path, "prior", prior)
    loaded = load_stage(tmp_path)
    assert isinstance(loaded, Prior)
    assert loaded.calibrated
    assert torch.equal(loaded.std, prior.std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"low_size": 0}}, "low_size: input should be greater"),
        ({"model": {"unet": {"norm_groups": 7, "attention": [], "mid_attention": False}}}, "norm_groups=7"),
        ({"model": []}, "does not fit this version"),
        ({"stage": ["upsampler"]}, "names no known stage"),
    ],
)
def test_a_config_that_no_stage_can_be_built_from_is_one_line(tmp_path: Path, change: dict, message: str) -> None:
    save_stage(tmp_path, "upsampler", small_upsampler(8, 32))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        load_stage(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_brings_its_own_weights(tmp_path: Path) -> None:
    """What is opened is this folder: no model hub, no other file, whatever its config says."""
    save_stage(tmp_path, "clip", small_clip())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model"] |= {"architecture": "ViT-B-32", "pretrained": "/tmp/other.pt"}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"wants weights from elsewhere \(pretrained='/tmp/other.pt'\)$"):
        load_stage(tmp_path)


def test_a_missing_stage_is_not_taken_from_a_bundled_model_of_the_same_name(
    pipe: DALLE2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("shapes")
    assert load_stage("shapes/prior", expect="prior").config == pipe.parts["prior"].config
    Path("shapes/prior").rename("gone")
    with pytest.raises(DataError, match=r"shapes/prior/config.json does not exist"):
        Pipeline.from_pretrained("shapes")
    with pytest.raises(DataError, match="shapes is a pipeline, expected one of its stages"):
        load_stage("shapes")


def test_an_upsampler_that_would_ignore_a_setting_refuses_it() -> None:
    config = small_upsampler(8, 32).config
    text = TextConfig(width=32, layers=1, heads=1, vocab_size=20, context=8, attend_padding=False)
    unet = config.unet.model_copy(update={"context_dim": 32, "attention": (2,), "head_channels": 8})
    with pytest.raises(ValueError, match="attend_padding=False"):
        type(config)(**(dict(config) | {"text": text, "unet": unet}))


def test_conditions_of_sentences_of_other_lengths_do_not_join() -> None:
    a, b = (Condition(sequence=torch.zeros(1, length, 4)) for length in (3, 6))
    with pytest.raises(ValueError, match=r"disagree on the shape of 'sequence': \[\(3, 4\), \(6, 4\)\]"):
        Condition.cat([a, b])


def test_mistakes_of_ours_are_not_blamed_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_stage(tmp_path, "prior", small_prior())

    def wrong(error: Exception) -> Callable[..., None]:
        def init(*_: object) -> None:
            raise error

        return init

    monkeypatch.setattr(Prior, "__init__", wrong(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        load_stage(tmp_path)
    monkeypatch.setattr(Prior, "__init__", wrong(ValueError("heads=3 do not divide width=32")))
    with pytest.raises(DataError, match="does not fit this version of t2i: heads=3 do not divide width=32"):
        load_stage(tmp_path)


def test_only_a_few_missing_weights_are_named(tmp_path: Path) -> None:
    model = small_upsampler(8, 32)
    save_stage(tmp_path, "upsampler", model, {"one": torch.zeros(1)})
    with pytest.raises(DataError, match=rf"lacks '.*', '.*', '.*' and {len(model.state_dict()) - 3} more$"):
        load_stage(tmp_path)
    wrong = model.state_dict() | {"unet.conv_in.bias": torch.zeros(5)}
    save_stage(tmp_path, "upsampler", model, wrong)
    with pytest.raises(DataError, match=r"has another shape of 'unet.conv_in.bias'$"):
        load_stage(tmp_path)


def test_random_numbers_go_to_the_device_unchanged() -> None:
    x = torch.rand(3)
    assert torch.equal(upload(x, "cpu"), x)
    assert upload(x, torch.device("cpu")).device.type == "cpu"


def test_a_broken_import_in_a_stage_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_stage").mkdir()
    (tmp_path / "broken_stage" / "__init__.py").write_text("from broken_stage.presets import PRESETS\n")
    (tmp_path / "broken_stage" / "presets.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(STAGES, "broken", "broken_stage")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        stage("broken")
