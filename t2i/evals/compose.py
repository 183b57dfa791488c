"""Does a picture show what the sentence says? GenEval's six tasks (Ghosh et al. 2023, arXiv 2310.11513) on the shapes
world: a fixed list of prompts, and what has to be seen in a picture for each.

A picture is judged by what a reader found in it; neither CLIP nor any part that drew it has a say. Asked for is asked
for: of other objects in the picture nothing is said, except in counting and in colour attribution, where there must be
none.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from t2i.core.assets import asset
from t2i.core.errors import UsageError
from t2i.data.shapes.scene import COLOURS, FLAT_TOPPED, SHAPES, Box
from t2i.evals.atoms import Atom, by_atoms
from t2i.evals.atoms import table as table_of_atoms
from t2i.evals.batches import held_out
from t2i.evals.report import Report, Share, wilson
from t2i.io.images import from_pil
from t2i.pipeline.base import Pipeline
from t2i.pipeline.cost import check_pictures
from t2i.pipeline.output import Output
from t2i.stages.reader.model import Detection, Reader
from t2i.stages.reader.task import accuracy, listed
from t2i.stages.registry import load_stage

TASKS = ("single object", "two objects", "counting", "colours", "position", "colour attribution")
TAGS = dict(zip(TASKS, ("single_object", "two_object", "counting", "colors", "position", "color_attr"), strict=True))
"""What GenEval's files call the tasks."""
PER_TASK = 20
PHRASES = {
    "left of": "to the left of",
    "right of": "to the right of",
    "in front of": "in front of",
    "behind": "behind",
    "on top of": "on top of",
}
_ALONE = ("counting", "colour attribution")  # no other objects
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_NOUNS = {
    "cube": ("cube", "box"),
    "sphere": ("sphere", "ball"),
    "cylinder": ("cylinder",),
    "cone": ("cone",),
    "pyramid": ("pyramid",),
    "torus": ("torus", "ring", "donut"),
}
READER = "shapes-reader"
HELD_OUT = 1000  # renders on which the reader itself is tried before it judges
_BATCH = 32
_MARGIN = 0.1  # of the objects' joint width or height, as in GenEval


