"""Who says whether a picture shows what a prompt asks for: our reader, a detector or a model that answers questions,
which a user serves."""

import base64
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from PIL import Image

from t2i.core.errors import DataError, UsageError, did_you_mean, quoted
from t2i.data.caption.endpoint import data_url
from t2i.data.shapes.scene import COLOURS, SHAPES, Box
from t2i.evals.atoms import Atom
from t2i.evals.compose import load_reader
from t2i.evals.prompt_files import Case, Wanted
from t2i.io.chat import Endpoint, open_endpoint, spoken
from t2i.io.images import from_pil

LEAST, LEAST_COUNTED, MOST = 0.3, 0.9, 16
"""GenEval's thresholds: a detection counts from 0.3 on, where things are counted from 0.9; the 16 surest of a class."""
_APART, _SIDE = 0.1, 0.5  # of both sizes; of the whole way from one middle to the other
_YES_NO = ("yes", "no")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SURE = 0.5  # of the first token's probability that must be on answers, for it to be taken for one
_WORDS = {"ball": "sphere", "box": "cube", "ring": "torus", "donut": "torus"}


class Found(NamedTuple):
    """One thing in a picture: its class, how sure, where (in pixels or in shares of sides), and its colour if told."""

    kind: str
    score: float
    box: Box
    colour: str | None = None


class Judge(Protocol):
    """Says of every atom of a case how surely a picture shows it."""

    name: str

    def check(self, cases: Sequence[Case]) -> None:
        """UsageError for cases that it cannot judge."""

    def judge(
        self, case: Case, image: Image.Image, kept: Sequence[Atom] = (), keep: Callable[[Atom], object] = id
    ) -> list[Atom]:
        """The atoms of a case. What is asked one by one is handed to `keep` as it is answered; `kept` is what an
        earlier call handed over. DataError where it cannot be had just now."""


class Reader:
    """The bundled reader of scenes, for prompts in the words of the shapes world."""

    def __init__(self) -> None:
        self.name, self.reader = "our reader of scenes", load_reader()

    def check(self, cases: Sequence[Case]) -> None:
        _need_things(cases, self.name)
        for wanted in (w for case in cases for w in (*case.include, *case.exclude)):
            if (kind := _WORDS.get(wanted.kind, wanted.kind)) not in SHAPES:
                hint = did_you_mean(kind, SHAPES)
                raise UsageError(f"our reader knows no {quoted(wanted.kind)}; it finds {', '.join(SHAPES)}{hint}")
            if wanted.colour not in (None, *COLOURS):
                raise UsageError(f"our reader knows no {quoted(str(wanted.colour))}; colours are {', '.join(COLOURS)}")

    def judge(self, case: Case, image: Image.Image, kept: Sequence[Atom] = (), keep: Any = id) -> list[Atom]:
        found = self.reader.read(from_pil(image)[None])[0]
        things = [Found(d.shape, d.confidence, d.box, d.colour) for d in found]
        return atoms_of(case, things, least=0.0, words=_WORDS)


