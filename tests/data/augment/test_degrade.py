"""Degradations belong to samples: the same alone and in a batch, and each does what it says."""

import pytest
import torch

from t2i.core.seed import Streams
from t2i.data.augment import degrade
from t2i.data.augment.degrade import Degradation, gaussian_blur, jpeg
from t2i.io.images import to_pil

FULL = Degradation(blur=0.7, sigma=(0.4, 1.5), kernel=5, noise=0.2, jpeg=0.8, quality=(10, 60))


def pictures(count=6, size=16):
    return Streams(range(count)).uniform(3, size, size) * 2 - 1


def test_a_sample_is_the_same_alone_and_in_a_batch():
    x = pictures()
    together = FULL(x, Streams(range(6), "d"))
    for i in range(6):
        alone = FULL(x[i : i + 1], Streams([i], "d"))
        assert torch.allclose(alone[0], together[i], atol=1e-6)
    assert not torch.equal(together, x)
    assert together.abs().max() <= 1


def test_switching_one_kind_off_leaves_the_others_as_they_were():
    x = pictures(32)
    blur = Degradation(blur=0.5)(x, Streams(range(32)))
    noisy = Degradation(blur=0.5, noise=1e-9)(x, Streams(range(32)))
    assert torch.allclose(blur, noisy, atol=1e-6)


def test_everything_off_changes_nothing():
    x = pictures()
    assert torch.equal(Degradation(blur=0.0)(x, Streams(range(6))), x)


def test_without_blur_its_width_is_nothing():
    small = torch.rand(2, 3, 8, 8)
    assert torch.equal(Degradation(blur=0, kernel=21)(small, Streams(range(2))), small)


def test_blur_hits_the_stated_share():
    x = pictures(400, 4)
    changed = (Degradation(blur=0.25)(x, Streams(range(400))) != x).flatten(1).any(1).float().mean()
    assert 0.18 < changed < 0.32


def test_left_alone_it_is_the_blur_of_the_first_upsampler():
    x = pictures(200)
    y = Degradation()(x, Streams(range(200)))
    blurred = gaussian_blur(x, torch.full((200,), 0.6), 3)
    hit = (y != x).flatten(1).any(1)
    assert torch.allclose(y[hit], blurred[hit], atol=1e-6)
    assert 0.4 < hit.float().mean() < 0.6


def test_blur_is_the_gaussian_of_its_sigma():
    x = torch.zeros(2, 1, 9, 9)
    x[:, :, 4, 4] = 1
    y = gaussian_blur(x, torch.tensor([0.6, 2.0]), 3)
    weights = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * 0.6**2))
    weights /= weights.sum()
    assert torch.allclose(y[0, 0, 3:6, 3:6], weights[:, None] * weights, atol=1e-6)
    assert torch.allclose(y.sum((1, 2, 3)), torch.ones(2))
    assert y[1, 0, 4, 4] < y[0, 0, 4, 4]


def test_blur_keeps_the_mean_and_has_the_right_width():
    spike = torch.zeros(2, 1, 15, 15)
    spike[:, :, 7, 7] = 1
    out = gaussian_blur(spike, torch.tensor([0.1, 1.0]), 7)  # a tenth of a pixel is none
    assert torch.allclose(out[0], spike[0], atol=1e-6)
    away = torch.arange(15.0) - 7
    assert out[1].sum() == pytest.approx(1, abs=1e-5)
    assert (out[1, 0].sum(0) * away**2).sum() == pytest.approx(1, abs=0.05)  # cut at three deviations


def test_blur_keeps_flat_pictures_flat():
    x = torch.full((1, 3, 8, 8), 0.3)
    assert torch.allclose(gaussian_blur(x, torch.tensor([1.0]), 5), x, atol=1e-6)


def test_jpeg_of_lower_quality_loses_more():
    x = pictures(1, 32).repeat(3, 1, 1, 1)
    error = (jpeg(x, torch.tensor([0, 90, 10])) - x).square().mean((1, 2, 3))
    assert error[0] == 0
    assert 0 < error[1] < error[2]


def test_pictures_for_jpeg_are_fetched_together(monkeypatch):
    fetched = []
    monkeypatch.setattr(degrade, "to_pil", lambda x: fetched.append(len(x)) or to_pil(x))
    x = pictures(5)
    y = jpeg(x, torch.tensor([0, 20, 0, 90, 50]))
    assert fetched == [3]
    assert [torch.equal(a, b) for a, b in zip(x, y, strict=True)] == [True, False, True, False, False]
    for i, quality in ((1, 20), (3, 90), (4, 50)):
        assert torch.equal(jpeg(x[i : i + 1], torch.tensor([quality]))[0], y[i])
    assert torch.equal(jpeg(x, torch.zeros(5, dtype=torch.long)), x)
    assert len(fetched) == 4


def test_bad_input():
    with pytest.raises(ValueError, match="6 pictures need as many streams, got 2"):
        FULL(pictures(), Streams(range(2)))
    with pytest.raises(ValueError, match="larger pictures, got 2×2"):
        gaussian_blur(torch.zeros(1, 3, 2, 2), torch.ones(1), 5)
    with pytest.raises(ValueError, match="kind='bsr' draws all by laws of its own; leave blur, noise away"):
        Degradation(kind="bsr", noise=0.1, blur=0.5)
    with pytest.raises(ValueError, match="odd, got 4"):
        Degradation(kernel=4)
    with pytest.raises(ValueError, match="range of positive"):
        Degradation(sigma=(1.0, 0.5))
