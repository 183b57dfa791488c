"""Pictures at the border: exact values, EXIF, transparency, sizes, recipes."""

import errno
import io
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from t2i.core.errors import DataError, FullDiskError, NonFiniteError, UsageError
from t2i.core.seed import Streams
from t2i.data import framing
from t2i.data.source import BadSample
from t2i.data.source import decode as decode_sample
from t2i.io import decode, images, provenance
from t2i.io.files import temporary_name
from t2i.io.lock import _TEMPORARY
from t2i.io.masks import open_mask, to_mask_tensor
from t2i.pipeline.inputs import read_pictures


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


def encoded_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


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


@pytest.mark.parametrize("kind", [TypeError, AttributeError, struct.error, RuntimeError])
def test_whatever_a_decoder_raises_the_picture_is_damaged(kind, monkeypatch):
    def broken(_):
        raise kind("inside")

    monkeypatch.setattr(images, "to_rgb", broken)
    with pytest.raises(DataError, match="image is damaged: inside"):
        images.open_image(encoded())


def test_a_lack_of_memory_is_no_damage(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    data, picture = encoded(), Image.new("RGB", (8, 8))
    for where, read in (
        ("t2i.io.images.to_rgb", lambda: images.open_image(data)),
        ("PIL.Image.open", lambda: images.open_image(data)),
        ("PIL.Image.open", lambda: framing.told([("a.jpg", data)], len(data) + 1, "center")),
        ("PIL.Image.Image.load", lambda: read_pictures(picture)),
        ("PIL.Image.Image.getexif", lambda: to_mask_tensor(picture, picture, 8)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(MemoryError):
                read()


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


@pytest.mark.parametrize("size", [(0, 0), (0, 5)])
def test_a_picture_without_pixels_is_refused(size):
    for read in (images.to_rgb, images.from_pil, lambda image: images.from_pil(image, 8)):
        with pytest.raises(UsageError, match=f"the picture has no pixels: {size[0]} × {size[1]}"):
            read(Image.new("RGB", size))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.array([[0, 1]], np.float32), "is of mode F with numbers from 0 to 1; whole ones from 0 to 65,535 are read"),
        (np.array([[0, 65536]], np.int32), "is of mode I with numbers from 0 to 65536"),
        (np.array([[-1, 5]], np.int32), "is of mode I with numbers from -1 to 5"),
    ],
)
def test_numbers_of_another_range_are_refused_and_never_black_or_white(numbers, message, tmp_path):
    picture, path = Image.fromarray(numbers), tmp_path / "a.tif"
    picture.save(path)
    for read in (images.open_image, open_mask):
        with pytest.raises(DataError, match=f"a.tif {message}"):
            read(path)
    for read in (images.from_pil, read_pictures):
        with pytest.raises(UsageError, match=f"the picture {message}"):
            read(picture)
    with pytest.raises(BadSample, match=message):
        decode_sample(path.read_bytes(), 8, None, Streams([0]))
    wide = Image.fromarray(np.array([[0, 65535]], np.int32))
    assert images.to_rgb(wide).getextrema() == ((0, 255),) * 3


def test_one_channel_is_grey_both_ways(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = images.from_pil(Image.fromarray(pixels), channels=1)
    assert x.shape == (1, 16, 16)
    (back,) = images.to_pil(x[None])
    assert (back.mode, np.array_equal(np.asarray(back), pixels)) == ("L", True)
    assert images.from_pil(Image.new("RGB", (40, 60), "red"), 8, channels=1).unique().tolist() == pytest.approx(
        [76 / 127.5 - 1]
    )
    assert images.grid(x.expand(4, 1, 16, 16)).size == (34, 34)
    images.save_png(images.grid(x.expand(4, 1, 16, 16)), tmp_path / "a.png")
    assert images.open_image(tmp_path / "a.png").getpixel((15, 15)) == (255, 255, 255)


def test_what_is_laid_on_white_is_said_once_and_only_where_something_is_transparent(caplog):
    decode._say.cache_clear()
    assert images.to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 255))).getpixel((0, 0)) == (255, 0, 0)
    assert caplog.messages == []
    for _ in range(2):
        assert images.to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert caplog.messages == ["what is transparent in a picture is laid on white (said once)"]


