"""Prompts of benchmarks, from files of a user: GenEval's, GenEval 2's, DrawBench's, and plain lists."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2i.core.errors import DataError, quoted, shown
from t2i.core.reading import read_bytes
from t2i.data.source import lines_of, text_of

MAX_BYTES = 2**26
RELATIONS = ("left of", "right of", "above", "below")
_QUESTIONS = ("vqa_list", "questions", "vqa", "atoms")


@dataclass(frozen=True)
class Wanted:
    """One kind of thing that a picture must show: `count` of a class, in a colour, in a place as seen from the thing
    number `other`."""

    kind: str
    count: int = 1
    colour: str | None = None
    relation: str | None = None
    other: int = 0


@dataclass(frozen=True)
class Case:
    """A prompt, where it belongs, and what is asked of its picture.

    Attributes:
        include: things that must be there; exclude: of which fewer than `count` must be.
        questions: with the answers that are right.
        metadata: the line of the file, as GenEval keeps it beside pictures.
    """

    text: str
    tag: str = "prompts"
    include: tuple[Wanted, ...] = ()
    exclude: tuple[Wanted, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_cases(path: Path) -> list[Case]:
    """The prompts of a file: `.jsonl` of GenEval or GenEval 2, `.csv` as DrawBench's, or text, one a line.

    Raises DataError that names the line for what cannot be read, and for a file without prompts.
    """
    try:
        text = text_of(read_bytes(path, MAX_BYTES))
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    ending = path.suffix.lower()
    if ending in (".jsonl", ".json"):
        cases = _of_json(text, path)
    elif ending in (".csv", ".tsv"):
        cases = _of_table(text, path)
    else:
        cases = [Case(line, metadata={"prompt": line}) for line in lines_of(text) if line]
    if not cases:
        raise DataError(f"{path} holds no prompts")
    return cases


def understood(cases: Sequence[Case]) -> str:
    """`553 prompts of 6 kinds; 553 say what must be there, 0 have questions`."""
    tags = len({case.tag for case in cases})
    objects, asked = sum(bool(case.include) for case in cases), sum(bool(case.questions) for case in cases)
    return f"{len(cases)} prompts of {tags} kinds; {objects} say what must be there, {asked} have questions"


def _of_json(text: str, path: Path) -> list[Case]:
    cases = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: no JSON: {shown(error, 100)}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise DataError(f"{where}: expected an object with a prompt, got {quoted(line, 60)}")
        tag = row.get("tag", row.get("category", row.get("Category", "prompts")))
        include, exclude = (_things(row.get(key), f"{where}, {key}") for key in ("include", "exclude"))
        for i, wanted in enumerate(include):
            if wanted.relation is not None and not (0 <= wanted.other < len(include) and wanted.other != i):
                raise DataError(f"{where}: a position from thing {wanted.other}, and there are {len(include)}")
        questions = _questions(next((row[key] for key in _QUESTIONS if row.get(key)), []), where)
        cases.append(Case(row["prompt"].strip(), str(tag), include, exclude, questions, row))
    return cases


def _things(rows: Any, where: str) -> tuple[Wanted, ...]:
    found = []
    for row in rows if rows is not None else []:
        try:
            position = row.get("position")
            relation, other = position if position is not None else (None, 0)
            found.append(Wanted(str(row["class"]), int(row.get("count", 1)), row.get("color"), relation, int(other)))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise DataError(f"{where}: expected class, count, color, position, got {quoted(str(row), 60)}") from None
        if found[-1].relation not in (None, *RELATIONS):
            raise DataError(f"{where}: unknown position {quoted(str(relation))}; positions are {', '.join(RELATIONS)}")
        if found[-1].count < 1:
            raise DataError(f"{where}: count {found[-1].count}, expected 1 or more")
    return tuple(found)


def _questions(rows: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Questions alone are to be answered with yes."""
    found = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, str):
            found.append((row, "yes"))
        elif isinstance(row, dict) and isinstance(row.get("question"), str):
            found.append((row["question"], str(row.get("answer", "yes"))))
        elif isinstance(row, list) and row and isinstance(row[0], str):
            found.append((row[0], str(row[1]) if len(row) > 1 else "yes"))
        else:
            raise DataError(f"{where}: expected questions with answers, got {quoted(str(row), 60)}")
    return tuple(found)


def _of_table(text: str, path: Path) -> list[Case]:
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    names = {name.strip().lower(): name for name in reader.fieldnames or [] if name}
    column = names.get("prompts", names.get("prompt"))
    if column is None:
        raise DataError(f"{path} has no column Prompts or Prompt, but {quoted(', '.join(names), 60)}")
    kind = names.get("category", names.get("tag"))
    try:
        rows = [(row[column], row[kind] if kind else None, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    return [
        Case(text.strip(), (tag or "prompts").strip(), metadata=row) for text, tag, row in rows if (text or "").strip()
    ]
