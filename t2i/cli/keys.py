"""Every key of a training config, with its type, its value and what it means: `t2i train CONFIG --help`."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from t2i.run import load_run

_WIDTH = 110


def list_keys(path: str | Path, overrides: Sequence[str] = ()) -> str:
    """All keys that a config may have, section by section, and what they are in this one; errors as `load_run`."""
    run = load_run(path, list(overrides))
    head = (
        f"Keys of {path}, a {run.stage}: t2i train {path} KEY=VALUE …\nSections that are null have their defaults here."
    )
    return "\n".join([head, *_section(type(run), run, "")])


def _section(kind: type, given: Any, prefix: str) -> Iterator[str]:
    """Lines of a section's own keys, then those of the sections in it."""
    about, told = _docstring(kind)
    yield ""
    yield from textwrap.wrap(f"{prefix.rstrip('.') or 'the run'}: {about}", _WIDTH, subsequent_indent="  ")
    inside = []
    for name, annotation, default, description in _fields(kind):
        value = getattr(given, name, default)
        if sections := _sections(annotation):
            inside.append((sections[0], value, f"{prefix}{name}."))
            continue
        line = f"{prefix}{name}: {_type(annotation)}" + ("" if value is ... else f" = {_short(value)}")
        if default is not ... and value != default:
            line += f" (default {_short(default)})"
        if text := description or told.get(name):
            line += f" — {text}"
        yield from textwrap.wrap(line, _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    for section, value, dotted in inside:
        yield from _section(section, value, dotted)


def _fields(kind: type) -> Iterator[tuple[str, Any, Any, str | None]]:
    """Name, type, default (`...` for none) and description."""
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield name, field.annotation, ... if field.is_required() else field.get_default(), field.description
        return
    hints = get_type_hints(kind, include_extras=True)
    for part in dataclasses.fields(kind):  # type: ignore[arg-type]
        yield part.name, hints[part.name], part.default, None


def _docstring(kind: type) -> tuple[str, dict[str, str]]:
    """What a class says of itself, and it or those that it derives from of their attributes."""
    about, told = "", dict[str, str]()
    for owner in kind.__mro__:
        text = inspect.cleandoc(owner.__dict__.get("__doc__") or "") if owner is not BaseModel else ""
        own, _, rest = re.sub(r"\n(Attributes|Args):\n", "\0", text, count=1).partition("\0")
        about = about or " ".join(own.split())
        for names, meaning in re.findall(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", rest, re.MULTILINE):
            told = dict.fromkeys(names.split(", "), " ".join(meaning.split()).rstrip(".")) | told
    return about, told


def _sections(annotation: Any) -> list[type]:
    """The section that may stand under a key; none where there may be several, in a list or in a table."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation) else []
    if get_origin(annotation) in (tuple, list, dict, Literal):
        return []
    return [found for argument in get_args(annotation) for found in _sections(argument)]


def _type(annotation: Any) -> str:
    """`int or null`, `list of float`, `auto | cpu | cuda`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (None, type(None)):
        return "null"
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join("null" if x is None else str(x).lower() if isinstance(x, bool) else str(x) for x in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is not None and origin is not dict and arguments:
        return " or ".join(dict.fromkeys(map(_type, arguments)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    names = {str: "text", Path: "path", float: "number", bool: "true | false", dict: "table"}
    return names.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def _short(value: Any) -> str:
    """As in YAML, no longer than a line."""
    plain = {None: "null", True: "true", False: "false", "": "''"}
    if isinstance(value, tuple | list):
        text = f"[{', '.join(map(_short, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{k}: {_short(v)}' for k, v in value.items())}}}"
    elif isinstance(value, bool | str | None):
        text = plain.get(value, str(value))
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
