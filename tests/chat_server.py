"""An OpenAI-compatible chat server on this machine that misbehaves as told, and keeps what it was asked."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from file_server import listening


def said(text: object, finish: str = "stop") -> bytes:
    """An answer of the chat API."""
    message = {"role": "assistant", "content": text}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}]}).encode()


@dataclass
class ChatServer:
    """Answers with `reply(request)`, as text of the model.

    Attributes:
        bodies: what to send instead, whatever it is, request by request.
        statuses: what to answer with, request by request; then 200.
        wait: seconds before an answer.
        breaks_off: answers that end in their middle, of a length that is `announced`, or `chunked`.
        drip: seconds between the bytes of an answer.
        headers: more of every answer.
        reason: what stands beside a status.
        asked: the body of every request, `authorised`: its Authorization.
    """

    reply: Callable[[dict[str, Any]], object] = lambda _: "a red cube"
    bodies: list[bytes] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    breaks_off: list[str] = field(default_factory=list)
    wait: float = 0.0
    drip: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    models: list[str] = field(default_factory=lambda: ["tiny"])
    asked: list[dict[str, Any]] = field(default_factory=list)
    authorised: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def chatting(**given: Any) -> Iterator[ChatServer]:
    """The server, on a free port of 127.0.0.1, until the block ends."""
    state = ChatServer(**given)
    with listening(_Handler, state) as address:
        state.url = f"{address}/v1"
        yield state


class _Handler(BaseHTTPRequestHandler):
    state: ChatServer
    timeout = 10

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self._send(200, json.dumps({"data": [{"id": name} for name in self.state.models]}).encode())

    def do_POST(self) -> None:
        state = self.state
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state.asked.append(request)
        state.authorised.append(self.headers.get("Authorization"))
        time.sleep(state.wait)
        status = state.statuses.pop(0) if state.statuses else 200
        body = state.bodies.pop(0) if state.bodies else said(state.reply(request))
        self._send(status, body)

    def _send(self, status: int, body: bytes) -> None:
        with suppress(OSError):
            self.send_response(status, self.state.reason)
            half = self.state.breaks_off.pop(0) if self.state.breaks_off else None
            if half == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body)))
            for name, value in self.state.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if half is not None:
                body = (b"%x\r\n" % len(body) if half == "chunked" else b"") + body[:20]
            for start in range(len(body)) if self.state.drip else ():
                self.wfile.write(body[start : start + 1])
                time.sleep(self.state.drip)
            if not self.state.drip:
                self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...
