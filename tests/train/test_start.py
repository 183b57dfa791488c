"""`init`: what fits of earlier weights is taken, and what starts anew is named."""

import logging
from pathlib import Path

import pytest
import torch
from conftest import small_upsampler
from PIL import Image
from torch import nn

from t2i.core.errors import UsageError
from t2i.run import load_run, made_by, start_from, train
from t2i.stages.registry import load_stage, save_stage, stage
from t2i.train.start import modules, take_what_fits


def test_what_fits_is_taken_and_the_rest_keeps_its_values() -> None:
    before = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.LayerNorm(4))
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5), nn.Identity(), nn.Linear(1, 1))
    own = {name: value.clone() for name, value in model.state_dict().items()}
    start = take_what_fits(model, before.state_dict(), before.state_dict())
    now = model.state_dict()
    assert start.taken == {"0.weight", "0.bias"}
    assert all(torch.equal(now[name], before.state_dict()[name]) for name in start.taken)
    assert all(torch.equal(now[name], own[name]) for name in own if name not in start.taken)
    assert str(start) == "2 of 6 tensors taken; anew: 1, 3; not used: 2"


def test_one_tensor_of_another_shape_is_told_with_both() -> None:
    before, model = nn.Sequential(nn.Embedding(7, 2)), nn.Sequential(nn.Embedding(9, 2))
    assert str(take_what_fits(model, before.state_dict(), before.state_dict())) == (
        "0 of 1 tensors taken; anew: 0 (7×2 → 9×2)"
    )


def test_the_outermost_module_is_named_and_no_more_than_it() -> None:
    among = ["a.b.w", "a.b.v", "a.c.w", "d", "e.w"]
    assert modules(["a.b.w", "a.b.v", "d"], among) == ["a.b", "d"]
    assert modules(["a.b.w"], among) == ["a.b.w"]
    assert modules(["a.b.w", "a.b.v", "a.c.w"], among) == ["a"]


def test_a_start_of_another_size_is_told_with_the_config_that_would_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_stage(tmp_path, "upsampler", small_upsampler(8, 32))
    overrides = ["model.unet.channels=32", f"init={tmp_path}"]
    run, spec = load_run("configs/shapes/up256.yaml", overrides), stage("upsampler")
    start_from(str(tmp_path), run, spec, spec.model(run.model))
    assert "tensors taken; anew: " in caplog.text
    run = load_run("configs/shapes/up256.yaml", [*overrides, "init_missing=error"])
    with pytest.raises(UsageError, match=r"tensors taken; anew: .*; it is a upsampler, this config makes another one"):
        start_from(str(tmp_path), run, spec, spec.model(run.model))


def test_a_start_of_another_network_names_its_config(tmp_path: Path) -> None:
    assert made_by(load_stage("weights/shapes/decoder")) == " of configs/shapes/decoder.yaml"
    for config, message in (
        ("ddpm", "nothing of it fits; it is a decoder of configs/shapes/decoder.yaml, this config makes another"),
        ("up256", "init=weights/shapes/decoder is a decoder of configs/shapes/decoder.yaml; .* makes a upsampler"),
    ):
        with pytest.raises(UsageError, match=message):
            train(f"configs/shapes/{config}.yaml", ["init=weights/shapes/decoder", f"train.out={tmp_path / 'out'}"])


OPEN = "tokenizer.kind=clip", "tokenizer.context=77"
"""CLIP's byte pairs, which spell every word."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 90, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"penguin number {i} on a surfboard")
    return folder


def fine_tune(config: str, photos: Path, out: Path, *changes: str) -> tuple[dict[str, torch.Tensor], str]:
    """Weights, and their tokeniser's kind, of two steps that move nothing far."""
    few = [
        "train.steps=2",
        "train.keep=1",
        "train.batch_size=2",
        "train.sample_every=0",
        "train.val_every=0",
        "data.num_workers=0",
    ]
    few += [f"data.source={photos}", "save_dtype=float32", "optim.lr=1e-12", "optim.kind=adamw", "train.precision=fp32"]
    train(f"configs/shapes/{config}.yaml", [*few, f"train.out={out}", *changes])
    model = load_stage(out)
    tokenizer = getattr(model.config, "tokenizer", None) or model.config.ports.text.tokenizer
    return model.state_dict(), tokenizer.kind


@pytest.fixture(scope="module")
def open_clip(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip")
    changes = [f"model.{key}" for key in OPEN]
    found, kind = fine_tune("clip", photos, out, "init=weights/shapes/clip", "optim.only=[clip.ln_final]", *changes)
    bundled = load_stage("weights/shapes/clip").state_dict()
    assert kind == "clip"
    assert found["clip.token_embedding.weight"].shape[0] == 49408
    for name in ("clip.visual.conv1.weight", "clip.transformer.resblocks.2.mlp.c_fc.weight", "clip.text_projection"):
        torch.testing.assert_close(found[name], bundled[name])
    return out


@pytest.mark.parametrize(
    ("config", "start", "changes"),
    [
        ("decoder", "weights/shapes/decoder", ["clip=CLIP"]),
        ("glide", "weights/shapes/decoder", [f"model.ports.text.{key}" for key in OPEN]),
    ],
)
def test_bundled_networks_learn_on_with_an_open_vocabulary(
    photos: Path, open_clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    config: str, start: str, changes: list[str],
) -> None:  # fmt: skip
    """The averages, which are exported, begin at the weights that were taken."""
    changes = [change.replace("CLIP", str(open_clip)) for change in changes]
    with caplog.at_level(logging.INFO):
        found, kind = fine_tune(config, photos, tmp_path, f"init={start}", *changes, "optim.only=[unet.conv_out]")
    assert kind == "clip"
    assert found["ports.text.encoder.tokens.weight"].shape[0] == 49408
    bundled = load_stage(start).state_dict()
    for name in ("unet.conv_in.weight", "unet.mid.block1.conv1.weight", "unet.conv_out.weight"):
        torch.testing.assert_close(found[name], bundled[name])
    assert "ports.text.encoder.tokens (149×128 → 49408×128)" in caplog.text
    assert "of the words of the first captions are not in the vocabulary" not in caplog.text
