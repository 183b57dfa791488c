"""Configuration: a YAML file and `key.sub=value` overrides become one frozen pydantic model.

Unknown keys are errors that name the full key and the nearest known one; later overrides win.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from t2i.core.errors import DataError, T2IError, UsageError, did_you_mean, explain, quoted, reason
from t2i.core.reading import read_bytes

Model = TypeVar("Model", bound=BaseModel)
AtHome = AfterValidator(lambda path: type(path)(os.path.expanduser(path)))
"""For `Annotated`: a path, as text or as `Path`, that may begin with `~`."""
MAX_YAML = 2**18
"""Bytes of a YAML file."""
MAX_VALUES = 100_000
"""Of a YAML text, each counted wherever an alias repeats it: a few lines of aliases of aliases are billions."""
_NOT_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError)
"""Bad syntax, too many brackets, the 31st of February, and `!!timestamp x` or `!!bool x`, over which its own reader
trips."""


class Config(BaseModel):
    """Base of every configuration in t2i: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Data of an earlier version in the form of today; what is of today stays as it is."""
        return data

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any) -> Any:
        """Migrated; and a section that is given in part keeps the rest of this field's default, not of its class's."""
        if not isinstance(data, dict):
            return data
        data = cls.migrate(data)
        for name, field in cls.model_fields.items():
            if isinstance(given := data.get(name), dict) and (default := _section(field.default)):
                data = data | {name: over(default, given)}
        return data


def _section(default: Any) -> dict[str, Any]:
    """What a field's default says that its class does not say anyway."""
    if isinstance(default, BaseModel):
        return default.model_dump(exclude_unset=True)
    return asdict(default) if is_dataclass(default) and not isinstance(default, type) else {}


def over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, key by key at every depth; ValueError for changes that are none."""
    if not isinstance(changes, dict):
        raise ValueError(f"expected keys and values, got {quoted(changes)}")
    merged = {
        k: over(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in changes.items()
    }
    return base | merged


def renamed(data: dict[str, Any], **names: str) -> dict[str, Any]:
    """`data` with keys under their new names, `old="new"`."""
    return {names.get(key, key): value for key, value in data.items()}


def nested(data: dict[str, Any], section: str, keys: Iterable[str]) -> dict[str, Any]:
    """`data` with those of `keys` that stand in it moved into a section; ValueError where that says otherwise."""
    moved = {key: data[key] for key in keys if key in data}
    if not moved:
        return data
    rest = {key: value for key, value in data.items() if key not in moved}
    return rest | {section: agreed(moved, data.get(section), section)}


def agreed(earlier: Any, today: Any, place: str) -> Any:
    """A section that was given by names of an earlier version, by those of today, or by both, in part.

    Raises ValueError for a key that says one thing there and another here.
    """
    today = _section(today) if isinstance(today, BaseModel) else today
    if isinstance(earlier, dict) and isinstance(today, dict | None):
        today = today or {}
        both = earlier.keys() & today.keys()
        return {**earlier, **today, **{k: agreed(earlier[k], today[k], f"{place}.{k}") for k in both}}
    if earlier != today and not (isinstance(earlier, list | tuple) and tuple(earlier) == tuple(today or ())):
        raise ValueError(
            f"{place} is {quoted(today)}, but {quoted(earlier)} by its earlier name; leave the earlier one out"
        )
    return today


def load(
    path: str | Path | None,
    overrides: Sequence[str],
    model: type[Model],
    today: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Model:
    """Read a YAML file (None for an empty one), apply `key.sub=value` overrides, validate.

    Args:
        today: data of an earlier version in the form of today; file and overrides may be of different ones.

    Raises:
        UsageError: missing or malformed file, malformed override, unknown key, wrong type or value.
    """
    source = str(path) if path is not None else "config"
    with explain(source, UsageError), _odd(source, UsageError):
        data = today({} if path is None else _read(Path(path)))
    for override in overrides:
        alone: dict[str, Any] = {}
        _apply(alone, override)
        with suppress(
            ValueError, AttributeError, TypeError
        ):  # what says nothing without the rest is looked at when all is there
            if (translated := today(alone)) != alone:
                data = over(data, translated)
                continue
        _apply(data, override)
    return parse(data, model, source=source)


def parse(data: dict[str, Any], model: type[Model], source: str = "config", kind: type[T2IError] = UsageError) -> Model:
    """Validate a plain dictionary; errors are one line of `kind`, and begin with `source`. DataError is for what was
    read from a `config.json`."""
    with _odd(source, kind):
        try:
            return model.model_validate(data)
        except ValidationError as error:
            raise kind(f"{source}: " + "; ".join(_explain(error, model))) from None


@contextmanager
def _odd(source: str, kind: type[T2IError]) -> Iterator[None]:
    """One line of `kind` where `migrate` or a validator, which see unchecked data, met a type they did not think of."""
    try:
        yield
    except (AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise kind(f"{source}: {reason(error)}") from error


def flatten(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and leaves of a nested dictionary."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as a string and takes the last of two equal keys; we do neither."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise UsageError(f"line {key.start_mark.line + 1}: key {quoted(key.value)} appears twice")
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?|\d*\.\d+)([eE][-+]?\d+)$"), list("-+0123456789.")
)


def _yaml(text: str) -> Any:
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if (count := _count(node, {})) > MAX_VALUES:
        raise UsageError(f"it holds {count:,} values where its aliases are counted as well, more than {MAX_VALUES:,}")
    return loader.construct_document(node)


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in a node, each as often as aliases repeat it; a node within itself is endless."""
    if id(node) not in counted:
        counted[id(node)] = MAX_VALUES + 1  # until it is known: an alias within
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        nodes = chain.from_iterable(inside) if isinstance(node, yaml.MappingNode) else inside  # keys and values
        counted[id(node)] = 1 + sum(_count(one, counted) for one in nodes)
    return counted[id(node)]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = _yaml(read_bytes(path, MAX_YAML).decode("utf-8"))
    except DataError as error:
        raise UsageError(f"config {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file") from None
    except UsageError as error:
        raise UsageError(f"{path}, {error}") from None
    except _NOT_YAML as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold keys and values, got a {type(data).__name__}")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"an override looks like key.sub=value, got {quoted(override)}")
    try:
        value = _yaml(text)
    except UsageError:
        raise
    except _NOT_YAML:
        raise UsageError(f"the value of {quoted(override)} is not valid YAML") from None
    for part in parts[:-1]:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    data[parts[-1]] = value


