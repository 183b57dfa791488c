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
        questions: with the answers that are right; skills: the kind of each, if the file says.
        num_atoms: as the file counts them, if it does.
        metadata: the line of the file, as GenEval keeps it beside pictures.
    """

    text: str
    tag: str = "prompts"
    include: tuple[Wanted, ...] = ()
    exclude: tuple[Wanted, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    skills: tuple[str, ...] = ()
    num_atoms: int | None = None
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
    skills = len({skill for case in cases for skill in case.skills})
    more = f" of {skills} skills" if skills else ""
    return f"{len(cases)} prompts of {tags} kinds; {objects} say what must be there, {asked} have questions{more}"


def _of_json(text: str, path: Path) -> list[Case]:
    cases = []
    for number, line in enumerate(text.split("\n"), 1):
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
        skills, num = row.get("skills") or [], row.get("atom_count")
        if not isinstance(skills, list) or (skills and len(skills) != len(questions)):
            raise DataError(
                f"{where}: expected a skill for each of {len(questions)} questions, got {quoted(skills, 60)}"
            )
        if num is not None and type(num) is not int:
            raise DataError(f"{where}: atom_count must be a whole number, got {quoted(num, 60)}")
        said = tuple(map(str, skills))
        cases.append(Case(row["prompt"].strip(), str(tag), include, exclude, questions, said, num, row))
    return cases


def _things(rows: Any, where: str) -> tuple[Wanted, ...]:
    if not isinstance(rows, list | None):
        raise DataError(f"{where}: expected a list, got {quoted(rows, 60)}")
    return tuple(_thing(row, where) for row in rows or [])


def _thing(row: Any, where: str) -> Wanted:
    """One clause; what is not understood is refused, since a picture would be judged without it."""
    if not isinstance(row, dict) or not isinstance(row.get("class"), str) or not row["class"].strip():
        raise DataError(f"{where}: expected class, count, color, position, got {quoted(row, 60)}")
    if odd := set(row) - {"class", "count", "color", "colour", "position"}:
        raise DataError(f"{where}: unknown {quoted(min(odd), 60)}; expected class, count, color, position")
    count, colour, place = row.get("count", 1), row.get("color", row.get("colour")), row.get("position") or (None, 0)
    if type(count) is not int or count < 1:
        raise DataError(f"{where}: count {quoted(count, 60)}, expected 1 or more")
    if not isinstance(colour, str | None):
        raise DataError(f"{where}: color {quoted(colour, 60)}, expected a word")
    if not isinstance(place, list | tuple) or len(place) != 2 or type(place[1]) is not int:
        raise DataError(f"{where}: position {quoted(place, 60)}, expected a relation and the number of a thing")
    if place[0] not in (None, *RELATIONS):
        raise DataError(f"{where}: unknown position {quoted(place[0])}; positions are {', '.join(RELATIONS)}")
    return Wanted(row["class"].strip(), count, colour, place[0], place[1])


def _questions(rows: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Questions alone are to be answered with yes."""
    found = []
    if not isinstance(rows, list):
        raise DataError(f"{where}: expected a list of questions, got {quoted(rows, 60)}")
    for row in rows:
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
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    cases, begin = [], 1
    try:
        names = {name.strip().lower(): name for name in reader.fieldnames or [] if name}
        column = names.get("prompts", names.get("prompt"))
        if column is None:
            raise DataError(f"{path} has no column Prompts or Prompt, but {quoted(', '.join(names), 60)}")
        kind = names.get("category", names.get("tag"))
        for row in reader:
            begin, prompt = reader.line_num, (row[column] or "").strip()
            if None in row:
                raise DataError(f"{path}, line {begin}: more columns than the first line names; are quotes missing?")
            if prompt:
                tag = (row[kind] or "").strip() if kind else ""
                cases.append(Case(prompt, tag or "prompts", metadata=row))
            elif any(value and value.strip() for value in row.values()):
                raise DataError(f"{path}, line {begin}: no prompt")
    except csv.Error as error:
        raise DataError(f"{path}, line {begin + 1}: {error}") from None
    return cases