def test_transparency_is_kept_where_asked_for_and_looks_the_same_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 51))
    assert images.open_image(encoded_of(clear), keep_alpha=True).getpixel((0, 0)) == (255, 0, 0, 51)
    assert images.open_image(encoded_of(clear.convert("RGB")), keep_alpha=True).mode == "RGB"
    drawn = images.on_white(clear).resize((16, 16))
    back = images.with_alpha(drawn, clear.getchannel("A"))
    assert (back.size, back.getpixel((8, 8))) == ((16, 16), (255, 0, 0, 51))
    assert images.with_alpha(drawn, Image.new("L", (4, 4))).getpixel((8, 8)) == (255, 255, 255, 0)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg", "a.webp"])
def test_a_recipe_comes_back_from_every_format_that_is_written(name, tmp_path):
    recipe = {"prompt": "a „red” cube 赤 <b>", "seed": 7, "steps": {"prior": 5}}
    picture = Image.effect_noise((32, 24), 50).convert("RGB").resize((64, 48))
    images.save_image(picture, str(tmp_path / name), recipe)
    assert provenance.read_recipe(tmp_path / name) == provenance.read_recipe(str(tmp_path / name)) == recipe
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as written:
        assert written.format == provenance.saved_as(name).upper()
    error = np.abs(np.asarray(images.open_image(tmp_path / name)).astype(int) - np.asarray(picture)).mean()
    assert error == 0 if name.lower() == "a.png" else error < 4


def test_an_extension_of_no_format_is_refused_with_those_that_are(tmp_path):
    for name in ("a.bmp", "a", "a.jpg.txt"):
        with pytest.raises(UsageError, match=rf"path must end in .png, .jpg, .jpeg, .webp, got .*{name}$"):
            images.save_image(Image.new("RGB", (3, 3)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "赤" * 83 + ".png", "a" * 200 + ".png"])
def test_a_picture_may_have_as_long_a_name_as_any_file(name, tmp_path):
    images.save_png(Image.new("RGB", (3, 3)), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert len(os.fsencode(temporary_name(tmp_path / name).name)) < 255
    assert _TEMPORARY.fullmatch(temporary_name(tmp_path / name).name)


def test_a_recipe_that_a_jpeg_has_no_room_for_costs_the_recipe_and_not_the_picture(tmp_path, caplog):
    decode._say.cache_clear()
    recipe = {"prompt": ["赤" * 2000] * 8}
    images.save_image(Image.new("RGBA", (3, 3), (255, 0, 0, 0)), tmp_path / "a.jpg", recipe)
    assert images.open_image(tmp_path / "a.jpg").getpixel((1, 1)) == (255, 255, 255)
    assert [m.partition(":")[0] for m in caplog.messages] == [
        "JPEG holds no transparency",
        "a recipe that is too long for a JPEG is left out; PNG and WebP have room for it (said once)",
    ]
    with pytest.raises(DataError, match="holds no t2i recipe"):
        provenance.read_recipe(tmp_path / "a.jpg")
    images.save_image(Image.new("RGB", (3, 3)), tmp_path / "a.webp", recipe)
    assert provenance.read_recipe(tmp_path / "a.webp") == recipe


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "null", "{", "7" * 5000])
def test_a_recipe_that_is_none_is_said_to_be_missing(text, tmp_path):
    chunk, exif = PngImagePlugin.PngInfo(), Image.Exif()
    chunk.add_itxt("t2i", text)
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + text.encode()
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png", pnginfo=chunk)
    Image.new("RGB", (3, 3)).save(tmp_path / "a.webp", exif=exif)
    for name in ("a.png", "a.webp"):
        with pytest.raises(DataError, match=f"{name} holds no t2i recipe"):
            provenance.read_recipe(tmp_path / name)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_recipe_of_many_megabytes_is_refused(zipped, tmp_path):
    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt("t2i", '{"prompt": "' + "a" * 5_000_000 + '"}', zip=zipped)
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png", pnginfo=chunk)
    with pytest.raises(DataError, match=r"a.png.* (5,000,014 characters, more than 1,048,576|too large)"):
        provenance.read_recipe(tmp_path / "a.png")


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
    with pytest.raises(FullDiskError, match=r"no space left to write .*a.png"):
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
