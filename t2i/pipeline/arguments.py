"""What users give to a call, checked before anything is drawn: every mistake is one line and a UsageError.

Nothing heavy is imported: the command line checks its arguments here before it opens a model.
"""

import operator
import re
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from t2i.core.errors import NonFiniteError, UsageError, did_you_mean, quoted, shown
from t2i.pipeline.habits import check_names

if TYPE_CHECKING:
    from torch import Tensor

    from t2i.core.types import Tokenizer
    from t2i.pipeline.output import Callback

MAX_PROMPT = 2000  # characters
MAX_PICTURES = 100_000
"""Of one call."""
MAX_SEED = 2**63 - 1
_SPACING = re.compile(r"(fast27|ddim\d{1,9}|[\s\d,]{1,200})")

Prompts = str | Sequence[str]


class Draw(TypedDict, total=False):
    """What every call takes beside its subject; spelled once, for Python, the command line and recipes.

    Attributes:
        seed: picture i uses seed + i, or the i-th of a list; drawn at random, and told, if None.
        steps: of every stage, or by stage: a number, or a spacing such as "ddim50", see `respaced_steps`.
        guidance: one scale for the stages that are guided, or by stage; 1 is none.
        sampler: of every stage, or by stage: ddpm, ddim or dpm_solver_pp_2m.
        stop_after: the last stage to run.
        max_batch: pictures that are drawn at once, at most; costly stages take fewer.
        max_tile: pixels of a side that an upsampler sees at once, at most: larger pictures are drawn in tiles that
            overlap, in less memory. None for whole pictures.
        progress: show a bar on stderr, where that is a terminal or a notebook.
        callback: called with `Progress` after every step; its `preview()` is the present guess.
    """

    seed: int | Sequence[int] | None
    steps: int | str | Mapping[str, int | str] | None
    guidance: float | Mapping[str, float] | None
    sampler: str | Mapping[str, str] | None
    stop_after: str | None
    max_batch: int
    max_tile: int | None
    progress: bool
    callback: "Callback | None"


class Sentences(Draw, total=False):
    """And those that read sentences, beside the prompt."""

    negative_prompt: Prompts | None
    num_images_per_prompt: int


class Inpaint(Sentences, total=False):
    """And those that inpaint: `blend` pixels over which the old picture fades into the new one around the mask."""

    blend: float


class Texts(NamedTuple):
    """Sentences of N pictures, what guidance moves away from instead of nothing, which sentences are longer than what
    is read, and what was asked for where the sentences are written from that."""

    prompts: list[str]
    negatives: list[str]
    truncated: list[bool]
    asked: list[str] | None = None


def check_draw(draw: Mapping[str, Any]) -> None:
    """UsageError for an argument that no call takes, and for a value that none could take, whatever the model."""
    check_names(draw, Draw.__annotations__, beside=Sentences.__annotations__)
    if (callback := draw.get("callback")) is not None and not callable(callback):
        raise UsageError(f"callback must be a function of one argument, got {quoted(callback)}")
    if not isinstance(progress := draw.get("progress", True), bool):
        raise UsageError(f"progress must be True or False, got {quoted(progress)}")
    positive_int("max_batch", draw.get("max_batch", 8))


def check_finite(stage: str, x: "Tensor") -> "Tensor":
    """`x`, or NonFiniteError that names the stage."""
    if not x.isfinite().all():
        raise NonFiniteError(f"stage {stage!r} produced values that are not finite; try dtype='float32'")
    return x


def positive_int(name: str, value: Any, most: int = 2**31 - 1) -> int:
    """A whole number of at least 1, and at most `most`."""
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else 0
    if not 1 <= number <= most:
        bound = f"at most {most:,}" if number > most else "at least 1"
        raise UsageError(f"{name} must be a whole number of {bound}, got {quoted(value)}")
    return number


