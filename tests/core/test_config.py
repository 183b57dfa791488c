"""YAML and overrides become one validated model, and mistakes are named."""

import os
from typing import Literal

import pytest
from pydantic import Field

from t2i.core import config
from t2i.core.config import Config
from t2i.core.errors import UsageError
from t2i.data.config import DataConfig
from t2i.run import load_run
from t2i.train.optim import OptimConfig
from t2i.train.settings import TrainConfig


class Optim(Config):
    lr: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"


class Source(Config):
    src: str
    weight: float = 1.0


class Run(Config):
    steps: int
    optim: Optim = Optim()
    sources: tuple[Source, ...] | str = "shapes"
    note: str | None = None


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_file_and_overrides_merge_and_the_last_one_wins(tmp_path):
    path = write(tmp_path, "steps: 10\noptim: {lr: 1e-4, schedule: cosine}\n")
    run = config.load(path, ["optim.lr=3e-4", "optim.lr=2e-4", "sources=[{src: a, weight: 3}]", "note=null"], Run)
    assert run == Run(steps=10, optim=Optim(lr=2e-4, schedule="cosine"), sources=(Source(src="a", weight=3),))


def test_no_file(tmp_path):
    assert config.load(None, ["steps=3"], Run).steps == 3
    assert config.load(write(tmp_path, ""), ["steps=3"], Run).steps == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["step=3"], r"unknown key 'step', did you mean 'steps'\?"),
        (["optim.lrr=1"], r"unknown key 'optim.lrr', did you mean 'optim.lr'\?"),
        (
            ["sources=[{src: a, wieght: 2}]"],
            r"run.yaml: unknown key 'sources.0.wieght', did you mean 'sources.0.weight'\?$",
        ),
        (["sources=[{src: a, weight: much}]"], "run.yaml: sources.0.weight: input should be a valid number"),
        (
            ["sources=3"],
            "sources: input should be a valid tuple, got 3; sources: input should be a valid string, got 3",
        ),
        (["optim.zzz=1"], "unknown key 'optim.zzz', known keys: lr, schedule"),
        (["optim.lr=fast"], "optim.lr: input should be a valid number.*'fast'"),
        (["optim.lr=-1"], "optim.lr: input should be greater than 0, got -1"),
        (["optim.schedule=cosin"], "optim.schedule: input should be 'constant' or 'cosine', got 'cosin'"),
        (["steps"], "key.sub=value, got 'steps'"),
        ([".lr=1"], "key.sub=value"),
        (["note=[1"], "not valid YAML"),
        ([f"note={'[' * 3000}"], "not valid YAML"),
        (["note=2024-02-31"], "not valid YAML"),
        (["note={a: 1, a: 2}"], "key 'a' appears twice"),
        (["steps=null"], "steps"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(tmp_path, overrides, message):
    with pytest.raises(UsageError, match=message) as caught:
        config.load(write(tmp_path, "steps: 10\n"), overrides, Run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nsteps: 2\n", "line 2: key 'steps' appears twice"),
        ("steps: [1\n", "not valid YAML"),
        (f"steps: {'[' * 3000}", "run.yaml is not valid YAML: maximum recursion"),
        ("steps: 2024-02-31", "run.yaml is not valid YAML: day"),
        ("- 1\n", "must hold keys and values, got a list"),
        ("optim: {lr: 1}\n", "missing key 'steps'"),
        ("steps: 1\nobject: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        config.load(write(tmp_path, text), [], Run)


def test_merge_keys_fill_in_and_own_keys_win(tmp_path):
    """Also where the merged part is merged itself, and stands deeper than the part that merges it."""
    text = "a: {b: &x {<<: &y {lr: 1, schedule: cosine}, lr: 2}}\nsteps: 1\noptim: {<<: *x}\n"
    data = config._read(write(tmp_path, text))
    assert data == {"a": {"b": {"lr": 2, "schedule": "cosine"}}, "steps": 1, "optim": {"lr": 2, "schedule": "cosine"}}
    with pytest.raises(UsageError, match="line 1: key 'lr' appears twice"):
        config._read(write(tmp_path, "optim: {<<: {lr: 1}, lr: 2, lr: 3}"))


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UsageError, match=r"none.yaml does not exist"):
        config.load(tmp_path / "none.yaml", [], Run)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file"):
        config.load(tmp_path / "binary", [], Run)


def test_aliases_that_multiply_are_refused_before_anything_is_made_of_them(tmp_path):
    """Ten lines that stand for ten billion values, and a value within itself; a config's own aliases are few."""
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for name, last in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]")
    for text in ("\n".join(lines), "steps: &a [1, *a]", "steps: &a {<<: *a}"):
        with pytest.raises(UsageError, match=r"it holds [\d,]+ values .*, more than 100,000"):
            config.load(write(tmp_path, text), [], Run)
    assert config._yaml("[&a {x: 1}, *a]") == [{"x": 1}, {"x": 1}]


def test_what_an_error_quotes_is_cut_and_a_config_is_a_file_of_bounded_size(tmp_path):
    with pytest.raises(UsageError, match=r"got 'aaa.*a… \(200,002 characters\)$") as caught:
        config.load(write(tmp_path, f"steps: {'a' * 200_000}"), [], Run)
    assert len(str(caught.value)) < 500
    with pytest.raises(UsageError, match=r"has 1,100,007 bytes, more than 262,144"):
        config.load(write(tmp_path, f"steps: {'a' * 1_100_000}"), [], Run)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UsageError, match=r"pipe.yaml is a pipe"):
        config.load(tmp_path / "pipe.yaml", [], Run)


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Run(steps=1).steps = 2


