"""A small detector of centre points (CenterNet: Zhou et al. 2019, arXiv 1904.07850).

Every object is one peak of a heatmap; the maps beside it tell, at the peak, what the object is and how large.

B batch · H W pixels · G cells along a side of the output grid · K output maps · M objects
"""

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.data.shapes.scene import COLOURS, SHAPES, Box

THRESHOLD = 0.5  # of a peak that counts as an object
_Width = Annotated[int, Field(ge=1, le=2**13)]
_Count = Annotated[int, Field(ge=0, le=64)]
_FIXED = {"heat": 1, "offset": 2, "extent": 2, "raised": 1}


class Detection(NamedTuple):
    """One object. `box` is in picture coordinates in [0, 1], y pointing down; `raised` tells that it stands on another
    object; `confidence` is the height of its peak, above 0.5."""

    shape: str
    colour: str
    box: Box
    raised: bool = False
    confidence: float = 1.0

    @property
    def x(self) -> float:
        """Across, of the middle of the box."""
        return (self.box.x0 + self.box.x1) / 2

    @property
    def y(self) -> float:
        """Down, of the middle of the box."""
        return (self.box.y0 + self.box.y1) / 2


class ReaderConfig(Config):
    """`widths` and `blocks` are those of the levels at 1/2, 1/4 and 1/8 of `image_size`; the grid is at 1/2."""

    image_size: int = Field(default=64, ge=8, le=2**14, multiple_of=8)
    widths: tuple[_Width, _Width, _Width] = (32, 48, 96)
    blocks: tuple[_Count, _Count, _Count] = (1, 1, 1)
    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = COLOURS
    groups: _Width = Field(default=8, description="of every GroupNorm")

    @property
    def maps(self) -> dict[str, int]:
        """Name → number of output maps, in order."""
        return {**_FIXED, "shape": len(self.shapes), "colour": len(self.colours)}


class Residual(nn.Module):
    """Two 3×3 convolutions beside the identity."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


class Reader(nn.Module):
    """An hourglass of three levels, whose finest one gives the maps."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        (fine, middle, coarse), groups = config.widths, config.groups
        first, second, third = (
            nn.Sequential(*(Residual(width, groups) for _ in range(count)))
            for width, count in zip(config.widths, config.blocks, strict=True)
        )
        self.fine = nn.Sequential(nn.Conv2d(3, fine, 3, 2, 1), first)
        self.middle = nn.Sequential(nn.Conv2d(fine, middle, 3, 2, 1), second)
        self.coarse = nn.Sequential(nn.Conv2d(middle, coarse, 3, 2, 1), third)
        self.to_middle, self.join_middle = nn.Conv2d(coarse, middle, 1), Residual(middle, groups)
        self.to_fine, self.join_fine = nn.Conv2d(middle, fine, 1), Residual(fine, groups)
        self.norm = nn.GroupNorm(groups, fine)
        num_maps = sum(config.maps.values())
        self.out = nn.Conv2d(fine, num_maps, 1)
        bias = torch.zeros(num_maps)
        bias[0] = -4.0  # of heat: few cells hold an object (Lin et al. 2017, arXiv 1708.02002, section 3.3)
        self.out.bias = nn.Parameter(bias)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) in [-1, 1] → maps by name, (B, K, G, G) each: logits of `heat`, `raised`, `shape` and `colour`;
        `offset` of the box's middle from the cell's, in cells; `extent`, the log of the box's sides in cells."""
        fine = self.fine(fit(image, self.config.image_size))  # (B, 32, 32, 32)
        middle = self.middle(fine)  # (B, 48, 16, 16)
        coarse = self.to_middle(self.coarse(middle))  # (B, 48, 8, 8)
        middle = self.join_middle(middle + F.interpolate(coarse, size=middle.shape[-2:]))  # (B, 48, 16, 16)
        fine = self.join_fine(fine + F.interpolate(self.to_fine(middle), size=fine.shape[-2:]))  # (B, 32, 32, 32)
        x = self.out(F.relu(self.norm(fine)))  # (B, K, 32, 32)
        maps = self.config.maps
        return dict(zip(maps, x.float().split(list(maps.values()), dim=1), strict=True))

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1], sides that 8 divides → features at 1/2, 1/4 and 1/8 of the picture as it is, by
        which pictures are told apart (Zhang et al. 2018)."""
        fine = self.fine(image)  # (B, 32, H/2, W/2)
        middle = self.middle(fine)  # (B, 48, H/4, W/4)
        return [fine, middle, self.coarse(middle)]

    @torch.inference_mode()
    def read(self, image: Tensor) -> list[list[Detection]]:
        """The objects of every picture of (B, 3, H, W) in [-1, 1], surest first.

        Raises ValueError for another shape of tensor.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"pictures must be (B, 3, H, W), got {tuple(image.shape)}")
        maps = self(image.to(self.out.weight.device, torch.float32))
        return [self._decode({name: value[i].cpu() for name, value in maps.items()}) for i in range(len(image))]

    def _decode(self, maps: dict[str, Tensor]) -> list[Detection]:
        """Peaks of one picture; of two that cover each other, which no two objects of the world do, the higher."""
        heat = maps["heat"].sigmoid()  # (1, G, G)
        peak = (heat == F.max_pool2d(heat, 3, 1, 1)) & (heat > THRESHOLD)
        _, rows, columns = peak.nonzero(as_tuple=True)  # (M,) (M,)
        cells = heat.shape[-1]
        found: list[Detection] = []
        order = heat[0, rows, columns].argsort(descending=True)
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            at = {name: value[:, row, column] for name, value in maps.items()}
            dx, dy = at["offset"].tolist()
            x, y = (column + 0.5 + dx) / cells, (row + 0.5 + dy) / cells
            width, height = (at["extent"].exp() / cells).tolist()
            box = Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            if all(box.overlap(other.box) < 0.6 for other in found):
                shape, colour = (int(at[name].argmax()) for name in ("shape", "colour"))
                raised, confidence = float(at["raised"]) > 0, float(heat[0, row, column])
                c = self.config
                found.append(Detection(c.shapes[shape], c.colours[colour], box, raised, confidence))
        return found


def fit(image: Tensor, size: int) -> Tensor:
    """Any picture (B, 3, H, W) at size × size: averaged down, as stored values and not as light, or interpolated up."""
    if image.shape[-2:] == (size, size):
        return image
    if min(image.shape[-2:]) >= size:
        return F.interpolate(image, size=(size, size), mode="area")
    return F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)
