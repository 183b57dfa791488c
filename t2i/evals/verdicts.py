"""What a judge has said of pictures, kept as JSON lines, so that nothing is asked twice."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from t2i.core.errors import DataError
from t2i.core.progress import bar
from t2i.core.reading import clear_errors
from t2i.evals.atoms import Atom
from t2i.evals.judges import Judge
from t2i.evals.prompt_files import Case
from t2i.io.files import json_lines
from t2i.io.images import open_image

IN_A_ROW = 5
"""Failures of a judge after which it is asked no more."""
NAME = "verdicts.jsonl"


class Place(NamedTuple):
    """Picture `number` of prompt `row`."""

    row: int
    number: int

    def path(self, out: Path) -> Path:
        return out / f"{self.row:05}" / "samples" / f"{self.number:04}.png"


class Journal:
    """Verdicts of one judge in a file that other judges' may stand in, too.

    Attributes:
        whole: the atoms of pictures that are judged; begun: those of others that it has answered so far.
        failed: pictures that it could not judge at last.
    """

    def __init__(self, path: Path, judge: str) -> None:
        self.path, self.judge = path, judge
        self.whole: dict[Place, list[Atom]] = {}
        self.begun: dict[Place, list[Atom]] = {}
        self.failed: set[Place] = set()
        with clear_errors(path):
            if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):  # a kill in its middle
                path.write_bytes(data + b"\n")
        for row in json_lines(path) if path.exists() else []:
            if row.get("judge") != judge:
                continue
            place = Place(row["prompt"], row["number"])
            if "atoms" in row:
                self.whole[place] = [Atom(*atom) for atom in row["atoms"]]
            elif "atom" in row:
                self.begun.setdefault(place, []).append(Atom(*row["atom"]))
            else:
                self.failed.add(place)

    def add_one(self, place: Place, atom: Atom) -> None:
        """Write one atom of a picture that is not judged yet."""
        self.add(place, atom=list(atom))

    def add(self, place: Place, **said: Any) -> None:
        """Write a line."""
        row = {"judge": self.judge, "prompt": place.row, "number": place.number, **said}
        with clear_errors(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def ask(cases: Sequence[Case], out: Path, judge: Judge, places: Sequence[Place]) -> Mapping[Place, list[Atom] | str]:
    """Atoms of every picture, or why there are none. What was judged before by the same judge is read; what failed
    before is asked last, so that it keeps no other picture from its verdict. After `IN_A_ROW` failures nothing more is
    asked.

    Raises DataError where there is not one verdict then.
    """
    journal = Journal(out / NAME, judge.name)
    verdicts: dict[Place, list[Atom] | str] = dict(journal.whole)
    todo = sorted((place for place in places if place not in verdicts), key=lambda place: place in journal.failed)
    failed = 0
    with bar(len(todo), unit="picture", desc="judging", leave=False) as told:
        for i, place in enumerate(todo):
            kept = journal.begun.get(place, [])
            try:
                image = open_image(place.path(out))
                atoms = judge.judge(cases[place.row], image, kept, partial(journal.add_one, place))
            except DataError as error:
                verdicts[place], failed = str(error), failed + 1
                journal.add(place, failed=str(error))
                if failed == IN_A_ROW:
                    why = f"not asked after {failed} failures in a row: {error}"
                    verdicts.update(dict.fromkeys(todo[i + 1 :], why))
                    break
            else:
                failed, verdicts[place] = 0, atoms
                journal.add(place, atoms=[list(atom) for atom in atoms])
            told.update()
    if failed == IN_A_ROW and all(isinstance(verdict, str) for verdict in verdicts.values()):
        raise DataError(f"{failed} pictures in a row could not be judged: {verdicts[todo[failed - 1]]}")
    return verdicts