def test_flatten():
    assert dict(config.flatten({"a": {"b": 1, "c": {}}, "d": [1]})) == {"a.b": 1, "a.c": {}, "d": [1]}


@pytest.mark.parametrize(
    "text", ["steps: !!timestamp 2020-01-01", "steps: !!binary aGk=", "steps: !!set {a, b}", "steps: !!omap [a: 1]",
             "steps: !!python/tuple [1]", "steps: !!int x", "steps: !!float x", "steps: !!null x", "steps: !!bool x",
             "1: 2", "? [1, 2]\n: 3", "steps: 1\nnull: 2", "steps: 1\noptim: {1: 2}", "steps: 1\nsources: {1: 2}",
             "steps: 1\ntrue: 2", "steps: .inf", "steps: 1e400", "steps: 1\n2020-01-01: 3", "? {a: 1}\n: 3",
             "steps: !!timestamp x", 'steps: !!int ""'],
)  # fmt: skip
def test_other_types_of_yaml_are_one_line(tmp_path, text):
    with pytest.raises(UsageError) as caught:
        config.load(write(tmp_path, text), [], Run)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["!!bool x", '!!int ""', '!!float ""', "!!timestamp x", "2020-02-31", "[" * 5000])
def test_what_yaml_trips_over_in_an_override_is_one_line(value):
    with pytest.raises(UsageError, match=r"^the value of 'steps=.* is not valid YAML$"):
        config.load(None, [f"steps={value}"], Run)


def test_what_a_validator_trips_over_is_one_line():
    class Tripping(Config):
        width: int

        @classmethod
        def migrate(cls, data):
            return {"width": data["width"] + "x"} if isinstance(data["width"], str) else {"width": data["width"] % None}

    with pytest.raises(UsageError, match=r"^config: unsupported operand"):
        config.parse({"width": 3}, Tripping)


@pytest.mark.parametrize(
    ("section", "given", "key"),
    [
        (TrainConfig, {"batch_size": 10**12}, "batch_size"),
        (TrainConfig, {"num_threads": 10**9}, "num_threads"),
        (TrainConfig, {"steps": 10**30}, "steps"),
        (TrainConfig, {"seed": 2**70}, "seed"),
        (TrainConfig, {"max_minutes": 1e308}, "max_minutes"),
        (TrainConfig, {"num_samples": 10**6}, "num_samples"),
        (OptimConfig, {"lr": 1e308}, "lr"),
        (OptimConfig, {"weight_decay": 1e308}, "weight_decay"),
        (DataConfig, {"size": 10**6}, "size"),
        (DataConfig, {"num_workers": 10**5}, "num_workers"),
        (DataConfig, {"captions": {"short": 1e308, "alt": 1e308}}, "captions.short"),
        (DataConfig, {"num_things": {1: 1e308}}, "num_things.1"),
        (DataConfig, {"source": [{"src": "a", "weight": 1e308}]}, "source.0.weight"),
    ],
)
def test_sizes_that_no_machine_has_are_refused_by_name(section, given, key):
    needed = {"steps": 1, "batch_size": 1, "out": "x"} if section is TrainConfig else {}
    with pytest.raises(UsageError, match=rf"^config: {key}: input should be less than"):
        config.parse(needed | given, section)


def test_a_section_that_is_text_is_one_line_also_where_a_preset_fills_it():
    with pytest.raises(UsageError, match=r"model: input should be a valid dictionary.*got 'x'") as caught:
        load_run("configs/dalle2/decoder.yaml", ["model=x"])
    assert "\n" not in str(caught.value)
