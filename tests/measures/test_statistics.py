"""What is kept of a set of pictures: streamed, merged, saved, refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i.core.errors import DataError, NonFiniteError, UsageError
from t2i.measures.extractors.base import Features
from t2i.measures.gaussian import frechet_of_features
from t2i.measures.inception_score import InceptionScore
from t2i.measures.measure import METRICS, Number, measure
from t2i.measures.neighbours import neighbours
from t2i.measures.statistics import Facts, Statistics, is_statistics

FACTS = Facts("pixels", "none", "bilinear to 2", 6, 4, "some pictures", {"steps": 3})


def seen(num: int, seed: int = 0, shift: float = 0.0) -> Features:
    random = torch.Generator().manual_seed(seed)
    return Features(torch.randn(num, 6, generator=random) + shift, 3 * torch.randn(num, 4, generator=random))


def some(features: Features, rows: Tensor) -> Features:
    assert features.logits is not None
    return Features(features.pool[rows], features.logits[rows])


def statistics(features: Features, *, keep: int = 10_000, batch: int = 1000, text: Tensor | None = None) -> Statistics:
    found = Statistics(FACTS, len(features.pool), keep)
    for part in torch.arange(len(features.pool)).split(batch):
        found.add(part, some(features, part), None if text is None else text[part])
    return found


def values(numbers: list[Number]) -> list[float]:
    return [number.value for number in numbers]


def test_batches_and_processes_change_nothing() -> None:
    features, text = seen(300), torch.randn(300, 6, generator=torch.Generator().manual_seed(8))
    real = statistics(seen(250, seed=1, shift=0.2))
    whole = statistics(features, text=text)
    halves = [Statistics(FACTS, 300) for _ in range(2)]
    for rank, half in enumerate(halves):
        for part in torch.arange(rank, 300, 2).split(7):
            half.add(part, some(features, part), text[part])
    halves[1].merge(halves[0])
    every = list(METRICS)
    assert values(measure(every, halves[1], real)) == pytest.approx(values(measure(every, whole, real)), rel=1e-9)


def test_measures_are_those_of_all_features() -> None:
    features, others = seen(300), seen(250, seed=1, shift=0.2)
    drawn, real = statistics(features), statistics(others)
    found = {n.label.split(" (")[0]: n for n in measure(["frechet", "precision", "is"], drawn, real)}
    assert found["Fréchet distance"].value == pytest.approx(frechet_of_features(features.pool, others.pool), rel=1e-9)
    close = neighbours(features.pool, others.pool)
    assert (found["precision"].value, found["recall"].value) == (close.precision, close.recall)
    score = InceptionScore(300, 4)
    assert features.logits is not None
    score.add(torch.arange(300), features.logits)
    assert found["class score"].value == pytest.approx(score.value().mean)
    facts = found["Fréchet distance"].facts
    assert (facts["num"], facts["num_reference"], facts["extractor"]) == (300, 250, "pixels")
    assert (facts["resize"], facts["settings"]) == ("bilinear to 2", {"steps": 3})


def test_fid_is_said_of_tf_inception_alone() -> None:
    drawn, real = statistics(seen(30)), statistics(seen(30, 1))
    assert "FID" not in " ".join(n.label for n in measure(list(METRICS)[:6], drawn, real))
    for one in (drawn, real):
        one.facts = replace(one.facts, extractor="TF-Inception")
    assert [n.label for n in measure(["frechet", "kid", "is"], drawn, real)] == ["FID", "KID", "Inception Score"]


def test_of_many_pictures_a_fixed_part_is_kept() -> None:
    features = seen(200)
    found = statistics(features, keep=50, batch=13)
    assert found.features.shape == (50, 6)
    assert found.moments.num == 200
    assert torch.equal(found.features, statistics(features, keep=50).features)
    numbers = measure(["kid"], found, statistics(seen(60, 1)))
    assert "50 of the 200" in numbers[0].warnings[0]
    assert "50 of the 200" in measure(["kid"], statistics(seen(60, 1)), found)[0].warnings[0]  # of the reference too
    first = {tuple(row) for row in features.pool[:50].tolist()}
    assert (
        len(first & {tuple(row) for row in found.features.tolist()}) < 50
    )  # a folder's first pictures are of one kind


def test_statistics_come_back_from_their_file(tmp_path: Path) -> None:
    path, text = tmp_path / "a.safetensors", torch.ones(300, 6)
    found = statistics(seen(300), text=text)
    found.save(path, done=[1, 2])
    again, more = Statistics.load_with(path)
    assert more == {"done": [1, 2]}
    assert again.facts == FACTS
    real = statistics(seen(250, seed=1))
    assert values(measure(list(METRICS), again, real)) == values(measure(list(METRICS), found, real))
    again.merge(Statistics(FACTS, 300))
    assert is_statistics(path)
    assert not is_statistics(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "bit", "type", "other", "text", "missing", "count", "nan"])
def test_other_files_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    found = statistics(seen(20))
    if damage == "nan":
        found.moments.mean[2] = float("nan")
    if damage == "count":
        found.kept = found.kept[:3]
    if damage == "type":
        found.moments.mean = found.moments.mean.float()
    found.save(path)
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-100])
    if damage == "bit":
        path.write_bytes(data[:-60] + bytes([data[-60] ^ 1]) + data[-59:])
    if damage == "other":
        path.write_bytes(data.replace(b"t2i_statistics", b"t2i_st_tistics"))
    if damage == "text":
        path.write_text("no statistics")
    if damage == "missing":
        path.unlink()
    with pytest.raises(DataError) as error:
        Statistics.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_features_of_nan_name_their_picture() -> None:
    features = seen(20)
    features.pool[13, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="some pictures: features of picture 13"):
        statistics(features, batch=4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extractor": "DINOv2"}, "extractor 'pixels' and 'DINOv2'"),
        ({"sha256": "ab" * 32}, "weights 'none' and 'abababababab'"),
        ({"resize": "bicubic"}, "resize 'bilinear to 2' and 'bicubic'"),
        ({"dim": 7}, "features 6 and 7"),
    ],
)
def test_sets_of_different_extractors_are_not_compared(change: dict, said: str) -> None:
    drawn, real = statistics(seen(20)), statistics(seen(20, 1))
    real.facts = replace(real.facts, source="others", **change)
    with pytest.raises(UsageError, match=f"some pictures and others are not comparable: {said}"):
        measure(["frechet"], drawn, real)


def test_what_a_set_does_not_have_is_said() -> None:
    drawn = statistics(seen(20))
    with pytest.raises(UsageError, match="kid compares pictures with a reference"):
        measure(["kid"], drawn)
    with pytest.raises(UsageError, match="did you mean 'frechet'"):
        measure(["frechett"], drawn)
    with pytest.raises(UsageError, match="no metrics"):
        measure([], drawn)
    with pytest.raises(UsageError, match="clip needs captions"):
        measure(["clip"], drawn)
    bare = Statistics(replace(FACTS, num_classes=None), 20)
    bare.add(torch.arange(20), Features(seen(20).pool))
    with pytest.raises(UsageError, match="pixels tells none"):
        measure(["is"], bare)
    with pytest.raises(UsageError, match="has 0 pictures"):
        measure(["diversity"], Statistics(FACTS, 20))
    with pytest.raises(UsageError, match="no pictures"):
        Statistics(FACTS, 0)


def test_few_pictures_are_warned_of() -> None:
    few, more = statistics(seen(5)), statistics(seen(40, 1))
    assert "no more than the 6 features" in measure(["frechet"], few, more)[0].warnings[0]
    assert "40 pictures are few" in measure(["frechet"], more, more)[0].warnings[0]
    assert measure(["kid"], more, more)[0].warnings == ("some pictures and some pictures are the same pictures",)
    assert "depend on both numbers" in measure(["precision"], few, more)[0].warnings[0]
    assert "biased downwards" in measure(["is"], few)[0].warnings[0]
    assert "biased upwards" in measure(["cmmd"], few, more)[0].warnings[0]
    assert not measure(["kid"], few, more)[0].warnings


def test_every_number_but_a_vendi_score_has_an_interval() -> None:
    drawn, real = statistics(seen(60), text=torch.ones(60, 6)), statistics(seen(60, 1))
    bare = [number.label for number in measure(list(METRICS), drawn, real) if not number.half]
    assert bare == ["Vendi score of 60 (pixels)"]
    assert measure(["density"], drawn, real)[0].facts["neighbours"] == 5  # as Naeem et al.
    assert measure(["precision"], drawn, real)[0].facts["neighbours"] == 3  # as Kynkäänniemi et al.


def test_logits_that_never_came_are_missed() -> None:
    drawn = Statistics(FACTS, 20)
    drawn.add(torch.arange(20), Features(seen(20).pool))
    with pytest.raises(UsageError, match="pixels gave none of some pictures"):
        measure(["is"], drawn)


def test_resamples_are_as_many_as_asked_for() -> None:
    drawn, real = statistics(seen(60)), statistics(seen(60, 1))
    assert measure(["frechet"], drawn, real, resamples=0)[0].half is None
    found = measure(["frechet"], drawn, real, resamples=20)[0]
    assert found.half is not None
    assert found.half > 0
    assert found.spread == "95 %, 20 resamples"
