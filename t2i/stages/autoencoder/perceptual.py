"""How far two pictures are apart in the features of a network that sees: LPIPS (Zhang et al. 2018, arXiv 1801.03924)
from files of the user, or the same formula over the features of a network of ours.

B batch · C channels · H W pixels · h w places of a feature map
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import AtHome, Config
from t2i.core.errors import DataError
from t2i.io.foreign import read_foreign
from t2i.keymaps.flat import misfit

_LEVELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of VGG16
_EPS = 1e-10  # under which features have no length


@runtime_checkable
class FeatureMaps(Protocol):
    """A frozen network whose features tell pictures apart, such as CLIP's ResNet or the reader."""

    def feature_maps(self, image: Tensor) -> Sequence[Tensor]:
        """(B, 3, H, W) in [-1, 1] → maps (B, C, h, w), of any number, channels and size."""


class LpipsFiles(Config):
    """LPIPS as others publish it: the network, and what was learned on top of its features."""

    vgg: Annotated[Path, AtHome] = Field(description="torchvision's VGG16 (vgg16-397923af.pth), or another of its keys")
    heads: Annotated[Path, AtHome] = Field(description="of the package lpips: lpips/weights/v0.1/vgg.pth")


def distance(a: Sequence[Tensor], b: Sequence[Tensor], heads: Iterable[Tensor] | None = None) -> Tensor:
    """Σ over maps of the mean over places of w · (â - b̂)², where â has length 1 at every place: (B,), float32.

    Args:
        a, b: feature maps of as many pictures.
        heads: w of every map, (C,); ones over the number of maps if not given.
    """
    total = torch.zeros(len(a[0]), device=a[0].device)
    weights = [None] * len(a) if heads is None else list(heads)
    for x, y, w in zip(a, b, weights, strict=True):
        apart = (_unit(x) - _unit(y)).square()  # (B, C, h, w)
        apart = apart / len(a) if w is None else apart * w[:, None, None]
        total = total + apart.sum(dim=1).mean(dim=(1, 2))
    return total


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + _EPS)


class Distance(nn.Module):
    """`distance(x, y) → (B,)` in the features of a neighbour."""

    def __init__(self, network: FeatureMaps) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], of which x is only looked at → (B,)."""
        with torch.no_grad():
            truth = self.network.feature_maps(x)
        return distance(truth, self.network.feature_maps(y))


class Lpips(nn.Module):
    """VGG16's features after the last ReLU of each of its five levels, weighted by what LPIPS learned."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # of the levels
        width = 3
        for channels, count in _LEVELS:
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(count):
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU()]
                width = channels
            self.ends.append(len(layers) - 1)
        self.features = nn.ModuleList(layers)  # numbered as torchvision's
        self.heads = nn.ParameterList(torch.zeros(channels) for channels, _ in _LEVELS)
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, files: LpipsFiles) -> "Lpips":
        """From a file of VGG16, whose classifier is left out, and one of LPIPS' heads.

        Raises DataError for files that are damaged or hold other tensors.
        """
        with torch.device("meta"):
            model = cls()
        wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        vgg = {key: shape for key, shape in wanted.items() if key.startswith("features.")}
        heads = {f"lin{i}.model.1.weight": (1, *wanted[f"heads.{i}"], 1, 1) for i in range(len(model.ends))}
        state = _read(files.vgg, vgg, "torchvision's VGG16", ignored="classifier.")
        learned = _read(files.heads, heads, "LPIPS' heads for VGG16")
        state |= {f"heads.{i}": learned[key].flatten() for i, key in enumerate(heads)}
        model = cls()
        model.load_state_dict({key: value.float() for key, value in state.items()})
        return model.requires_grad_(False).eval()

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] → five maps, of H … H / 16."""
        x, maps = (image - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            maps += [x] if i in self.ends else []
        return maps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], of which x is only looked at → (B,)."""
        with torch.no_grad():
            truth = self.feature_maps(x)
        return distance(truth, self.feature_maps(y), self.heads)


def _read(path: Path, wanted: Mapping[str, tuple[int, ...]], what: str, ignored: str = "\0") -> dict[str, Tensor]:
    """The tensors of a file, without those whose names begin with `ignored`; DataError for others than `wanted`."""
    data = read_foreign(path)
    if not isinstance(data, Mapping) or not all(isinstance(value, Tensor) for value in data.values()):
        raise DataError(f"{path}: not {what}: expected a dictionary of tensors by name")
    state = {key: value for key, value in data.items() if not key.startswith(ignored)}
    if problems := misfit(wanted, {key: tuple(value.shape) for key, value in state.items()}):
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DataError(f"{path}: not {what}: it {'; '.join(problems[:3])}{more}")
    return state
