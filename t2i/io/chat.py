"""A client of OpenAI-compatible chat servers (vLLM, llama.cpp, Ollama and others), with the standard library alone."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from t2i.core.errors import UNSEEN, DataError, UsageError, quoted, shown
from t2i.version import __version__

log = logging.getLogger(__name__)

KEY = "T2I_API_KEY"
"""The environment variable that holds the key of a server, where none is given."""
MAX_ANSWER = 2**20
"""Bytes of an answer; what is longer is not read."""
WAIT = 0.5
"""Seconds before another attempt, doubled for each further one."""
MAX_WAIT = 60.0
"""And at most, where a server says how long (`Retry-After`)."""
_MAX_ERROR = 2**14  # bytes of an error that are read
_BLOCK = 2**14
_BUSY = (408, 409, 425, 429)  # beside all from 500


_CUT_OFF = {
    "length": "was cut off at the most tokens that it may answer; allow more",
    "content_filter": "was cut off by a filter of its server",
}  # by `finish_reason`


def spoken(text: str) -> str:
    """What a model says in visible characters, without what it thinks aloud before; empty where it only thinks."""
    said = UNSEEN.sub(" ", text).rpartition("</think>")[2].strip()
    return "" if said.startswith("<think>") else said


class _Passing(Exception):
    """A failure that may pass, in so many seconds if the server says so."""

    def __init__(self, problem: str, wait: float = 0.0) -> None:
        super().__init__(problem)
        self.wait = wait


class _Stay(HTTPRedirectHandler):
    """Redirects are not followed: they would carry the key to where nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """One model of a chat server.

    Args:
        url: what `/chat/completions` is appended to, such as `http://localhost:8000/v1`.
        model: its name there.
        key: sent as a bearer token; that of the environment's `T2I_API_KEY` if None. It is shown nowhere.
        timeout: seconds for a whole answer.
        retries: further attempts where a server is down, slow or busy.
        settings: what else is asked for, such as `{"temperature": 0, "max_tokens": 200}`.

    Raises UsageError for an address that is none, and for a key that cannot be sent.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 2
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _address(self.url))
        object.__setattr__(self, "key", self.key or os.environ.get(KEY) or None)
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(f"the key of {self.url} holds characters that cannot be sent")
        if not self.model:
            raise UsageError(f"{self.url}: name a model of this server")
        if not self.timeout > 0 or self.retries < 0:
            raise UsageError(f"timeout must be above 0, retries at least 0, got {self.timeout} and {self.retries}")

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """What the model answers to messages as in OpenAI's chat API, pictures as data URLs; in one line, never empty.

        Control characters become spaces, and what a model thinks aloud before it answers is left out.

        Raises DataError in one line: nobody there, too slow, refused with a status, no JSON, no answer in it, or one
        that was cut off.
        """
        first = self.choice(messages)
        text = first["message"]["content"]
        if text is not None and not isinstance(text, str):
            raise DataError(f"{self.url} sent JSON without an answer: its content is a {type(text).__name__}, no text")
        if (why := _CUT_OFF.get(str(first.get("finish_reason")))) is not None:
            raise DataError(f"{self.url}: {shown(self.model, 60)} {why}")
        if not (said := spoken(text or "")):
            raise DataError(f"{self.url}: {shown(self.model, 60)} answered nothing")
        return said

    def choice(self, messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The first of `choices` of an answer, with its `message`, and `logprobs` where they are asked for and given.

        Raises DataError as `ask`, but for what the message says.
        """
        answer = self.send("/chat/completions", {"messages": list(messages), **self.settings, "stream": False})
        try:
            first: Mapping[str, Any] = answer["choices"][0]
            first["message"]["content"]
        except (KeyError, IndexError, TypeError):
            said = f": {self._told(answer['error'])}" if isinstance(answer, dict) and "error" in answer else ""
            raise DataError(f"{self.url} sent JSON without an answer{said}") from None
        return first

    def send(self, path: str, content: Mapping[str, Any]) -> Any:
        """The JSON of what a server answers to JSON with the name of the model. Raises DataError as `ask`."""
        return self._call(path, json.dumps({"model": self.model, **content}).encode())

    def models(self) -> list[str]:
        """The names of the server's models. Raises DataError as `ask`."""
        answer = self._call("/models", None)
        try:
            return [str(entry["id"]) for entry in answer["data"]]
        except (KeyError, TypeError):
            raise DataError(f"{self.url} sent JSON without a list of models") from None

    def _call(self, path: str, body: bytes | None) -> Any:
        """The JSON of an answer, in at most 1 + `retries` attempts."""
        for attempt in range(self.retries + 1):
            try:
                return self._attempt(path, body)
            except _Passing as error:
                problem, wait = str(error), error.wait
            if attempt < self.retries:
                log.info("%s: %s; trying again", self.url, problem)
                time.sleep(max(WAIT * 2**attempt, wait))
        tries = f", after {self.retries + 1} attempts" if self.retries else ""
        raise DataError(f"{self.url}: {problem}{tries}")

    def _attempt(self, path: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "User-Agent": f"t2i/{__version__}"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        until = time.monotonic() + self.timeout
        try:
            with build_opener(_Stay).open(Request(self.url + path, body, headers), timeout=self.timeout) as answer:
                data = self._body(answer, until)
        except HTTPError as error:
            with error:
                self._refused(error)
        except TimeoutError:
            raise _Passing(f"no answer within {self.timeout:g} s") from None
        except IncompleteRead:
            raise _Passing("closed the connection in the middle of its answer") from None
        except (OSError, HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                raise _Passing(f"no answer within {self.timeout:g} s") from None
            words = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            raise _Passing(f"cannot be reached ({shown(self._hidden(words))})") from None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            start = self._hidden(data.decode(errors="replace"))[:60]
            raise DataError(f"{self.url} sent no JSON but {quoted(start)}") from None

    def _body(self, answer: HTTPResponse, until: float) -> bytes:
        """What is sent in time, of at most `MAX_ANSWER` bytes."""
        data = b""
        while block := answer.read1(_BLOCK):
            data += block
            if len(data) > MAX_ANSWER:
                raise DataError(f"{self.url} sent more than {MAX_ANSWER:,} bytes")
            if time.monotonic() > until:
                raise TimeoutError
        if answer.length:  # bytes that were announced and did not come
            raise IncompleteRead(data)
        return data

    def _refused(self, error: HTTPError) -> None:
        """Raise what a status means, with the server's own words."""
        try:
            said = error.read(_MAX_ERROR).decode(errors="replace")
        except (OSError, HTTPException):
            said = ""
        with suppress(ValueError, RecursionError, KeyError, TypeError):
            said = json.loads(said)["error"]
        told = self._told(said)
        problem = f"{error.code} {shown(self._hidden(error.reason), 60)}" + (f": {told}" if told else "")
        if error.code >= 500 or error.code in _BUSY:
            wait = error.headers.get("Retry-After", "")
            raise _Passing(problem, min(float(wait), MAX_WAIT) if wait.isdecimal() else 0.0)
        raise DataError(f"{self.url}: {problem}")

    def _told(self, said: Any) -> str:
        """A server's error as a short line."""
        if isinstance(said, dict):
            said = said.get("message", said)
        return shown(self._hidden(" ".join(str(said).split())), 200)

    def _hidden(self, text: str) -> str:
        """Text of a server that may repeat the key, without it."""
        return text if self.key is None else text.replace(self.key, "[key]")


def open_endpoint(address: str, **options: Any) -> Endpoint:
    """The endpoint of `http://HOST/v1#MODEL`; without `#MODEL` the only model of the server.

    Raises UsageError for an address that is none and where there are several models, DataError as `Endpoint.ask`.
    """
    url, _, model = address.partition("#")
    if model:
        return Endpoint(url, model, **options)
    names = Endpoint(url, "?", **options).models()
    if len(names) != 1:
        some = ", ".join(shown(name, 60) for name in names[:8]) or "none"
        raise UsageError(f"{_address(url)}: name one of its {len(names)} models, such as {url}#NAME: {some}")
    return Endpoint(url, names[0], **options)


def is_address(text: str) -> bool:
    """Whether a text names a server."""
    return text.startswith(("http://", "https://"))


def _address(url: str) -> str:
    """An address without what follows `/v1`; UsageError for one that is none, and for secrets in it."""
    try:
        parts = urlsplit(url)
        named = bool((parts.hostname or "").encode("idna")) and (parts.port is None or parts.port > 0)
    except ValueError:
        named = False
    if not named or parts.scheme not in ("http", "https") or not (url.isascii() and url.isprintable()) or " " in url:
        raise UsageError(f"an endpoint is an address such as http://localhost:8000/v1, got {quoted(_bare(url))}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"{parts.scheme}://{parts.hostname}: an endpoint has no name, password or ?query; its key is ${KEY}"
        )
    return url.rstrip("/").removesuffix("/chat/completions")


def _bare(url: str) -> str:
    """Without what may be a password."""
    return url.rpartition("@")[2]
