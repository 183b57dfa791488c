"""Captioners of all makes write a caption per picture, the same alone as in a batch, and refuse what they cannot do."""

import base64
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import ChatServer, chatting
from PIL import Image
from tiny_captioners import ALL, WORDS, chat
from torch import Tensor
from transformers import AutoModelForImageTextToText, BertTokenizerFast, ViTImageProcessor

from t2i.core.decoding import Decoding
from t2i.core.errors import DataError, UsageError
from t2i.data.caption.captioner import KINDS, PROMPTS, Captioner, bounded, check_kinds, seed_of
from t2i.data.caption.endpoint import MAX_SIDE, EndpointCaptioner, data_url
from t2i.data.caption.own import OwnCaptioner
from t2i.data.caption.pretrained import open_pretrained
from t2i.io.chat import Endpoint


def pictures(num: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(num)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp("captioners") / name) for name, make in ALL.items()}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_picture_has_the_same_caption_alone_and_in_a_batch(
    folders: dict[str, Path], name: str, temperature: float
) -> None:
    torch.manual_seed(0)
    captioner = open_pretrained(str(folders[name]), ["short"], decoding=Decoding(max_length=6, temperature=temperature))
    images, seeds = pictures(6), list(range(6))
    together = captioner.caption(images, "short", seeds)
    torch.manual_seed(1)  # which nobody draws from
    alone = [captioner.caption([image], "short", [seed])[0] for image, seed in zip(images, seeds, strict=True)]
    assert together == alone
    assert all(isinstance(text, str) and set(text.split()) <= set(WORDS) for text in together)
    assert isinstance(captioner, Captioner)
    assert len(captioner.revision) == 16
    assert json.dumps(captioner.settings)
    if temperature:
        assert len(set(together)) > 2
        assert captioner.caption(images, "short", [seed + 9 for seed in seeds]) != together


@pytest.mark.parametrize("name", ALL)
def test_a_captioner_in_half_the_memory_says_so_beside_its_captions(folders: dict[str, Path], name: str) -> None:
    small: Any = open_pretrained(str(folders[name]), ["short"], decoding=Decoding(max_length=4), dtype=torch.bfloat16)
    assert {p.dtype for p in small.model.parameters()} == {torch.bfloat16}
    assert len(small.caption(pictures(2), "short", [0, 1])) == 2
    exact = open_pretrained(str(folders[name]), ["short"], decoding=Decoding(max_length=4))
    assert small.settings["short"] == {**exact.settings["short"], "dtype": "bfloat16"}


def test_tokens_are_drawn_as_often_as_they_are_likely(folders: dict[str, Path]) -> None:
    """Against the softmax of the same network, 4 standard deviations."""
    captioner: Any = open_pretrained(str(folders["git"]), ["short"], decoding=Decoding(max_length=1, temperature=2.0))
    image, num = pictures(1), 600
    pixels = captioner.processor(images=image, return_tensors="pt")["pixel_values"]
    start = torch.tensor([[captioner.model.generation_config.bos_token_id or 2]])
    with torch.no_grad():
        wanted = (captioner.model(pixel_values=pixels, input_ids=start).logits[0, -1] / 2).softmax(0)
    texts = captioner.caption(image * num, "short", range(num))
    for word in ("cube", "ball", "on"):
        p = float(wanted[WORDS.index(word)])
        assert abs(texts.count(word) / num - p) < 4 * (p * (1 - p) / num) ** 0.5 + 1e-9


def test_an_answer_is_what_follows_the_question(folders: dict[str, Path]) -> None:
    """Of the chat model, against its own `generate` on the same prompt; that is cut off."""
    captioner: Any = open_pretrained(str(folders["chat"]), KINDS, decoding=Decoding(max_length=5))
    assert captioner.processor.tokenizer.padding_side == "left"
    chat_ = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPTS["short"]}]}]
    text = captioner.processor.apply_chat_template(chat_, add_generation_prompt=True)
    image = pictures(1)
    inputs = captioner.processor(images=image, text=text, return_tensors="pt")
    tokens = captioner.model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    wanted = captioner.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert captioner.caption(image, "short", [0]) == [wanted]
    assert [captioner.settings[kind]["prompt"] for kind in KINDS] == [PROMPTS[kind] for kind in KINDS]