class Seen(Protocol):
    """One object of a picture, as a reader finds it; y points down, all in [0, 1]."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def box(self) -> Box: ...
    @property
    def raised(self) -> bool: ...


class Wanted(NamedTuple):
    """Objects that a prompt asks for; `colour` None is any colour."""

    shape: str
    colour: str | None = None
    num: int = 1

    def fits(self, seen: Seen) -> bool:
        return seen.shape == self.shape and self.colour in (None, seen.colour)

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}" if self.colour else self.shape


@dataclass(frozen=True)
class Prompt:
    """A sentence, the task it belongs to and what it asks for; `relation` is between the first and the second."""

    task: str
    text: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None


def prompts() -> list[Prompt]:
    """The fixed list: 20 different sentences for each of the six tasks, in an order that never changes."""
    found: list[Prompt] = []
    nouns = [(noun, shape) for shape in SHAPES for noun in _NOUNS[shape]]  # 10 nouns, said in two ways
    found += [
        Prompt(TASKS[0], start + noun, (Wanted(shape),)) for start in ("a ", "a picture of a ") for noun, shape in nouns
    ]
    pairs = [(a, b) for step in (1, 2, 3, 4) for a, b in zip(SHAPES, SHAPES[step:] + SHAPES[:step], strict=True)]
    found += [Prompt(TASKS[1], f"a {a} and a {b}", (Wanted(a), Wanted(b))) for a, b in pairs[:PER_TASK]]
    for i in range(PER_TASK):
        first, second = _pair(i)
        found.append(_counting(first, 2 + i % 3))
        found.append(Prompt(TASKS[3], _named(first), (first,)))
        found.append(_position(first, second, tuple(PHRASES)[i % 5]))
        found.append(Prompt(TASKS[5], f"{_named(first)} and {_named(second)}", (first, second)))
    return sorted(found, key=lambda prompt: TASKS.index(prompt.task))


def score(prompt: Prompt, found: Sequence[Seen]) -> tuple[bool, str]:
    """Whether the objects found in a picture are what the prompt asks for, and if not, why.

    single object, colours, two objects: every wanted object is there. counting, colour attribution: there are exactly
    the wanted objects and no others. position: two of the wanted objects stand as said, see `holds`.
    """
    for wanted in prompt.wanted:
        count = sum(wanted.fits(seen) for seen in found)
        if count < wanted.num:
            return False, f"{count} of {wanted.num} {wanted}"
    if prompt.task in _ALONE:
        asked = sum(wanted.num for wanted in prompt.wanted)
        if len(found) != asked:
            return False, f"{len(found)} objects instead of {asked}"
    if prompt.relation is not None:
        first, second = prompt.wanted[:2]
        pairs = [(a, b) for a in found if first.fits(a) for b in found if second.fits(b) and b is not a]
        if not any(holds(prompt.relation, a, b) for a, b in pairs):
            return False, f"{first} not {prompt.relation} {second}"
    return True, "right"


def atoms_of(prompt: Prompt, found: Sequence[Seen]) -> list[Atom]:
    """What a prompt asks for, thing by thing: shapes, colours, numbers and the relation, and whether each is there."""
    atoms = []
    for wanted in prompt.wanted:
        same = [seen for seen in found if seen.shape == wanted.shape]
        atoms.append(Atom(wanted.shape, float(bool(same))))
        if wanted.colour is not None:
            atoms.append(Atom(str(wanted), float(any(seen.colour == wanted.colour for seen in same))))
        if wanted.num > 1:
            atoms.append(Atom(f"{wanted.num} of them", float(sum(wanted.fits(seen) for seen in found) == wanted.num)))
    if prompt.relation is not None:
        first, second = prompt.wanted[:2]
        pairs = [(a, b) for a in found if first.fits(a) for b in found if second.fits(b) and b is not a]
        fits = any(holds(prompt.relation, a, b) for a, b in pairs)
        atoms.append(Atom(f"{first} {prompt.relation} {second}", float(fits)))
    return atoms


def holds(relation: str, a: Seen, b: Seen) -> bool:
    """Whether `a` stands to `b` as `relation` says, by what can be seen of their boxes.

    left of, right of, as in GenEval: the middles are apart sideways by more than half of their whole distance and a
    tenth of the joint width. in front of, behind: both stand on the floor, and the nearer one's foot is
    lower by more than a tenth of the joint height and 0.3 of the distance sideways. on top of: `a` stands on something,
    its middle is higher, and less than a quarter of the greater width off to the side.

    Raises ValueError for an unknown relation.
    """
    if relation in ("right of", "behind"):
        return holds({"right of": "left of", "behind": "in front of"}[relation], b, a)
    (ax, ay), (bx, by) = _middle(a.box), _middle(b.box)
    dx, dy, foot = ax - bx, ay - by, a.box.y1 - b.box.y1
    widths, heights = (a.box.x1 - a.box.x0, b.box.x1 - b.box.x0), (a.box.y1 - a.box.y0, b.box.y1 - b.box.y0)
    if relation == "left of":
        return -dx - _MARGIN * sum(widths) > 0.5 * math.hypot(dx, dy)
    if relation == "in front of":
        return not a.raised and not b.raised and foot > max(_MARGIN * sum(heights), 0.3 * abs(dx))
    if relation == "on top of":
        return a.raised and dy < 0 and foot < 0 and abs(dx) < 0.25 * max(widths)
    raise ValueError(f"unknown relation {relation!r}: expected one of {', '.join(PHRASES)}")


def summary(verdicts: Sequence[tuple[Prompt, bool]]) -> dict[str, Share]:
    """The share of right pictures of each task, in the order of `TASKS`."""
    total = Counter(prompt.task for prompt, _ in verdicts)
    correct = Counter(prompt.task for prompt, right in verdicts if right)
    return {task: wilson(correct[task], total[task]) for task in TASKS if total[task]}


def mean(shares: Mapping[str, Share]) -> float:
    """GenEval's overall number: every task counts the same."""
    return sum(s.share for s in shares.values()) / len(shares)


