"""What is decoded and what is not: a few formats, regular files, bounded sizes; frames and faults said in one line."""

import io
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from t2i.core.errors import DataError, T2IError
from t2i.io import decode, images, masks, provenance

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto showpage\n%%EOF\n"
OPENERS: list[Callable] = [images.open_image, masks.open_mask, provenance.read_recipe]


def encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or Image.effect_noise((24, 16), 50).convert("RGB")).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", decode.FORMATS)
def test_every_format_is_read_under_any_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "picture.xyz").write_bytes(encoded(kind))
    for source in (tmp_path / "picture.xyz", str(tmp_path / "picture.xyz"), encoded(kind)):
        assert (images.open_image(source).size, images.open_image(source).mode) == ((24, 16), "RGB")


@pytest.mark.parametrize("opener", OPENERS)
def test_no_program_is_started_for_a_picture(opener: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `gs` that leaves a trace is first on the path; without a list of formats Pillow would run it."""
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\necho ran >> {tmp_path / 'trace'}\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "x.jpg").write_bytes(EPS)
    with pytest.raises(DataError, match=r"x.jpg is EPS, not one of JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF$"):
        opener(tmp_path / "x.jpg")
    assert not (tmp_path / "trace").exists()
    with suppress(OSError), Image.open(tmp_path / "x.jpg") as picture:
        picture.load()
    assert (tmp_path / "trace").exists(), "the trap works"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded("PPM"), "is PPM, not one of"),
        (encoded("ICO"), "is ICO, not one of"),
        (encoded("JPEG2000"), "is JPEG 2000, not one of"),
        (encoded("TGA"), "is not a picture that can be read"),
        (b"<!DOCTYPE html><title>404</title>", "is a web page, not one of"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a pointer of git-lfs"),
        (b"", "is empty, not one of"),
        (b"hello", "is not a picture that can be read"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    for opener in OPENERS:
        with pytest.raises(DataError, match=f"a.png {message}"):
            opener(tmp_path / "a.png")


@pytest.mark.parametrize("opener", OPENERS)
def test_a_pipe_a_folder_and_a_device_are_no_pictures(opener: Callable, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, message in (("pipe", "is a pipe"), ("folder", ": Is a directory"), ("zero", "is a device")):
        with pytest.raises(DataError, match=rf"{name}.png ?{message}"):
            opener(tmp_path / f"{name}.png")


def test_bytes_are_counted_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(decode.MAX_BYTES + 1)
    with pytest.raises(DataError, match=r"a.png has 512,000,001 bytes, more than 512,000,000"):
        images.open_image(tmp_path / "a.png")
    monkeypatch.setattr(decode, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"image has [\d,]+ bytes, more than 10$"):
        images.open_image(encoded("PNG"))


def test_more_pixels_than_pillow_itself_allows_are_too_many() -> None:
    with pytest.raises(DataError, match=r"^image is of more than 64 megapixels$"):
        images.open_image(encoded("PNG", Image.new("1", (20_000, 20_000))))


@pytest.mark.parametrize("kind", ["GIF", "WebP", "TIFF", "PNG", "AVIF"])
def test_of_several_frames_the_first_is_used_and_that_is_said_once(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    decode._say.cache_clear()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    moving = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
    for _ in range(2):
        red, _, blue = images.open_image(moving).getpixel((4, 4))
        assert red > 240
        assert blue < 15
    assert [record.message for record in caplog.records] == [
        "of a picture of several frames the first is used (said once)"
    ]
    images.open_image(encoded(kind, frames[0]))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes turned, put in, taken out or cut off, or none of the given ones at all."""
    if rng.random() < 0.1:
        return rng.bytes(int(rng.integers(200)))
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 8))):
        at = int(rng.integers(max(1, len(changed))) ** (0.5 + 0.5 * rng.random()))  # headers more often
        changed[at : at + int(rng.integers(4))] = rng.bytes(int(rng.integers(4)))
    return bytes(changed[: len(changed) if rng.random() < 0.7 else int(rng.integers(len(changed) + 1))])


def check_damaged_pictures(path: Path, seeds: range) -> int:
    """Every opener gives a picture or one line, within seconds; how many pictures were refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = {"icc_profile": b"not a profile", "exif": exif}
    grey, clear = (Image.effect_noise((24, 16), 50).convert(mode) for mode in ("L", "RGBA"))
    whole = [encoded(kind) for kind in decode.FORMATS]
    whole += [encoded("JPEG", **profile), encoded("PNG", clear, **profile), encoded("WebP", clear, **profile)]
    whole += [encoded("GIF", grey, save_all=True, append_images=[grey]), encoded("TIFF", grey, compression="tiff_lzw")]
    whole += [encoded("PNG", Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)), EPS]
    refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        path.write_bytes(mutated(whole[seed % len(whole)], rng))
        for opener in OPENERS:
            start, problem = time.monotonic(), ""
            try:
                opener(path)
            except T2IError as error:
                problem = str(error)
            refused += opener is images.open_image and problem != ""
            assert "\n" not in problem, seed
            assert time.monotonic() - start < 5, seed
    return refused


@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_pictures_or_one_line(tmp_path: Path) -> None:
    assert 50 < check_damaged_pictures(tmp_path / "a.png", range(280)) < 270


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_damaged_pictures_are_pictures_or_one_line(tmp_path: Path) -> None:
    assert check_damaged_pictures(tmp_path / "a.png", range(1000, 21_000)) > 5000
