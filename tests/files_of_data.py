"""Folders and shards of small pictures that say which they are, for tests."""

import io
import tarfile

from PIL import Image


def picture(value, size=(12, 10), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def make_folder(path, count=20, start=0):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (path / f"{i:03d}.png").write_bytes(picture(i))
        (path / f"{i:03d}.txt").write_text(f"picture {i}\n")
    return path


def make_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_shard(path, start, count, **extra):
    members = []
    for i in range(start, start + count):
        members += [(f"{i:04d}.png", picture(i)), (f"{i:04d}.txt", f"picture {i}".encode())]
        members += [(f"{i:04d}.{kind}", data(i)) for kind, data in extra.items()]
    return make_tar(path, members)
