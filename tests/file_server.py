"""A web server on this machine that misbehaves as told, and counts what it was asked for."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Serves `files` by path.

    Attributes:
        cuts: after how many bytes the connection is closed, request by request; whole answers when it is used up.
        statuses: what to answer instead, request by request, until used up.
        total: size of the whole file that answers claim, if not the true one.
        gate: if given, half of a file is sent, and the rest once it is set.
        served: bytes sent, by request.
        ranges: the Range header of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    knows_ranges: bool = True
    content_type: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    total: int | None = None
    gate: threading.Event | None = None
    served: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FileServer]:
    """The server, on a free port of 127.0.0.1, until the block ends."""
    state = FileServer(files)
    with listening(_Handler, state) as state.url:
        yield state


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], state: object) -> Iterator[str]:
    """The address of a server on a free port of 127.0.0.1, whose handlers have `state`, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    state: FileServer
    timeout = 10

    def do_GET(self) -> None:
        state, asked = self.state, self.headers.get("Range")
        state.ranges.append(asked)
        body = state.files.get(self.path.split("?")[0])
        status = state.statuses.pop(0) if state.statuses else 200 if body is not None else 404
        if status != 200 or body is None:
            self.send_error(status)
            return
        start, total = 0, len(body) if state.total is None else state.total
        if asked is not None and state.knows_ranges:
            found = re.fullmatch(r"bytes=(\d+)-", asked)
            assert found is not None
            start = int(found[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.send_header("Content-Length", str(len(body) - start))
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(total))
        self.send_header("Content-Type", state.content_type)
        self.end_headers()
        with suppress(ConnectionError):  # who asked went away
            self._send(body[start:])

    def _send(self, body: bytes) -> None:
        body = body[: self.state.cuts.pop(0)] if self.state.cuts else body
        half = len(body) // 2 if self.state.gate else 0
        self.wfile.write(body[:half])
        if self.state.gate is not None:
            self.wfile.flush()
            assert self.state.gate.wait(10)
        self.wfile.write(body[half:])
        self.state.served.append(len(body))

    def log_message(self, *_: object) -> None:
        pass
