"""Layers: closed forms, and float32 where it matters."""

import pytest
import torch
from torch import nn

from t2i.nn.layers import GroupNorm, pixel_positions, timestep_embedding, zero_module


def test_timestep_embedding_has_published_values() -> None:
    got = timestep_embedding(torch.tensor([1]), 8)[0]
    want = [0.540302, 0.995004, 0.999950, 1.0, 0.841471, 0.099833, 0.010000, 0.001000]
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-6, rtol=0)


def test_timestep_embedding_of_ddpm_has_published_values() -> None:
    got = timestep_embedding(torch.tensor([1]), 8, order="sin_cos", denominator_shift=1)[0]
    want = [0.841471, 0.046399, 0.002154, 0.000100, 0.540302, 0.998923, 0.999998, 1.0]
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-6, rtol=0)


def test_timestep_embedding_takes_fractions_and_odd_widths_and_stays_float32() -> None:
    t = torch.tensor([0.5, 999.75])
    with torch.autocast("cpu", torch.bfloat16):
        got = timestep_embedding(t, 7)
    assert got.dtype == torch.float32
    assert got.shape == (2, 7)
    torch.testing.assert_close(got[:, 0], t.cos())
    assert (got[:, -1] == 0).all()


def test_pixel_positions_go_row_by_row_and_mean_the_same_place_at_every_size() -> None:
    got = pixel_positions(1, 2)  # the middle row; columns at -1/2 and 1/2
    half = torch.tensor([0.707107, 1.0, 0.0, 0.0])  # sin of π/4, π/2, π, 2π
    cosines = torch.tensor([0.707107, 0.0, -1.0, 1.0])
    middle = torch.tensor([0.0] * 4 + [1.0] * 4)
    torch.testing.assert_close(got[0], torch.cat([middle, -half, cosines]), atol=1e-6, rtol=0)
    torch.testing.assert_close(got[1], torch.cat([middle, half, cosines]), atol=1e-6, rtol=0)
    small, large = pixel_positions(2, 4).unflatten(0, (2, 4)), pixel_positions(6, 12).unflatten(0, (6, 12))
    torch.testing.assert_close(small, large[1::3, 1::3])  # the centre of 3 x 3 small pixels is that of one large
    assert small.flatten(0, 1).unique(dim=0).shape == (8, 16)


def test_zero_module_starts_a_branch_as_nothing() -> None:
    assert (zero_module(nn.Conv2d(3, 4, 3))(torch.randn(1, 3, 5, 5)) == 0).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_group_norm_modulates_and_activates(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(4, 8, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=memory_format)
    scale, shift = torch.randn(2, 8), torch.randn(2, 8)
    groups = x.reshape(2, 4, -1)
    y = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    y = y.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), y, atol=1e-5, rtol=1e-5)
    y = y * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(norm(x, scale, shift, silu=True), y * y.sigmoid(), atol=1e-5, rtol=1e-5)


def test_group_norm_keeps_statistics_of_bfloat16_in_float32() -> None:
    torch.manual_seed(0)
    norm, x = GroupNorm(4, 8), (torch.randn(2, 8, 16, 16) + 30).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = norm(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, norm(x.float()).bfloat16())
