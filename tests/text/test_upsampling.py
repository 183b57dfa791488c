"""A prompt is written anew by a rule, a model of ours or a server, and is drawn as given where that fails."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from chat_server import ChatServer, chatting

from t2i.core.errors import DataError, UsageError
from t2i.data import shapes
from t2i.io.chat import Endpoint
from t2i.text.upsampling import EXAMPLES, LEAST, MOST, RULES, by_endpoint, by_rule, lost_words, upsample_prompts
from t2i.text.words import WordTokenizer

LONG = "a red cube stands on a wooden floor in front of a blue sky, and its shadow falls to the right."


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("T2I_API_KEY", raising=False)
    monkeypatch.setattr("t2i.io.chat.WAIT", 0.0)
    with chatting(reply=lambda _: LONG) as state:
        yield state


class Known:
    """A rewriter of a few words."""

    tokenizer = WordTokenizer(("a", "red", "cube", "shiny"), context=8)

    def __init__(self, text: str = "a shiny red cube") -> None:
        self.text = text

    def rewrite(self, sentences: Any) -> list[str]:
        return [self.text for _ in sentences]


def test_identity_and_rule_ask_nobody() -> None:
    assert upsample_prompts(["a", "b"], "identity") == ["a", "b"]
    (text,) = upsample_prompts(["a red cube. "], "rule")
    assert text == "the picture shows a red cube. the floor is wooden."
    assert WordTokenizer(shapes.WORDS).unknown(text) == []
    assert by_rule(LONG) == LONG
    assert by_rule("a red {cube}!") == "the picture shows a red {cube}. the floor is wooden."


def test_a_server_is_told_the_rules_and_what_was_before(server: ChatServer) -> None:
    history = [("a dog", "a brown dog sits …"), ("make it black", "a black dog sits …")]
    assert upsample_prompts(["now a red cube"], f"{server.url}#tiny", history=history) == [LONG]
    roles = [(m["role"], m["content"]) for m in server.asked[0]["messages"]]
    assert roles[0] == ("system", RULES)
    assert roles[-5:] == [
        ("user", "a dog"),
        ("assistant", "a brown dog sits …"),
        ("user", "make it black"),
        ("assistant", "a black dog sits …"),
        ("user", "now a red cube"),
    ]
    assert f"Between {LEAST} and {MOST} words" in RULES
    assert all(LEAST <= len(caption.split()) <= MOST for _, caption in EXAMPLES)


def test_what_is_too_long_is_cut_and_quotes_go(server: ChatServer) -> None:
    server.reply = lambda _: '"' + "word \n" * 200 + '"'
    assert by_endpoint("x", Endpoint(server.url, "tiny")) == " ".join(["word"] * MOST)


def test_what_no_model_can_read_goes(server: ChatServer) -> None:
    server.reply = lambda _: f'"\ud83d {LONG}\0\x1b[1m"'
    assert by_endpoint("x", Endpoint(server.url, "tiny")) == f"{LONG} [1m"


def test_an_answer_that_is_too_short_is_asked_for_once_more(server: ChatServer) -> None:
    answers = ["fine", LONG, "no", "no"]
    server.reply = lambda _: answers.pop(0)
    assert by_endpoint("x", Endpoint(server.url, "tiny")) == LONG
    with pytest.raises(DataError, match=r"wrote 1 words instead of 15 to 80: 'no'$"):
        by_endpoint("x", Endpoint(server.url, "tiny"))


def test_a_server_that_fails_leaves_the_prompt_and_says_why(server: ChatServer) -> None:
    server.statuses = [200, 500, 500, 500]
    with pytest.warns(UserWarning, match=r"500 Internal Server Error.*; 2 of 3 prompts are drawn as given") as told:
        assert upsample_prompts(["a", "b", "c"], f"{server.url}#tiny") == [LONG, "b", "c"]
    assert len(told) == 1
    assert len(server.asked) == 4  # the third prompt does not wait for what is down
    server.bodies = [b"<html>"]
    with pytest.warns(UserWarning, match=r"sent no JSON but '<html>'; the prompt is drawn as given"):
        assert upsample_prompts(["a"], f"{server.url}#tiny") == ["a"]
    with pytest.warns(UserWarning, match="cannot be reached"):
        assert upsample_prompts(["a"], "http://127.0.0.1:9/v1") == ["a"]


def test_words_that_were_lost_are_found() -> None:
    assert lost_words("two Red cubes and a cone.", "a red cube; two cones") == []
    assert lost_words("a red cube under a pink sky", "a large pink. the light comes from the right") == [
        "red", "cube", "under", "sky",
    ]  # fmt: skip


def test_a_rewriter_writes_what_it_can_read() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert upsample_prompts(["a red cube"], "lm", Known()) == ["a shiny red cube"]
    for prompt, text, message in (
        ("a red corgi corgi", "x", "the rewriter does not know: corgi; the prompt is drawn as given"),
        ("a red cube a red cube a red cube", "x", "the rewriter reads 6 tokens, and this has more"),
        ("a red cube", " ", "the rewriter wrote nothing"),
        ("a red cube", "the picture shows a cube", "the rewriter leaves out red; the prompt is drawn as given"),
    ):
        with pytest.warns(UserWarning, match=message):
            assert upsample_prompts([prompt], "lm", Known(text)) == [prompt]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("lm", "this model has no rewriter"),
        ("rul", "did you mean 'rule'"),
        (3, "known are identity, rule, lm, a server's http"),
        ("http://", "an endpoint is an address such as"),
        ("http://x/v1?key=1#m", r"an endpoint has no name, password or \?query"),
    ],
)
def test_ways_that_are_none_are_one_line(how: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        upsample_prompts(["a"], how)
