"""Masks: no line is lost, whatever a program writes is understood, and EXIF turns them with their pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps

from t2i.core.errors import DataError, UsageError
from t2i.io.decode import _say
from t2i.io.images import open_image
from t2i.io.masks import hole, open_mask, to_mask_tensor
from t2i.pipeline.inputs import read_inpaint

SIDE = 64
PHOTO = Image.new("RGB", (SIDE, SIDE), (90, 120, 200))


def bar(width: int = SIDE, at: int = 0, size: int = SIDE, fill: int = 255) -> Image.Image:
    """White columns `at` … `at + width - 1`."""
    mask = Image.new("L", (size, size))
    mask.paste(fill, (at, 0, at + width, size))
    return mask


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("at", [0, 499, 500, 501, 502, 503, 1017])
def test_a_thin_line_stays_and_covers_all_that_was_painted(width: int, at: int) -> None:
    fresh = to_mask_tensor(bar(width, at, 1024), Image.new("RGB", (1024, 1024)), 256)
    columns = torch.zeros(256)
    columns[at // 4 : (at + width - 1) // 4 + 1] = 1
    assert fresh.shape == (1, 256, 256)
    assert torch.equal(fresh[0], columns.expand(256, 256))


@pytest.mark.parametrize("size", [1, 7, 63, 64, 65, 200])
@pytest.mark.parametrize("at", [(0, 0), (63, 63), (31, 40)])
def test_a_single_point_is_never_lost_at_any_size(size: int, at: tuple[int, int]) -> None:
    mask = Image.new("1", (SIDE, SIDE))
    mask.putpixel(at, 1)
    fresh = to_mask_tensor(mask, PHOTO, size)
    assert set(fresh.unique().tolist()) <= {0, 1}
    assert fresh[0, int((at[1] + 0.5) * size / SIDE), int((at[0] + 0.5) * size / SIDE)] == 1


def test_grey_of_128_is_white_and_an_empty_mask_is_refused() -> None:
    assert to_mask_tensor(bar(20, fill=128), PHOTO, SIDE).sum() == 20 * SIDE
    assert to_mask_tensor(bar(), PHOTO, 16).min() == 1
    for empty in (bar(20, fill=127), Image.new("RGB", (SIDE, SIDE)), Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 129))):
        with pytest.raises(UsageError, match=r"the mask is empty: nothing in it is white"):
            to_mask_tensor(empty, PHOTO, 16)


@pytest.mark.parametrize("values", [np.int32([[65536 + 256, 255 * 257]]), np.int32([[-1, 9]]), np.float32([[0, 1]])])
def test_a_mask_of_numbers_that_are_none_of_8_or_16_bits_is_refused(values: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"the mask is of mode [IF] with numbers from .*; whole ones from 0 to 65,535"):
        to_mask_tensor(Image.fromarray(values), Image.new("RGB", (2, 1)), 2)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_a_mask_of_any_mode_is_read_by_its_luminance(mode: str, tmp_path: Path) -> None:
    mask = bar(20)
    deep = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)
    mask = deep if mode == "I;16" else mask.convert("RGB").convert(mode)
    mask.save(tmp_path / "mask.tif")
    for given in (mask, open_mask(tmp_path / "mask.tif")):
        assert given.mode == mode
        assert torch.equal(to_mask_tensor(given, PHOTO, SIDE), to_mask_tensor(bar(20), PHOTO, SIDE))


def test_what_is_transparent_is_the_hole_whatever_its_colour(tmp_path: Path) -> None:
    """As in DALL-E 2's interface: the picture itself, with a part rubbed out."""
    rubbed = PHOTO.convert("RGBA")
    rubbed.paste((255, 255, 255, 255), (40, 0, SIDE, SIDE))
    rubbed.paste((0, 0, 0, 0), (0, 0, 20, SIDE))
    rubbed.putpixel((30, 30), (0, 0, 0, 127))
    rubbed.putpixel((31, 30), (0, 0, 0, 128))
    wanted = np.asarray(bar(20)) > 0
    wanted[30, 30] = True
    rubbed.save(tmp_path / "rubbed.png")
    for given in (rubbed, open_mask(tmp_path / "rubbed.png")):
        assert np.array_equal(to_mask_tensor(given, PHOTO, SIDE)[0].numpy() > 0, wanted)
    palette = rubbed.quantize(8)
    assert palette.mode == "P"
    assert np.array_equal(to_mask_tensor(palette, PHOTO, SIDE)[0, :, :20].numpy() > 0, wanted[:, :20])
    assert hole(PHOTO) is None
    assert hole(PHOTO.convert("RGBA")) is None


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_mask_turns_with_its_picture(turn: int, tmp_path: Path) -> None:
    """A yellow corner of a photo that EXIF turns, masked upright, with the same tag, and in Python on stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = turn
    stored, mask = PHOTO.copy(), Image.new("L", PHOTO.size)
    ImageDraw.Draw(stored).rectangle((0, 0, 40, 9), fill=(250, 250, 0))
    ImageDraw.Draw(mask).rectangle((0, 0, 40, 9), fill=255)
    stored.save(tmp_path / "photo.png", exif=exif)
    mask.save(tmp_path / "tagged.png", exif=exif)
    ImageOps.exif_transpose(Image.open(tmp_path / "tagged.png")).save(tmp_path / "upright.png")
    upright = open_image(tmp_path / "photo.png")
    wanted = np.asarray(upright)[..., 2] == 0
    raw = Image.open(tmp_path / "photo.png")
    for of, given in (
        (upright, open_mask(tmp_path / "tagged.png")),
        (upright, open_mask(tmp_path / "upright.png")),
        (upright, Image.open(tmp_path / "tagged.png")),
        (raw, mask),
        (raw, Image.open(tmp_path / "tagged.png")),
    ):
        assert np.array_equal(to_mask_tensor(given, of, SIDE)[0].numpy() > 0, wanted)
    assert mask.getpixel((0, 0)) == 255, "what was given stays as it is"


@pytest.mark.parametrize("turn", [3, 6, 8])
@pytest.mark.parametrize("sides", [(64, 64), (64, 32)])
def test_one_rule_turns_a_mask_for_a_path_and_for_a_picture_that_was_opened(
    turn: int, sides: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only where both readings fit do they differ, and then that is said, once."""
    exif = Image.Exif()
    exif[0x0112] = turn
    mask = Image.new("L", sides)
    mask.paste(255, (0, 0, 40, 9))
    mask.save(tmp_path / "tagged.png", exif=exif)
    Image.new("RGB", sides).save(tmp_path / "photo.png", exif=exif)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / "tagged.png"))
    both = shown.size == mask.size
    turned, as_it_is = (to_mask_tensor(one, Image.new("RGB", one.size), SIDE) for one in (shown, mask))
    photo = Image.open(tmp_path / "photo.png")
    for as_shown, said in ((True, "the upright picture"), (False, "its stored pixels")):
        _say.cache_clear()
        caplog.clear()
        for _ in range(2):
            fresh = to_mask_tensor(mask, photo, SIDE, as_shown=as_shown)
            assert torch.equal(fresh, as_it_is if both and as_shown else turned)
        assert [said in message for message in caplog.messages] == [True] * both
        if not both:
            assert torch.equal(to_mask_tensor(shown, photo, SIDE, as_shown=as_shown), turned)
        tagged = Image.open(tmp_path / "tagged.png")
        assert torch.equal(to_mask_tensor(tagged, photo, SIDE, as_shown=as_shown), turned)


