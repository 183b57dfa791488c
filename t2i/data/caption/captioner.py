"""What every captioner does, whoever made it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

from PIL.Image import Image
from pydantic import Field, model_validator

from t2i.core.config import Config
from t2i.core.errors import T2IError, UsageError, did_you_mean, quoted
from t2i.core.seed import mix
from t2i.core.sizes import Entries, Length

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


class Writing(Config):
    """How captions are written; the words are those of `t2i.nn.generate.Decoding`."""

    max_length: Length = Field(120, description="tokens of a caption, at most")
    min_length: int = Field(0, ge=0, le=2**14, description="tokens of a caption, at least")
    temperature: float = Field(0.0, ge=0, le=100, description="0 takes the likeliest token; above, tokens are drawn")
    top_k: Entries | None = Field(None, description="tokens are drawn from the k likeliest")
    top_p: float = Field(1.0, gt=0, le=1, description="tokens are drawn from the fewest that have this probability")
    num_beams: int = Field(1, ge=1, le=256, description="beginnings that are kept, for beam search")
    length_penalty: float = Field(1.0, ge=-10, le=10, description="with beams, below 1 favours short captions")
    no_repeat_ngram: int = Field(0, ge=0, le=2**14, description="no n tokens in a row are written twice; 0 is off")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_length >= self.max_length:
            raise ValueError(f"min_length={self.min_length} leaves no room in max_length={self.max_length}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            raise ValueError("top_k and top_p are for tokens that are drawn: set temperature, which is 0")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(f"num_beams={self.num_beams} draws nothing: leave temperature={self.temperature} out")
        if self.num_beams == 1 and self.length_penalty != 1:
            raise ValueError(f"length_penalty={self.length_penalty} compares beams, and num_beams is 1")
        return self

    def given(self) -> dict[str, Any]:
        """What differs from the defaults, and the length."""
        return {"max_length": self.max_length} | self.model_dump(exclude_defaults=True)


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
