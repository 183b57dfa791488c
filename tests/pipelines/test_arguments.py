"""Whatever a call is given, it draws, or says in one line which argument it cannot take; nothing is drawn before."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from PIL import Image

import t2i
from t2i.core.errors import UsageError
from t2i.core.paths import path_of
from t2i.pipeline.arguments import MAX_PICTURES, seeds_of
from t2i.pipeline.habits import ARGUMENTS, ATTRIBUTES, OPENING
from t2i.pipeline.inputs import Latent
from t2i.pipelines.ddpm import DDPM

PICTURE = Image.new("RGB", (32, 32))
HUGE = 10**400


def refused(message: str, call: Callable[[], object]) -> None:
    start = time.perf_counter()
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.perf_counter() - start < 20


def endless() -> Iterator[int]:
    while True:
        yield 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callback": "x"}, "callback must be a function of one argument, got 'x'"),
        ({"progress": "x"}, "progress must be True or False, got 'x'"),
        ({"progress": np.zeros(2)}, "progress must be True or False"),
        ({"guidance": HUGE}, r"guidance of prior: .* 0 to 1000, got 1000.*… \(401 characters\)"),
        ({"guidance": math.nan}, "from 0 to 1000, got nan"),
        ({"guidance": {"decoder": 1j}}, "guidance of decoder: .*got 1j"),
        ({"max_batch": 10**30}, "max_batch must be a whole number of at most 2,147,483,647"),
        ({"max_batch": None}, "max_batch must be a whole number of at least 1, got None"),
        ({"num_images_per_prompt": 10**9}, "at most 100,000, got 1000000000"),
        ({"seed": 2**70}, r"a seed lies between -2\*\*63 and 2\*\*63, got 1180591620717411303424"),
        ({"seed": -(2**70)}, "a seed lies between"),
        ({"seed": 10**5000}, "a seed lies between .*a value of type int that cannot be shown"),
        ({"seed": True}, "a seed must be a whole number, .*got True"),
        ({"seed": endless()}, "more seeds than a call takes, which are 100,000"),
        ({"seed": []}, "0 seeds for 1 pictures"),
        ({"seed": {}}, r"a seed must be a whole number, .*got \{\}"),
        ({"seed": {5}}, r"a seed must be a whole number, .*got \{5\}"),
        ({"seed": b"a"}, "a seed must be a whole number, .*got b'a'"),
        ({"seed": bytearray(1)}, "a seed must be a whole number"),
        ({"sampler": 10**5000}, "sampler of prior: unknown a value of type int that cannot be shown; known are"),
        ({"stop_after": 10**5000}, "stop_after: unknown stage a value of type int that"),
        ({"steps": {10**5000: 1}}, "steps: unknown stage a value of type int that"),
        ({"guidance": {10**5000: 1}}, "guidance: unknown stage a value of type int that"),
        ({"guidance": {"prior": 10**5000}}, "from 0 to 1000, got a value of type int that"),
        ({"stop_after": 1}, "stop_after: unknown stage 1; stages are prior"),
        ({"stop_after": ["prior"]}, r"stop_after: unknown stage \['prior'\]"),
        ({"steps": True}, "^steps: expected a whole number or a spacing such as 'ddim50', got True"),
        ({"steps": "abc"}, "^steps: expected a whole number or a spacing such as 'ddim50', got 'abc'"),
        ({"steps": HUGE}, "^steps: expected"),
        ({"steps": "1" * 5000}, r"^steps: expected .*\(5,002 characters\)"),
        ({"steps": {"decoder": 1.5}}, "^steps of decoder: expected a whole number .*got 1.5"),
        ({"steps": {1: 2}}, "steps: unknown stage 1; stages are prior"),
        ({"sampler": {"prior": [1]}}, r"sampler of prior: unknown \[1\]"),
        ({"max_tile": "x"}, "max_tile must be a whole number of at least 1, got 'x'"),
        ({"stage": 1}, "unknown argument 'stage'"),
        ({"negative_promt": "x"}, "unknown argument 'negative_promt', did you mean 'negative_prompt'"),
        ({"num_image_per_prompt": 2}, "did you mean 'num_images_per_prompt'"),
        ({"negative_prompt": b"x"}, "a negative prompt must be a string or a list of them, got bytes"),
    ],
)  # fmt: skip
def test_odd_arguments_are_one_line(pipe: Any, given: dict[str, Any], message: str) -> None:
    refused(message, lambda: pipe("a red cube", **({"progress": False} | given)))


@pytest.mark.parametrize(
    "prompt",
    [None, b"x", [None], 3, [["a"]], {"a": 1}, iter(["a"]), [], "", "a\0b", "\ud800", "a " * 10**6, range(10**30)],
)
def test_odd_prompts_are_one_line(pipe: Any, prompt: Any) -> None:
    refused("prompt", lambda: pipe(prompt, progress=False))


def test_numbers_of_numpy_and_torch_are_numbers(pipe: Any) -> None:
    given = {"seed": torch.tensor(5), "max_batch": np.int64(2), "progress": False, "stop_after": "prior"}
    drawn = pipe("a red cube", steps=np.int64(2), guidance=np.float32(2), **given)
    same = pipe("a red cube", steps=2, guidance=2.0, seed=5, progress=False, stop_after="prior")
    assert drawn.seeds == [5]
    assert torch.equal(drawn.embeddings, same.embeddings)


def test_seeds_reach_to_both_ends() -> None:
    assert seeds_of(2**63 - 2, 2) == [2**63 - 2, 2**63 - 1]
    assert seeds_of([-(2**63) + 1], 1) == [1 - 2**63]
    refused("a seed lies between", lambda: seeds_of(2**63 - 1, 2))
    refused("a call draws 100,000 pictures at most", lambda: seeds_of(0, MAX_PICTURES + 1))


UNIT = torch.nn.functional.normalize(torch.ones(2, 16), dim=-1)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (UNIT.to_sparse(), "dense tensor of floats, got a sparse_coo one"),
        (UNIT.to("meta"), "dense tensor of floats, got a meta one"),
        (torch.ones(2, 16, dtype=torch.int64), "dense tensor of floats, got a int64 one"),
        (UNIT.to(torch.complex64), "got a complex64 one"),
        (UNIT.to(torch.float8_e4m3fn), "got a float8_e4m3fn one"),
        (torch.nested.nested_tensor([UNIT[0], UNIT[1]]), "got a nested one"),
        (UNIT * math.nan, "holds NaN or infinity"),
        (UNIT.double() * 1e300, "holds NaN or infinity"),
        (UNIT[:1].expand(10**9, 16), "1,000,000,000 embeddings, more than"),
        (UNIT[0], r"are \(N, 16\), got \(16,\)"),
        (UNIT.tolist(), "got list"),
    ],
)
def test_embeddings_that_are_none_are_one_line(pipe: Any, embeddings: Any, message: str) -> None:
    refused(message, lambda: pipe.decode(embeddings, progress=False))
    refused("embedding", lambda: pipe.probe(PICTURE, embeddings, [1], progress=False))
    refused("tensor|N, 3|NaN|z_i", lambda: pipe.reconstruct(Latent(embeddings, UNIT), progress=False))


def closed() -> Image.Image:
    image = Image.new("RGB", (32, 32))
    image.close()
    return image


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 0)), closed(), None, 3, np.zeros((3, 3)), Path("a\0b")])
def test_pictures_that_are_none_are_one_line(pipe: Any, image: Any) -> None:
    given, mask = {"progress": False, "stop_after": "decoder"}, Image.new("L", (32, 32))
    for call in (
        lambda: pipe.variations(image, **given),
        lambda: pipe.upsample(image, progress=False),
        lambda: pipe.inpaint(image, mask, "a cube", **given),
        lambda: pipe.inpaint(PICTURE, image, "a cube", **given),
        lambda: pipe.edit(image, "a cube", **given),
    ):
        refused("picture|mask|NUL", call)


@pytest.mark.parametrize("num", [10**9, 10**30, "x", 0])
def test_no_task_draws_more_than_a_call_may(pipe: Any, num: Any) -> None:
    for call in (
        lambda: pipe.variations(PICTURE, num, progress=False),
        lambda: pipe.interpolate(PICTURE, PICTURE, num, progress=False),
        lambda: pipe.text_diff(PICTURE, "a cube", "a red cube", n=num, progress=False),
        lambda: small.ddpm()(num_images=num, progress=False),
        lambda: pipe.encode(PICTURE, max_batch=num if num != 10**9 else 2**40, progress=False),
    ):
        refused("whole number of at|pictures at most", call)


def test_what_encode_cannot_take_is_found_before_it_begins(pipe: Any) -> None:
    refused("callback must be", lambda: pipe.encode(PICTURE, callback="x"))
    refused("corrections must be a whole number from 0 to 100", lambda: pipe.encode(PICTURE, corrections=10**9))
    refused("unknown argument 'num_images'.*num_images_per_prompt", lambda: pipe.variations(PICTURE, num_images=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": {"prior": 10**9}}, "candidates of prior must be a whole number of at most 1,000"),
        ({"candidates": {"prior": -1}}, "candidates of prior must be a whole number of at least 1, got -1"),
        ({"candidates": {"prior": "x"}}, "candidates of prior .* got 'x'"),
        ({"clamp": {"prior": math.nan}}, "clamp of prior must be above 0"),
        ({"clamp": {"prior": HUGE}}, "clamp of prior must be above 0"),
        ({"stage": {"x": 1}}, "unknown setting 'stage'"),
        ({"steps": {"x": 1}}, "steps: unknown stage 'x'"),
        ({1: {}}, "unknown setting 1"),
        (3, "settings must hold values by stage"),
    ],
)
def test_odd_settings_are_one_line(pipe: Any, settings: Any, message: str) -> None:
    refused(message, lambda: type(pipe)(pipe.parts, settings))


@pytest.mark.parametrize("device", ["x", "", None.__class__, 3, [], "cpu\0", "meta", "privateuseone", b"cpu", 10**30])
def test_odd_devices_are_one_line_that_names_those_there_are(device: Any) -> None:
    refused("device", lambda: small.ddpm().to(device))
    if not torch.cuda.is_available():
        refused("torch has no device 'cuda' on this machine; use auto or cpu$", lambda: small.ddpm().to("cuda"))


@pytest.mark.parametrize("dtype", ["x", 3, torch.float64, [], float, [10**5000]])
def test_odd_dtypes_are_one_line(dtype: Any) -> None:
    refused("unknown dtype", lambda: small.ddpm().to("cpu", dtype))


def test_to_takes_a_device_a_dtype_or_both_and_leaves_the_rest() -> None:
    pipe = small.ddpm().to(torch.float16, offload=True)
    assert (pipe.device.type, pipe.dtype, pipe.offload) == ("cpu", torch.float16, True)
    pipe.to("cpu")
    assert (pipe.dtype, pipe.offload) == (torch.float16, True)
    assert pipe.to("bfloat16").dtype == torch.bfloat16
    assert pipe.to("cpu", torch.float32, offload=False).dtype == torch.float32
    with pytest.raises(UsageError, match="unknown dtype"):
        pipe.to("cpu", "x")
    assert (pipe.dtype, pipe.offload) == (torch.float32, False)


@pytest.mark.parametrize("path", [None, 3, [], "a\0b", b"a\0b", "\ud800", "x" * 300, "x/" * 3000])
def test_odd_paths_are_one_line_wherever_they_are_given(path: Any, pipe: Any, tmp_path: Path) -> None:
    for call in (
        lambda: t2i.Pipeline.from_pretrained(path, device="cpu"),
        lambda: t2i.load_stage(path),
        lambda: pipe.save_pretrained(path),
        lambda: type(pipe).assemble({"clip": path, "prior": path}),
    ):
        refused("must be text or a Path|has a NUL|is too long|is not one", call)


def test_paths_are_text_bytes_or_paths() -> None:
    assert path_of("a/b") == path_of(b"a/b") == path_of(Path("a/b")) == Path("a/b")


def test_preset_and_stage_names_of_odd_types_are_one_line(pipe: Any) -> None:
    refused(r"unknown preset \[1\]; known", lambda: pipe.use_preset([1]))
    refused(r"preset=\[1\]: presets are for", lambda: small.ddpm().use_preset([1]))
    refused("stages are given by name", lambda: DDPM(3))  # type: ignore[arg-type]


def test_the_stage_of_a_bundled_model_is_told_from_a_model() -> None:
    refused(
        r"shapes/decoder is a stage of the bundled model 'shapes', no pipeline; t2i.load_stage",
        lambda: t2i.Pipeline.from_pretrained("shapes/decoder"),
    )
    assert t2i.load_stage("shapes/clip").config.tokenizer.context > 1


@pytest.mark.parametrize("word", ARGUMENTS)
def test_arguments_of_neighbours_are_answered_with_ours(word: str) -> None:
    if word != "num_images":  # which it is in chains of classes
        with pytest.raises(UsageError, match=f"unknown argument '{word}'; here it is ") as caught:
            small.ddpm()(progress=False, **{word: 1})
        assert ARGUMENTS[word] in str(caught.value)


@pytest.mark.parametrize("word", OPENING)
def test_arguments_of_neighbours_that_open_a_model_are_answered_with_ours(word: str) -> None:
    with pytest.raises(UsageError, match=f"unknown argument '{word}'; here it is ") as caught:
        t2i.Pipeline.from_pretrained("shapes", **{word: 1})  # type: ignore[arg-type]
    assert OPENING[word] in str(caught.value)


def test_attributes_of_neighbours_are_answered_with_ours() -> None:
    pipe: Any = small.ddpm()
    for word, ours in ATTRIBUTES.items():
        with pytest.raises(AttributeError, match=f"has no attribute '{word}'; here it is") as caught:
            getattr(pipe, word)
        assert ours in str(caught.value)
    with pytest.raises(AttributeError, match="'settngs', did you mean 'settings'"):
        _ = pipe.settngs


def test_a_pipeline_shows_what_it_is(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "source", "small")
    lines = repr(pipe).splitlines()
    assert lines[0] == "DALLE2 'small' on cpu, float32"
    assert [line.split()[0] for line in lines[1:]] == ["clip", "prior", "decoder", "up256", "up1024"]
    assert "128 × 128 px, steps 2, sampler ddim" in lines[-1]
    assert "guidance 2.0" in lines[2]
    assert "px" not in lines[2]
    assert {"variations", "prior", "decoder", "settings", "to"} <= set(dir(pipe))
    assert not {"planner", "request", "check_fit", "__init__"} & set(dir(pipe))
    assert pipe.decoder is pipe.parts["decoder"]


def test_the_package_lists_what_a_user_wants() -> None:
    assert {"Pipeline", "load_stage", "DALLE2", "GLIDE", "ADM", "DDPM"} <= set(dir(t2i))
    assert all(getattr(t2i, name) is not None for name in dir(t2i))


def test_a_list_of_seeds_without_end_is_refused_by_chains_of_classes_too() -> None:
    refused("more seeds than a call takes", lambda: small.ddpm()(seed=range(10**30), progress=False))
