"""What `t2i data encode` left beside its shards: which autoencoder and which text encoder the arrays are of."""

from pathlib import Path

from pydantic import Field, ValidationError

from t2i.core.config import Config
from t2i.core.errors import DataError, reason
from t2i.core.fingerprint import same
from t2i.data.config import DataConfig
from t2i.io.files import read_json

FACTS = "encoded.json"


class LatentFacts(Config):
    """Of `KEY.latents.npy`, (channels, side, side) float16."""

    channels: int
    factor: int
    side: int
    fingerprint: tuple[float, ...]


class StateFacts(Config):
    """Of `KEY.states.npy`, (captions, tokens, width) float16."""

    width: int
    context: int | None = Field(None, description="tokens of a caption, at most; None if unknown, as once")
    fingerprint: tuple[float, ...]


class Encoded(Config):
    """What a folder of shards was encoded with."""

    latents: LatentFacts
    states: StateFacts | None = None

    def same(self, other: "Encoded") -> bool:
        """Whether both are of the same encoders, and of pictures of one size."""
        mine, theirs = self.states, other.states
        if (mine is None) != (theirs is None):
            return False
        sizes = [(x.latents.channels, x.latents.factor, x.latents.side) for x in (self, other)]
        return (
            sizes[0] == sizes[1]
            and same(self.latents.fingerprint, other.latents.fingerprint)
            and (mine is None or theirs is None or same(mine.fingerprint, theirs.fingerprint))
        )


def read_facts(folder: Path) -> Encoded | None:
    """What a folder was encoded with, None for one that was not; DataError for a file that is damaged."""
    path = folder / FACTS
    if not path.is_file():
        return None
    try:
        return Encoded.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path} is not what t2i data encode writes: {reason(error)}") from None


def encoded_with(config: DataConfig) -> Encoded | None:
    """What the data were encoded with, None for data that `t2i data encode` did not write.

    Raises DataError for a file that is damaged, and for sources that were encoded with different neighbours.
    """
    found = {source.src: facts for source in config.sources if (facts := read_facts(_folder(source.src))) is not None}
    first = next(iter(found.values()), None)
    if first is not None and not all(first.same(facts) for facts in found.values()):
        raise DataError(f"{' and '.join(found)} were encoded with different autoencoders or text encoders")
    return first


def _folder(src: str) -> Path:
    """Where the shards of a source lie."""
    path = Path(src)
    return path if path.is_dir() else path.parent