class Detector:
    """A detector that a user serves: it is sent `{"image": "data:image/png;base64,…"}`, and answers
    `{"objects": [{"class": "dog", "score": 0.9, "box": [x0, y0, x1, y1], "color": "brown"}]}`."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        self.name, self.endpoint = url, Endpoint(url, "detector", timeout=timeout)

    def check(self, cases: Sequence[Case]) -> None:
        _need_things(cases, "a detector")

    def judge(self, case: Case, image: Image.Image, kept: Sequence[Atom] = (), keep: Any = id) -> list[Atom]:
        if not case.include and not case.exclude:
            return []
        file = io.BytesIO()
        image.save(file, "PNG")
        picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        answer = self.endpoint.send("", {"image": picture})
        try:
            things = [_found(row) for row in answer["objects"]]
        except (KeyError, TypeError, ValueError):
            said = quoted(json.dumps(answer), 80)
            raise DataError(f"{self.name} answered no objects of class, score and box, but {said}") from None
        counts = case.tag == "counting"
        return atoms_of(case, things, least=LEAST_COUNTED if counts else LEAST)


class Questions:
    """A model that answers questions about pictures, behind an OpenAI-compatible server. Where a file has none, one is
    made of each thing, colour, number and place. How sure a yes is, the server's logprobs say, if it gives any."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.name, self.endpoint = f"{endpoint.url}#{endpoint.model}", endpoint

    def check(self, cases: Sequence[Case]) -> None:
        """It can be asked anything."""

    def judge(
        self, case: Case, image: Image.Image, kept: Sequence[Atom] = (), keep: Callable[[Atom], object] = id
    ) -> list[Atom]:
        picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": data_url(image)}}
        found = list(kept)
        for question, answer in (case.questions or questions_of(case))[len(kept) :]:
            right = _said(answer)
            how = "yes or no" if right in _YES_NO else "a number" if right.isdecimal() else "one word"
            content = [picture, {"type": "text", "text": f"{question} Answer with {how}."}]
            found.append(Atom(question, probability(self._ask(content), answer)))
            keep(found[-1])
        return found

    def _ask(self, content: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """A server that refuses to tell probabilities is asked without them from then on."""
        messages = [{"role": "user", "content": list(content)}]
        try:
            return self.endpoint.choice(messages)
        except DataError as error:
            refused = re.search(r": 4(00|22) |logprob", str(error))
            settings = {key: value for key, value in self.endpoint.settings.items() if "logprobs" not in key}
            if not refused or settings == self.endpoint.settings:
                raise
            plain = replace(self.endpoint, settings=settings)
            first = plain.choice(messages)
            self.endpoint = plain
            return first


def open_judge(name: str, timeout: float = 60.0) -> Judge | None:
    """`reader`, `detector=URL`, `vqa=URL#MODEL`, or `none`; UsageError for others."""
    kind, _, address = name.partition("=")
    if name == "none":
        return None
    if name == "reader":
        return Reader()
    if kind == "detector" and address.startswith(("http://", "https://")):
        return Detector(address, timeout)
    if kind == "vqa" and address:
        settings = {"temperature": 0, "max_tokens": 256, "logprobs": True, "top_logprobs": 10}
        return Questions(open_endpoint(address, timeout=timeout, settings=settings))
    hint = did_you_mean(kind, ("reader", "detector", "vqa", "none"))
    raise UsageError(f"unknown judge {quoted(name)}; expected reader, detector=URL, vqa=URL#MODEL or none{hint}")


def atoms_of(
    case: Case, found: Sequence[Found], *, least: float = LEAST, words: Mapping[str, str] | None = None
) -> list[Atom]:
    """GenEval's rules (Ghosh et al. 2023, appendix B), atom by atom: the surest `count` of a class are looked at.

    Raises DataError where a colour is asked for and things have none.
    """
    words, atoms = words or {}, list[Atom]()
    groups = [_surest(words.get(w.kind, w.kind), found, least)[: w.count] for w in case.include]
    for wanted, group in zip(case.include, groups, strict=True):
        atoms.append(Atom(_named(wanted), float(len(group) >= wanted.count)))
        if wanted.colour is not None:
            if any(thing.colour is None for thing in group):
                raise DataError(f"the detector says no colours, and {wanted.colour} {wanted.kind} is asked for")
            fits = bool(group) and all(thing.colour == wanted.colour for thing in group)
            atoms.append(Atom(f"{wanted.kind} is {wanted.colour}", float(fits)))
        if wanted.relation is not None:
            pairs = [(a, b) for a in group for b in groups[wanted.other]]
            fits = bool(pairs) and all(stands(wanted.relation, a.box, b.box) for a, b in pairs)
            atoms.append(Atom(f"{wanted.kind} {wanted.relation} {case.include[wanted.other].kind}", float(fits)))
    for unwanted in case.exclude:
        few = len(_surest(words.get(unwanted.kind, unwanted.kind), found, least)) < unwanted.count
        atoms.append(Atom(f"fewer than {unwanted.count} {unwanted.kind}", float(few)))
    return atoms


def stands(relation: str, a: Box, b: Box) -> bool:
    """Whether box `a` is left of, right of, above or below box `b` by GenEval's rule; y points down."""
    offset, way = [], []
    for low, high in (("x0", "x1"), ("y0", "y1")):
        (a0, a1), (b0, b1) = ((getattr(box, low), getattr(box, high)) for box in (a, b))
        offset.append((a0 + a1) / 2 - (b0 + b1) / 2)
        way.append(math.copysign(max(0.0, abs(offset[-1]) - _APART * (a1 - a0 + b1 - b0)), offset[-1]))
    if not any(way):
        return False
    x, y = (side / math.hypot(*offset) for side in way)  # of the whole way, as its code has it
    return {"left of": x < -_SIDE, "right of": x > _SIDE, "above": y < -_SIDE, "below": y > _SIDE}[relation]


def questions_of(case: Case) -> list[tuple[str, str]]:
    """A question for each atom of what must be there; for a sentence alone, whether the picture shows it (VQAScore, Lin
    et al. 2024)."""
    found = []
    for wanted in case.include:
        if wanted.count > 1:
            found.append((f"How many {_plural(wanted.kind)} are in the picture?", str(wanted.count)))
        else:
            article = "an" if wanted.kind[0].lower() in "aeiou" else "a"
            found.append((f"Is there {article} {wanted.kind} in the picture?", "yes"))
        if wanted.colour is not None:
            subject = f"Are the {_plural(wanted.kind)}" if wanted.count > 1 else f"Is the {wanted.kind}"
            found.append((f"{subject} {wanted.colour}?", "yes"))
        if wanted.relation is not None:
            found.append((f"Is the {wanted.kind} {wanted.relation} the {case.include[wanted.other].kind}?", "yes"))
    return found or [(f'Does the picture show "{case.text}"?', "yes")]


def probability(choice: Mapping[str, Any], answer: str) -> float:
    """How surely a model answers so: the share of the answer among what it might have said first, where the server says
    (`logprobs`), else 1 or 0 by its text. Of yes and no these two alone share, of numbers all numbers, in words or
    digits.

    Raises DataError for an answer of another kind, such as neither yes nor no: it is none, and not a wrong one.
    """
    right, text = _said(answer), choice.get("message", {}).get("content")
    text = text if isinstance(text, str) else ""
    chances = {} if "<think" in text else _chances(choice)
    closed = right in _YES_NO or right.isdecimal()
    if closed:
        chances = {word: p for word, p in chances.items() if _same_kind(word, right)}
    total = sum(chances.values())
    if total >= _SURE and right in chances:
        return min(1.0, chances[right] / total)
    words = [_said(word) for word in re.findall(r"[^\W_]+(?:['-][^\W_]+)*", spoken(text))]
    if right.isdecimal():  # "There are four", and "no cats" are none
        words = ["0" if word in ("no", "none") else word for word in words]
    told = next((word for word in words if _same_kind(word, right)), None) if closed else " ".join(words)
    if not told or (right in _YES_NO and words[0] != told):
        asked = "yes or no" if right in _YES_NO else "a number" if closed else "one word"
        raise DataError(f"asked for {asked}, it answered {quoted(text, 60)}")
    return float(told == right if closed else f" {right} " in f" {told} ")


def _chances(choice: Mapping[str, Any]) -> dict[str, float]:
    """Probabilities of the first token; empty where a server does not say."""
    found: dict[str, float] = {}
    try:
        for top in choice["logprobs"]["content"][0]["top_logprobs"]:
            word = _said(str(top["token"]))
            found[word] = found.get(word, 0.0) + math.exp(min(0.0, float(top["logprob"])))
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return found


def _same_kind(word: str, right: str) -> bool:
    """Whether a word is an answer to the same question: yes or no, or a number."""
    return word in _YES_NO if right in _YES_NO else word.isdecimal()


def _said(word: str) -> str:
    """In small letters, without signs around it, numbers in digits."""
    word = word.strip().strip(".,!?*:;\"'").lower()
    return str(_NUMBERS.index(word)) if word in _NUMBERS else word


def _plural(kind: str) -> str:
    if kind.endswith(("s", "sh", "ch", "x")):
        return f"{kind}es"
    return {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep"}.get(kind, f"{kind}s")


def _surest(kind: str, found: Sequence[Found], least: float) -> list[Found]:
    some = sorted((f for f in found if f.kind == kind and f.score > least), key=lambda f: -f.score)
    return some[:MOST]


def _found(row: Mapping[str, Any]) -> Found:
    score, box = float(row["score"]), Box(*(float(side) for side in row["box"]))
    colour = row.get("color", row.get("colour"))
    return Found(str(row["class"]), score, box, None if colour is None else str(colour))


def _named(wanted: Wanted) -> str:
    return f"{wanted.count} {wanted.kind}{'s' * (wanted.count > 1)}"


def _need_things(cases: Sequence[Case], who: str) -> None:
    if not any(case.include for case in cases):
        raise UsageError(f"these prompts do not say what must be there, so {who} cannot judge them")
