"""`t2i eval prompts`: a benchmark's prompts put to a model, its pictures in GenEval's layout, and verdicts on them.

OUT/settings.json             what was drawn, so that nothing is mixed
OUT/00000/metadata.jsonl      the line of the benchmark
OUT/00000/samples/0000.png    picture 0 of prompt 0, with its recipe
OUT/verdicts.jsonl            what judges said, so that nothing is asked twice
OUT/results.jsonl             verdicts in the form of GenEval's results
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.core.errors import UsageError, quoted, shown
from t2i.core.progress import bar
from t2i.core.seed import mix
from t2i.evals.atoms import Atom, by_atoms, table
from t2i.evals.judges import Judge, Questions
from t2i.evals.prompt_files import Case, understood
from t2i.evals.report import Report, Score, Share, save_rows, wilson
from t2i.evals.verdicts import Place, ask
from t2i.io.files import output_folder, read_json, writable, write
from t2i.io.lock import sole_writer
from t2i.pipeline.base import Pipeline
from t2i.pipeline.cost import check_pictures

RIGHT = 0.5
"""How sure every atom of a picture has to be for the picture to be right."""
RESULTS = "results.jsonl"


def prompts(
    pipe: Pipeline,
    cases: Sequence[Case],
    out: Path,
    judge: Judge | None,
    *,
    num: int = 4,
    seed: int = 0,
    batch: int = 4,
    call: Mapping[str, Any] | None = None,
) -> Report:
    """Draw what is not there yet, have judged what was not judged yet, and count.

    Args:
        num: pictures of each prompt, 4 as in GenEval; picture k of prompt i has the seed `seed` + i · num + k.
        batch: pictures drawn at once.
        call: further arguments of the pipeline.

    What a judge cannot be asked is counted apart and asked again by the same command. Raises UsageError for a folder of
    other pictures or other files, DataError where a judge says nothing but failures.
    """
    if pipe.subject != "prompt":
        raise UsageError(f"{pipe.source or 'this model'} draws {pipe.subject}, and the prompts are sentences")
    call = {"stop_after": pipe.judged if "stop_after" not in (call or {}) else None, **(call or {})}
    check_pictures(pipe, call["stop_after"])
    if judge is not None:
        judge.check(cases)
    settings = {
        "model": pipe.source, "weights": pipe.weights, "prompts": f"{mix(*(_line_of(case) for case in cases)):016x}",
        "num": num, "seed": seed, "call": json.loads(json.dumps(call)),
    }  # fmt: skip
    places = [Place(row, number) for row in range(len(cases)) for number in range(num)]
    with output_folder(out), sole_writer(out, "filled"):
        _check_same(out, settings)
        _draw(pipe, cases, out, [p for p in places if not p.path(out).exists()], num, seed, batch, call)
        verdicts = ask(cases, out, judge, places) if judge is not None else {}
        return _report(cases, places, verdicts, settings, judge, out)


def _check_same(out: Path, settings: Mapping[str, Any]) -> None:
    path = out / "settings.json"
    if not path.exists():
        if others := sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(".")):
            raise UsageError(f"{out} holds {shown(others[0], 60)}, which is not of this: choose a new folder")
        write(path, json.dumps(settings, indent=1).encode())
    before = read_json(path)
    for key, value in settings.items():
        if not isinstance(before, dict) or before.get(key) != value:
            a, b = (quoted(str(v), 40) for v in (before.get(key) if isinstance(before, dict) else before, value))
            raise UsageError(f"{out} holds other pictures ({key}: {a}, not {b}): choose another folder")


def _line_of(case: Case) -> str:
    """The line of the benchmark that lies beside pictures."""
    return json.dumps({"tag": case.tag, "prompt": case.text, **case.metadata})


def _draw(
    pipe: Any, cases: Sequence[Case], out: Path, places: Sequence[Place], num: int, seed: int, batch: int,
    call: Mapping[str, Any],
) -> None:  # fmt: skip
    for row in {place.row for place in places}:
        about = out / f"{row:05}" / "metadata.jsonl"
        if not about.exists():
            writable(about.parent)
            write(about, _line_of(cases[row]).encode() + b"\n")
    with bar(len(places), unit="picture", desc="drawing", leave=False) as told:
        for first in range(0, len(places), batch):
            some = places[first : first + batch]
            seeds = [seed + place.row * num + place.number for place in some]
            drawn = pipe([cases[place.row].text for place in some], seed=seeds, progress=False, **call)
            for k, place in enumerate(some):
                drawn.save(place.path(out), [k])
                told.update()


def rows_of(
    cases: Sequence[Case], places: Sequence[Place], verdicts: Mapping[Place, list[Atom] | str], out: Path
) -> list[dict[str, Any]]:
    """Verdicts in the form of GenEval's results, which its `summary_scores.py` reads (`metadata` and `details` are JSON
    in a string), and the atoms."""
    found = []
    for place in places:
        case, atoms = cases[place.row], verdicts.get(place)
        if not isinstance(atoms, list) or not atoms:
            continue
        wrong = [atom.text for atom in atoms if atom.value < RIGHT]
        found.append({
            "filename": str(place.path(out)), "tag": case.tag, "prompt": case.text, "correct": not wrong,
            "reason": "; ".join(f"not: {text}" for text in wrong), "metadata": _line_of(case),
            "details": json.dumps({"atoms": [list(atom) for atom in atoms]}), "atoms": [list(atom) for atom in atoms],
            "picture": list(place),
        })  # fmt: skip
    return found


def _report(
    cases: Sequence[Case], places: Sequence[Place], verdicts: Mapping[Place, list[Atom] | str],
    settings: Mapping[str, Any], judge: Judge | None, out: Path,
) -> Report:  # fmt: skip
    lines = [f"{understood(cases)}; {len(places)} pictures in {out}"]
    facts: dict[str, Any] = {"settings": dict(settings), "judge": judge.name if judge is not None else None}
    if judge is None:
        return Report(lines[0], facts)
    rows = rows_of(cases, places, verdicts, out)
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right[row["tag"]].append(row["correct"])
    shares = {tag: wilson(sum(values), len(values)) for tag, values in right.items()}
    lines += [_line(shown(tag, 24), share) for tag, share in shares.items()]
    if shares:
        lines.append(f"{'mean of the kinds':<26}{sum(s.share for s in shares.values()) / len(shares):>24.1%}")
    seen = [(cases[row["picture"][0]], [Atom(*atom) for atom in row["atoms"]]) for row in rows]
    atoms = by_atoms([atoms for _, atoms in seen], [case.num_atoms for case, _ in seen])
    lines.append(table(atoms))
    skills: dict[str, list[float]] = defaultdict(list)
    for case, its in seen:
        for skill, atom in zip(case.skills, its, strict=False):  # judges of things have other atoms
            skills[skill].append(100 * atom.value)
    by_skill = {skill: Score.of(values) for skill, values in skills.items()} if isinstance(judge, Questions) else {}
    lines += [f"{shown(skill, 24):<26}{score!s:>24} of {score.num}" for skill, score in by_skill.items()]
    save_rows(out / RESULTS, rows)
    if bad := [why for why in verdicts.values() if isinstance(why, str)]:
        lines.append(
            f"! {len(bad)} pictures were not judged, such as: {shown(bad[0], 150)}; the same command asks again"
        )
    if bare := sum(verdicts.get(place) == [] for place in places):
        lines.append(f"! of {bare} pictures the file says nothing that {judge.name} could judge")
    lines.append(f"judged by {judge.name}; right is where every atom is at least {RIGHT:g}")
    facts |= {
        "shares": {tag: {**share._asdict(), "share": share.share} for tag, share in shares.items()},
        "atoms": atoms, "skills": {skill: list(score) for skill, score in by_skill.items()},
        "not_judged": len(bad), "pictures": rows,
    }  # fmt: skip
    return Report("\n".join(lines), facts)


def _line(tag: str, share: Share) -> str:
    return f"{tag:<26}{share.correct:>6}{share.total:>6}{share.share:>12.1%}   {share.low:.1%} … {share.high:.1%}"
