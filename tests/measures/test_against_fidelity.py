"""FID, Inception Score and KID of pictures are torch-fidelity's, from the same file of weights to the last formula."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from inception_weights import inception_file
from torch import Tensor

from t2i.measures.extractors import Extractor, open_extractor
from t2i.measures.extractors.base import Features
from t2i.measures.measure import measure
from t2i.measures.neighbours import neighbours
from t2i.measures.statistics import Facts, Statistics

BATCH = 50


class Blobs(torch.utils.data.Dataset[Tensor]):
    """Random pictures, uint8 (3, 32, 32): `detail` × `detail` blobs of colour, and some grain."""

    def __init__(self, num: int, seed: int, detail: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(num, 3, detail, detail, generator=generator)
        grain = torch.randn(num, 3, 32, 32, generator=generator)
        x = F.interpolate(coarse, size=(32, 32), mode="bicubic") + 0.05 * grain
        self.pictures = (x.clamp(0, 1) * 255).round().to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> Tensor:
        return self.pictures[i]


def statistics(extractor: Extractor, pictures: Tensor, source: str) -> Statistics:
    """Streamed, in batches that come in another order than the pictures."""
    facts = Facts(extractor.name, extractor.sha256, extractor.resize, extractor.dim, extractor.num_classes, source)
    found = Statistics(facts, len(pictures))
    for start in reversed(range(0, len(pictures), BATCH)):
        some = torch.arange(start, min(start + BATCH, len(pictures)))
        found.add(some, extractor(pictures[some]))
    return found


def check(theirs: dict[str, float], drawn: Statistics, real: Statistics) -> None:
    """All three, with the spread of two of them, to 1e-3 of their size."""
    fid, score, kid = measure(["frechet", "is", "kid"], drawn, real, resamples=0)
    assert (fid.label, score.label, kid.label) == ("FID", "Inception Score", "KID")
    assert fid.value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert score.half == pytest.approx(theirs["inception_score_std"], rel=1e-3)
    assert kid.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert kid.half == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def by_fidelity(drawn: Blobs, real: Blobs, **which: Any) -> dict[str, float]:
    """What torch-fidelity says of pictures, by its defaults."""
    fidelity = pytest.importorskip("torch_fidelity")
    what = {"isc": True, "fid": True, "kid": True, "cuda": False, "batch_size": BATCH, "cache": False}
    found: dict[str, float] = fidelity.calculate_metrics(input1=drawn, input2=real, verbose=False, **what, **which)
    return found


class Cheap:
    """An extractor for torch-fidelity and for us: a random map of coarse pixels, with two layers."""

    name, sha256, resize, dim, num_classes = "TF-Inception", "none", "area to 8×8", 64, 10

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.first, self.second = torch.randn(192, 64) / 4, torch.randn(64, 10) / 4

    def __call__(self, images: Tensor) -> Features:
        pool = (F.adaptive_avg_pool2d(images / 127.5 - 1, 8).flatten(1) @ self.first).relu()
        return Features(pool, pool @ self.second)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_numbers_of_other_features_are_torch_fidelitys() -> None:
    """The whole way but for the network: pictures, batches, statistics, numbers."""
    base = pytest.importorskip("torch_fidelity.feature_extractor_base")
    registry = pytest.importorskip("torch_fidelity.registry")

    class Registered(base.FeatureExtractorBase):  # type: ignore[misc, name-defined]
        def __init__(self, name: str, features_list: list[str], **more: Any) -> None:
            super().__init__(name, features_list)
            self.cheap = Cheap()

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found = dict(zip(("pool", "logits"), self.cheap(images), strict=True))
            return tuple(found[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "pool", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "pool"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    registry.register_feature_extractor("cheap", Registered)
    drawn, real = Blobs(2000, 1, 5), Blobs(300, 2, 7)  # KID is then of subsets of 300, which is quick
    theirs = by_fidelity(drawn, real, feature_extractor="cheap", kid_subset_size=300)
    check(theirs, statistics(Cheap(), drawn.pictures, "drawn"), statistics(Cheap(), real.pictures, "real"))


def test_precision_and_recall_are_torch_fidelitys() -> None:
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    random = torch.Generator().manual_seed(0)
    drawn, real = (torch.randn(num, 64, generator=random).relu() + shift for num, shift in ((600, 0.1), (500, 0)))
    which = {"prc_neighborhood": 3, "prc_batch_size": 100, "verbose": False, "save_cpu_ram": False, "cuda": False}
    theirs = prc.prc_features_to_metric(drawn, real, **which)
    ours = neighbours(drawn, real, 3)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert 0.1 < ours.precision < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_fid_is_and_kid_are_torch_fidelitys(tmp_path: Path) -> None:
    """2,000 pictures against 1,000: 6,000 pictures go through TF-Inception, half an hour on one slow core."""
    torch.set_num_threads(os.cpu_count() or 1)
    weights, drawn, real = inception_file(tmp_path / "weights.pth"), Blobs(2000, 1, 5), Blobs(1000, 2, 7)
    network = {"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": str(weights)}
    theirs, extractor = by_fidelity(drawn, real, **network), open_extractor(f"inception={weights}")
    check(theirs, statistics(extractor, drawn.pictures, "drawn"), statistics(extractor, real.pictures, "real"))
