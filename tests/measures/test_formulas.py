"""Measures of sets of features: closed forms, numbers of other libraries, and that batches do not matter."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.measures.diversity import clip_scores, pair_distance, vendi
from t2i.measures.gaussian import Moments, frechet, frechet_of_features
from t2i.measures.inception_score import InceptionScore, chunks
from t2i.measures.intervals import bootstrap, jackknife
from t2i.measures.kernels import cmmd, kid
from t2i.measures.neighbours import neighbours, radii


def gaussian(mean: list[float], cov: list[list[float]]) -> Moments:
    found = Moments(len(mean))
    found.num, found.mean = 100, torch.tensor(mean, dtype=torch.float64)
    found.scatter = torch.tensor(cov, dtype=torch.float64) * 99
    return found


def normal(num: int, dim: int, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((num, dim)) + shift)


def rotation(dim: int) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=9))[0]


def test_frechet_distances_of_known_gaussians() -> None:
    a = gaussian([0, 0, 0], [[1, 0, 0], [0, 4, 0], [0, 0, 9]])
    b = gaussian([1, 2, 2], [[4, 0, 0], [0, 9, 0], [0, 0, 16]])
    assert frechet(a, b) == pytest.approx(12, rel=1e-12)
    c, d = gaussian([0, 0], [[2, 1], [1, 2]]), gaussian([0, 0], [[3, 0], [0, 1]])  # they do not commute
    assert frechet(c, d) == pytest.approx(8 - 2 * math.sqrt(14), rel=1e-12)


def test_fewer_pictures_than_features_are_as_exact() -> None:
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.standard_normal((50, 200)) + shift) for shift in (0, 0.1))
    assert frechet_of_features(x, y) == pytest.approx(243.230257, abs=1e-6)  # by the nuclear norm of the centred sets


def test_a_set_is_at_no_distance_from_itself_and_the_distance_is_geometry() -> None:
    x, y = normal(300, 6), normal(250, 6, seed=1, shift=0.3)
    assert frechet_of_features(x, x) == pytest.approx(0, abs=1e-12)
    far = frechet_of_features(x, y)
    assert frechet_of_features(y, x) == pytest.approx(far, rel=1e-10)
    turn = rotation(6)
    assert frechet_of_features(x @ turn, y @ turn) == pytest.approx(far, rel=1e-10)
    assert frechet_of_features(3 * x, 3 * y) == pytest.approx(9 * far, rel=1e-10)


def test_less_noise_is_less_far() -> None:
    x, noise = normal(500, 8), normal(500, 8, seed=3)
    far = [frechet_of_features(x, x + scale * noise) for scale in (1.0, 0.5, 0.2)]
    assert far == sorted(far, reverse=True)


def test_moments_that_come_in_batches_are_those_of_all_also_far_from_zero() -> None:
    x = normal(1000, 5) * 1e-3 + 1e4  # a sum of squares would lose all digits
    whole, parts, other = Moments.of(x), Moments(5), Moments(5)
    for part in x[:400].split(7):
        parts.add(part)
    for part in x[400:].split(64):
        other.add(part)
    parts.merge(other)
    parts.merge(Moments(5))
    parts.add(x[:0])
    assert parts.num == 1000
    torch.testing.assert_close(parts.mean, x.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.cov, torch.cov(x.T), rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.cov, torch.cov(x.T), rtol=1e-9, atol=0)


def test_kernel_distances_of_known_points() -> None:
    x, y = torch.tensor([[0.0, 0], [1, 0], [0, 1]]), torch.tensor([[1.0, 1], [2, 0], [0, 2]])
    found = kid(x, y)
    assert (found.mean, found.sd) == (pytest.approx(0.5), pytest.approx(0, abs=1e-12))
    assert (found.size, found.subsets) == (3, 100)
    e = torch.eye(4)
    assert cmmd(e[:1], e[1:2]).value == pytest.approx(2000 * (1 - math.exp(-0.01)))
    assert cmmd(e[:1], -3 * e[:1]).value == pytest.approx(2000 * (1 - math.exp(-0.02)))  # norms do not matter
    assert cmmd(e[:2], e[2:]).value == pytest.approx(9.950166250831893)
    with pytest.raises(UsageError, match="two pictures"):
        kid(x[:1], y)


def test_kid_has_no_bias() -> None:
    found = [kid(normal(60, 4, seed), normal(60, 4, seed + 100), subsets=1).mean for seed in range(60)]
    values = torch.tensor(found)
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5


def test_cmmd_in_blocks_is_cmmd_at_once() -> None:
    x, y = normal(1500, 4), normal(1100, 4, seed=1, shift=0.2)
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (x, y))

    def mean(p: Tensor, q: Tensor) -> float:
        return float((-(p[:, None] - q[None]).square().sum(dim=2) / 200).exp().mean())

    assert cmmd(x, y).value == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), rel=1e-9)


def of_classes(labels: Tensor, num: int = 10) -> Tensor:
    return 1e3 * torch.nn.functional.one_hot(labels, num).double()


def test_inception_scores_of_known_predictions() -> None:
    labels, every = torch.arange(1000) % 10, torch.arange(1000)
    sure = InceptionScore(1000, 10, splits=1)
    sure.add(every, of_classes(labels))
    assert sure.value().mean == pytest.approx(10)
    same = InceptionScore(1000, 10, splits=1)
    same.add(every, torch.ones(1000, 10))
    assert same.value().mean == pytest.approx(1)
    two = InceptionScore(100, 2, splits=1)
    two.add(torch.arange(100), torch.tensor([[0.8, 0.2], [0.2, 0.8]] * 50).double().log())
    assert two.value().mean == pytest.approx(math.exp(0.8 * math.log(1.6) + 0.2 * math.log(0.4)), rel=1e-12)


def test_chunks_are_torch_fidelitys() -> None:
    found = InceptionScore(1000, 10)
    found.add(torch.arange(1000), of_classes(torch.arange(1000) % 10))
    assert found.value().mean == pytest.approx(9.51829, abs=1e-5)  # what torch-fidelity 0.4.0 gives
    assert chunks(3).tolist() != [0, 0, 0]
    assert len(set(chunks(3).tolist())) == 3


def test_an_inception_score_of_batches_in_any_order_is_that_of_all() -> None:
    logits, order = normal(500, 7), torch.randperm(500, generator=torch.Generator().manual_seed(1))
    whole, a, b = (InceptionScore(500, 7) for _ in range(3))
    whole.add(torch.arange(500), logits)
    for part in order[:200].split(13):
        a.add(part, logits[part])
    b.add(order[200:], logits[order[200:]])
    a.merge(b)
    assert a.value() == pytest.approx(whole.value(), rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_in_one_dimension(k: int) -> None:
    real, drawn = (torch.tensor(x)[:, None] for x in ([0.0, 1, 2, 10], [0.5, 1.5, 2.2, 30]))
    assert neighbours(drawn, real, k)[:2] == (0.75, 1.0)


def test_one_outlier_covers_two_real_pictures() -> None:
    real = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1], [5, 5]])
    drawn = torch.tensor([[0.5, 0.5], [0.6, 0.4], [9.5, 9.5], [0.5, 0.6]])
    assert neighbours(drawn, real, 1)[:4] == pytest.approx((0.75, 0.4, 3.0, 0.8))


def brute_force(drawn: Tensor, real: Tensor, k: int) -> tuple[float, float, float, float]:
    def radius(points: Tensor, i: int) -> float:
        return sorted(float((points[i] - p).norm()) for j, p in enumerate(points) if j != i)[k - 1]

    balls, others = ([radius(x, i) for i in range(len(x))] for x in (real, drawn))
    hits = [[float((d - r).norm()) <= ball for r, ball in zip(real, balls, strict=True)] for d in drawn]
    recalled = [any(float((d - r).norm()) <= o for d, o in zip(drawn, others, strict=True)) for r in real]
    inside = [sum(row) for row in hits]
    covered = [any(row[j] for row in hits) for j in range(len(real))]
    return (
        sum(n > 0 for n in inside) / len(drawn), sum(recalled) / len(real),
        sum(inside) / k / len(drawn), sum(covered) / len(real),
    )  # fmt: skip


@pytest.mark.parametrize(("num", "others", "k"), [(40, 30, 3), (25, 60, 1), (30, 30, 5)])
def test_neighbours_are_those_of_brute_force(num: int, others: int, k: int) -> None:
    drawn, real = normal(num, 3, seed=5, shift=0.5), normal(others, 3, seed=6)
    assert neighbours(drawn, real, k)[:4] == pytest.approx(brute_force(drawn, real, k), rel=1e-12)


def test_blocks_of_neighbours_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, real = normal(70, 4, seed=5), normal(90, 4, seed=6)
    whole = neighbours(drawn, real)
    monkeypatch.setattr("t2i.measures.neighbours._BLOCK", 16)
    assert neighbours(drawn, real) == pytest.approx(whole, rel=1e-12)
    assert neighbours(real, drawn)[:2] == whole[1::-1]  # exchanged


def test_equal_pictures_lie_in_their_own_balls() -> None:
    x = normal(20, 3)[[0, 0, 1, 2, 3, 4]]
    assert radii(x, 1)[:2].tolist() == [0, 0]
    assert neighbours(x, x, 1).precision == 1
    with pytest.raises(UsageError, match="more than 3"):
        neighbours(x[:3], x, 3)


def test_diversity_counts_different_pictures() -> None:
    e = torch.eye(5)
    assert vendi(e) == pytest.approx(5)
    assert vendi(e[[0, 0, 0]]) == pytest.approx(1)
    assert vendi(e[[0, 0, 1, 1]]) == pytest.approx(2)
    x = normal(30, 8)
    assert vendi(torch.cat([x, x])) == pytest.approx(vendi(x))  # more of the same is no more different
    assert pair_distance(e).mean == pytest.approx(1)
    assert pair_distance(e[[0, 0, 0]]).mean == pytest.approx(0)
    assert math.isnan(pair_distance(e[:1]).mean)
    assert clip_scores(e[:2], 7 * e[[0, 2]]).tolist() == [pytest.approx(100), pytest.approx(0)]


@pytest.mark.parametrize("shift", [0.1, 0.6])
def test_intervals_are_those_of_repeated_sets(shift: float) -> None:
    """What one pair of sets says of its own spread is what many pairs have."""

    def sets(seed: int) -> tuple[Tensor, Tensor]:
        return normal(150, 4, seed, shift), normal(120, 4, seed + 1000)

    found: dict[str, list[tuple[float, float]]] = {"kid": [], "cmmd": [], "pairs": [], "frechet": []}
    for seed in range(120):
        x, y = sets(seed)
        whole = kid(x[:120], y)
        assert whole.error is not None
        found["kid"].append((whole.mean, whole.error))
        found["cmmd"].append(tuple(cmmd(x + 1, y + 1)))
        found["pairs"].append(tuple(pair_distance(x + 1)))
        if seed < 12:
            half = bootstrap(frechet_of_features, [x, y], 40, seed) / 1.96
        found["frechet"].append((frechet_of_features(x, y), half))
    for name, rows in found.items():
        values, sd = torch.tensor(rows, dtype=torch.float64).T
        ratio = float(sd.square().mean().sqrt() / values.std())
        assert 0.7 < ratio < 1.5, (name, ratio)


@pytest.mark.parametrize("shift", [0.1, 1.0])
def test_intervals_of_neighbours_are_those_of_repeated_sets(shift: float) -> None:
    """Those of a share alone would be up to four times too small: the balls are of random pictures too."""
    repeated, halves = [], []
    for seed in range(80):
        x, y = normal(150, 4, seed, shift), normal(120, 4, seed + 1000)
        repeated.append([*neighbours(x, y)])
        if seed < 8:
            half, sizes = jackknife(neighbours, [x, y], 20)
            assert sizes == [75, 60]
            halves.append(half)
    ratio = torch.tensor(halves).mean(dim=0) / 1.96 / torch.tensor(repeated).std(dim=0)
    assert ((ratio > 0.6) & (ratio < 1.8)).all(), ratio
    assert jackknife(neighbours, [x, y], 5, most=30)[1] == [30, 24]


def test_features_far_from_zero_have_the_same_neighbours() -> None:
    drawn, real = normal(60, 4, seed=5), normal(50, 4, seed=6)
    assert neighbours(drawn + 1e4, real + 1e4)[:4] == neighbours(drawn, real)[:4]


@pytest.mark.parametrize("num", [5, 40, 41, 90])
def test_distances_of_features_are_those_of_their_moments(num: int) -> None:
    x, y = normal(num, 40), normal(60, 40, seed=1, shift=0.1)
    assert frechet_of_features(x, y) == pytest.approx(frechet(Moments.of(x), Moments.of(y)), rel=1e-6)
    assert frechet_of_features(torch.ones(3, 4), torch.zeros(2, 4)) == pytest.approx(4)


def test_a_bootstrap_finds_the_spread_of_a_mean() -> None:
    x = normal(400, 1)
    half = bootstrap(lambda y: float(y.mean()), [x], 400)
    assert half == pytest.approx(1.96 * float(x.std()) / 20, rel=0.15)
    assert half == bootstrap(lambda y: float(y.mean()), [x], 400)