def share(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{name} must be a number from 0 to 1, got {quoted(value)}")
    return float(value)


def some(what: str, values: Iterable[Any]) -> list[Any]:
    """The values as a list; UsageError for more of them than a call draws pictures."""
    found = list(islice(values, MAX_PICTURES + 1))
    if len(found) > MAX_PICTURES:
        raise UsageError(f"more {what} than a call takes, which are {MAX_PICTURES:,}")
    return found


def _several(given: Any) -> bool:
    """Whether these are values in an order, such as a list; arrays of no dimension are numbers."""
    unordered = isinstance(given, str | bytes | bytearray | memoryview | Set | Mapping)
    return isinstance(given, Iterable) and not unordered and getattr(given, "ndim", 1) > 0


def seeds_of(seed: Any, count: int) -> list[int]:
    """One seed per picture from one number, a list, or nothing."""
    if count > MAX_PICTURES:
        raise UsageError(f"a call draws {MAX_PICTURES:,} pictures at most, {count:,} were asked for")
    if seed is None:
        seed = secrets.randbelow(2**31)
    several = _several(seed)
    try:
        given = some("seeds", seed) if several else [seed]
        seeds = [operator.index(s) for s in given if not isinstance(s, bool)]
    except TypeError:
        seeds = []
    if len(seeds) != (len(given) if several else 1):
        wanted = "a whole number, or a list with one for each picture"
        raise UsageError(f"a seed must be {wanted}, got {quoted(seed)}")
    if not several:
        seeds = [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise UsageError(f"{len(seeds)} seeds for {count} pictures; give one whole number, or one for each")
    for one in seeds:
        if not -MAX_SEED <= one <= MAX_SEED:
            raise UsageError(f"a seed lies between -2**63 and 2**63, got {quoted(one)}")
    return seeds


def classes_of(classes: Any, num_classes: int | None, names: Sequence[str]) -> list[int] | None:
    """Labels from one class or several, each a number or one of `names`; None for None."""
    if classes is None:
        return None
    if num_classes is None:
        raise UsageError(f"this model takes neither a prompt nor a class, got {quoted(classes)}")
    given = some("classes", classes) if _several(classes) else [classes]
    labels = [_label(value, num_classes, names) for value in given]
    if not labels:
        raise UsageError("no class given")
    return labels


def _label(value: Any, num_classes: int, names: Sequence[str]) -> int:
    if isinstance(value, str) and value in names:  # also names that are numbers, as folders may have
        return list(names).index(value)
    try:
        label = operator.index(int(value) if isinstance(value, str) else value)
    except ValueError:
        hint = did_you_mean(value, names) if names else "; this model's classes have no names"
        raise UsageError(f"unknown class {quoted(value)}{hint}") from None
    except TypeError:
        raise UsageError(f"a class must be a whole number or a name, got {quoted(value)}") from None
    if isinstance(value, bool) or not 0 <= label < num_classes:
        raise UsageError(f"class {quoted(value)} is out of range: this model knows 0 … {num_classes - 1}")
    return label


def check_guidance(stage: str, value: Any, guided: Iterable[str], default: float = 1.0) -> float:
    """A scale for `stage`; stages that are not `guided` know none but 1."""
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1000:  # type: ignore[operator]
        raise UsageError(f"guidance of {stage}: expected a number from 0 to 1000, got {quoted(value)}")
    if stage not in guided and value != 1:
        raise UsageError(f"guidance of {stage}: this stage is not guided, only {' and '.join(guided)} are")
    return float(value)


def check_steps(what: str, value: Any) -> int | str:
    """Steps, or a spacing of them, that some process may have; `what` they are called in the error."""
    number = isinstance(value, Integral) and not isinstance(value, bool) and 0 <= value < 10**9  # type: ignore[operator]
    if not number and not (isinstance(value, str) and _SPACING.fullmatch(value)):
        raise UsageError(f"{what}: expected a whole number or a spacing such as 'ddim50', got {quoted(value)}")
    return value if isinstance(value, str) else int(value)


def by_stage(what: str, given: Any, stages: Sequence[str], settings: Mapping[str, Any], check: Callable) -> dict:
    """Values of `steps`, `guidance` or `sampler` for `stages`: `settings`, overridden by one value for all or a dict by
    stage. One guidance is for the stages whose settings have one."""
    if what == "steps" and given is not None and not isinstance(given, Mapping):
        given = check_steps(what, given)  # a mistake that is no stage's
    for name in given if isinstance(given, Mapping) else ():
        if name not in stages:
            raise UsageError(
                f"{what}: unknown stage {quoted(name)}; stages are {', '.join(stages)}{did_you_mean(name, stages)}"
            )
    values = {name: settings.get(name) for name in stages}
    if given is not None:
        meant = [name for name in stages if what != "guidance" or values[name] is not None]
        values |= dict(given) if isinstance(given, Mapping) else dict.fromkeys(meant, given)
    return {name: check(name, value) for name, value in values.items()}


def read_prompts(
    prompt: Prompts, tokenizers: "Sequence[Tokenizer]", *, negative: bool = False
) -> tuple[list[str], list[bool]]:
    """Prompts as a list, and which of them are longer than one of the tokenisers reads; warns about those, and about
    words that one of them does not know. Negative prompts may be empty."""
    what = "negative prompt" if negative else "prompt"
    if not isinstance(prompt, str | Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
        raise UsageError(f"a {what} must be a string or a list of them, got {type(prompt).__name__}")
    prompts = [prompt] if isinstance(prompt, str) else some(f"{what}s", prompt)
    if not prompts:
        raise UsageError(f"no {what} given")
    for text in prompts:
        check_text(what, text, may_be_empty=negative)
        if unknown := [word for reader in tokenizers for word in reader.unknown(text)]:
            warnings.warn(f"the model does not know: {', '.join(dict.fromkeys(unknown))}", stacklevel=4)
    truncated = [any(reader.truncated(text) for reader in tokenizers) for text in prompts]
    for text, cut in zip(prompts, truncated, strict=True):
        if cut:
            room = min(reader.room for reader in tokenizers)
            warnings.warn(f"only the first {room} tokens are read of: {shown(text, 60)}", stacklevel=4)
    return prompts, truncated


def prompt_rows(
    prompt: Prompts,
    negative: Prompts | None,
    num_images_per_prompt: int,
    tokenizers: "Sequence[Tokenizer]",
    asked: Sequence[str] | None = None,
) -> Texts:
    """Sentences of every picture, prompt by prompt; `asked` is what prompts were written from, where they were."""
    prompts, truncated = read_prompts(prompt, tokenizers)
    negatives, _ = read_prompts("" if negative is None else negative, tokenizers, negative=True)
    if len(negatives) not in (1, len(prompts)):
        raise UsageError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
    num = positive_int("num_images_per_prompt", num_images_per_prompt, MAX_PICTURES // len(prompts))
    negatives *= len(prompts) // len(negatives)
    wrote = None if asked is None else repeat_each(asked, num)
    return Texts(repeat_each(prompts, num), repeat_each(negatives, num), repeat_each(truncated, num), wrote)


def repeat_each(values: Sequence[Any], num: int) -> list[Any]:
    """Every value `num` times in a row."""
    return [value for value in values for _ in range(num)]


def check_text(what: str, text: object, *, may_be_empty: bool = False) -> None:
    """UsageError for what no model can read; `what` is its name there."""
    if not isinstance(text, str):
        raise UsageError(f"a {what} must be a string, got {type(text).__name__}")
    if "\0" in text:
        raise UsageError(f"the {what} has a NUL in it: {quoted(text)}")
    if not text.strip() and not may_be_empty:
        raise UsageError(f"the {what} is empty")
    if len(text) > MAX_PROMPT:
        raise UsageError(f"the {what} has {len(text):,} characters; the limit is {MAX_PROMPT:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the {what} is not valid UTF-8: {quoted(text)}") from None
