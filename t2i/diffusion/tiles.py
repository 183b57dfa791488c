"""A network that sees a large picture piece by piece, with no seam between the pieces.

At every step of sampling it is run on tiles that overlap, and what it puts out is cross-faded in the middle of what two
tiles share; the rim, where a tile misses what lies beyond, counts for nothing. A network of convolutions gives exactly
what it gives untiled where the rim is as wide as it reaches. Group norms differ: they see the tile and not the picture.
Networks that were trained on crops know it so: those of "shapes" come closer to the truth in tiles than untiled.

B batch · C channels · H W pixels of the picture · S side of a tile
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from t2i.core.types import Condition
from t2i.diffusion.prediction import Model

OVERLAP = 1 / 4  # of a tile's side is seen by its neighbour as well, at least
FADE = 1 / 8  # of its side is where they are mixed


SMALLEST = 4  # times the multiple is the side of a tile, at least


@dataclass(frozen=True)
class Tiled:
    """A `Model` that shows `model` at most `side` × `side` pixels at once; a picture that is no larger is seen whole.

    `multiple` is what sides of pictures must be multiples of, and so tiles. Raises ValueError for other sides.
    """

    model: Model
    side: int
    multiple: int = 1

    def __post_init__(self) -> None:
        least = SMALLEST * self.multiple
        if self.side % self.multiple or self.side < least:
            raise ValueError(f"the side of a tile is a multiple of {self.multiple} from {least}, got {self.side}")

    def __call__(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As `model`; (B, C, H, W)."""
        rows, columns = (self.spans(length) for length in x_t.shape[2:])
        if len(rows) == len(columns) == 1:
            return self.model(x_t, t, condition)
        total: Tensor | None = None
        shares_x = self.shares(columns, x_t.device)
        for y, share_y in zip(rows, self.shares(rows, x_t.device), strict=True):
            for x, share_x in zip(columns, shares_x, strict=True):
                image = condition.image[..., y, x] if condition.image is not None else None
                out = self.model(x_t[..., y, x], t, replace(condition, image=image)).float()  # (B, C, S, S)
                if total is None:
                    total = out.new_zeros(*out.shape[:2], *x_t.shape[2:])
                total[..., y, x] += out * (share_y[:, None] * share_x)
        assert total is not None
        return total

    def spans(self, length: int) -> list[slice]:
        """Places of tiles along a side, evenly spread."""
        if length <= self.side:
            return [slice(0, length)]
        steps = (length - self.side) // self.multiple
        num = math.ceil(steps / int((1 - OVERLAP) * self.side / self.multiple))
        starts = [i * steps // num * self.multiple for i in range(num + 1)]
        return [slice(start, start + self.side) for start in starts]

    def shares(self, spans: Sequence[slice], device: torch.device) -> list[Tensor]:
        """How much each tile counts at its places, (S,); over all tiles that is 1."""
        places = torch.arange(spans[-1].stop, device=device) + 0.5
        cuts = [(before.stop + after.start) / 2 for before, after in pairwise(spans)]
        ramps = [((places - cut) / (FADE * self.side) + 0.5).clamp(0, 1) for cut in cuts]
        begun = [(ramp * math.pi / 2).sin().square() for ramp in ramps]
        begun = [torch.ones_like(places), *begun, torch.zeros_like(places)]
        return [(here - after)[span] for span, (here, after) in zip(spans, pairwise(begun), strict=True)]
