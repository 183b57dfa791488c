"""A chat server is asked, whatever it answers, and its key is told to nobody."""

import json
import logging
import socket
import time
from collections.abc import Iterator

import pytest
from chat_server import ChatServer, chatting, said

from t2i.core.errors import DataError, UsageError
from t2i.io.chat import Endpoint, open_endpoint

HELLO = [{"role": "user", "content": "describe a cube"}]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("T2I_API_KEY", raising=False)
    monkeypatch.setattr("t2i.io.chat.WAIT", 0.0)
    with chatting() as state:
        yield state


def test_an_answer_is_the_text_of_the_model(server: ChatServer) -> None:
    endpoint = Endpoint(server.url + "/", "tiny", settings={"temperature": 0})
    assert endpoint.ask(HELLO) == "a red cube"
    assert server.asked == [{"model": "tiny", "messages": HELLO, "temperature": 0, "stream": False}]
    assert server.authorised == [None]


def test_the_key_is_sent_and_shown_nowhere(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    given = Endpoint(server.url, "tiny", key="sk-given", retries=1)
    given.ask(HELLO)
    monkeypatch.setenv("T2I_API_KEY", "sk-environment")
    Endpoint(server.url, "tiny").ask(HELLO)
    assert server.authorised == ["Bearer sk-given", "Bearer sk-environment"]
    server.statuses, problem = [401, 500, 500], json.dumps({"error": {"message": "wrong key sk-given, go away"}})
    server.bodies = [problem.encode()] * 3 + [b"sk-given is no JSON"]
    server.reason = "no sk-given here"
    told = [repr(given)]
    for _ in range(3):
        with pytest.raises(DataError) as caught:
            given.ask(HELLO)
        told.append(str(caught.value))
    assert "401" in told[1]
    assert "wrong key [key], go away" in told[1]
    assert "after 2 attempts" in told[2]
    assert "no JSON but '[key] is no JSON'" in told[3]
    assert "sk-given" not in "".join([*told, caplog.text])
    with pytest.raises(UsageError) as refused:
        Endpoint(server.url, "tiny", key="sk-one\r\nX: two")
    assert "sk-one" not in str(refused.value)


def test_a_server_that_is_down_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(DataError, match=rf"^{url}: cannot be reached \(Connection refused\)$"):
        Endpoint(url, "tiny", retries=0).ask(HELLO)


@pytest.mark.parametrize("kind", ["wait", "drip"])
def test_a_slow_server_is_given_up(server: ChatServer, kind: str) -> None:
    setattr(server, kind, {"wait": 0.5, "drip": 0.02}[kind])
    began = time.monotonic()
    with pytest.raises(DataError, match=r"no answer within 0.15 s, after 2 attempts$"):
        Endpoint(server.url, "tiny", timeout=0.15, retries=1).ask(HELLO)
    assert time.monotonic() - began < 1.5
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(server: ChatServer, status: int) -> None:
    server.statuses = [status]
    assert Endpoint(server.url, "tiny").ask(HELLO) == "a red cube"
    assert len(server.asked) == 2


def test_attempts_are_bounded_and_wait_longer_each_time(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.statuses, waits = [500] * 9, []
    monkeypatch.setattr("t2i.io.chat.WAIT", 0.5)
    monkeypatch.setattr("t2i.io.chat.time.sleep", waits.append)
    server.bodies = [b"\x1b[31moops\n" * 1000] * 9
    with pytest.raises(DataError, match=r"500 Internal Server Error: .*oops.*, after 4 attempts") as caught:
        Endpoint(server.url, "tiny", retries=3).ask(HELLO)
    assert [wait for wait in waits if wait] == [0.5, 1.0, 2.0]
    assert len(str(caught.value)) < 400
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_says_how_long_it_is_busy(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("t2i.io.chat.time.sleep", lambda seconds: waits.append(seconds) if seconds else None)
    for said_, waited in (("7", 7.0), ("9" * 400, 60.0), ("soon", 0.5), ("-3", 0.5)):
        monkeypatch.setattr("t2i.io.chat.WAIT", 0.5)
        server.statuses, server.headers = [429], {"Retry-After": said_}
        waits.clear()
        assert Endpoint(server.url, "tiny").ask(HELLO) == "a red cube"
        assert waits == [waited]


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        ("a\0 red\x1b[2J\ncube\x85", "a  red [2J cube"),
        ("half \ud83d a face", "half   a face"),
        ("\u202eebuc", "ebuc"),
        ("<think>\na cube?\n</think>\n\na red cube", "a red cube"),
        ("un cube rouge, 赤い立方体 \U0001f9ca", "un cube rouge, 赤い立方体 \U0001f9ca"),
    ],
)
def test_an_answer_is_one_line_that_can_be_shown(server: ChatServer, sent: str, text: str) -> None:
    server.reply = lambda _: sent
    assert Endpoint(server.url, "tiny").ask(HELLO) == text


def test_a_mistake_of_ours_is_not_repeated(server: ChatServer) -> None:
    server.statuses, server.bodies = [400], [json.dumps({"error": "no such model"}).encode()]
    with pytest.raises(DataError, match=r"400 Bad Request: no such model$"):
        Endpoint(server.url, "tiny").ask(HELLO)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>welcome</html>", "sent no JSON but '<html>welcome</html>'"),
        (b"", "sent no JSON but ''"),
        (b"\xff\xfe" + b"[" * 100_000, "sent no JSON"),
        (b"[" * 100_000, "sent no JSON"),
        (b"[]", "sent JSON without an answer"),
        (b'{"choices": []}', "sent JSON without an answer"),
        (b'{"choices": 3}', "sent JSON without an answer"),
        (b'{"error": {"message": "no vision"}}', "sent JSON without an answer: no vision"),
        (said(""), "tiny answered nothing"),
        (said("  \n"), "tiny answered nothing"),
        (said(None), "tiny answered nothing"),
        (said("\0\x1b"), "tiny answered nothing"),
        (said("<think>what is a cube?</think>"), "tiny answered nothing"),
        (said("<think>\nwhat is a cube?"), "tiny answered nothing"),
        (said("a red cube on", "length"), "tiny was cut off at the most tokens that it may answer"),
        (said("a red", "content_filter"), "tiny was cut off by a filter"),
        (said([{"type": "text", "text": "a cube"}]), "sent JSON without an answer: its content is a list, no text"),
        (said("a" * 10_000_000), "sent more than 1,048,576 bytes"),
    ],
)
def test_nonsense_is_one_line(server: ChatServer, body: bytes, message: str) -> None:
    server.bodies = [body]
    with pytest.raises(DataError) as caught:
        Endpoint(server.url, "tiny").ask(HELLO)
    assert str(caught.value).startswith(server.url)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert len(server.asked) == 1


