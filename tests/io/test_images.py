"""Pictures at the border: exact values, EXIF, transparency, sizes, recipes."""

import errno
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.core.errors import DataError, NonFiniteError, UsageError
from t2i.io import images, provenance


def test_every_byte_survives_a_round_trip():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([pixels, pixels[::-1], pixels.T], -1))
    x = images.from_pil(picture)
    assert x.shape == (3, 16, 16)
    assert x.min() == -1
    assert x.max() == 1
    assert np.array_equal(np.asarray(images.to_pil(x[None])[0]), np.asarray(picture))


def test_to_pil_rounds_and_clamps():
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 0.6 / 127.5]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert np.asarray(images.to_pil(x)[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255, 128]


def test_nan_is_an_error_and_not_black():
    x = torch.zeros(3, 3, 2, 2)
    x[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\[1\]"):
        images.to_pil(x)


def test_to_pil_wants_a_batch_of_rgb():
    with pytest.raises(ValueError, match=r"\(1, 4, 2, 2\)"):
        images.to_pil(torch.zeros(1, 4, 2, 2))


def test_resize_keeps_the_centre_square():
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255
    assert images.from_pil(Image.fromarray(pixels), 20).shape == (3, 20, 20)
    assert images.from_pil(Image.fromarray(pixels), 20)[:, :, 2:-2].min() > 0.95


@pytest.mark.parametrize("size", [(5, 3), (3, 5), (1000, 7)])
def test_small_and_thin_pictures_are_enlarged(size):
    assert images.from_pil(Image.new("RGB", size), 16).shape == (3, 16, 16)


def test_downsampling_is_antialiased():
    checks = np.indices((256, 256)).sum(0) % 2 * 255
    x = images.from_pil(Image.fromarray(checks.astype(np.uint8)), 16)
    assert x.abs().max() < 0.1


def test_transparency_becomes_white_and_grey_becomes_rgb():
    assert images.from_pil(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).min() == 1
    assert images.from_pil(Image.new("LA", (2, 2), (0, 0))).min() == 1
    palette = Image.new("P", (2, 2))
    palette.info["transparency"] = 0
    assert images.from_pil(palette).min() == 1
    assert images.from_pil(Image.new("L", (2, 2), 255)).shape == (3, 2, 2)
    assert images.from_pil(Image.fromarray(np.full((2, 2), 65535, np.uint16))).min() == 1
    assert images.from_pil(Image.new("CMYK", (2, 2))).shape == (3, 2, 2)


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert images.open_image(tmp_path / "a.jpg").size == (10, 30)


def encoded(size=(20, 20), kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("at", [1, 2, 4, 9, 10, 13])
def test_damaged_exif_is_forgotten(at):
    """One byte of the TIFF header or of its first entry is turned; the pixels are whole."""
    exif = Image.Exif()
    exif[274] = 6
    data = bytearray(encoded((30, 10), exif=exif))
    data[data.index(b"MM\0*") + at] ^= 0xFF
    assert images.from_pil(images.open_image(bytes(data)), 8).shape == (3, 8, 8)


def test_exif_is_applied_once():
    picture = Image.new("RGB", (30, 10))
    picture.info["exif"] = b"Exif\0\0" + b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    upright = images.to_rgb(picture)
    assert upright.size == images.to_rgb(upright).size == (10, 30)
    assert "exif" in picture.info


@pytest.mark.parametrize("kind", [TypeError, AttributeError, struct.error, MemoryError])
def test_whatever_a_decoder_raises_the_picture_is_damaged(kind, monkeypatch):
    def broken(_):
        raise kind("inside")

    monkeypatch.setattr(images, "to_rgb", broken)
    with pytest.raises(DataError, match="image is damaged: inside"):
        images.open_image(encoded())


def test_bad_pictures_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none.png does not exist"):
        images.open_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="not a picture"):
        images.open_image(b"hello")
    with pytest.raises(DataError, match="damaged"):
        images.open_image(encoded((200, 200))[:2000])
    with pytest.raises(DataError, match="damaged"):
        images.open_image(encoded((200, 200), "PNG")[:2000])


def test_size_is_checked_before_decoding(monkeypatch):
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(DataError, match="9000×9000, more than 64 megapixels"):
        images.open_image(huge.getvalue())


def test_grid():
    x = torch.stack([torch.full((3, 4, 4), v) for v in (-1.0, 0.0, 1.0)])
    sheet = np.asarray(images.grid(x, columns=2, gap=1))
    assert sheet.shape == (9, 9, 3)
    assert sheet[0, 0, 0] == 0
    assert sheet[0, 4, 0] == 255
    assert sheet[0, 5, 0] == 128
    assert images.grid(torch.zeros(9, 3, 4, 4), gap=0).size == (12, 12)


def test_recipe_round_trip(tmp_path):
    recipe = {"prompt": "a „red” cube 赤 <b>", "seed": 7, "steps": {"prior": 5}}
    images.save_png(Image.new("RGB", (3, 3)), tmp_path / "a.png", recipe)
    assert provenance.read_recipe(tmp_path / "a.png") == recipe
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_recipe_that_is_not_there(tmp_path):
    images.save_png(Image.new("RGB", (3, 3)), tmp_path / "a.png")
    Image.new("RGB", (3, 3)).save(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_text("no")
    for name, message in (
        ("a.png", "no t2i recipe"),
        ("b.jpg", "no t2i recipe"),
        ("c.png", "not a picture"),
        ("d", "exist"),
    ):
        with pytest.raises(DataError, match=message):
            provenance.read_recipe(tmp_path / name)


def test_a_png_makes_its_folder_unless_a_file_is_in_the_way(tmp_path):
    images.save_png(Image.new("RGB", (3, 3)), tmp_path / "new" / "folder" / "a.png")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.png"]
    with pytest.raises(UsageError, match=r"cannot write .*a.png/b.png: File exists"):
        images.save_png(Image.new("RGB", (3, 3)), tmp_path / "new" / "folder" / "a.png" / "b.png")


def test_a_full_disk_is_no_usage_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match=r"a.png: No space left"):
        images.save_png(Image.new("RGB", (3, 3)), tmp_path / "a.png")


def test_an_animation_shows_every_picture_and_is_whole_or_absent(tmp_path):
    shades = [Image.new("RGB", (8, 6), (80 * i, 0, 0)) for i in range(4)]
    images.save_gif(shades, tmp_path / "a.gif", seconds=0.1)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4
        assert animation.info["duration"] == 100
        assert animation.info["loop"] == 0
        animation.seek(3)
        assert animation.convert("RGB").getpixel((4, 3)) == (240, 0, 0)
    with pytest.raises(UsageError, match="cannot write"):
        images.save_gif(shades, tmp_path / "a.gif" / "b.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_a_sheet_of_one_row():
    sheet = images.sheet([Image.new("RGB", (4, 3), c) for c in ("red", "lime")], columns=2, gap=1)
    assert sheet.size == (9, 3)
    assert [sheet.getpixel((x, 1)) for x in (0, 4, 5)] == [(255, 0, 0), (255, 255, 255), (0, 255, 0)]