def _pair(i: int) -> tuple[Wanted, Wanted]:
    """Two objects of different shapes and colours, other ones for each i below 20."""
    turn = i // 10
    shapes = SHAPES[(i + turn) % 6], SHAPES[(i + turn + 1 + i % 5) % 6]
    return Wanted(shapes[0], COLOURS[i % 10]), Wanted(shapes[1], COLOURS[(i + 3 + turn) % 10])


def _counting(kind: Wanted, count: int) -> Prompt:
    plural = "toruses" if kind.shape == "torus" else f"{kind.shape}s"
    return Prompt(TASKS[2], f"{_NUMBERS[count]} {kind.colour} {plural}", (kind._replace(num=count),))


def _position(first: Wanted, second: Wanted, relation: str) -> Prompt:
    if relation == "on top of" and second.shape not in FLAT_TOPPED:
        other = next(shape for shape in FLAT_TOPPED if shape != first.shape)
        second = second._replace(shape=other)
    return Prompt(TASKS[4], f"{_named(first)} {PHRASES[relation]} {_named(second)}", (first, second), relation)


def _named(kind: Wanted) -> str:
    return f"{'an' if str(kind)[0] in 'aeiou' else 'a'} {kind}"


def _middle(box: Box) -> tuple[float, float]:
    return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


def compose(
    model: str,
    *,
    num: int = 1,
    seed: int = 0,
    device: str = "auto",
    call: Mapping[str, Any] | None = None,
) -> Report:
    """Draw every prompt, read the pictures and count.

    Args:
        model: a pipeline by name or folder.
        num: pictures per prompt. seed: of the first picture; picture i uses seed + i.
        call: further arguments of the pipeline, such as `steps`, `guidance` and `stop_after`, that of `judged` if it
            is not given.

    The facts hold the reading of every picture. Raises UsageError if the call draws no pictures.
    """
    pipe = Pipeline.from_pretrained(model, device=device)
    if pipe.subject != "prompt":
        raise UsageError(f"{model} draws {pipe.subject}, and the tasks are sentences")
    reader = load_reader(pipe.device)
    asked = [prompt for prompt in prompts() for _ in range(num)]
    texts = [prompt.text for prompt in prompts()]
    call = {"stop_after": pipe.judged, **(call or {})}
    check_pictures(pipe, call["stop_after"])
    drawn = pipe(texts, num_images_per_prompt=num, seed=seed, **call)
    readings = [found for part in _batches(drawn) for found in reader.read(part)]
    verdicts = [score(prompt, found) for prompt, found in zip(asked, readings, strict=True)]
    shares = summary([(prompt, right) for prompt, (right, _) in zip(asked, verdicts, strict=True)])
    atoms = [atoms_of(prompt, found) for prompt, found in zip(asked, readings, strict=True)]
    trust = reader_accuracy(reader, min(drawn.images[0].width, 256), HELD_OUT)
    facts: dict[str, Any] = {
        "model": model,
        "recipe": drawn.recipe,
        "mean": mean(shares),
        "tasks": {task: {**s._asdict(), "share": s.share} for task, s in shares.items()},
        "atoms": by_atoms(atoms),
        "reader": trust,
        "pictures": [_row(*row) for row in zip(asked, drawn.seeds, verdicts, readings, atoms, strict=True)],
    }
    rows, _, note = table(shares, trust).rpartition("\n")
    return Report(f"{rows}\n{table_of_atoms(facts['atoms'])}\n{note}", facts)