@pytest.mark.parametrize("encoding", ["announced", "chunked"])
def test_an_answer_that_breaks_off_is_asked_for_again(server: ChatServer, encoding: str) -> None:
    server.breaks_off = [encoding]
    assert Endpoint(server.url, "tiny").ask(HELLO) == "a red cube"
    assert len(server.asked) == 2
    server.breaks_off = [encoding] * 2
    with pytest.raises(DataError, match=r"closed the connection in the middle of its answer, after 2 attempts$"):
        Endpoint(server.url, "tiny", retries=1).ask(HELLO)


def test_a_redirect_does_not_carry_the_key_away(server: ChatServer) -> None:
    with chatting() as elsewhere:
        server.statuses, server.headers = [302, 307], {"Location": elsewhere.url + "/chat/completions"}
        for status in (302, 307):
            with pytest.raises(DataError, match=str(status)):
                Endpoint(server.url, "tiny", key="sk").ask(HELLO)
        assert elsewhere.asked == []


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://x/v1", "http://", "http://x:port/v1", "http://x:99999/v1", "http://a b/v1",
     "http://x/\nv1", "file:///etc/passwd", "http://me:secret@x/v1", "http://x/v1?key=secret",
     "http://a..b/v1", f"http://{'a' * 70}/v1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_what_may_be_secret(url: str) -> None:
    with pytest.raises(UsageError, match="an endpoint") as caught:
        Endpoint(url, "tiny")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_address_names_its_model_or_the_server_has_only_one(server: ChatServer) -> None:
    assert open_endpoint(f"{server.url}#a/b:7b", timeout=3.0) == Endpoint(server.url, "a/b:7b", timeout=3.0)
    assert open_endpoint(server.url).model == "tiny"
    server.models = ["one", "two"]
    with pytest.raises(UsageError, match=r"name one of its 2 models, such as .*#NAME: one, two$"):
        open_endpoint(server.url)
