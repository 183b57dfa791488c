"""Errors keep their kind and their exit code on the way up, and lose nothing that matters."""

import pytest
import torch
from pydantic import BaseModel, Field

from t2i.convert.convert import converted_weights
from t2i.core.config import parse
from t2i.core.devices import memory_explained
from t2i.core.errors import (
    DataError,
    FullDiskError,
    NonFiniteError,
    OutOfMemoryError,
    Stopped,
    T2IError,
    UsageError,
    did_you_mean,
    explain,
    quoted,
)
from t2i.hub.index import checkpoint
from t2i.pipeline.base import Pipeline
from t2i.pipelines.dalle2 import DALLE2
from t2i.run import Run
from t2i.stages.registry import load_stage

HUGE = 10**5000
KINDS = (UsageError, DataError, FullDiskError, NonFiniteError, OutOfMemoryError, Stopped)


def test_every_kind_has_an_exit_code_of_its_own() -> None:
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert codes == {
        "UsageError": 2, "DataError": 3, "FullDiskError": 3, "NonFiniteError": 4, "OutOfMemoryError": 5, "Stopped": 75,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not UsageError])
def test_only_wrong_values_are_value_errors(kind: type[T2IError]) -> None:
    assert not issubclass(kind, ValueError)
    assert issubclass(UsageError, ValueError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("into", [UsageError, DataError])
def test_an_error_of_ours_passes_as_it_is(kind: type[T2IError], into: type[T2IError]) -> None:
    with pytest.raises(kind, match=r"^as it was$") as caught, explain("somewhere", into):
        raise kind("as it was")
    assert type(caught.value) is kind


@pytest.mark.parametrize("error", [AssertionError("ours"), RuntimeError("device"), TypeError("ours"), OSError("disk")])
def test_what_no_value_provokes_is_left_alone(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explain("somewhere", UsageError):
        raise error
    assert caught.value is error


def test_a_wrong_value_is_one_line_with_all_of_it() -> None:
    with pytest.raises(DataError, match=r"^file: first line second line$"), explain("file", DataError):
        raise ValueError("first line\n  second line")
    with pytest.raises(UsageError, match=r"^file: lacks 'out.bias'$"), explain("file", UsageError):
        raise KeyError("out.bias")
    with pytest.raises(UsageError, match=r"^file: ValueError$"), explain("file", UsageError):
        raise ValueError


def test_of_a_validation_error_every_field_is_kept_with_its_value() -> None:
    class Small(BaseModel):
        width: int = Field(ge=1)
        name: str

    with pytest.raises(DataError) as caught, explain("config.json", DataError):
        Small.model_validate({"width": -3, "name": 7})
    message = str(caught.value)
    assert "\n" not in message
    assert "1 validation error" not in message
    for part in ("width: ", "got -3", "name: ", "got 7"):
        assert part in message


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12"),
    ],
)
def test_a_lack_of_memory_says_what_needs_less(error: Exception) -> None:
    with (
        pytest.raises(OutOfMemoryError, match=r"^stage 'x' needs more memory .*: try y$"),
        memory_explained("stage 'x'", "y"),
    ):
        raise error


def test_other_errors_of_a_device_are_not_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match=r"^illegal access$"), memory_explained("a", "b"):
        raise RuntimeError("illegal access")


def test_a_picture_that_does_not_fit_names_what_needs_less(pipe: DALLE2, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 512.00 MiB.")

    monkeypatch.setattr(pipe.parts["decoder"], "forward", full)
    with pytest.raises(OutOfMemoryError, match=r"stage 'decoder'.*512.00 MiB.*max_batch.*offload=True.*dtype"):
        pipe("a red cube", seed=0, progress=False)


def test_an_error_of_a_device_of_any_class_is_no_lack_of_memory() -> None:
    with pytest.raises(RecursionError, match=r"^too deep$"), memory_explained("a", "b"):
        raise RecursionError("too deep")
    with pytest.raises(NotImplementedError), memory_explained("a", "b"):
        raise NotImplementedError("no such kernel")


def test_what_was_given_is_quoted_in_one_line_whatever_it_is() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert quoted("a\0\x1b[31m\n") == r"'a\x00\x1b[31m\n'"
    assert quoted("x" * 500) == f"'{'x' * 99}… (502 characters)"
    assert quoted(10**5000) == "a value of type int that cannot be shown"
    assert quoted(Rude()) == "a value of type Rude that cannot be shown"
    assert "\n" not in quoted(torch.zeros(3, 3))


def test_there_is_no_hint_for_what_is_no_text() -> None:
    assert did_you_mean("cub", ["cube", "cone"]) == ", did you mean 'cube'?"
    for name in (HUGE, None, b"cub", ["cub"]):
        assert did_you_mean(name, ["cube", "cone", "None"]) == ""


def test_whatever_names_something_is_quoted_where_it_is_refused(pipe: DALLE2) -> None:
    for call in (
        lambda: pipe.use_preset(HUGE),
        lambda: DALLE2({HUGE: 1}),
        lambda: checkpoint(HUGE),
        lambda: converted_weights([], network=HUGE),
        lambda: converted_weights([], weights=HUGE),
        lambda: pipe.reconstruct([], sampler=HUGE),
        lambda: parse({"stage": "decoder", "preset": HUGE}, Run),
    ):
        with pytest.raises(UsageError, match="a value of type int that cannot be shown"):
            call()


def test_a_stage_or_a_model_without_a_name_is_refused() -> None:
    for call in (load_stage, Pipeline.from_pretrained):
        for name in ("", b""):
            with pytest.raises(UsageError, match=r"^a (stage|model) has no name: b?''$"):
                call(name)