def load_reader(device: torch.device | str = "cpu") -> Reader:
    """The bundled reader of scenes."""
    reader = load_stage(asset("weights", READER), expect="reader").to(device)
    assert isinstance(reader, Reader)
    return reader


def reader_accuracy(reader: Reader, size: int = 64, num: int = 256, seed: int = 0) -> dict[str, float]:
    """How well the reader reads held-out renders of `size` pixels: see `stages.reader.task.accuracy`."""
    readings, scenes = [], []
    for _, part, pictures in held_out(num, size, seed=seed, batch_size=_BATCH):
        readings += reader.read(pictures)
        scenes += [listed(scene) for scene in part]
    return {**accuracy(readings, scenes), "renders": num}


def table(shares: Mapping[str, Share], trust: Mapping[str, float]) -> str:
    """Lines to print: a row per task, the mean, how far the reader can be trusted, and what not to compare with."""
    lines = [f"{'task':<20}{'right':>6}{'of':>6}{'share':>9}   95 % interval"]
    for task, s in shares.items():
        lines.append(f"{task:<20}{s.correct:>6}{s.total:>6}{s.share:>8.1%}   {s.low:.1%} … {s.high:.1%}")
    total = sum(s.total for s in shares.values())
    lines.append(f"{'mean of the tasks':<20}{sum(s.correct for s in shares.values()):>6}{total:>6}{mean(shares):>8.1%}")
    lines.append(
        f"the reader itself, on {trust['renders']:.0f} held-out renders: {trust['objects']:.1%} of objects, "
        f"{trust['pictures']:.1%} of whole pictures"
    )
    lines.append("GenEval's tasks by stricter rules, in a world of its own: not to be compared with GenEval's numbers")
    return "\n".join(lines)


def _batches(drawn: Output) -> list[Tensor]:
    pictures = [from_pil(image) for image in drawn.images]
    return [torch.stack(pictures[i : i + _BATCH]) for i in range(0, len(pictures), _BATCH)]


def _row(
    prompt: Prompt, seed: int, verdict: tuple[bool, str], found: list[Detection], atoms: list[Atom]
) -> dict[str, Any]:
    """`tag`, `prompt`, `correct`, `reason` and `metadata` are as GenEval has them: a position is seen from a thing that
    is named before, and what is asked to be alone has an exclude for one more of its kind."""
    seen = [{**d._asdict(), "box": [round(v, 4) for v in d.box], "confidence": round(d.confidence, 3)} for d in found]
    asked = prompt.wanted[::-1] if prompt.relation else prompt.wanted
    things = [{"class": w.shape, "count": w.num, **({"color": w.colour} if w.colour else {})} for w in asked]
    include: list[dict[str, Any]] = [*things]
    if prompt.relation is not None:
        include[1]["position"] = [prompt.relation, 0]
    alone = [{"class": w.shape, "count": w.num + 1} for w in asked] if prompt.task in _ALONE else []
    metadata = {"tag": TAGS[prompt.task], "include": include, **({"exclude": alone} if alone else {})}
    return {
        "task": prompt.task,
        "tag": TAGS[prompt.task],
        "prompt": prompt.text,
        "seed": seed,
        "right": verdict[0],
        "correct": verdict[0],
        "why": verdict[1],
        "reason": "" if verdict[0] else verdict[1],
        "metadata": {**metadata, "prompt": prompt.text},
        "atoms": [list(atom) for atom in atoms],
        "found": seen,
    }


def geneval_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A picture of the facts as a line of GenEval's results, which its `summary_scores.py` reads."""
    return {
        "filename": f"seed {row['seed']}",
        **{key: row[key] for key in ("tag", "prompt", "correct", "reason")},
        "metadata": json.dumps(row["metadata"]),
        "details": json.dumps({"found": row["found"], "atoms": row["atoms"]}),
    }
