"""What holds for any text, bytes, names and values that a user or a file of others may bring."""

import io
import string
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from t2i.core.errors import DataError, UsageError, quoted, shown
from t2i.core.seed import Streams
from t2i.data.shards import ShardSource
from t2i.data.source import lines_of, text_of
from t2i.io.images import open_image
from t2i.io.provenance import read_recipe
from t2i.run import load_run

QUICK = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=3000)
KEYS = (
    "stage", "preset", "init", "clip", "needs", "save_dtype", "model.unet.channels", "model.unet.multipliers", "nosuch",
    "model.unet.attention", "model.ports.text.width", "model.diffusion.num_steps", "model.image_size", "task.kind",
    "task.sampling.steps", "data.size", "data.source", "data.captions", "data.num_things", "train.steps", "train.seed",
    "train.ema", "train.batch_size", "optim.lr", "optim.betas", "optim.only", "a.b.c", "model", "train", "",
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["[1, 2]", "{a: 1}", "null", "!!timestamp x", "!!set {a}", "&a [*a]", "[" * 2000, "2001-02-31"]),
    st.lists(st.integers(-(10**40), 10**40), max_size=3).map(str),
)  # fmt: skip
NAMES = st.text(string.ascii_lowercase + ". ", min_size=1, max_size=8).filter(lambda s: s.strip(". ") == s)


def check_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 20_000


def overrides_are_one_run_or_one_line(pairs: list[tuple[str, str]]) -> None:
    try:
        load_run("configs/shapes/decoder.yaml", [f"{key}={value}" for key, value in pairs])
    except UsageError as error:
        check_line(error)


def text_is_one_bounded_line(text: str, limit: int) -> None:
    line = shown(text, limit)
    assert not set(line) & set(map(chr, [*range(32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0x2066]))
    assert len(line) <= 8 * limit + 40
    assert "\n" not in quoted(text)


def captions_are_clean(data: bytes) -> None:
    try:
        text = text_of(data)
    except UnicodeDecodeError:
        return
    lines = lines_of(text)
    assert lines
    for line in lines:
        assert line == line.strip()
        assert not set(line) & set("\r\n\0\ufeff\x0b\x0c\x85\u2028\u2029")


def pictures_are_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        path.write_bytes(data)
        for read in (lambda: open_image(data), lambda: read_recipe(path)):
            try:
                read()
            except DataError as error:
                check_line(error)


def every_picture_of_a_tar_keeps_its_caption(names: set[str]) -> None:
    """Pictures of different names are different samples, each with its own caption and pixels."""
    ordered = sorted(names)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(Path(folder, "a.tar"), "w") as tar:
            for number, name in enumerate(ordered):
                png = io.BytesIO()
                Image.new("L", (8, 8), number).save(png, "PNG")
                for end, data in (("png", png.getvalue()), ("txt", f"of {name}".encode())):
                    member = tarfile.TarInfo(f"{name}.{end}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        source = ShardSource(str(Path(folder, "a.tar")), 8)
        samples = [source.load(index, Streams([0])) for index in range(len(source))]
    found = {s["caption"]: round((float(s["image"][0, 0, 0]) + 1) * 127.5) for s in samples}
    assert found == {f"of {name}": number for number, name in enumerate(ordered)}


PAIRS = st.lists(st.tuples(st.sampled_from(KEYS), VALUES), max_size=3)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\2\0\0\0"
PICTURES = st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda tail: PNG + tail))
PROPERTIES = {
    "overrides": (given(PAIRS), overrides_are_one_run_or_one_line),
    "text": (given(st.text(), st.integers(1, 100)), text_is_one_bounded_line),
    "captions": (given(st.binary(max_size=100)), captions_are_clean),
    "pictures": (given(PICTURES), pictures_are_read_or_refused),
    "tars": (given(st.sets(NAMES, min_size=1, max_size=6)), every_picture_of_a_tar_keeps_its_caption),
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_holds(name: str) -> None:
    values, holds = PROPERTIES[name]
    QUICK(values(holds))()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_holds_for_thousands(name: str) -> None:
    values, holds = PROPERTIES[name]
    LONG(values(holds))()
