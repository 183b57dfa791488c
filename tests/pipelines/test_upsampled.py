"""What a prompt became is drawn, told, stored beside what was asked, and repeated without asking anybody again."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import ChatServer, chatting
from small import glide, rewriter
from typer.testing import CliRunner, Result

from t2i.cli.main import app
from t2i.core.errors import DataError, T2IError, UsageError
from t2i.io.images import open_image
from t2i.io.provenance import read_recipe
from t2i.pipeline.slots import Slot
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.registry import save_stage

LONG = "a red cube and a blue sphere and a green cube and a red sphere and a blue cube"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("t2i.io.chat.WAIT", 0.0)
    with chatting(reply=lambda _: LONG) as state:
        yield state


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, T2IError | SystemExit):
        raise result.exception
    return result


@pytest.mark.filterwarnings("ignore:only the first", "ignore:the model does not know")
def test_what_is_written_is_drawn_told_and_kept(
    pipe: DALLE2, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    how: dict[str, Any] = {"seed": 3, "stop_after": "decoder", "progress": False, "num_images_per_prompt": 2}
    out = pipe(["a cube", "a sphere"], upsample_prompt=f"{server.url}#tiny", **how)
    assert out.prompts == [LONG] * 4
    assert out.recipe["arguments"]["prompt"] == [LONG] * 4
    assert out.recipe["asked"] == ["a cube", "a cube", "a sphere", "a sphere"]
    assert out.recipe_of(3)["asked"] == "a sphere"
    assert f"'a cube' is drawn as: {LONG}" in caplog.text
    assert same(out, pipe([LONG, LONG], **how))
    assert "asked" not in pipe("a cube", **how).recipe


@pytest.mark.filterwarnings("ignore:only the first", "ignore:the model does not know")
def test_a_prompt_that_is_asked_twice_is_told_as_it_was_written_each_time(
    pipe: DALLE2, server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = [f"{LONG} {colour}" for colour in ("red", "blue")]
    server.reply = lambda _: answers[len(server.asked) - 1]
    how: dict[str, Any] = {"seed": 3, "stop_after": "prior", "progress": False}
    assert pipe(["a cube", "a cube"], upsample_prompt=f"{server.url}#tiny", **how).prompts == answers
    assert all(f"'a cube' is drawn as: {text}\n" in caplog.text for text in answers)


@pytest.mark.filterwarnings("ignore:only the first", "ignore:the model does not know")
@pytest.mark.parametrize("way", ["server", "rule"])
def test_what_no_model_can_read_is_drawn_as_given(pipe: DALLE2, server: ChatServer, way: str) -> None:
    asked = "cube" if way == "server" else "cube" * 500
    server.reply = lambda _: ("cube" * 40 + " ") * 15
    how: dict[str, Any] = {"seed": 3, "stop_after": "prior", "progress": False}
    with pytest.warns(UserWarning, match=r"the upsampled prompt has 2,\d\d\d characters; .*drawn as given") as told:
        out = pipe(asked, upsample_prompt="rule" if way == "rule" else f"{server.url}#tiny", **how)
    assert out.prompts == [asked]
    assert {warning.filename for warning in told} == {__file__}


@pytest.mark.filterwarnings("ignore:only the first", "ignore:the model does not know")
def test_a_rewriter_may_be_a_folder(pipe: DALLE2, tmp_path: Path) -> None:
    save_stage(tmp_path / "rewriter", "rewriter", model := rewriter())
    how: dict[str, Any] = {"seed": 3, "stop_after": "prior", "progress": False}
    out = pipe("blue", upsample_prompt=str(tmp_path / "rewriter"), **how)
    assert out.prompts == model.rewrite(["blue"])
    assert out.prompts != ["blue"]
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="holds stage prior, expected rewriter"):
        pipe("blue", upsample_prompt=str(tmp_path / "model" / "prior"), **how)
    with pytest.raises(UsageError, match="this model has no rewriter"):
        pipe("blue", upsample_prompt="lm", **how)
    with pytest.raises(UsageError, match="the prompt is empty"):
        pipe(" ", upsample_prompt="rule", **how)


@pytest.mark.filterwarnings("ignore:only the first", "ignore:the model does not know")
def test_a_model_may_have_a_rewriter_of_its_own(pipe: DALLE2) -> None:
    class Written(DALLE2):
        slots = (Slot("rewriter", ("rewriter",), role="reads", optional=True), *DALLE2.slots)

    own = Written({"rewriter": rewriter(), **pipe.parts}, pipe.settings).to("cpu", "float32")
    out = own("blue", upsample_prompt="lm", seed=3, stop_after="prior", progress=False)
    assert out.prompts == rewriter().rewrite(["blue"])


def test_warnings_point_at_the_line_that_calls(pipe: DALLE2) -> None:
    for how in (None, "identity"):
        with pytest.warns(UserWarning, match="the model does not know: corgi") as told:
            pipe("a corgi", upsample_prompt=how, seed=3, stop_after="prior", progress=False)
        assert {warning.filename for warning in told} == {__file__}


@pytest.mark.filterwarnings("ignore:only the first", "ignore:the model does not know")
def test_glide_takes_it_too() -> None:
    how: dict[str, Any] = {"seed": 3, "stop_after": "decoder", "progress": False}
    out = glide()("a cube", upsample_prompt="rule", **how)
    assert out.prompts == ["the picture shows a cube. the floor is wooden."]


@pytest.mark.filterwarnings("ignore:only the first", "ignore:the model does not know")
def test_the_command_repeats_without_asking_again(pipe: DALLE2, server: ChatServer, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    how = ("--model", tmp_path / "model", "--stop-after", "decoder", "--device", "cpu")
    first = run("a cube", *how, "--upsample-prompt", f"{server.url}#tiny", "--seed", 5, "--out", tmp_path / "a.png")
    assert first.exit_code == 0
    recipe = read_recipe(tmp_path / "a.png")
    assert (recipe["asked"], recipe["arguments"]["prompt"]) == ("a cube", LONG)
    asked = len(server.asked)
    assert run("--from", tmp_path / "a.png", "--out", tmp_path / "b.png").exit_code == 0
    assert len(server.asked) == asked
    assert read_recipe(tmp_path / "b.png") == recipe
    assert same([open_image(tmp_path / "a.png")], [open_image(tmp_path / "b.png")])


@pytest.mark.filterwarnings("ignore:prompt upsampling")
def test_a_server_that_is_down_costs_no_picture(pipe: DALLE2, server: ChatServer, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    server.statuses = [500] * 9
    how = ("--model", tmp_path / "model", "--stop-after", "decoder", "--device", "cpu", "--out", tmp_path / "a.png")
    assert run("a cube", *how, "--upsample-prompt", f"{server.url}#tiny").exit_code == 0
    assert read_recipe(tmp_path / "a.png")["arguments"]["prompt"] == "a cube"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a cube", "--upsample-prompt", "lmm"], "the folder of a rewriter, did you mean 'lm'?"),
        (["a cube", "--upsample-prompt", "ftp://x/y"], "known are identity, rule, lm"),
        (["a cube", "--upsample-prompt", "rule", "--image", "x.png"], "leave out --image"),
        (["--from", "x.png", "--upsample-prompt", "rule"], "--from repeats a picture exactly"),
        (["a cube", "--upsample-prompt", "lm"], "this model has no rewriter"),
        (
            ["--model", "shapes-ddpm", "--upsample-prompt", "rule"],
            "--upsample-prompt is for models that read sentences",
        ),
    ],
)
def test_mistakes_of_the_command_are_one_line(options: list[str], message: str) -> None:
    error = run(*options).exception
    assert isinstance(error, T2IError)
    assert message in str(error)
    assert "\n" not in str(error)
