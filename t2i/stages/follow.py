"""What in a stage's config follows from its neighbours, its tokeniser or its data, filled in or checked."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from t2i.core.config import Config
from t2i.core.errors import DataError, UsageError
from t2i.core.fingerprint import same
from t2i.core.types import Batch
from t2i.data.config import DataConfig
from t2i.data.opening import class_names
from t2i.data.shapes import WORDS
from t2i.nn.ports import ClassesConfig, TextPortConfig
from t2i.text.tokenizers import TokenizerConfig

log = logging.getLogger(__name__)

C = TypeVar("C", bound=Config)
_NAMED = 10  # classes that a message lists
_JUDGED = 16  # samples by which the scale of latents is judged
_SCALES = 0.4, 2.5  # standard deviations that latents of about unit variance may have


def follow(config: C, prefix: str, where: str, **facts: Any) -> C:
    """The config with facts that follow from elsewhere.

    Args:
        prefix: the keys of `config` in a file, such as "model.".
        where: what the facts are of, for errors.

    Raises UsageError for a key that was given another value.
    """
    for key, value in facts.items():
        given = getattr(config, key)
        if key in config.model_fields_set and given is not None and given != value:
            raise UsageError(f"{prefix}{key}={given} is {value} in {where}; leave it out")
    return config.model_copy(update=facts)


def with_words(tokenizer: TokenizerConfig) -> TokenizerConfig:
    """A tokeniser of whole words, of those of the shapes world unless it has its own."""
    if tokenizer.kind == "words" and not tokenizer.words:
        return tokenizer.model_copy(update={"words": tuple(WORDS)})
    return tokenizer


def text_port(text: TextPortConfig, clip: Any, prefix: str = "model.ports.text.") -> TextPortConfig:
    """A text transformer with its tokeniser, that of a CLIP if there is one, and the sizes that follow from it."""
    tokenizer = text.tokenizer or TokenizerConfig()
    if clip is not None:
        theirs: TokenizerConfig = clip.config.tokenizer
        tokenizer = follow(tokenizer, f"{prefix}tokenizer.", "the CLIP", **theirs.model_dump())
    tokenizer = with_words(tokenizer)
    sizes = {"vocab_size": tokenizer.vocab_size, "context": tokenizer.context}
    return follow(text, prefix, "the tokenizer", **sizes).model_copy(update={"tokenizer": tokenizer})


def class_port(classes: ClassesConfig, data: DataConfig) -> ClassesConfig:
    """A table of labels, as many and of the names that the data has; UsageError as `classes_of`."""
    num, names = classes_of(data, classes.num, "model.ports.classes.num")
    return classes.model_copy(update={"num": num, "names": names})


def classes_of(data: DataConfig, num: int, key: str) -> tuple[int, tuple[str, ...]]:
    """How many classes the data has, and their names, if they have any; `num` are given by a `key`, 0 for not given.

    Raises UsageError where data and key say different numbers, or neither says one.
    """
    names = class_names(data)
    some = ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")
    if not names and not num:
        raise UsageError(f"{key} is not known, and {data.source} has no folders of classes that would tell: give it")
    if names and num not in (0, len(names)):
        raise UsageError(f"{key}={num}, but {data.source} has {len(names)} classes ({some}); {key}=0 takes them all")
    if not num:
        log.info("%s=%d: %s", key, len(names), some)
    return num or len(names), names


def need_clip(clip: Any, who: str) -> Any:
    """A CLIP to learn from, or UsageError."""
    if clip is None:
        raise UsageError(f"{who} learns from a trained CLIP: name its folder, clip=FOLDER")
    return clip


def same_neighbour(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether fingerprints are of one CLIP, T5 or autoencoder, maybe stored in fewer bits; an empty one is of any."""
    return not len(theirs) or same(ours, theirs)


def check_same(ours: Sequence[float], theirs: Sequence[float], which: str) -> None:
    """UsageError that `which`, such as "autoencoder=runs/a", is not the neighbour that a stage learned from; one that
    knows no fingerprint learned from any."""
    if len(ours) and not same_neighbour(theirs, ours):
        raise UsageError(f"{which} is not the one that this was made with: their fingerprints differ")


def check_side(data: DataConfig, side: int, key: str = "model.image_size") -> None:
    """UsageError for pictures of another side than the network's."""
    if data.side != side:
        raise UsageError(f"{data.side_key}={data.side} must equal {key}={side}")


def check_scale(latents_of: Callable[[Batch], Tensor], batches: Iterable[Batch]) -> None:
    """DataError for latents that are not of about unit variance, as far as the first batch shows."""
    std = float(latents_of({key: value[:_JUDGED] for key, value in next(iter(batches)).items()}).std())
    if not _SCALES[0] <= std <= _SCALES[1]:
        raise DataError(
            f"latents have a standard deviation of {std:.3g}, expected about 1: they are of another scale than this "
            "autoencoder's, or its own was not measured"
        )
