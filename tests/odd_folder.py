"""A folder as people's are: 200 pictures of every mode, kind and size, and what is no picture."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n0 0 40 40 rectfill\n%%EOF\n"
TURNED = Image.Exif()
TURNED[274] = 6


def picture(number: int, width: int = 80, height: int = 80) -> Image.Image:
    """A gradient that differs from number to number."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 3 + number * 7) % 256, (y * 3 + number * 11) % 256, (x + y + number * 13) % 256]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def _transparent(number: int) -> Image.Image:
    image = picture(number).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _palette(number: int) -> Image.Image:
    return picture(number).quantize(32)


def _deep(number: int) -> Image.Image:
    grey = np.asarray(picture(number).convert("L")).astype(np.uint16)
    return Image.fromarray(grey * 257)


KINDS: tuple[tuple[str, int, str, Callable[[int], Image.Image], dict[str, object]], ...] = (
    ("rgb", 68, "jpg", picture, {}),
    ("png", 48, "png", picture, {}),
    ("grey", 6, "png", lambda n: picture(n).convert("L"), {}),
    ("bits", 2, "png", lambda n: picture(n).convert("1"), {}),
    ("rgba", 8, "png", _transparent, {}),
    ("la", 4, "png", lambda n: _transparent(n).convert("LA"), {}),
    ("palette", 6, "png", _palette, {}),
    ("hole", 2, "png", _palette, {"transparency": 3}),
    ("deep", 4, "png", _deep, {}),
    ("cmyk", 4, "jpg", lambda n: picture(n).convert("CMYK"), {}),
    ("icc", 4, "jpg", picture, {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}),
    ("turned", 6, "jpg", lambda n: picture(n, 120, 80), {"exif": TURNED}),
    ("wide", 4, "png", lambda n: picture(n, 240, 60), {}),
    ("tall", 4, "png", lambda n: picture(n, 60, 240), {}),
    ("narrow", 1, "png", lambda n: picture(n, 900, 30), {}),
    ("tiny", 4, "png", lambda n: picture(n, 12, 12), {}),
    ("moving", 4, "gif", _palette, {"save_all": True, "append_images": [_palette(1)]}),
    ("bmp", 4, "bmp", picture, {}),
    ("tif", 3, "tif", picture, {}),
    ("tiff", 1, "TIFF", picture, {}),
    ("webp", 4, "webp", picture, {}),
    ("avif", 4, "avif", picture, {}),
)
"""Name, how many, extension, maker, options of saving; 195 pictures that can be read, but for the narrow one."""

CAPTIONS: dict[str, bytes] = {
    "rgb-0": b"\xef\xbb\xbfa red cube",
    "rgb-1": "a red cube\r\na blue cone\r\n".encode("utf-16"),
    "rgb-2": "a caf\u00e9".encode("cp1252"),
    "rgb-3": b"",
    "rgb-4": "a red cube\u2028on a floor\n\na blue cone".encode(),
    "rgb-5": b"a red cube\ra blue cone",
    "rgb-6": b"a red cube " * 400,
    "rgb-7": b"a red\0 \x1b[31mcube",
}
"""What is not one plain sentence; `rgb-2` is no UTF-8, `rgb-8` and `rgb-9` have none."""


def make(root: Path) -> None:
    """Fill a folder: 200 names that end as pictures do, a hidden folder, captions and other files."""
    root.mkdir(parents=True)
    for name, count, extension, maker, options in KINDS:
        for number in range(count):
            maker(number).save(root / f"{name}-{number}.{extension}", **options)
            beside = root / f"{name}-{number}{'.TXT' if name == 'bmp' else '.txt'}"
            if f"{name}-{number}" not in ("rgb-8", "rgb-9"):
                beside.write_bytes(CAPTIONS.get(f"{name}-{number}", f"a {name} picture, number {number}".encode()))
    whole = io.BytesIO()
    picture(0).save(whole, "JPEG")
    wrong = {"program.jpg": EPS, "broken.jpg": whole.getvalue()[:300], "empty.png": b"", "text.png": b"not a picture"}
    for file, data in wrong.items():
        (root / file).write_bytes(data)
        (root / file).with_suffix(".txt").write_text("a picture")
    (root / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "notes.md").write_text("# not a caption")
    (root / "lonely.txt").write_text("a caption of no picture")
    os.symlink(root / "rgb-10.jpg", root / "link.jpg")
    (root / "link.txt").write_text("a picture by another name")
    os.symlink("/nowhere/at/all.jpg", root / "gone.jpg")
    os.mkfifo(root / "pipe.jpg")
    (root / ".thumbnails").mkdir()
    for number in range(3):
        picture(number).save(root / ".thumbnails" / f"{number}.png")
