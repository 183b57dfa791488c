"""Mistakes in a training config: one line that names the key, before any work and whatever the stage."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_clip
from PIL import Image

from t2i import run as recipe
from t2i.core.errors import DataError, UsageError
from t2i.core.types import Batch
from t2i.data.loader import Loader
from t2i.run import train
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.prior.task import PriorTask
from t2i.stages.registry import load_stage, save_stage
from t2i.train import checkpoint
from t2i.train.loop import Result, fit

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
            "learns from a trained CLIP: name its folder, clip=FOLDER, or leave that port out",
        ),
        ("decoder", ["task.sampling.steps=5000"], "5000"),
        ("decoder", ["model.ports.text.heads=3"], "decoder.yaml: "),
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
        ("clip", ["data.size=63"], "data.size=63 must equal model.vision.image_size=64"),
        ("clip", ["model.text.heads=3"], "width=128 is not a multiple of heads=3"),
        ("clip", ["model.vision.layers=2", "model.vision.head_width=64"], "clip.yaml: "),
        ("clip", ["model.architecture=ViT-L-14"], "kind: clip"),
        ("clip", ["clip=CLIP"], "this clip learns nothing from clip; leave it out"),
        ("up256", ["clip=CLIP"], "this upsampler learns nothing from clip; leave it out"),
        ("up256", ["task.degradation.kernel=33"], "kernel=33 is too wide for small pictures of 16 pixels"),
        ("up1024", ["task.degradation={kind: bsr_light, jpeg: 0.5}"], "kind='bsr_light' draws all by laws of its own"),
        ("up1024", ["task.degradation.kind=bsr"], "leave blur, jpeg, noise, quality, sigma away"),
        ("up256", ["task.degradation={kind: bsr_lite}"], "task.degradation.kind: .*'bsr_lite'"),
        ("up256", ["task.sampling.eta=7"], "eta and rescale lie in 0…1"),
        ("up256", ["optim.lr=.nan"], "optim.lr: .*finite"),
        ("up256", ["data.num_things={1: .nan}"], "data.num_things"),
        ("decoder", ["model.ports.clip_image.dim=999"], r"model.ports.clip_image.dim=999 is 16 in .*; leave it out"),
        ("decoder", ["model.ports.text.context=99"], r"model.ports.text.context=99 is 12 in the tokenizer"),
        ("prior", ["model.text_width=7"], r"model.text_width=7 is 32 in .*; leave it out"),
        ("decoder", ["model.ports.text.tokenizer={kind: clip, context: 77}"], "text.tokenizer.kind=clip is words in"),
        ("decoder", ["model.ports.text.tokenizer.context=32"], r"text.tokenizer.context=32 is 12 in .*; leave it out"),
        ("decoder", ["model.text=null", "model.tokenizer.context=12"], "a tokenizer needs a text transformer"),
        ("decoder", ["task.sampling.guidence=3"], r"'task.sampling.guidence', did you mean 'task.sampling.guidance'\?"),
        ("reader", ["data.crop=32"], "data.crop=32: a reader learns the places of things in whole pictures"),
        ("clip", ["model.architecture=ViT-L-15", "model.tokenizer={kind: clip}"], "did you mean 'ViT-L-"),
    ],
)
def test_mistakes_are_one_line(clip: Path, tmp_path: Path, config: str, changes: list[str], message: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    where = [f"train.out={tmp_path / 'out'}", *([f"clip={clip}"] if config in ("decoder", "prior") else [])]
    small = ["train.steps=1", "train.batch_size=2", "data.num_workers=0", "model.unet.context_dim=32"]
    small = small if config == "decoder" else small[:3]
    text = ["model.ports.text.width=32"] if config == "decoder" else []
    changes = [change.replace("FILE", str(tmp_path / "file")).replace("CLIP", str(clip)) for change in changes]
    with pytest.raises(UsageError, match=message) as caught:
        train(f"configs/shapes/{config}.yaml", [*where, *small, *text, *changes])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "config.json").exists()


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no/such/folder does not exist"):
        train("configs/shapes/up256.yaml", ["data.source=no/such/folder", f"train.out={tmp_path}"])


@pytest.mark.parametrize("key", ["clip", "init"])
def test_a_stage_that_is_not_there_is_named_by_its_key(key: str, tmp_path: Path) -> None:
    given = {"clip": "weights/shapes/clip"} | {key: "no/such/stage"}
    with pytest.raises(DataError, match=f"^{key}=no/such/stage: "):
        train("configs/shapes/decoder.yaml", [f"train.out={tmp_path}", *(f"{k}={v}" for k, v in given.items())])


def test_a_start_is_not_looked_for_again(tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    small = ["configs/shapes/up256.yaml", "model.unet.channels=32", "data.size=256", "data.crop=16"]
    short_run(start, *small)
    short_run(out, *small, f"init={start}", "train.steps=1")
    start.rename(tmp_path / "gone")
    short_run(out, *small, f"init={start}", "train.steps=2")
    assert load_stage(out).config.unet.channels == 32


def test_a_checkpoint_whose_config_nobody_reads_any_more_is_continued(tmp_path: Path) -> None:
    small = ["configs/shapes/up256.yaml", "model.unet.channels=32", "data.size=256", "data.crop=16"]
    short_run(tmp_path, *small, "train.steps=1")
    saved = tmp_path / "checkpoints" / "step-000001"
    state = json.loads((saved / "state.json").read_text())
    state["config"] = {"stage": "upsampler", "model": {"text": 3}}
    (saved / "state.json").write_text(json.dumps(state))
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["state.json"] = checkpoint._digest(saved / "state.json")
    (saved / "manifest.json").write_text(json.dumps(manifest))
    short_run(tmp_path, *small, "train.steps=2")
    assert (tmp_path / "checkpoints" / "step-000002").is_dir()


def test_a_start_that_a_run_has_no_use_for_any_more_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = ["configs/shapes/up256.yaml", "model.unet.channels=32", "data.size=256", "data.crop=16"]
    short_run(tmp_path, *small, "train.steps=1")
    short_run(tmp_path, *small, "train.steps=1")
    assert "is not read" not in caplog.text
    short_run(tmp_path, *small, "init=weights/shapes/up256", "train.steps=1")
    assert "init=weights/shapes/up256 is not read: the run continues from" in caplog.text


def test_one_key_of_an_option_leaves_the_others() -> None:
    overrides = ["task.sampling.eta=0.5", "clip=c", "train.out=x"]
    decoder = recipe.load_run("configs/shapes/decoder.yaml", overrides).task.sampling
    assert (decoder.eta, decoder.steps, decoder.guidance) == (0.5, 25, 2.0)
    assert recipe.load_run("configs/shapes/up256.yaml", overrides[:1]).task.sampling.steps == 10


def test_a_tilde_is_the_home_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    changes = ["train.out=~/out", "train.resume=~/run", "data.source=~/pictures", "clip=~/clip", "init=~/start"]
    run = recipe.load_run("configs/shapes/decoder.yaml", changes)
    assert run.train.out == Path("/home/me/out")
    found = [run.train.resume, run.data.source, run.needs["clip"], run.init]
    assert found == [f"/home/me/{name}" for name in ("run", "pictures", "clip", "start")]
    run = recipe.load_run("configs/shapes/decoder.yaml", ["data.source=[{src: shapes}, {src: '~/*.tar'}]"])
    assert [source.src for source in run.data.sources] == ["shapes", "/home/me/*.tar"]
    with pytest.raises(UsageError, match=r"data.source: .*valid string, got 3"):
        recipe.load_run("configs/shapes/decoder.yaml", ["data.source=3"])


def test_a_named_architecture_is_not_trained_on_enlarged_pictures(tmp_path: Path) -> None:
    changes = ["model.architecture=RN50", "model.tokenizer={kind: clip, context: 77}", "train.device=cpu"]
    with pytest.raises(UsageError, match=r"data\.size=64 is smaller than the 224 pixels that RN50 sees"):
        train("configs/shapes/clip.yaml", [*changes, f"train.out={tmp_path}"])


def test_pictures_that_clip_sees_enlarged_are_told(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = [f"clip={clip}", "data.size=8", "task.measured_on=64", "model.width=32", "model.layers=1", "model.heads=2"]
    short_run(tmp_path, "configs/shapes/prior.yaml", *small)
    assert "data.size=8: clip sees 32 pixels, so pictures are enlarged for it" in caplog.text


def test_upsamplers_need_no_captions_and_others_say_so(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    photos = f"data.source={tmp_path / 'photos'}"
    short_run(
        tmp_path / "up", "configs/shapes/up256.yaml", photos, "model.unet.channels=32", "data.size=16", "data.crop=16"
    )
    with pytest.raises(DataError, match="4 pictures but no captions"):
        short_run(tmp_path / "prior", "configs/shapes/prior.yaml", photos, f"clip={clip}", "data.size=16")


def test_an_unwritable_folder_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="file is a file, expected a folder"):
        train("configs/shapes/prior.yaml", ["clip=no/such/clip", f"train.out={tmp_path / 'file'}"])


def short_run(out: Path, *changes: str) -> None:
    few = ["train.steps=1", "train.batch_size=2", "train.num_samples=2", "train.sample_every=0", "data.num_workers=0"]
    train(changes[0], [f"train.out={out}", *few, *changes[1:]])


class Watched(Loader):
    """Counts the streams that were begun and are not closed yet."""

    begun = still_open = 0

    def _stream(self) -> Generator[Batch, None, None]:
        Watched.begun, Watched.still_open = Watched.begun + 1, Watched.still_open + 1
        try:
            yield from super()._stream()
        finally:
            Watched.still_open -= 1


def test_calibration_closes_its_loader_and_is_done_once(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_start = []

    def watched_fit(*args: Any, **named: Any) -> Result:
        at_start.append((Watched.begun, Watched.still_open))
        return fit(*args, **named)

    monkeypatch.setattr(recipe, "Loader", Watched)
    monkeypatch.setattr(recipe, "fit", watched_fit)
    small = [
        "configs/shapes/prior.yaml",
        f"clip={clip}",
        "data.size=8",
        "task.measured_on=64",
        "model.width=32",
        "model.layers=1",
    ]
    short_run(tmp_path, *small, "model.heads=2", "train.steps=1")
    assert at_start == [(1, 0)]
    statistics = load_stage(tmp_path).mean
    begun = Watched.begun
    short_run(tmp_path, *small, "model.heads=2", "train.steps=2")
    assert at_start[1] == (begun, 0)
    assert torch.equal(load_stage(tmp_path).mean, statistics)


def test_a_loader_that_is_killed_before_the_first_step_is_one_line(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: Any, **__: Any) -> None:  # torch says it wherever its parent is
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(PriorTask, "prepare", prepare)
    few = ["data.size=8", "model.width=32", "model.layers=1", "model.heads=2"]
    with pytest.raises(DataError, match=r"loads pictures was killed, .*: fewer data.num_workers"):
        short_run(tmp_path, "configs/shapes/prior.yaml", f"clip={clip}", *few)


def test_a_prior_that_starts_from_that_of_another_clip_measures_anew(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = ["configs/shapes/prior.yaml", "data.size=8", "model.width=32", "model.layers=1", "model.heads=2"]
    few += ["save_dtype=float32", "task.measured_on=64"]
    short_run(tmp_path / "a", *few, f"clip={clip}")
    save_stage(tmp_path / "clip", "clip", ClipEncoder(load_stage(clip).config))  # as drawn at random
    start = f"init={tmp_path / 'a'}"
    short_run(tmp_path / "same", *few, f"clip={clip}", start, "train.seed=1")
    assert "another CLIP" not in caplog.text
    short_run(tmp_path / "new", *few, f"clip={tmp_path / 'clip'}", start)
    assert "learned from another CLIP" in caplog.text
    a, same, new = (load_stage(tmp_path / name).mean for name in ("a", "same", "new"))
    assert torch.equal(same, a)
    assert not torch.allclose(new, a, atol=1e-3)


def test_accumulation_is_not_silently_another_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = [f"train.out={tmp_path}", "train.steps=1", "train.batch_size=4", "data.num_workers=0", "data.size=32"]
    few += ["train.sample_every=0", "model.vision={image_size: 32, width: 8, layers: [1, 1, 1, 1], head_width: 8}"]
    few += ["model.text={width: 16, layers: 1, heads: 1}"]
    train("configs/shapes/clip.yaml", few)
    assert "accumulate" not in caplog.text
    train("configs/shapes/clip.yaml", [*few, "train.accumulate=2", "train.steps=2"])
    assert (
        "train.accumulate=2: a contrastive loss tells a picture's caption only from others of its micro-batch"
        in caplog.text
    )


def test_files_may_hold_crops_already(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (16, 16), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("red")
    unet = f"{{{SMALL}, attention: [], mid_attention: false, image_channels: 3, patch_size: 4}}"
    crops = [f"data.source={tmp_path}", "data.size=16", "data.crop=null", f"model.unet={unet}"]
    crops += [
        "model.diffusion.variance=learned_range",
        "task.kind=hybrid",
        "model.diffusion.target=eps",
        "model.residual=false",
        "task.weighting=uniform",
    ]
    short_run(tmp_path / "out", "configs/shapes/up256.yaml", *crops)
    assert load_stage(tmp_path / "out", expect="upsampler").config.low_size == 64


def test_a_decoder_without_a_clip_is_asked_for_by_name(tmp_path: Path) -> None:
    unet = f"{{{SMALL}, attention: [2], head_channels: 32, context_dim: 32, patch_size: 8}}"
    alone = ["clip=null", f"model.unet={unet}", "model.ports={text: {width: 32, layers: 1, heads: 2}}"]
    short_run(tmp_path, "configs/shapes/decoder.yaml", *alone, "save_dtype=float32")
    decoder = load_stage(tmp_path, expect="decoder")
    assert decoder.config.ports.clip_image is None
    assert {p.dtype for p in decoder.parameters()} == {torch.float32}


def test_the_run_of_another_stage_is_told_by_its_stage(clip: Path, tmp_path: Path) -> None:
    few = ["train.steps=1", "train.batch_size=2", "train.num_samples=2", "train.val_every=0", "data.num_workers=0"]
    where = f"train.out={tmp_path / 'run'}"
    train("configs/shapes/up256.yaml", [where, *few, "model.unet.channels=32", "data.size=256", "data.crop=16"])
    with pytest.raises(UsageError, match="is of a run of stage upsampler, and this is prior: choose another"):
        train("configs/shapes/prior.yaml", [where, f"clip={clip}", *few])
