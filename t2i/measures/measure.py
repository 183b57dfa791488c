"""Numbers about pictures, each with all that it depends on."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from t2i.core.errors import UsageError, did_you_mean
from t2i.measures.diversity import pair_distance, vendi
from t2i.measures.gaussian import frechet, frechet_of_features
from t2i.measures.intervals import affordable, bootstrap, jackknife
from t2i.measures.kernels import cmmd, kid
from t2i.measures.neighbours import neighbours
from t2i.measures.statistics import Statistics

INCEPTION = "TF-Inception"
"""The one extractor whose Fréchet distance is called FID."""
FEW = 2000
"""Below so many pictures a Fréchet distance is mostly bias."""
NEAREST, AROUND = 3, 5
"""Neighbours of precision and recall, and of density and coverage, as in their papers."""
_SUBSETS = 30  # of an interval of precision, recall, density and coverage
_VENDI = 2000  # features, of whose pairs all are compared

_BIASED = {
    "frechet": "the distance is biased upwards; compare equal numbers, or use kid",
    "is": "the score is biased downwards; compare equal numbers",
    "cmmd": "the distance is biased upwards; compare equal numbers, or use kid",
}


class Value(NamedTuple):
    """A number before what it depends on is put beside it; `spread` says what `half` is half of."""

    label: str
    value: float
    half: float | None = None
    spread: str = ""


class Number(NamedTuple):
    """One measured number.

    Attributes:
        half: of its interval or spread, None where there is none; `spread` says which.
        facts: what it depends on: extractor, its weights, resize, numbers of pictures, how they were drawn.
        warnings: what has to be known before it is used.
    """

    label: str
    value: float
    half: float | None
    spread: str
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.label} {self.value:.5g}" + ("" if self.half is None else f" ± {self.half:.2g}")


class Metric(NamedTuple):
    """A measure by name: how it is taken of a set, a reference or None, and the draws of a bootstrap; whether it is
    taken against a reference, what else the set must have, and of how many neighbours it is."""

    of: Callable[[Statistics, Any, int | None], list[Value]]
    compares: bool
    needs: str
    about: str
    neighbours: int | None = None


def _frechet(drawn: Statistics, real: Statistics, resamples: int | None) -> list[Value]:
    x, y = drawn.features, real.features
    rank = min(drawn.facts.dim, max(len(x), len(y)))
    times = affordable(rank) if resamples is None else resamples
    half, spread = None, ""
    if times > 1 and min(len(x), len(y)) > 1:
        half = bootstrap(frechet_of_features, [x, y], times) * (len(x) / drawn.count) ** 0.5
        spread = f"95 %, {times} resamples"
    label = "FID" if drawn.facts.extractor == INCEPTION else f"Fréchet distance ({drawn.facts.extractor})"
    return [Value(label, frechet(drawn.moments, real.moments), half, spread)]


def _kid(drawn: Statistics, real: Statistics, resamples: int | None) -> list[Value]:
    found = kid(drawn.features, real.features)
    if found.error is not None:
        return [Value(_named("KID", drawn, INCEPTION), found.mean, *_interval(found.error))]
    spread = f"standard deviation over {found.subsets} subsets of {found.size}"
    return [Value(_named("KID", drawn, INCEPTION), found.mean, found.sd, spread)]


def _inception(drawn: Statistics, real: Any, resamples: int | None) -> list[Value]:
    assert drawn.scores is not None
    found = drawn.scores.value()
    name = "Inception Score" if drawn.facts.extractor == INCEPTION else f"class score ({drawn.facts.extractor})"
    return [Value(name, found.mean, found.sd, f"standard deviation over {len(drawn.scores.counts)} chunks")]


def _precision(drawn: Statistics, real: Statistics, resamples: int | None) -> list[Value]:
    precision, recall, _, _ = _near(drawn, real, NEAREST, resamples)
    return [Value(_named("precision", drawn), *precision), Value(_named("recall", drawn), *recall)]


def _density(drawn: Statistics, real: Statistics, resamples: int | None) -> list[Value]:
    _, _, density, coverage = _near(drawn, real, AROUND, resamples)
    return [Value(_named("density", drawn), *density), Value(_named("coverage", drawn), *coverage)]


def _near(drawn: Statistics, real: Statistics, k: int, resamples: int | None) -> list[tuple[float, float | None, str]]:
    """Value, half of its interval and what that is, of precision, recall, density and coverage."""
    x, y, times = drawn.features, real.features, _SUBSETS if resamples is None else resamples
    found = neighbours(x, y, k)
    if times < 2 or min(len(x), len(y)) < 2 * (k + 2):
        return [(value, None, "") for value in found]
    halves, sizes = jackknife(lambda a, b: neighbours(a, b, k), [x, y], times)
    spread = f"95 %, {times} subsets of {sizes[0]} and {sizes[1]}"
    return [(value, half, spread) for value, half in zip(found, halves, strict=True)]


def _cmmd(drawn: Statistics, real: Statistics, resamples: int | None) -> list[Value]:
    found = cmmd(drawn.features, real.features)
    return [Value(_named("CMMD", drawn), found.value, *_interval(found.sd))]


def _clip(drawn: Statistics, real: Any, resamples: int | None) -> list[Value]:
    num, total, squares = drawn.cosines.tolist()
    mean = total / num
    variance = max(0.0, squares / num - mean**2) * num / max(num - 1, 1)
    half = _interval((variance / num) ** 0.5) if num > 1 else (None, "")
    return [Value(_named("CLIP score", drawn), mean, *half)]


def _diversity(drawn: Statistics, real: Any, resamples: int | None) -> list[Value]:
    some, apart = drawn.features[:_VENDI], pair_distance(drawn.features)
    return [
        Value(_named(f"Vendi score of {len(some)}", drawn), vendi(some)),
        Value(_named("distance of two pictures", drawn), apart.mean, *_interval(apart.sd)),
    ]


def _interval(sd: float) -> tuple[float, str]:
    return 1.96 * sd, "95 %"


def _named(label: str, drawn: Statistics, plain: str = "") -> str:
    """With the extractor, unless that is the one that the papers mean."""
    return label if drawn.facts.extractor == plain else f"{label} ({drawn.facts.extractor})"


METRICS: dict[str, Metric] = {
    "frechet": Metric(_frechet, True, "", "Fréchet distance of Gaussians; FID by TF-Inception"),
    "kid": Metric(_kid, True, "", "kernel distance, unbiased: fit for few pictures"),
    "is": Metric(_inception, False, "logits", "Inception Score: sure of a class, and of all classes"),
    "precision": Metric(_precision, True, "", "precision and recall, by nearest neighbours", NEAREST),
    "density": Metric(_density, True, "", "density and coverage, by nearest neighbours", AROUND),
    "cmmd": Metric(_cmmd, True, "", "kernel distance of normed embeddings; CMMD by CLIP ViT-L/14@336"),
    "clip": Metric(_clip, False, "text", "CLIP score: 100 · cosine of pictures and their captions"),
    "diversity": Metric(_diversity, False, "", "Vendi score, and the mean cosine distance of two pictures"),
}
"""What can be measured, by the names that users choose."""


def check_metrics(names: Sequence[str]) -> None:
    """UsageError for a name that is none, and for none at all."""
    if not names:
        raise UsageError(f"no metrics: choose from {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}; metrics are {', '.join(METRICS)}{did_you_mean(name, METRICS)}")


def measure(
    names: Sequence[str], drawn: Statistics, real: Statistics | None = None, *, resamples: int | None = None
) -> list[Number]:
    """Numbers of a set of pictures, some of them against a reference.

    Args:
        names: of `METRICS`.
        drawn: the pictures. real: the reference, seen by the same extractor.
        resamples: draws of the bootstrap and of subsets, None for as many as are quick, 0 for none.

    Raises UsageError for unknown names, sets that are not comparable, and what a set does not have.
    """
    check_metrics(names)
    if real is not None:
        drawn.facts.check_comparable(real.facts)
    found: list[Number] = []
    for name in dict.fromkeys(names):
        metric = METRICS[name]
        _check(name, metric, drawn, real)
        compared = real if metric.compares else None
        facts = _facts(drawn, compared)
        if metric.neighbours is not None:
            facts["neighbours"] = metric.neighbours
        warnings = _warnings(name, drawn, compared)
        found += [Number(*value, facts, warnings) for value in metric.of(drawn, real, resamples)]
    return found


def _check(name: str, metric: Metric, drawn: Statistics, real: Statistics | None) -> None:
    """UsageError for what is not there."""
    if metric.compares and real is None:
        raise UsageError(f"{name} compares pictures with a reference, and there is none")
    least = 2 if metric.compares or name == "diversity" else 1
    for some in (drawn, real) if metric.compares and real is not None else (drawn,):
        if some.count < least:
            raise UsageError(f"{name}: {some.facts.source} has {some.count} pictures, and {least} are needed")
    if metric.needs == "logits" and drawn.scores is None:
        raise UsageError(f"{name} needs an extractor that tells classes, and {drawn.facts.extractor} tells none")
    if metric.needs == "logits" and drawn.scores is not None and not drawn.scores.counts.any():
        raise UsageError(f"{name} needs logits, and {drawn.facts.extractor} gave none of {drawn.facts.source}")
    if metric.needs == "text" and not drawn.cosines[0]:
        raise UsageError(f"{name} needs captions, and an extractor that reads them: {drawn.facts.source} has none")


def _facts(drawn: Statistics, real: Statistics | None) -> dict[str, Any]:
    facts = {
        "extractor": drawn.facts.extractor,
        "sha256": drawn.facts.sha256,
        "resize": drawn.facts.resize,
        "num": drawn.count,
        "source": drawn.facts.source,
        "settings": drawn.facts.settings,
    }
    if real is not None:
        facts |= {"num_reference": real.count, "reference": real.facts.source, "of_reference": real.facts.settings}
    return facts


def _warnings(name: str, drawn: Statistics, real: Statistics | None) -> tuple[str, ...]:
    sets = [drawn] if real is None else [drawn, real]
    found, few = [], min(some.count for some in sets)
    if name == "frechet" and few <= drawn.facts.dim:
        found.append(
            f"{few} pictures are no more than the {drawn.facts.dim} features: the covariance is not of full rank, "
            "and the distance mostly bias; kid has none"
        )
    if name in _BIASED and few < FEW:
        found.append(f"{few} pictures are few: {_BIASED[name]}")
    if name in ("precision", "density") and real is not None and drawn.count != real.count:
        found.append(f"sets of {drawn.count} and {real.count} pictures: shares depend on both numbers")
    if name in ("kid", "precision", "density", "cmmd"):
        for some in sets:
            if (kept := len(some.features)) < some.count:
                told = f"{some.count} pictures of {some.facts.source}, chosen by chance, always the same"
                found.append(f"taken of {kept} of the {told}")
    if real is not None and torch.equal(drawn.features, real.features):
        found.append(f"{drawn.facts.source} and {real.facts.source} are the same pictures")
    return tuple(found)