def _explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence per problem, without those of a union that another of its branches got further with."""
    problems = [(*_locate(problem["loc"], model), problem) for problem in error.errors()]
    places = {place for place, _, _ in problems}
    deepest = [p for p in problems if not any(place[: len(p[0])] == p[0] and place != p[0] for place in places)]
    return list(dict.fromkeys(_sentence(".".join(map(str, place)), choices, model, p) for place, choices, p in deepest))


def _sentence(where: str, choices: list[str], model: type[BaseModel], problem: ErrorDetails) -> str:
    where = where or "the whole file"
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        above, dot, name = where.rpartition(".")
        deeper = [key for key in _all_keys(model) if key.rpartition(".")[2] == name]
        hint = did_you_mean(name, choices, above + dot) or f", known keys: {', '.join(choices)}"
        if deeper and not above:
            hint = f", did you mean {' or '.join(map(repr, deeper))}?"
        return f"unknown key {quoted(where)}{hint}"
    if problem["type"] == "missing":
        return f"missing key {quoted(where)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = (
        "" if isinstance(problem["input"], dict) else f", got {quoted(problem['input'])}"
    )  # its keys are in the message
    return f"{where}: {message[:1].lower()}{message[1:]}{given}"


def _locate(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[tuple[int | str, ...], list[str]]:
    """The place of a problem without pydantic's names of union branches, and the keys known there."""
    owners: list[type] = [model]
    place: list[int | str] = []
    named = False  # the part before is a table, and this one a key of it that its owner chose
    for i, part in enumerate(location):
        if named:
            place.append(part)
            named = False
            continue
        choices = {name: kind for owner in owners for name, kind in _keys(owner).items()}
        inside = _models(choices[part]) if part in choices else []
        if isinstance(part, int) or part in choices or (i == len(location) - 1 and not _is_branch(part)):
            place.append(part)
        named = part in choices and get_origin(choices[part]) in (dict, Mapping)
        owners = inside or owners
    return tuple(place), sorted({name for owner in owners for name in _keys(owner)})


def _is_branch(part: int | str) -> bool:
    """Whether pydantic named a branch of a union (`str`, `tuple[Source, ...]`) and not a key."""
    return part in ("str", "int", "float", "bool", "none") or "[" in str(part)


def _keys(owner: type) -> dict[str, Any]:
    """The keys of a model or dataclass, and what may stand under each."""
    if issubclass(owner, BaseModel):
        return {name: field.annotation for name, field in owner.model_fields.items()}
    return get_type_hints(owner)


def _all_keys(owner: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a model and of all inside it, outermost first."""
    keys = _keys(owner)
    yield from (prefix + name for name in keys)
    for name, kind in keys.items():
        for inside in _models(kind):
            yield from _all_keys(inside, f"{prefix}{name}.")


def _models(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
