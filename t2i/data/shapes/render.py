"""Ray traces scenes, batched, in torch: closed-form solids, soft shadows, contact shade, highlights, anti-aliasing.

Legend: V views, one per scene and sample position · M objects in these views · N hit points · H W pixels.
A view shoots one ray per pixel through the same spot of each. The light is a disc of 16 directions, dealt out among the
samples of a pixel. Colours are linear until the end; the picture's gamma is 2, whose root is exact on every machine.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from t2i.data.shapes.scene import Scene
from t2i.data.shapes.shot import Shot
from t2i.data.shapes.views import STRIDE, Window, make_groups, make_views

_CHUNK = {"cpu": 1 << 19, "cuda": 1 << 23}  # rays traced at once


@torch.no_grad()
def render(
    scenes: Scene | Sequence[Scene],
    size: int | tuple[int, int] = 64,
    window: Window | Sequence[Window] | None = None,
    samples: int = 4,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws scenes, or a window of each.

    Args:
        scenes: one scene or B of them.
        size: pixels of the output, a side or (height, width).
        window: (x0, y0, x1, y1) in picture coordinates [0, 1], one for all scenes or one each; None is everything.
            A window that starts and ends on pixels of a larger picture equals the crop of that picture.
        samples: rays per pixel: 1, 2, 4 or 16.
        device: where to draw; a CPU gives the same bytes for a scene whatever else is in the batch.

    Returns:
        (B, 3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: on an empty window, a window outside the picture, or another number of samples.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    height, width = (size, size) if isinstance(size, int) else size
    windows = _windows(window, len(scenes))
    if samples not in STRIDE:
        raise ValueError(f"samples must be one of {sorted(STRIDE)}, got {samples}")
    device = torch.device(device)
    budget = _CHUNK.get(device.type, _CHUNK["cuda"])
    rows = max(1, min(height, budget // (width * samples)))
    group = max(1, budget // (rows * width * samples))
    out = torch.empty(len(scenes), 3, height, width, device=device)
    for first in range(0, len(scenes), group):
        part = slice(first, first + group)
        for top in range(0, height, rows):
            band = range(top, min(top + rows, height))
            out[part, :, band.start : band.stop] = _band(
                scenes[part], windows[part], (height, width), band, samples, device
            )
    return out


def _windows(window: Window | Sequence[Window] | None, count: int) -> list[Window]:
    given: Any = (0.0, 0.0, 1.0, 1.0) if window is None else window
    windows: list[Window] = list(given) if isinstance(given[0], Sequence) else [given] * count
    if len(windows) != count:
        raise ValueError(f"got {len(windows)} windows for {count} scenes")
    for x0, y0, x1, y1 in windows:
        if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
            raise ValueError(f"a window is (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1, got {(x0, y0, x1, y1)}")
    return windows


def _band(
    scenes: Sequence[Scene],
    windows: Sequence[Window],
    full: tuple[int, int],
    band: range,
    samples: int,
    device: torch.device,
) -> Tensor:
    """Some rows of some scenes, (B, 3, rows, W)."""
    views = make_views(scenes, windows, full, band, samples, device)
    shot = Shot(views)
    groups = make_groups(scenes, windows, full, band, samples, device)
    for group in groups:
        shot.hit(group)
    shot.settle(groups)
    for group in groups:
        shot.shade(group)
    image = shot.surroundings()  # (3, V * H * W)
    for group, hits in zip(groups, shot.hits, strict=True):
        shot.paint(group, hits, image)
    image = image.clamp_(0, 1).view(3, len(scenes), samples, len(band), full[1])
    total = image[:, :, 0]
    for s in range(1, samples):
        total = total + image[:, :, s]
    return (total * (4 / samples)).sqrt_().sub_(1).transpose(0, 1)
