"""What `t2i data encode` left beside its shards: which autoencoder and which text encoder the arrays are of."""

from pathlib import Path

from pydantic import ValidationError

from t2i.core.config import Config
from t2i.core.errors import DataError, reason
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
    fingerprint: tuple[float, ...]


class Encoded(Config):
    """What a folder of shards was encoded with."""

    latents: LatentFacts
    states: StateFacts | None = None


def encoded_with(config: DataConfig) -> Encoded | None:
    """What the data were encoded with, None for data that `t2i data encode` did not write.

    Raises DataError for a file that is damaged, and for sources that were encoded with different neighbours.
    """
    found: dict[str, Encoded] = {}
    for source in config.sources:
        path = Path(source.src) / FACTS
        if source.src != "shapes" and path.is_file():
            try:
                found[source.src] = Encoded.model_validate(read_json(path))
            except ValidationError as error:
                raise DataError(f"{path} is not what t2i data encode writes: {reason(error)}") from None
    if len({*found.values()}) > 1:
        raise DataError(f"{' and '.join(found)} were encoded with different autoencoders or text encoders")
    return next(iter(found.values()), None)
