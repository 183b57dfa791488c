"""Pictures that are not square: what is kept of them, and that it is told; pictures of one channel."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files_of_data import make_folder, make_tar
from PIL import Image

from t2i.core.errors import UsageError
from t2i.core.seed import Streams
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.data.source import Needs, decode
from t2i.io.decode import MAX_BYTES
from t2i.run import train


def ramp(width: int, height: int) -> bytes:
    """Columns of grey values 0, 4, 8 …, or rows of them where the picture is high."""
    values = np.arange(max(width, height), dtype=np.uint8) * 4
    pixels = np.tile(values[None] if width > height else values[:, None], (height, 1) if width > height else (1, width))
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def values(image: torch.Tensor, axis: int) -> list[int]:
    """The grey values along an axis, divided by 4."""
    line = image[0, 0] if axis == 1 else image[0, :, 0]
    return ((line + 1) * 127.5 / 4).round().int().tolist()


@pytest.mark.parametrize(("width", "height", "axis"), [(40, 16, 1), (16, 40, 0)])
def test_the_centre_is_kept_or_a_random_square(width: int, height: int, axis: int) -> None:
    data = ramp(width, height)
    centre = decode(data, 16, None, Streams([0]))["image"]
    assert values(centre, axis) == list(range(12, 28))
    starts = set()
    for seed in range(60):
        image = decode(data, 16, None, Streams([seed]), "random")["image"]
        start = values(image, axis)[0]
        assert image.shape == (3, 16, 16)
        assert values(image, axis) == list(range(start, start + 16))
        starts.add(start)
    assert min(starts) < 3
    assert max(starts) > 21


@pytest.mark.parametrize(("width", "height", "across"), [(32, 16, 1), (16, 32, 2)])
def test_padding_keeps_all_of_a_picture_between_white_bars(width: int, height: int, across: int) -> None:
    sample = decode(ramp(width, height), 32, None, Streams([0]), "pad")
    image = sample["image"].movedim(across, 1)  # (3, across the bars, along them)
    assert sample["image"].shape == (3, 32, 32)
    assert (image[:, :8] == 1).all()
    assert (image[:, 24:] == 1).all()
    assert values(image[:, 8:24], 1) == list(range(32))
    assert not sample["enlarged"]
    assert decode(ramp(width, height), 33, None, Streams([0]), "pad")["enlarged"]


@pytest.mark.parametrize("policy", ["center", "random", "pad"])
def test_square_pictures_stay_the_same_whatever_the_policy(policy: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8)).save(buffer, "PNG")
    for size in (30, 16):
        kept = decode(buffer.getvalue(), size, None, Streams([0]))["image"]
        assert torch.equal(kept, decode(buffer.getvalue(), size, None, Streams([5]), policy)["image"])


def test_crops_are_windows_of_the_whole_picture_or_of_the_padded_square() -> None:
    data = ramp(60, 20)
    for seed in range(5):
        windows = [decode(data, 20, 8, Streams([seed]), policy)["image"] for policy in ("center", "random")]
        assert torch.equal(*windows)
    lefts = [values(decode(data, 20, 8, Streams([seed]))["image"], 1)[0] for seed in range(40)]
    assert max(lefts) > 40
    padded = [decode(data, 20, 8, Streams([seed]), "pad")["image"] for seed in range(40)]
    assert {image.shape for image in padded} == {(3, 8, 8)}
    assert any((image == 1).any() for image in padded)


def told(caplog: pytest.LogCaptureFixture, source: str, **changes: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        config = DataConfig(source=source, **{"size": 8, "num_workers": 0, "val_fraction": 0, **changes})
        Loader(config, seed=0, batch_size=2, needs=Needs(("image",))).announce()
    return caplog.messages[1:]


def test_bad_pictures_and_those_not_square_are_told_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.png").write_bytes(ramp(20, 20) if i > 2 else ramp(20 + i, 16))
    (folder / "broken.png").write_bytes(b"no picture")
    tar = str(make_tar(tmp_path / "a.tar", [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]))
    for source in (str(folder), tar):
        bad = f"{source}: 1 of 6 pictures that were looked at cannot be read (such as broken)"
        line = f"{source}: 3 of 6 pictures that were looked at are not square: "
        kept = "; data.crop_policy=pad keeps all of them"
        assert told(caplog, source) == [bad, f"{line}cropped to their centre squares{kept}"]
        assert told(caplog, source, crop_policy="random") == [bad, f"{line}cropped to random squares{kept}"]
        assert told(caplog, source, crop_policy="pad") == [bad, f"{line}padded to squares with white"]
        assert told(caplog, source, crop=8) == [bad]
    os.truncate(folder / "0.png", MAX_BYTES + 1)  # has no head
    bad = f"{folder}: 2 of 6 pictures that were looked at cannot be read (such as 0)"
    assert told(caplog, str(folder))[0] == bad
    (square := tmp_path / "b").mkdir()
    (square / "a.png").write_bytes(ramp(20, 20))
    assert told(caplog, str(square)) == []


def test_no_more_than_two_hundred_pictures_are_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = told(caplog, str(make_folder(tmp_path / "a", 250)))  # 12 × 10 pixels each
    assert line[0].partition(": ")[2].startswith("125 of 125 pictures that were looked at are not square: ")


def test_a_policy_reaches_the_batch(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(ramp(40, 16))
    config = DataConfig(source=str(tmp_path), size=16, num_workers=0, val_fraction=0, crop_policy="pad")
    batch = next(iter(Loader(config, seed=0, batch_size=1, needs=Needs(("image",)))))
    assert (batch["image"][0, :, 0] == 1).all()
    with pytest.raises(ValueError, match="crop_policy"):
        DataConfig.model_validate({"crop_policy": "centre"})


def test_pictures_of_one_channel_are_their_luminance(tmp_path: Path) -> None:
    grey = ramp(16, 15)
    one, three = (decode(grey, 15, None, Streams([0]), channels=channels)["image"] for channels in (1, 3))
    assert torch.equal(one, three[:1])
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "a.png")
    config = DataConfig(source=str(tmp_path), size=16, num_workers=0, val_fraction=0)
    batch = next(iter(Loader(config, seed=0, batch_size=2, needs=Needs(("image",), channels=1))))
    assert batch["image"].shape == (2, 1, 16, 16)
    assert torch.allclose(batch["image"], torch.tensor(76 / 127.5 - 1))  # ITU-R 601: 0.299 of red


GREY = ["model.unet.in_channels=1", "model.unet.out_channels=1"]


def test_networks_of_one_channel_learn_from_grey_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(task: Any, loader: Any, *_: Any, **__: Any) -> torch.Tensor:
        batch = next(iter(loader(seed=0, batch_size=2)))
        assert batch["image"].shape == (2, 1, 32, 32)
        return task.loss(batch)["loss"]

    monkeypatch.setattr("t2i.run.fit", fit)
    for i in range(2):
        Image.new("RGB", (40, 40), (99 * i, 0, 0)).save(tmp_path / f"{i}.png")
    data = [f"data.source={tmp_path}", "data.val_fraction=0", "data.num_workers=0", f"train.out={tmp_path / 'out'}"]
    loss: Any = train("configs/shapes/ddpm.yaml", [*data, *GREY])
    assert loss.shape == (2,)
    assert loss.isfinite().all()
    with pytest.raises(UsageError, match=r"^model.unet.in_channels=4: pictures have 3 channels, or 1"):
        train("configs/shapes/ddpm.yaml", [*data, "model.unet.in_channels=4", "model.unet.out_channels=4"])


def test_the_shapes_world_has_no_grey_pictures() -> None:
    with pytest.raises(UsageError, match=r"^data.source=shapes is in colour"):
        Loader(DataConfig(size=8), seed=0, batch_size=2, needs=Needs(("image",), channels=1))