def test_inpainting_reads_a_photo_by_its_path_as_opened(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    painted = Image.new("L", PHOTO.size)
    painted.paste(255, (0, 0, 40, 9))
    PHOTO.save(tmp_path / "photo.png", exif=exif)
    painted.save(tmp_path / "tagged.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "tagged.png"))
    upright.save(tmp_path / "upright.png")
    how = {"size": SIDE, "base": SIDE, "blend": 0}
    photo, tagged = tmp_path / "photo.png", tmp_path / "tagged.png"
    wanted = to_mask_tensor(upright, PHOTO, SIDE)
    for image, mask in (
        (photo, tmp_path / "upright.png"),
        (str(photo), upright),
        (photo, tagged),
        (Image.open(photo), tagged),
        (Image.open(photo), Image.open(tagged)),
        (Image.open(photo), painted),
    ):
        assert torch.equal(read_inpaint(image, mask, **how).fresh, wanted)
    rubbed = PHOTO.copy()
    rubbed.putalpha(painted.point(lambda grey: 255 - grey))
    rubbed.save(tmp_path / "rubbed.png", exif=exif)
    for image in (tmp_path / "rubbed.png", Image.open(tmp_path / "rubbed.png")):
        assert torch.equal(read_inpaint(image, None, **how).fresh, wanted)


def test_a_mask_must_fit_and_be_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the mask has 10 × 20 pixels, the picture 64 × 64"):
        to_mask_tensor(Image.new("L", (10, 20), 255), PHOTO, SIDE)
    with pytest.raises(UsageError, match="a mask is a PIL picture or the path of one, got ndarray"):
        to_mask_tensor(np.ones((64, 64)), PHOTO, SIDE)
    with pytest.raises(DataError, match=r"none.png does not exist"):
        open_mask(tmp_path / "none.png")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing() -> None:
    mask = bar(20)
    mask.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"
    assert to_mask_tensor(mask, PHOTO, SIDE)[0, :, :20].min() == 1
