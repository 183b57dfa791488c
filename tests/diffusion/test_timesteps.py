"""Which timesteps are trained, and how often."""

import pytest
import torch

from t2i.diffusion.timesteps import shifted

STEPS = torch.arange(1000)


def test_no_shift_changes_nothing() -> None:
    assert torch.equal(shifted(STEPS, 1000), STEPS)
    assert torch.equal(shifted(torch.arange(4), 4, 1.0), torch.arange(4))


@pytest.mark.parametrize("shift", [0.2, 0.5, 3.0, 20.0])
def test_a_shift_keeps_order_and_range(shift: float) -> None:
    out = shifted(STEPS, 1000, shift)
    assert (out.diff() >= 0).all()
    assert out.min() >= 0
    assert out.max() < 1000
    assert out.shape == STEPS.shape
    assert out.dtype == torch.int64


@pytest.mark.parametrize(("shift", "share"), [(3.0, 0.5), (9.0, 0.75), (1 / 3, 0.1)])
def test_share_of_the_noisiest_quarter_follows_the_closed_form(shift: float, share: float) -> None:
    """t > 3/4 where u > 3/4 / (shift − (shift − 1)·3/4)."""
    noisy = (shifted(STEPS, 1000, shift) >= 750).float().mean().item()
    assert noisy == pytest.approx(share, abs=0.002)


def test_opposite_shifts_undo_each_other() -> None:
    there_and_back = shifted(shifted(STEPS, 1000, 2.0), 1000, 0.5)
    assert (there_and_back - STEPS).abs().max() <= 2
