"""How a text is written, as data: by `t2i.nn.generate`, by models of transformers, or by a server."""

from typing import Self

from pydantic import Field, model_validator

from t2i.core.config import Config
from t2i.core.sizes import Entries, Length


class Decoding(Config):
    """How a text is written. The default takes the likeliest token at every place (greedy)."""

    max_length: Length | None = Field(
        None,
        description="tokens that are written at most, the end token among them; None for all there is room for",
    )
    min_length: int = Field(0, ge=0, le=2**14, description="tokens before the end token, at least")
    temperature: float = Field(
        0.0, ge=0, le=100, description="0 takes the likeliest token; above, tokens are drawn, from p^(1 / temperature)"
    )
    top_k: Entries | None = Field(None, description="tokens are drawn from the k likeliest")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="tokens are drawn from the fewest that have this probability (nucleus, Holtzman et al. 2020)",
    )
    num_beams: int = Field(1, ge=1, le=256, description="beginnings that are kept, for beam search")
    length_penalty: float = Field(
        1.0, ge=-10, le=10, description="with beams, texts compete by log p / length^this: 0 favours short ones"
    )
    no_repeat_ngram: int = Field(
        0, ge=0, le=2**14, description="no n tokens in a row are written twice; 0 lets everything repeat"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_length is not None and self.min_length >= self.max_length:
            raise ValueError(f"min_length={self.min_length} leaves no room for the end in max_length={self.max_length}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p < 1):
            given = f"top_k={self.top_k}" if self.top_k is not None else f"top_p={self.top_p}"
            raise ValueError(f"{given} is for tokens that are drawn: set temperature, which is 0")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(f"num_beams={self.num_beams} draws nothing: leave temperature={self.temperature} out")
        if self.num_beams == 1 and self.length_penalty != 1:
            raise ValueError(f"length_penalty={self.length_penalty} compares beams, and num_beams is 1")
        return self

    def within(self, room: int) -> "Decoding":
        """The same for a network that has room for so many tokens; ValueError where that is less than is asked for."""
        if (self.max_length or self.min_length + 1) > room:
            key = "max_length" if self.max_length is not None else "min_length"
            raise ValueError(f"{key}={getattr(self, key)}, but there is room for {room} tokens, the end among them")
        return self.model_copy(update={"max_length": self.max_length or room})
