"""A file arrives whole or not at all, whatever the network does."""

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from file_server import FileServer, serving

from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.io.download import ATTEMPTS, download

BODY = random.Random(0).randbytes(5_000_000)  # several blocks
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("t2i.io.download.WAIT", 0.0)
    with serving({"/net.pt": BODY}) as state:
        yield state


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_arrives_once(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "below" / "net.pt"
    assert download(f"{server.url}/net.pt?dl=1", path, md5=MD5.upper()) == path
    assert path.read_bytes() == BODY
    assert names(path.parent) == {"net.pt"}
    assert download(f"{server.url}/net.pt", path) == path
    assert server.served == [len(BODY)]


def test_there_is_nothing_under_the_name_before_it_is_whole(server: FileServer, tmp_path: Path) -> None:
    server.gate = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(download, f"{server.url}/net.pt", tmp_path / "net.pt")
        part, end = tmp_path / "net.pt.part", time.monotonic() + 10
        while not (part.exists() and part.stat().st_size >= 2**20):
            assert time.monotonic() < end
            time.sleep(0.005)
        assert not (tmp_path / "net.pt").exists()
        server.gate.set()
        assert done.result(10).read_bytes() == BODY
    assert names(tmp_path) == {"net.pt"}


def test_a_cut_connection_is_taken_up_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [2_000_000, 1_500_000]
    assert download(f"{server.url}/net.pt", tmp_path / "net.pt", md5=MD5).read_bytes() == BODY
    assert server.ranges == [None, "bytes=2000000-", "bytes=3500000-"]
    assert server.served == [2_000_000, 1_500_000, 1_500_000]


def test_a_later_call_continues(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [2_500_000] + [0] * ATTEMPTS
    with pytest.raises(DataError, match=r"net.pt: broke off after 2,500,000 of 5,000,000 bytes; the same command cont"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt")
    assert "net.pt" not in names(tmp_path)
    server.served.clear()
    assert download(f"{server.url}/net.pt", tmp_path / "net.pt", md5=MD5).read_bytes() == BODY
    assert server.served == [2_500_000]


def test_servers_that_ignore_ranges_start_anew(server: FileServer, tmp_path: Path) -> None:
    server.knows_ranges, server.cuts = False, [2_000_000]
    assert download(f"{server.url}/net.pt", tmp_path / "net.pt").read_bytes() == BODY
    assert server.served == [2_000_000, len(BODY)]


def test_always_cut_at_the_same_place_ends(server: FileServer, tmp_path: Path) -> None:
    server.knows_ranges, server.cuts = False, [2_000_000] * 100
    with pytest.raises(DataError, match="broke off"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt")
    assert len(server.served) == ATTEMPTS + 1


def test_a_whole_part_is_only_renamed(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "net.pt.part").write_bytes(BODY)
    assert download(f"{server.url}/net.pt", tmp_path / "net.pt", md5=MD5).read_bytes() == BODY
    assert server.served == []


def test_a_part_that_is_larger_than_the_file_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "net.pt.part").write_bytes(BODY + b"more")
    assert download(f"{server.url}/net.pt", tmp_path / "net.pt", md5=MD5).read_bytes() == BODY


def test_another_md5_is_refused_and_nothing_is_left(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "net.pt.part").write_bytes(b"of another file")
    with pytest.raises(DataError, match=f"net.pt: damaged, its MD5 is .* instead of {MD5}"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt", md5=MD5)
    assert not names(tmp_path) & {"net.pt", "net.pt.part"}
    assert download(f"{server.url}/net.pt", tmp_path / "net.pt", md5=MD5).read_bytes() == BODY


def test_less_than_announced_is_refused(server: FileServer, tmp_path: Path) -> None:
    server.total = len(BODY) + 1
    with pytest.raises(DataError, match="broke off after 5,000,000 of 5,000,001 bytes"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt")
    assert "net.pt" not in names(tmp_path)


def test_more_than_announced_is_refused_and_nothing_is_left(server: FileServer, tmp_path: Path) -> None:
    server.total, server.cuts = 3_000_000, [1_000_000]
    with pytest.raises(DataError, match="5,000,000 bytes came instead of 3,000,000"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt")
    assert not names(tmp_path) & {"net.pt", "net.pt.part"}


@pytest.mark.parametrize(("status", "message"), [(404, "404 Not Found"), (403, "403 Forbidden")])
def test_refusals_are_not_tried_again(server: FileServer, tmp_path: Path, status: int, message: str) -> None:
    server.statuses = [status]
    with pytest.raises(DataError, match=f"^{server.url}/net.pt: {message}$"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt")
    assert len(server.ranges) == 1


def test_a_busy_server_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert download(f"{server.url}/net.pt", tmp_path / "net.pt").read_bytes() == BODY
    server.statuses = [500] * 100
    with pytest.raises(DataError, match="500 Internal Server Error"):
        download(f"{server.url}/net.pt", tmp_path / "other.pt")
    assert len(server.ranges) == 3 + ATTEMPTS


def test_a_web_page_is_no_file(server: FileServer, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DataError, match="a web page instead of a file"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt")
    assert not names(tmp_path) & {"net.pt", "net.pt.part"}


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(DataError, match=r"^https://nowhere\.example/net\.pt: no network, or no host nowhere\.example$"):
        download("https://nowhere.example/net.pt", tmp_path / "net.pt")


def test_nobody_listens(server: FileServer, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nothing more
        with pytest.raises(DataError, match="Connection refused"):
            download(f"http://127.0.0.1:{free.getsockname()[1]}/net.pt", tmp_path / "net.pt")


def test_several_at_once_fetch_it_once(server: FileServer, tmp_path: Path) -> None:
    server.gate = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(download, f"{server.url}/net.pt", tmp_path / "net.pt", md5=MD5) for _ in range(4)]
        threading.Timer(0.2, server.gate.set).start()
        assert {future.result(10) for future in waiting} == {tmp_path / "net.pt"}
    assert (tmp_path / "net.pt").read_bytes() == BODY
    assert server.served == [len(BODY)]
    assert names(tmp_path) == {"net.pt"}


def test_a_full_disk_is_told_before_and_while(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full.pt.part").symlink_to("/dev/full")
    with pytest.raises(FullDiskError, match=r"no space left to write .*full\.pt\.part"):
        download(f"{server.url}/net.pt", tmp_path / "full.pt")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(FullDiskError, match=r"no space left .* needs 5,000,000 bytes, 10 are free"):
        download(f"{server.url}/net.pt", tmp_path / "net.pt")
    assert not names(tmp_path) & {"net.pt", "net.pt.part"}


def test_a_folder_that_cannot_be_written_is_refused_first(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="file is a file, expected a folder"):
        download(f"{server.url}/net.pt", tmp_path / "file" / "net.pt")
    assert server.ranges == []
