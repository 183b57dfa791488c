"""Masks that hide parts of pictures, for networks that learn to inpaint (Nichol et al. 2021, section 3.2).

B batch · S side of the picture
"""

import torch
from torch import Tensor

from t2i.core.seed import Streams

RECTANGLES = 3


def random_masks(streams: Streams, size: int, hidden: float = 0.15) -> Tensor:
    """(B, 1, size, size) float32, 1 where a picture is known: all but one to three rectangles of random place and of
    sides from an eighth to three quarters of the picture, or in a share `hidden` of them nothing at all, so that the
    network also draws whole ones."""
    u = streams.uniform(2 + 4 * RECTANGLES)  # (B, 14)
    places = torch.arange(size) + 0.5
    unknown = (u[:, 0] < hidden)[:, None, None].expand(-1, size, size)
    count = 1 + (u[:, 1] * RECTANGLES).long()  # (B,)
    for i in range(RECTANGLES):
        x, y, width, height = (u[:, 2 + 4 * i + j, None] * size for j in range(4))  # (B, 1) centre and sides
        width, height = size / 8 + 0.625 * width, size / 8 + 0.625 * height
        columns, rows = (places - x).abs() < width / 2, (places - y).abs() < height / 2  # (B, S)
        unknown = unknown | (rows[:, :, None] & columns[:, None, :] & (i < count)[:, None, None])
    return (~unknown)[:, None].float()
