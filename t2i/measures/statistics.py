"""What is kept of a set of pictures: enough for every measure, in memory that does not grow with their number.

B batch · N pictures of the set · D features · K classes · R rows that are kept
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from t2i.core.errors import DataError, NonFiniteError, UsageError, quoted
from t2i.core.reading import open_regular
from t2i.io.files import write
from t2i.measures.diversity import clip_scores
from t2i.measures.extractors.base import Features
from t2i.measures.gaussian import Moments
from t2i.measures.inception_score import InceptionScore

KEEP = 10_000
"""Features that are kept beside the moments, for measures of pairs; of larger sets a random part, always the same."""
_HEADER = "t2i_statistics"
_VERSION = 1


@dataclass(frozen=True)
class Facts:
    """Whose features these are, and of which pictures: what has to agree, or to be told, where two sets are compared.

    Args:
        settings: how pictures were drawn or read, such as steps and guidance; JSON-able.
    """

    extractor: str
    sha256: str
    resize: str
    dim: int
    num_classes: int | None
    source: str
    settings: dict[str, Any] = field(default_factory=dict)

    def check_comparable(self, other: "Facts") -> None:
        """UsageError that says both values where two sets were not seen by one extractor."""
        for name, what in (
            ("extractor", "extractor"),
            ("sha256", "weights"),
            ("dim", "features"),
            ("resize", "resize"),
        ):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                mine, theirs = (v[:12] if name == "sha256" else v for v in (mine, theirs))
                raise UsageError(
                    f"{self.source} and {other.source} are not comparable: {what} {quoted(mine)} and {quoted(theirs)}"
                )


class Statistics:
    """Of one set of pictures by one extractor.

    Args:
        num: N, pictures in all, which decides what is kept of each; those that cannot be read may be missing later.
        keep: R, at most.
    """

    def __init__(self, facts: Facts, num: int, keep: int = KEEP) -> None:
        if num < 1:
            raise UsageError(f"{facts.source}: no pictures to measure")
        self.facts, self.num, self.keep = facts, num, keep
        self.moments = Moments(facts.dim)
        order = np.sort(np.random.RandomState(2020).permutation(num)[:keep])
        self.rows = torch.full((num,), -1, dtype=torch.int32)  # (N,), where the features of a picture are kept, or -1
        self.rows[torch.from_numpy(order)] = torch.arange(len(order), dtype=torch.int32)
        self.kept = torch.zeros(len(order), facts.dim)  # (R, D) float32
        self.filled = torch.zeros(len(order), dtype=torch.bool)
        self.scores = InceptionScore(num, facts.num_classes) if facts.num_classes is not None else None
        self.cosines = torch.zeros(3, dtype=torch.float64)  # number, sum and sum of squares of CLIP scores

    @property
    def count(self) -> int:
        """Pictures that were taken in."""
        return self.moments.num

    @property
    def features(self) -> Tensor:
        """Those that are kept, in the order of their pictures, (R, D)."""
        return self.kept[self.filled]

    def add(self, indices: Tensor, features: Features, text: Tensor | None = None) -> None:
        """Take in what an extractor saw in the pictures of these numbers (B,) in 0 … N - 1, each once.

        Args:
            text: embeddings of their captions, (B, D), for the CLIP score.

        Raises NonFiniteError that names the first picture whose features are NaN or infinite.
        """
        pool = features.pool.detach().cpu().float()
        for name, values in (("features", pool), ("logits", features.logits), ("embedded captions", text)):
            if values is not None and not (fine := values.isfinite().flatten(1).all(dim=1)).all():
                bad = int(indices[(~fine.cpu()).nonzero()[0, 0]])
                raise NonFiniteError(f"{self.facts.source}: {name} of picture {bad} are NaN or infinite")
        self.moments.add(pool)
        rows = self.rows[indices]
        some = rows >= 0
        self.kept[rows[some]], self.filled[rows[some]] = pool[some], True
        if self.scores is not None and features.logits is not None:
            self.scores.add(indices, features.logits)
        if text is not None:
            found = clip_scores(pool, text.detach().cpu())
            self.cosines += torch.stack([found.new_tensor(len(found)), found.sum(), found.square().sum()])

    def merge(self, other: "Statistics") -> None:
        """Take in what was seen of other pictures of the same set."""
        assert (self.num, self.keep, self.facts) == (other.num, other.keep, other.facts)
        self.moments.merge(other.moments)
        self.kept[other.filled] = other.kept[other.filled]
        self.filled |= other.filled
        if self.scores is not None and other.scores is not None:
            self.scores.merge(other.scores)
        self.cosines += other.cosines

    def save(self, path: Path, **more: Any) -> None:
        """Write a safetensors file, whole or not at all; `more` is kept beside the facts, JSON-able."""
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        header = {"version": _VERSION, "num": self.num, "keep": self.keep, "facts": asdict(self.facts), "more": more}
        write(path, save(tensors, {_HEADER: json.dumps(header | {"crc32": _crc(tensors)})}))

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read what `save` wrote; DataError in one line for any other file, and for a damaged one."""
        return cls.load_with(path)[0]

    @classmethod
    def load_with(cls, path: Path) -> tuple["Statistics", dict[str, Any]]:
        """`load`, and what was kept beside the facts."""
        with _statistics(path) as (header, tensors):
            found = cls(Facts(**header["facts"]), header["num"], header["keep"])
            moments, scores = found.moments, found.scores
            moments.num, moments.mean, moments.scatter = int(tensors["num"]), tensors["mean"], tensors["scatter"]
            found.kept, found.filled, found.cosines = tensors["kept"], tensors["filled"], tensors["cosines"]
            if scores is not None:
                scores.counts, scores.p, scores.negentropy = (tensors[f"scores.{n}"] for n in ("counts", "p", "plogp"))
            fresh = cls(found.facts, found.num, found.keep)._tensors()
            for name, tensor in found._tensors().items():
                like = fresh[name]
                if tensor.shape != like.shape or tensor.dtype != like.dtype or not tensor.isfinite().all():
                    raise ValueError(f"{name} {tuple(tensor.shape)} is not what {found.num} pictures have")
            return found, header["more"]

    def _tensors(self) -> dict[str, Tensor]:
        moments, scores = self.moments, self.scores
        tensors = {
            "num": torch.tensor(moments.num),
            "mean": moments.mean,
            "scatter": moments.scatter,
            "kept": self.kept,
            "filled": self.filled,
            "cosines": self.cosines,
        }
        if scores is not None:
            tensors |= {"scores.counts": scores.counts, "scores.p": scores.p, "scores.plogp": scores.negentropy}
        return tensors


def is_statistics(path: Path) -> bool:
    """Whether a path is a file that `Statistics.save` may have written, by its name."""
    return path.suffix == ".safetensors" and not path.is_dir()


def _crc(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of all numbers, in the order of their names; a file of tensors has no checksum of its own."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, found)
    return found


@contextmanager
def _statistics(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Header and tensors of a file of statistics; everything that is wrong with it becomes one line."""
    with open_regular(path):  # says what is missing, or no file
        pass
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise DataError(f"{path} holds no statistics of pictures; t2i eval statistics writes them")
            header = json.loads(text)
            if header["version"] != _VERSION:
                raise DataError(f"{path} is of a later version of t2i ({header['version']})")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if header["crc32"] != _crc(tensors):
                raise ValueError("its numbers are not those that were written")
            yield header, tensors
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise DataError(f"{path} is damaged, or was changed: {type(error).__name__} {error}") from None