def test_what_is_cut_off_is_told_once_and_thinking_aloud_is_no_caption(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner: Any = open_pretrained(str(folders["chat"]), ["short"], decoding=Decoding(max_length=11))
    end = captioner.processor.tokenizer.eos_token_id
    captioner.model.generation_config.eos_token_id = end
    for answers in ([[7] * 9 + [end] * 2, [7] * 10 + [end]], [[7] * 10]):
        monkeypatch.setattr(captioner.model, "generate", partial(after, answers))
        captioner.caption(pictures(len(answers)), "short", [0, 1])
        assert "cut off" not in caplog.text
    monkeypatch.setattr(captioner.model, "generate", partial(after, [[7] * 11]))
    for _ in range(2):
        captioner.caption(pictures(1), "short", [0])
    assert caplog.text.count("captions are cut off after 11 tokens: --max-length allows more") == 1
    texts = ["<think>a cube?</think> a cube", "<think>what is a"]
    monkeypatch.setattr(captioner.processor, "batch_decode", lambda *_, **__: texts)
    assert captioner.caption(pictures(1), "short", [0]) == ["a cube", ""]


def after(answers: list[list[int]], input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """What `generate` gives: answers behind their prompts."""
    return torch.cat([input_ids, torch.tensor(answers)], dim=1)


def test_questions_of_different_lengths_are_padded_on_the_left(folders: dict[str, Path]) -> None:
    captioner: Any = open_pretrained(str(folders["chat"]), ["short"], decoding=Decoding(max_length=5))
    padded = captioner.processor.tokenizer(["a a a", "a"], padding=True)["input_ids"]
    assert padded[1][:2] == [0, 0]
    assert padded[1][2] == padded[0][0] != 0


def test_beams_find_what_is_likelier_and_repetition_can_be_forbidden(folders: dict[str, Path]) -> None:
    greedy, beams, never = (
        open_pretrained(str(folders["git"]), ["short"], decoding=Decoding(max_length=6, **more)).caption(
            pictures(1), "short", [0]
        )[0]
        for more in ({}, {"num_beams": 4}, {"no_repeat_ngram": 1})
    )
    assert len(set(str(greedy).split())) < 6
    assert len(set(str(never).split())) == len(str(never).split())
    assert beams != ""


def test_models_that_are_asked_nothing_refuse_prompts_and_two_kinds(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"a blip is asked nothing, .* got kinds short, descriptive"):
        open_pretrained(str(folders["blip"]), KINDS)
    with pytest.raises(UsageError, match=r"a git is asked nothing.*; got a prompt"):
        open_pretrained(str(folders["git"]), ["short"], {"short": "what?", "descriptive": ""})
    with pytest.raises(UsageError, match=r"writes captions of one kind, short"):
        open_pretrained(str(folders["git"]), ["short"]).caption(pictures(1), "descriptive", [0])


def test_code_of_a_folder_is_never_run(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {"model_type": "nobody_knows", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"it wants to run code of its own, which is never done") as caught:
        open_pretrained(str(tmp_path), ["short"])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_folders_that_hold_no_captioner_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text('{"model_type": "bert"}')
    pickled = chat(tmp_path / "pickled")
    weights = AutoModelForImageTextToText.from_pretrained(pickled).state_dict()
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    mute = chat(tmp_path / "mute", template=None)
    (mute / "chat_template.jinja").unlink(missing_ok=True)
    for folder, message in (
        (tmp_path / "empty", "no captioner that can be opened"),
        (tmp_path / "gone", "no captioner that can be opened"),
        (bert, "no captioner that can be opened"),
        (pickled, "no captioner that can be opened"),
        (mute, "no chat template"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            open_pretrained(str(folder), ["short"])
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("t2i.io.chat.WAIT", 0.0)
    with chatting() as state:
        yield state


def seen(request: dict[str, Any]) -> Image.Image:
    url = request["messages"][0]["content"][0]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))


def test_a_server_sees_each_picture_and_the_question(server: ChatServer) -> None:
    server.reply = lambda request: f"a picture of {seen(request).getpixel((0, 0))[0]}"
    images = [Image.new("RGB", (30, 20), (value, value, value)) for value in (0, 100, 200)]
    captioner = EndpointCaptioner(Endpoint(server.url, "tiny"), decoding=Decoding(max_length=50))
    assert captioner.caption(images, "descriptive", [1, 2, 3]) == [f"a picture of {v}" for v in (0, 100, 200)]
    assert {request["messages"][0]["content"][1]["text"] for request in server.asked} == {PROMPTS["descriptive"]}
    assert {(request["max_tokens"], request["temperature"]) for request in server.asked} == {(50, 0.0)}
    assert captioner.name == f"{server.url}#tiny"
    assert captioner.settings["short"] == {"prompt": PROMPTS["short"], "temperature": 0.0, "max_tokens": 50}


def test_what_goes_wrong_with_one_picture_is_its_own(server: ChatServer) -> None:
    server.reply = lambda request: "" if seen(request).width < 20 else "fine"
    images = [Image.new("RGB", (width, 20)) for width in (10, 30, 40)]
    found = EndpointCaptioner(Endpoint(server.url, "tiny")).caption(images, "short", [1, 2, 3])
    assert [isinstance(text, DataError) for text in found] == [True, False, False]
    assert len(server.asked) == 3


def test_a_server_is_told_the_seed_of_what_it_draws(server: ChatServer) -> None:
    EndpointCaptioner(Endpoint(server.url, "tiny"), decoding=Decoding(temperature=1.0, top_p=0.9)).caption(
        pictures(2), "short", [5, 2**40]
    )
    assert sorted(request["seed"] for request in server.asked) == [2**40 % 2**31, 5]
    with pytest.raises(UsageError, match="num_beams=3: an endpoint takes no such setting"):
        EndpointCaptioner(Endpoint(server.url, "tiny"), decoding=Decoding(num_beams=3))


def test_large_pictures_are_reduced_before_they_are_sent() -> None:
    wide = Image.new("RGB", (4 * MAX_SIDE, 40))
    assert seen({"messages": [{"content": [{"image_url": {"url": data_url(wide)}}]}]}).size == (MAX_SIDE, 10)
    assert wide.width == 4 * MAX_SIDE


class StandIn:
    """As the stage `captioner`: names the brightness that it sees, and draws a number."""

    image_size = 8

    def caption(self, images: Tensor, decoding: Any, *, streams: Any) -> list[str]:
        assert images.shape[1:] == (3, 8, 8)
        return [
            f"{decoding.min_length} {float(x.mean()):.1f} {float(u):.3f}"
            for x, u in zip(images, streams.uniform(), strict=True)
        ]


def test_a_stage_of_ours_sees_what_it_was_trained_on() -> None:
    captioner = OwnCaptioner({"short": StandIn()}, Decoding(min_length=4), "runs/ssc", "abc")
    assert isinstance(captioner, Captioner)
    images = [Image.new("RGB", (30, 20), (value,) * 3) for value in (0, 255)]
    both = captioner.caption(images, "short", [1, 2])
    assert [text[:6] for text in both] == ["4 -1.0", "4 1.0 "]
    assert captioner.caption(images[1:], "short", [2]) == both[1:]
    assert captioner.settings == {"short": {"min_length": 4}}


def test_a_caption_has_an_end_where_nobody_says_one() -> None:
    assert bounded(Decoding(temperature=1.0)) == Decoding(temperature=1.0, max_length=300)
    assert bounded(Decoding(max_length=7)).max_length == 7
    with pytest.raises(UsageError, match="captions: min_length=310 leaves no room for the end in max_length=300"):
        bounded(Decoding(min_length=310))


def test_kinds_are_known_and_seeds_are_of_the_picture() -> None:
    assert check_kinds(["descriptive", "short", "short"]) == KINDS
    with pytest.raises(UsageError, match="did you mean 'short'"):
        check_kinds(["shrt"])
    with pytest.raises(UsageError, match="no kind"):
        check_kinds([])
    assert len({seed_of(s, key, kind) for s in (0, 1) for key in "ab" for kind in KINDS}) == 8


def test_processors_of_both_makes_are_at_hand(folders: dict[str, Path]) -> None:
    captioner: Any = open_pretrained(str(folders["encoder_decoder"]), ["short"])
    assert isinstance(captioner.processor, ViTImageProcessor)
    assert isinstance(captioner.tokenizer, BertTokenizerFast)
