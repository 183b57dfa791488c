"""Mistakes in a training config: one line that names the key, before any work and whatever the stage."""

from pathlib import Path

import pytest
import torch
from conftest import small_clip, small_upsampler
from PIL import Image

from t2i.errors import DataError, UsageError
from t2i.recipe import train
from t2i.registry import load_stage, save_stage

SMALL = "channels: 32, multipliers: [1, 1], num_blocks: 1"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_stage(folder, "clip", small_clip())
    return folder


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("decoder", ["data.size=32"], "data.size=32 must equal model.image_size=64"),
        ("decoder", ["data.size=128", "data.crop=32"], "data.crop=32 must equal model.image_size=64"),
        ("decoder", ["model.image_size=60", "data.size=60"], "image_size=60 is not a multiple of 16"),
        (
            "decoder",
            ["clip=null"],
            "a decoder learns from a trained CLIP: name its folder, clip=FOLDER, or model.clip_dim",
        ),
        ("decoder", ["task.sampling.steps=5000"], "5000"),
        ("decoder", ["model.text.heads=3"], "decoder.yaml: "),
        ("prior", ["clip=null"], "a prior learns from a trained CLIP: name its folder, clip=FOLDER$"),
        ("prior", ["model.heads=5"], "width=192 is not a multiple of heads=5"),
        ("up256", ["data.size=64", "data.crop=null"], "data.size=64 must equal model.image_size=256"),
        ("up256", ["data.crop=60"], "data.crop=60 must be a multiple of 8"),
        ("up256", ["data.size=60", "data.crop=null"], "data.size=60 must be a multiple of 8"),
        ("up256", ["data.captions={shrt: 1}", "data.num_workers=2"], "did you mean 'short'"),
        ("up256", ["model.low_size=0"], "model.low_size"),
        ("up256", ["task.sampling.steps=5000"], "5000"),
        ("up256", ["task.sampling.guidance=3"], "guidance must be 1, got 3"),
        ("up256", ["save_dtype=half"], "save_dtype"),
        ("up256", ["train.out=FILE"], "is a file, expected a folder"),
        ("clip", ["model.text.heads=3"], "width=128 is not a multiple of heads=3"),
        ("clip", ["model.vision.layers=2", "model.vision.head_width=64"], "clip.yaml: "),
        ("clip", ["model.architecture=ViT-L-14"], "kind: clip"),
        ("clip", ["model.architecture=ViT-L-15", "model.tokenizer={kind: clip}"], "did you mean 'ViT-L-"),
    ],
)
def test_mistakes_are_one_line(clip: Path, tmp_path: Path, config: str, changes: list[str], message: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    where = [f"train.out={tmp_path / 'out'}", *([f"clip={clip}"] if config in ("decoder", "prior") else [])]
    small = ["train.steps=1", "train.batch_size=2", "data.num_workers=0", "model.unet.context_dim=32"]
    small = small if config == "decoder" else small[:3]
    text = ["model.text.width=32"] if config == "decoder" else []
    changes = [change.replace("FILE", str(tmp_path / "file")) for change in changes]
    with pytest.raises(UsageError, match=message) as caught:
        train(f"configs/shapes/{config}.yaml", [*where, *small, *text, *changes])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "config.json").exists()


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no/such/folder does not exist"):
        train("configs/shapes/up256.yaml", ["data.source=no/such/folder", f"train.out={tmp_path}"])


def test_a_start_of_another_size_is_refused(tmp_path: Path) -> None:
    save_stage(tmp_path / "start", "upsampler", small_upsampler(8, 32))
    with pytest.raises(UsageError, match="start does not fit this model: it "):
        train("configs/shapes/up256.yaml", [f"init={tmp_path / 'start'}", f"train.out={tmp_path / 'out'}"])


def test_an_unwritable_folder_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="file is a file, expected a folder"):
        train("configs/shapes/prior.yaml", ["clip=no/such/clip", f"train.out={tmp_path / 'file'}"])


def short_run(out: Path, *changes: str) -> None:
    few = ["train.steps=1", "train.batch_size=2", "train.num_samples=2", "train.sample_every=0", "data.num_workers=0"]
    train(changes[0], [f"train.out={out}", *few, *changes[1:]])


def test_files_may_hold_crops_already(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("red")
    unet = f"{{{SMALL}, attention: [], mid_attention: false, image_channels: 3, patch_size: 4}}"
    crops = [f"data.source={tmp_path}", "data.size=16", "data.crop=null", f"model.unet={unet}"]
    crops += ["model.variance=learned_range", "task.kind=hybrid", "model.target=eps", "task.weighting=uniform"]
    short_run(tmp_path / "out", "configs/shapes/up256.yaml", *crops)
    assert load_stage(tmp_path / "out", expect="upsampler").config.low_size == 64


def test_a_decoder_without_a_clip_is_asked_for_by_name(tmp_path: Path) -> None:
    unet = f"{{{SMALL}, attention: [2], head_channels: 32, context_dim: 32, patch_size: 8}}"
    alone = ["clip=null", "model.clip_dim=null", f"model.unet={unet}", "model.text={width: 32, layers: 1, heads: 2}"]
    short_run(tmp_path, "configs/shapes/decoder.yaml", *alone, "save_dtype=float32")
    decoder = load_stage(tmp_path, expect="decoder")
    assert decoder.config.clip_dim is None
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}
