"""Filters against closed forms, and against OpenCV where it is installed."""

import pytest
import torch
import torch.nn.functional as F

from t2i.core.seed import Streams
from t2i.data.augment.filters import convolve, covariance, gaussian_kernel, halve, resize, shifted_kernel


def picture(height: int, width: int) -> torch.Tensor:
    return Streams([0]).uniform(3, height, width)


def moments(kernel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (2,) and covariance (2, 2) of a kernel's mass, along W and H, in places from its top left."""
    at = torch.arange(len(kernel), dtype=torch.float64)
    p = torch.stack(torch.meshgrid(at, at, indexing="xy"), dim=-1).flatten(0, 1)  # (K·K, 2)
    mass = kernel.flatten()
    mean = mass @ p
    return mean, (p - mean).T * mass @ (p - mean)


def test_covariance_of_variances_and_an_angle() -> None:
    expected = torch.tensor([[2.1700, 0.9854], [0.9854, 1.8300]], dtype=torch.float64)
    assert torch.allclose(covariance((3, 1), 0.7), expected, atol=5e-5)


@pytest.mark.parametrize("variances", [(3.0, 1.0), (0.0, 5.0), (0.2, 0.2), (0.0, 0.0)])
@pytest.mark.parametrize("size", [5, 14, 25])
def test_kernels_are_weights(variances: tuple[float, float], size: int) -> None:
    for kernel in (gaussian_kernel(size, covariance(variances, 0.7)), shifted_kernel(variances[1] + 0.1, 4)):
        assert kernel.sum() == pytest.approx(1)
        assert kernel.min() >= 0


def test_a_large_kernel_has_the_covariance() -> None:
    sigma = covariance((3, 1), 0.7)
    for size in (24, 25):
        mean, found = moments(gaussian_kernel(size, sigma))
        assert torch.allclose(mean, torch.full((2,), (size - 1) / 2, dtype=torch.float64))
        assert torch.allclose(found, sigma, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_shifted_kernel_lies_to_the_top_left(scale: int) -> None:
    mean, sigma = moments(shifted_kernel(1.5, scale))
    assert torch.allclose(mean, torch.full((2,), 12 - (scale - 1) / 2, dtype=torch.float64), atol=1e-6)
    between = 0.25 if scale % 2 == 0 else 0  # of looking it up between two places
    assert torch.allclose(sigma, torch.eye(2, dtype=torch.float64) * (1.5**2 + between), atol=1e-5)


@pytest.mark.parametrize("size", [1, 4, 5, 25])
def test_convolution_mirrors_at_the_edge(size: int) -> None:
    """Against a sum over the kernel's places; the picture is smaller than the largest kernel."""
    x, kernel = picture(7, 9).double(), torch.rand(size, size, dtype=torch.float64)

    def at(i: int, n: int) -> int:
        i %= 2 * n - 2
        return min(i, 2 * n - 2 - i)

    expected = torch.zeros_like(x)
    for a in range(size):
        for b in range(size):
            rows = [at(i + size // 2 - a, 7) for i in range(7)]
            columns = [at(j + size // 2 - b, 9) for j in range(9)]
            expected += kernel[a, b] * x[..., rows, :][..., columns]
    assert torch.allclose(convolve(x.float(), kernel).double(), expected, atol=1e-5 * size**2)


def test_area_is_what_a_pixel_covers() -> None:
    x = picture(6, 9)
    assert torch.allclose(resize(x, (3, 3), "area"), F.avg_pool2d(x, (2, 3)), atol=1e-6)
    line = torch.tensor([[[[0.0, 1.0, 2.0]]]])
    assert torch.allclose(resize(line, (1, 2), "area"), torch.tensor([1 / 3, 5 / 3]))  # 1.5 pixels each
    assert torch.allclose(resize(line, (1, 6), "area"), line.repeat_interleave(2, dim=3))


def test_halving_keeps_a_ramp_and_mirrors_the_edge() -> None:
    ramp = torch.arange(24.0).expand(1, 1, 24, 24)
    for how in ("linear", "cubic", "area", "antialiased"):
        inside = halve(ramp, how)[..., 4:-4]
        assert torch.allclose(inside, (torch.arange(12) * 2 + 0.5)[4:-4].expand_as(inside), atol=1e-4)
    x = picture(12, 10)
    whole = torch.cat([torch.cat([x.flip(3), x, x.flip(3)], 3)] * 3, 2)
    whole[..., :12, :], whole[..., 24:, :] = whole[..., :12, :].flip(2), whole[..., 24:, :].flip(2)
    assert torch.allclose(halve(whole, "antialiased")[..., 6:12, 5:10], halve(x, "antialiased"), atol=1e-6)


@pytest.mark.parametrize("size", [(20, 31), (7, 5), (53, 90), (40, 20)])
@pytest.mark.parametrize("how", ["linear", "cubic", "area"])
def test_resizing_is_that_of_opencv(how: str, size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    x = picture(40, 60)
    flags = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
    theirs = cv2.resize(x[0].permute(1, 2, 0).numpy(), size[::-1], interpolation=flags[how])
    assert torch.allclose(resize(x, size, how)[0], torch.from_numpy(theirs).permute(2, 0, 1), atol=5e-6)


def test_convolution_is_that_of_opencv() -> None:
    cv2 = pytest.importorskip("cv2")
    x, kernel = picture(40, 60), gaussian_kernel(15, covariance((6, 2), 1.0)).float()
    theirs = cv2.filter2D(x[0].permute(1, 2, 0).numpy(), -1, kernel.numpy(), borderType=cv2.BORDER_REFLECT_101)
    assert torch.allclose(convolve(x, kernel)[0], torch.from_numpy(theirs).permute(2, 0, 1), atol=1e-5)
