"""A picture in tiles: whole where it fits, exact where a network's reach allows it, and every place counted once."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from t2i.core.types import Condition
from t2i.diffusion.tiles import Tiled


class Convolutions(nn.Module):
    """Four layers of 3 × 3 that see x_t and the condition's picture: four pixels of reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 6, 3, padding=1),
        )  # fmt: skip
        self.seen: list[tuple[int, int]] = []

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert condition.image is not None
        self.seen.append((x_t.shape[2], x_t.shape[3]))
        out: Tensor = self.layers(torch.cat([x_t, condition.image], 1)) + t[:, None, None, None]
        return out


def inputs(height: int, width: int) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    x, image = torch.randn(2, 2, 3, height, width, generator=generator)
    return x, torch.tensor([1.0, 2.0]), Condition(image=image)


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (100, 152), (200, 64), (40, 300), (128, 129)])
@torch.no_grad()
def test_convolutions_give_what_they_give_untiled(size: tuple[int, int]) -> None:
    model = Convolutions()
    x, t, condition = inputs(*size)
    found, expected = Tiled(model, 64)(x, t, condition), model(x, t, condition)
    assert torch.allclose(found, expected, atol=1e-5)
    assert all(max(seen) <= 64 for seen in model.seen[:-1])


@torch.no_grad()
def test_a_picture_that_fits_is_seen_once_and_whole() -> None:
    model = Convolutions()
    x, t, condition = inputs(48, 64)
    assert torch.equal(Tiled(model, 64, 16)(x, t, condition), model(x, t, condition))
    assert model.seen == [(48, 64)] * 2


@pytest.mark.parametrize(("side", "multiple"), [(64, 1), (64, 16), (96, 8), (40, 8)])
def test_every_place_counts_once_and_rims_do_not(side: int, multiple: int) -> None:
    tiled = Tiled(Convolutions(), side, multiple)
    for length in range(side + multiple, 5 * side, multiple):
        spans = tiled.spans(length)
        assert spans[0].start == 0
        assert spans[-1].stop == length
        assert all(span.start % multiple == 0 and span.stop - span.start == side for span in spans)
        total = torch.zeros(length)
        shares = tiled.shares(spans, torch.device("cpu"))
        for span, share in zip(spans, shares, strict=True):
            assert share.min() >= 0
            total[span] += share
        assert torch.allclose(total, torch.ones(length))
        rim = side // 16
        for (a, share_a), (b, share_b) in pairwise(zip(spans, shares, strict=True)):
            assert a.stop - b.start >= side // 4
            assert share_a[-rim:].abs().max() == 0
            assert share_b[:rim].abs().max() == 0
            assert max(share_a.diff().abs().max(), share_b.diff().abs().max()) < 2 / (side / 8)


def test_sides_that_cannot_be_are_refused() -> None:
    for side in (56, 72):
        with pytest.raises(ValueError, match=f"multiple of 16 from 64, got {side}"):
            Tiled(Convolutions(), side, 16)
