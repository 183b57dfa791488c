"""What every captioner does, whoever made it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from PIL.Image import Image

from t2i.core.decoding import Decoding
from t2i.core.errors import T2IError, UsageError, did_you_mean, explain, quoted
from t2i.core.seed import mix

Kind = Literal["short", "descriptive"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What is written of a picture: its main subject, or everything in it (Betker et al. 2023, section 2.1)."""

PROMPTS: Mapping[Kind, str] = {
    "short": "Name the main subject of this picture in one plain phrase of at most ten words, without a full stop.",
    "descriptive": (
        "Describe this picture in three to six plain sentences: every object with its colour, where things are, the "
        "background, the style, and any text, word for word. Say only what can be seen, and begin with the subject."
    ),
}
"""What models that can be asked are asked, unless the user says otherwise."""


MAX_LENGTH = 300
"""Tokens of a caption at most, where nobody says how many, of models that would write on."""


def bounded(decoding: Decoding) -> Decoding:
    """The same, of `MAX_LENGTH` tokens if it leaves that open; UsageError where its minimum leaves no room."""
    length = decoding.max_length or MAX_LENGTH
    with explain("captions", UsageError):
        return Decoding(**{**decoding.model_dump(), "max_length": length})


@runtime_checkable
class Captioner(Protocol):
    """Writes captions of pictures."""

    @property
    def name(self) -> str:
        """Of the model."""

    @property
    def revision(self) -> str:
        """Which version of it, such as a hash of its files; empty where nobody knows."""

    @property
    def settings(self) -> Mapping[Any, Mapping[str, Any]]:
        """What else decides the captions of each kind, as JSON: prompt and decoding."""

    def caption(self, images: Sequence[Image], kind: Kind, seeds: Sequence[int]) -> Sequence[str | T2IError]:
        """One caption of each RGB picture, or the error that it met; `seeds`, one per picture, decide all chance."""


def check_kinds(kinds: Sequence[str]) -> tuple[Kind, ...]:
    """Kinds by name, each once, in the order of `KINDS`; UsageError for others and for none."""
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"unknown kind {quoted(kind)}; kinds are {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if not kinds:
        raise UsageError(f"no kind of captions given; kinds are {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in kinds)


def seed_of(seed: int, key: str, kind: str) -> int:
    """The seed of one picture's caption, whatever stands beside it in a batch."""
    return mix(seed, "caption", key, kind)
