"""Does a caption say what the picture shows? Captions of held-out renders, checked against the scene behind each.

A caption is read by rules that know the words of `t2i.data.shapes.captions`, synonyms and plurals among them. What it
claims is counted: colours and shapes of things, and their number.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from t2i.core.decoding import Decoding
from t2i.core.devices import device_of
from t2i.core.errors import UsageError, explain
from t2i.core.progress import bar
from t2i.core.seed import Streams
from t2i.data.shapes.captions import ADJECTIVES, NOUNS, NUMBERS, PLURALS
from t2i.data.shapes.scene import COLOURS, Scene, box
from t2i.evals.batches import held_out
from t2i.evals.report import Report, Share, wilson
from t2i.stages.captioner.model import Captioner
from t2i.stages.registry import load_stage
from t2i.text.words import split

ROWS = ("main subject named", "every object named", "nothing invented", "all of it right")
_BATCH = 32
_SINGULAR = {noun: shape for shape, nouns in NOUNS.items() for noun in nouns}
_PLURAL = {PLURALS.get(noun, f"{noun}s"): shape for noun, shape in _SINGULAR.items()}
_THINGS = ("object", "objects", "shape", "shapes", "thing", "things")
_COLOUR = {**{colour: colour for colour in COLOURS}, "violet": "purple"}
_OTHER = {word for words in ADJECTIVES.values() for word in words}
_COUNT = {
    **{"a": 1, "an": 1},
    **{word: count for count, word in NUMBERS.items()},
    **{str(count): count for count in NUMBERS},
}


class Mention(NamedTuple):
    """What a caption says of things of a kind.

    Attributes:
        shape: None for `three objects`.
        colour: None where it is not said; several words where it is said several times.
        num: how many there are; None for some, `cubes`.
        exact: whether that is a number, `one` or more, and not only `a`.
        again: whether they are spoken of as known, `the red cube`.
    """

    shape: str | None
    colour: str | None = None
    num: int | None = 1
    exact: bool = False
    again: bool = False


class Verdict(NamedTuple):
    """Of one caption: whether it names the main subject, and every object with colour and shape; and what it invents,
    nothing where that is empty."""

    main: bool
    named: bool
    invented: str

    @property
    def right(self) -> tuple[bool, bool, bool, bool]:
        """In the order of `ROWS`."""
        return self.main, self.named, not self.invented, self.named and not self.invented


def mentions(caption: str) -> Iterator[Mention]:
    """What a caption says of things, in order."""
    words = split(caption)
    for i, word in enumerate(words):
        shape = _SINGULAR.get(word) or _PLURAL.get(word)
        if shape is None and word not in _THINGS:
            continue
        first = i
        while first and (words[first - 1] in _OTHER or words[first - 1] in _COLOUR):
            first -= 1
        colours = [_COLOUR[w] for w in words[first:i] if w in _COLOUR]
        before = words[first - 1] if first else ""
        many = word in _PLURAL or word in ("objects", "shapes", "things")
        num = _COUNT.get(before, None if many else 1)
        if shape is None and before not in _COUNT:
            continue  # "a picture of shapes" says nothing
        exact = many or before in ("one", "1")
        yield Mention(shape, " ".join(colours) or None, num, exact, again=before == "the")


def judge(caption: str, scene: Scene) -> Verdict:
    """What a caption gets right of a scene.

    The main subject is the thing with the largest box; a colour left unsaid is none that is wrong. Every object is
    named where as many of each colour and shape are claimed as there are. Invented is a colour and shape that nothing
    has, more of a kind than there are, and a number that is another one.
    """
    found = list(mentions(caption))
    there = Counter((thing.colour, thing.shape) for thing in scene.things)
    largest = max(scene.things, key=lambda thing: box(thing, scene.camera).area)
    main = any(m.shape == largest.shape and m.colour in (None, largest.colour) for m in found)
    named = all(_claimed(found, colour, shape, count) >= count for (colour, shape), count in there.items())
    return Verdict(main, named, _invented(found, scene))


def _claimed(found: Sequence[Mention], colour: str | None, shape: str | None, there: int) -> int:
    """How many things of a kind are claimed; `cubes` are as many as there are, at least two."""
    kinds = [m for m in found if m.shape == shape and m.colour == colour and not m.again]
    return sum(max(2, there) if m.num is None else m.num for m in kinds)


def _invented(found: Sequence[Mention], scene: Scene) -> str:
    """The first thing that a caption says and the scene has not; empty if there is none."""
    for mention in found:
        fitting = [t for t in scene.things if mention.shape in (None, t.shape) and mention.colour in (None, t.colour)]
        what = " ".join(filter(None, (mention.colour, mention.shape or "object")))
        kind = [m for m in found if (m.shape, m.colour) == (mention.shape, mention.colour)]
        claimed = _claimed(found, mention.colour, mention.shape, len(fitting))
        if not fitting:
            return f"a {what}"
        if claimed > len(fitting) or (claimed < len(fitting) and not mention.again and any(m.exact for m in kind)):
            return f"{claimed} {what} of {len(fitting)}"
    for shape in {m.shape for m in found} - {None}:  # `a red cube and a cube` are two cubes
        colours = {m.colour for m in found if m.shape == shape}
        total = sum(_claimed(found, colour, shape, 0) for colour in colours)
        if total > (count := sum(thing.shape == shape for thing in scene.things)):
            return f"{total} {shape} of {count}"
    return ""


def captions(
    model: str, *, num: int = 1000, seed: int = 0, decoding: Decoding | None = None, device: str = "auto"
) -> Report:
    """Caption held-out renders and judge each caption by its scene.

    Args:
        model: folder of a captioner.
        num: renders. seed: of the first; render i uses seed + i.
        decoding: greedy if not given.

    The facts hold every caption with what is wrong with it. Raises UsageError for a decoding that the captioner has no
    room for.
    """
    on = device_of(device)
    captioner = load_stage(model, expect="captioner").to(on)
    assert isinstance(captioner, Captioner)
    rows: list[dict[str, Any]] = []
    verdicts: list[Verdict] = []
    with bar(num, unit="caption", leave=False) as told:
        for seeds, scenes, pictures in held_out(num, captioner.image_size, seed=seed, batch_size=_BATCH):
            with torch.inference_mode(), explain("decoding", UsageError):
                texts = captioner.caption(pictures.to(on), decoding, Streams(seeds, "caption"))
            for s, scene, text in zip(seeds, scenes, texts, strict=True):
                verdicts.append(judge(text, scene))
                rows.append({"seed": s, "caption": text, "things": _listed(scene), **verdicts[-1]._asdict()})
            told.update(len(seeds))
    shares = {row: wilson(sum(v.right[i] for v in verdicts), num) for i, row in enumerate(ROWS)}
    facts = {
        "model": model,
        "decoding": (decoding or Decoding()).model_dump(),
        "shares": {row: {**share._asdict(), "share": share.share} for row, share in shares.items()},
        "captions": rows,
    }
    return Report(table(shares), facts)


def table(shares: dict[str, Share]) -> str:
    """Lines to print: a row for each of `ROWS`."""
    lines = [f"{'captions':<20}{'so':>6}{'of':>6}{'share':>9}   95 % interval"]
    for row, s in shares.items():
        lines.append(f"{row:<20}{s.correct:>6}{s.total:>6}{s.share:>8.1%}   {s.low:.1%} … {s.high:.1%}")
    lines.append("named: with colour and shape, and as many; sizes, patterns, places and floors are not judged")
    return "\n".join(lines)


def _listed(scene: Scene) -> list[str]:
    return [f"{thing.colour} {thing.shape}" for thing in scene.things]
