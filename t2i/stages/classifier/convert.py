"""Reading the classifiers published by ADM (flat OpenAI key names) into `Classifier`."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from t2i.keymaps.flat import Entry, Layout, flat_encoder, rekey
from t2i.stages.classifier.model import Classifier, ClassifierConfig
from t2i.stages.classifier.presets import PRESETS


def convert(state: Mapping[str, Tensor], config: ClassifierConfig) -> dict[str, Tensor]:
    """Weights of a published classifier as a state dict of `Classifier(config)`.

    Args:
        state: a flat state dict with OpenAI's key names.
        config: of the same network.

    Raises:
        ValueError: naming keys that are missing, unknown or of another shape.
    """
    return rekey(state, flat_entries(config), lambda: Classifier(config))


def layouts() -> Iterator[Layout]:
    """Every published classifier."""
    for name, config in PRESETS.items():
        yield Layout("classifier", name, config, Classifier, tuple(flat_entries(config)))


def flat_entries(config: ClassifierConfig) -> Iterator[Entry]:
    """Every module of a classifier with its name in a flat list of OpenAI's. Rows of q, k and v go head by head in the
    trunk, but all queries, all keys, all values in the pool."""
    yield from flat_encoder(config.encoder, "legacy", "encoder.")
    yield Entry("out.0", "norm_out")
    yield Entry("out.2.positional_embedding", "pool.positions", bare=True)
    yield Entry("out.2.qkv_proj", "pool.qkv", kernel=1)
    yield Entry("out.2.c_proj", "pool.proj", kernel=1)
