"""Latents and states written once: what they are, that a broken-off command continues, and what does not fit them."""

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_data import make_folder
from PIL import Image
from small import Codec, latent_decoder, t5
from typer.testing import CliRunner

from t2i.cli.main import app
from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.core.types import Batch
from t2i.data import shapes, writing
from t2i.data.caption.store import COLUMNS, hash_of, write_rows
from t2i.data.config import DataConfig
from t2i.data.encode import Files, Scenes, encode
from t2i.data.encoded import FACTS, encoded_with
from t2i.data.loader import Loader
from t2i.data.shapes.write import write_shards
from t2i.data.source import BadSample, Needs, states_of
from t2i.run import load_run, train
from t2i.stages.decoder.policy import complete, fits
from t2i.stages.decoder.task import DecoderOptions
from t2i.stages.registry import load_stage, save_stage

NEEDS = Needs(("latents", "caption", "states"))


def first(folder: Path, batch_size: int = 4, needs: Needs = NEEDS, **data: Any) -> Batch:
    config = DataConfig(source=str(folder), num_workers=0, val_fraction=0.0, **data)
    return next(iter(Loader(config, seed=0, batch_size=batch_size, needs=needs)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven scenes of 32 px in shards of three."""
    out = tmp_path_factory.mktemp("cache")
    encode(out, Scenes(32, 7), Codec(), t5(), shard_size=3, batch_size=2)
    return out


def test_what_is_kept_is_what_the_encoders_say(cache: Path) -> None:
    assert [path.name for path in sorted(cache.glob("*.tar"))] == ["00000.tar", "00001.tar", "00002.tar"]
    batch = first(cache, 7)
    for key, caption, latents, states, mask in zip(
        batch["key"], batch["caption"], batch["latents"], batch["states"], batch["states_mask"], strict=True
    ):
        scene = shapes.sample(int(key), 32)
        assert caption in scene["captions"].values()
        assert latents.dtype == torch.float16
        torch.testing.assert_close(
            latents.float(), Codec().encode_latents(scene["image"][None])[0], atol=2e-3, rtol=1e-3
        )
        alone = t5().encode_text([caption])
        assert int(mask.sum()) == alone.mask.shape[1]
        torch.testing.assert_close(states[mask].float(), alone.sequence[0], atol=4e-3, rtol=2e-3)
    assert batch["states"].shape[1] == int(batch["states_mask"].sum(dim=1).max()), "no longer than the longest"


def test_the_states_are_those_of_the_caption_that_was_picked(cache: Path) -> None:
    lengths = {}
    for kind in ("alt", "descriptive"):
        batch = first(cache, 7, captions={kind: 1.0})
        keyed = dict(zip(batch["key"], batch["caption"], strict=True))
        assert all(shapes.sample(int(key), 8)["captions"][kind] == caption for key, caption in keyed.items())
        lengths[kind] = batch["states_mask"].sum(dim=1)
    assert (lengths["descriptive"] >= lengths["alt"]).all()
    assert lengths["descriptive"].sum() > lengths["alt"].sum()


def test_states_that_are_not_of_the_captions_cost_their_sample() -> None:
    states, mask = torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    sample = {"caption": "b", "states": states, "states_mask": mask}
    assert states_of(sample, {"text": ["a"], "alt": ["b"]})["states"].shape == (5, 4)
    for other in ({"text": ["a", "b", "c"]}, {"text": ["b"]}):
        with pytest.raises(BadSample, match="states that are not of its captions"):
            states_of(sample, other)
    with pytest.raises(BadSample):
        states_of({"caption": "b", "states": states}, {"text": ["a", "b"]})


class Broken(Codec):
    """Fails after so many calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def encode_latents(self, image: torch.Tensor) -> torch.Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode_latents(image)


def test_a_broken_off_command_continues_and_leaves_the_same_bytes(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, Scenes(32, 7), Broken(3), t5(), shard_size=3, batch_size=2)
    assert [path.name for path in sorted(tmp_path.glob("*.tar"))] == ["00000.tar"], "no half shard"
    before = (tmp_path / "00000.tar").stat().st_mtime_ns
    encode(tmp_path, Scenes(32, 7), Codec(), t5(), shard_size=3, batch_size=2)
    assert (tmp_path / "00000.tar").stat().st_mtime_ns == before
    for path in [*cache.glob("*.tar"), cache / FACTS]:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert "4 samples encoded, 3 were there" in caplog.text
    calls = Broken(0)
    encode(tmp_path, Scenes(32, 7), calls, t5(), shard_size=3, batch_size=2)
    assert calls.calls == 0, "what is there is not encoded again"


class Killed(Codec):
    """Kills its process with SIGKILL, once the second shard is begun."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def encode_latents(self, image: torch.Tensor) -> torch.Tensor:
        if [*self.folder.glob("*.tar")] and [*self.folder.glob(".*.tmp")]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_latents(image)


def test_a_command_killed_in_the_middle_of_a_shard_continues(cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, __file__, out], env=found, capture_output=True, text=True)  # as below
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["00000.tar"]
    assert [*out.glob(".*.tmp")], "half a shard"
    encode(out, Scenes(32, 7), Codec(), t5(), shard_size=3, batch_size=2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()
    }


def test_captions_that_are_cut_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encode(tmp_path / "a", Scenes(32, 3), Codec(), t5())
    assert re.search(r"\d captions are longer than the 10 tokens that are read \(such as", caplog.text)
    caplog.clear()
    encode(tmp_path / "b", Scenes(32, 3), Codec())
    assert "longer" not in caplog.text


@pytest.mark.parametrize(
    ("samples", "autoencoder", "text", "message"),
    [
        (Scenes(32, 7), Codec(mark=5.0), t5(), "was encoded with another autoencoder or text encoder"),
        (Scenes(32, 7), Codec(), t5(layers=2), "was encoded with another autoencoder or text encoder"),
        (Scenes(32, 7), Codec(), None, "was encoded with another autoencoder or text encoder"),
        (Scenes(64, 7), Codec(), t5(), "in another size"),
        (
            Scenes(32, 7, seed=3),
            Codec(),
            t5(),
            "00000.tar is of shapes, .*seed 0, .*, not of .*seed 3",
        ),
        (Scenes(30, 7), Codec(), t5(), "pictures of side 30, the autoencoder folds 4 pixels"),
    ],
)
def test_what_is_of_something_else_is_not_mixed_in(
    cache: Path, samples: Scenes, autoencoder: Codec, text: Any, message: str
) -> None:
    before = {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=message):
        encode(cache, samples, autoencoder, text, shard_size=3)
    assert {path.name: path.read_bytes() for path in cache.iterdir() if path.is_file()} == before


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    for number, name in enumerate(["a.1", "b", "c"]):
        Image.new("RGB", (40, 36), (80 * number, 10, 200)).save(src / f"{name}.png")
        (src / f"{name}.txt").write_text(f"a red cube\na cube {number}\n")
    (src / "d.png").write_bytes(b"no picture")
    (src / "d.txt").write_text("a cube")
    encode(out, Files(str(src), 32), Codec(), t5())
    batch = first(out, 8, captions={"text": 1.0})
    assert {*batch["key"]} == {"000000000", "000000001", "000000002"}
    assert {*batch["caption"]} <= {"a red cube", "a cube 0", "a cube 1", "a cube 2"}
    with tarfile.open(out / "00000.tar") as tar:
        facts = json.load(tar.extractfile("000000000.json"))  # type: ignore[arg-type]
    assert facts == {"captions": {"text": ["a red cube", "a cube 0"]}, "from": "a.1"}
    for path in src.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 4 samples is usable: 4 unreadable"):
        encode(tmp_path / "none", Files(str(src), 32), Codec())


def test_shards_keep_every_kind_of_caption(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", count=3, size=32)
    encode(tmp_path / "out", Files(str(tmp_path / "src"), 32), Codec())
    batch = first(tmp_path / "out", 3, Needs(("latents", "caption", "captions", "label")))
    assert all({"alt", "short", "descriptive"} <= {*captions} for captions in batch["captions"])
    assert "label" in batch
    assert "states" not in batch


def test_what_captioners_wrote_is_encoded_too(tmp_path: Path) -> None:
    """By the key of each picture; and what was encoded before it was written is told apart."""
    src, out, written = make_folder(tmp_path / "src", 3), tmp_path / "out", tmp_path / "written"
    (src / "001.png").rename(src / "003.png")
    (src / "001.txt").rename(src / "003.txt")  # keys are no longer the numbers of rows
    encode(out, Files(str(src), 32), Codec(), t5())
    rows = [
        dict.fromkeys(COLUMNS)
        | {"key": key, "hash": hash_of((src / f"{key}.png").read_bytes()), "seconds": 0.0, "short": f"short {key}"}
        for key in ("000", "002", "003")
    ]
    written.mkdir()
    write_rows(written / "pictures.captions.parquet", rows)
    with pytest.raises(UsageError, match=r"samples [0-9a-f]+, shard_size .*, not of .*, captions [0-9a-f]+, shard"):
        encode(out, Files(str(src), 32, str(written)), Codec(), t5())
    encode(tmp_path / "new", Files(str(src), 32, str(written)), Codec(), t5())
    batch = first(tmp_path / "new", 3, Needs(("latents", "caption", "captions", "states")), captions={"short": 1.0})
    assert {*batch["caption"]} == {"short 000", "short 002", "short 003"}
    assert all({*captions} == {"alt", "short"} for captions in batch["captions"]), "and nothing by two names"
    with pytest.raises(DataError, match="holds no captions of"):
        Files(str(src), 32, str(tmp_path / "out"))


def test_words_that_the_text_encoder_does_not_know_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    src = make_folder(tmp_path / "src", 2)
    (src / "000.txt").write_text("picture of a zebra")
    encode(tmp_path / "out", Files(str(src), 32), Codec(), t5())
    assert "which read alike (such as picture)" in caplog.text


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, add = itertools.count(), writing.add

    def full(*given: Any) -> None:
        if next(calls) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(*given)

    how: Any = {"shard_size": 3, "batch_size": 2}
    with monkeypatch.context() as patch:
        patch.setattr(writing, "add", full)
        with pytest.raises(FullDiskError, match=f"^no space left to write {tmp_path}/00001.tar$"):
            encode(tmp_path, Scenes(32, 7), Codec(), t5(), **how)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", FACTS], "nothing half"
    encode(tmp_path, Scenes(32, 7), Codec(), t5(), **how)
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in cache.glob("*.tar"))


def test_facts_follow_from_the_cache_and_are_checked_against_neighbours(cache: Path) -> None:
    data = DataConfig(source=str(cache), num_workers=0)
    ours = latent_decoder().config
    bare = type(ours).model_validate(
        ours.model_dump() | {"latents": None, "ports": {"states": {"layers": 1, "heads": 2}}}
    )
    assert complete(bare, {}, data) == ours
    assert complete(bare, {"text": t5(), "autoencoder": Codec()}, data) == ours
    for name, other in (("autoencoder", Codec(mark=5.0)), ("text", t5(layers=2))):
        with pytest.raises(UsageError, match=f"needs.{name}=….*is not the one that this was made with"):
            complete(bare, {name: other}, data)
    few = bare.model_dump() | {"ports": {"states": {"layers": 1, "heads": 2, "positions": 11}}}
    for neighbours in ({"text": t5(), "autoencoder": Codec()}, {}):
        with pytest.raises(UsageError, match=r"positions=11: the text encoder reads 12 tokens"):
            complete(type(ours).model_validate(few), neighbours, data)
    wide = latent_decoder(image_size=16)
    with pytest.raises(UsageError, match=r"have sides of 8, model.image_size=16"):
        fits(wide, data, DecoderOptions(cached=True), {})
    with pytest.raises(UsageError, match="holds no latents that t2i data encode wrote"):
        fits(wide, DataConfig(source="shapes"), DecoderOptions(cached=True), {"autoencoder": Codec()})
    with pytest.raises(UsageError, match=r"holds latents and no pictures any more: say task\.cached=true"):
        fits(latent_decoder(), data, DecoderOptions(), {"autoencoder": Codec()})


def test_damaged_and_different_facts_are_one_line(cache: Path, tmp_path: Path) -> None:
    (tmp_path / FACTS).write_text('{"latents": {"channels": 4}}')
    with pytest.raises(DataError, match=r"encoded.json is not what t2i data encode writes"):
        encoded_with(DataConfig(source=str(tmp_path)))
    encode(tmp_path / "other", Scenes(32, 2), Codec(mark=5.0), t5())
    sources = [{"src": str(cache)}, {"src": str(tmp_path / "other")}]
    with pytest.raises(DataError, match="were encoded with different autoencoders"):
        encoded_with(DataConfig.model_validate({"source": sources}))
    assert encoded_with(DataConfig(source=f"{cache}/*.tar")) == encoded_with(DataConfig(source=str(cache)))


def test_training_on_a_cache_holds_no_encoder(cache: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    model = latent_decoder().config.model_dump(mode="json")
    model |= {"latents": None, "ports": {"states": {"layers": 1, "heads": 2}}}
    settings = {
        "stage": "decoder",
        "model": {key: value for key, value in model.items() if value is not None},
        "task": {"text_drop": 0.1},
        "data": {"source": str(cache), "num_workers": 0, "val_fraction": 0.3},
        "train": {"steps": 3, "batch_size": 4, "out": str(tmp_path / "out"), "num_samples": 2, "val_batches": 1},
    }
    config.write_text(json.dumps(settings))
    assert load_run(config, []).needs == {}
    train(config, [])
    made: Any = load_stage(tmp_path / "out", expect="decoder")
    assert made.config == latent_decoder().config
    assert not list((tmp_path / "out" / "samples").glob("*.png")), "nothing makes pictures of latents here"


def test_the_command_asks_for_the_right_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_stage(tmp_path / "t5", "t5", t5())
    result = CliRunner().invoke(app, ["data", "encode", "shapes", "--autoencoder", str(tmp_path / "t5"), "--out", "x"])
    assert isinstance(result.exception, UsageError)
    assert "holds stage t5, which is no LatentCodec" in str(result.exception)
    from t2i.stages import registry

    found = {"codec": Codec(), "t5": load_stage(tmp_path / "t5")}
    monkeypatch.setattr(registry, "load_stage", lambda folder: found[Path(folder).name])
    argv = ["data", "encode", "shapes", "--autoencoder", "codec", "--text", str(tmp_path / "t5"), "--size", "32"]
    argv += ["--count", "2", "--device", "cpu", "--num-things", "1=1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, argv)
    assert result.exit_code == 0, result.output
    assert first(tmp_path / "out", 2)["latents"].shape == (2, 4, 8, 8)


if __name__ == "__main__":  # ends in the middle of its second shard
    encode(folder := Path(sys.argv[1]), Scenes(32, 7), Killed(folder), t5(), shard_size=3, batch_size=2)
