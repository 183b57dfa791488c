"""Colour profiles: a picture looks the same in sRGB, and one that is in sRGB keeps every byte."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from t2i.io import colour, decode, images

ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SEEN = ((200, 30, 30), (40, 180, 60), (224, 172, 140), (90, 150, 220))


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


WHITE = b"XYZ \0\0\0\0" + fixed(0.9642) + fixed(1) + fixed(0.8249)


def profile(gamma: float, matrix: np.ndarray | None = None) -> bytes:
    """A profile of RGB by its primaries, columns of XYZ under D50, or of grey."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    if matrix is None:
        return packed(b"mntrGRAYXYZ ", {b"kTRC": curve})
    columns = dict(zip("rgb", matrix.T, strict=True))
    tags = {f"{name}XYZ".encode(): b"XYZ \0\0\0\0" + b"".join(map(fixed, xyz)) for name, xyz in columns.items()}
    return packed(b"mntrRGB XYZ ", tags | {f"{name}TRC".encode(): curve for name in columns})


def press() -> bytes:
    """A profile of a press on which every ink but black is a grey of lightness 50, and two are no darker."""
    levels = bytes(range(256))
    corners = [(0 if k else 128 if c or m or y else 255, 128, 128) for c, m, y, k in np.ndindex(2, 2, 2, 2)]
    table = b"mft1\0\0\0\0\4\3\2\0" + b"".join(map(fixed, np.eye(3).ravel())) + levels * 4
    table += bytes(np.array(corners, np.uint8)) + levels * 3
    return packed(b"prtrCMYKLab ", {b"A2B0": table, b"A2B1": table})


def packed(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 of some tags."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78, b"wtpt": WHITE, **tags}
    tags[b"cprt"] = b"text\0\0\0\0none\0"
    body, table, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI", at + len(body), b"lcms", 0x02100000) + kind
    head += b"\x07\xd0\0\1\0\1\0\0\0\0\0\0" + b"acsp" + b"\0" * 28 + WHITE[8:] + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + body


def encoded(image: Image.Image, icc: bytes, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, icc_profile=icc, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("matrix", [ADOBE, P3], ids=["Adobe RGB", "Display P3"])
@pytest.mark.parametrize("seen", SEEN)
def test_a_wide_picture_is_read_as_it_is_seen(matrix: np.ndarray, seen: tuple[int, int, int]) -> None:
    icc = profile(2.2, matrix)
    to = ImageCms.buildTransform(io.BytesIO(SRGB), io.BytesIO(icc), "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    wide = to.apply(Image.new("RGB", (8, 8), seen))
    for data in (encoded(wide, icc), encoded(wide, icc, "TIFF"), encoded(wide, icc, "WebP", lossless=True)):
        read = images.open_image(data)
        assert np.abs(np.array(read.getpixel((4, 4))) - seen).max() <= 1
        assert "icc_profile" not in read.info
    wide.info["icc_profile"] = icc
    assert np.abs(images.from_pil(wide)[:, 4, 4].numpy() * 127.5 + 127.5 - seen).max() <= 1
    clear = wide.convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    read = images.open_image(encoded(clear, icc), keep_alpha=True)
    assert np.abs(np.array(read.getpixel((4, 4))) - (*seen, 255)).max() <= 1
    assert read.getpixel((0, 0))[3] == 0
    palette = encoded(wide.convert("P", palette=Image.Palette.ADAPTIVE), icc)
    assert np.abs(np.array(images.open_image(palette).getpixel((4, 4))) - seen).max() <= 1


def test_colours_are_converted_once() -> None:
    read = images.open_image(encoded(Image.new("RGB", (4, 4), (106, 179, 72)), profile(2.2, ADOBE)))
    assert images.to_rgb(read).tobytes() == read.tobytes()


def test_a_picture_in_srgb_keeps_every_byte() -> None:
    """Also by a profile that writes sRGB down a little differently."""
    noise = Image.effect_noise((40, 40), 80).convert("RGB")
    matrix = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    for picture in (noise, noise.convert("L"), noise.convert("1"), noise.convert("P")):
        assert images.open_image(encoded(picture, SRGB)).tobytes() == picture.convert("RGB").tobytes()
    assert colour._transform(SRGB, "RGB") is None
    assert colour._transform(profile(2.2, matrix), "RGB") is not None, "gamma 2.2 is darker in the shadows"


def test_grey_has_profiles_of_its_own_also_of_sixteen_bits_and_beside_transparency() -> None:
    linear = profile(1.0)  # half of the light is 188 in sRGB
    grey = Image.new("L", (4, 4), 128)
    clear = grey.convert("LA")
    clear.putpixel((0, 0), (0, 0))
    deep = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    for picture in (grey, clear, deep):
        assert images.open_image(encoded(picture, linear)).getpixel((2, 2)) == (188, 188, 188)
    assert images.open_image(encoded(grey, profile(2.2, ADOBE))).getpixel((2, 2)) == pytest.approx((129,) * 3, abs=2)


@pytest.mark.parametrize(
    "icc", [b"no profile", profile(2.2, ADOBE)[:200], profile(1.0), b"a" * (colour.MAX_PROFILE + 1)]
)
def test_a_profile_that_is_broken_or_of_another_kind_is_taken_for_srgb_and_that_is_said_once(
    icc: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    decode._say.cache_clear()
    picture = Image.new("RGB", (4, 4), (106, 179, 72))
    for _ in range(2):
        assert images.open_image(encoded(picture, icc, "TIFF")).tobytes() == picture.tobytes()
    assert caplog.messages == ["a colour profile that cannot be used is taken for sRGB (said once)"]


def test_cmyk_is_seen_as_its_press_prints() -> None:
    for inks, seen in (((0, 0, 0, 0), 255), ((255, 0, 0, 0), 119), ((255, 255, 0, 0), 119), ((0, 0, 0, 255), 0)):
        for kind in ("TIFF", "JPEG"):
            read = images.open_image(encoded(Image.new("CMYK", (16, 16), inks), press(), kind))
            assert read.getpixel((8, 8)) == pytest.approx((seen,) * 3, abs=2), (inks, kind)


def test_cmyk_without_a_profile_is_read_as_before_and_with_a_wrong_one_too() -> None:
    inks = Image.new("CMYK", (4, 4), (200, 20, 120, 10))
    for icc in (b"", SRGB):
        assert images.open_image(encoded(inks, icc, "TIFF")).tobytes() == inks.convert("RGB").tobytes()
