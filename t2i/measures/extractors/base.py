"""What every extractor of features is: a frozen network behind a fixed resize, named and told apart by its weights.

B pictures · H W pixels · D features · K classes
"""

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.core.devices import memory_explained
from t2i.core.errors import DataError, NonFiniteError, UsageError
from t2i.io.torchscript import sha256_of
from t2i.io.weights import misfit

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """What an extractor sees in pictures: `pool` (B, D) float32; `logits` (B, K) float32 of networks that tell
    classes, of TF-Inception without bias."""

    pool: Tensor
    logits: Tensor | None = None


class Extractor(Protocol):
    """A frozen network that turns pictures into features, and what has to stand beside every number made of them."""

    name: str
    """Such as "TF-Inception" or "DINOv2 ViT-B/14"."""
    sha256: str
    """Of the weights: of the file, or of the digests of several; "none" of what has no weights."""
    resize: str
    """In words, such as "bicubic, antialiased, to 224×224"."""
    dim: int
    num_classes: int | None

    def __call__(self, images: Tensor) -> Features:
        """uint8 (B, 3, H, W) of any size → `Features` on the extractor's device, without gradients. A picture's
        features do not depend on the others of its batch, beyond rounding.

        Raises UsageError for anything else than such pictures.
        """


class TextExtractor(Extractor, Protocol):
    """An extractor that reads sentences as well, such as a CLIP."""

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """B sentences → (B, D) float32, in the space of `Features.pool`."""


@dataclass(frozen=True)
class Preparation:
    """How pixels become what a network is given: resized to `size` × `size` without cropping (whatever the sides were),
    then (x - mean) / std of values in [0, 1]. Antialiased as PIL does it, in float, clamped and not rounded."""

    size: int
    mode: str = "bicubic"  # or bilinear
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __str__(self) -> str:
        return f"{self.mode}, antialiased, to {self.size}×{self.size}"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) → float32 (B, 3, size, size)."""
        x = images.float() / 255
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode=self.mode, antialias=True).clamp(0, 1)
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std


class Network:
    """An extractor made of a network, see `Extractor`.

    Args:
        network: frozen here: evaluation mode, float32, no gradients.
        look: prepared pictures → `Features`.
        prepare: uint8 pictures → what `look` is given; its text says how they are resized.
        files: of the weights; the first is named if they hold NaN.

    Raises NonFiniteError that names a tensor of NaN or infinity, DataError where `look` gives no rows of features.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        look: Callable[[Tensor], Features],
        prepare: Callable[[Tensor], Tensor],
        *,
        sha256: str,
        device: torch.device | str = "cpu",
        where: str = "",
    ) -> None:
        self.name, self.sha256, self.resize = name, sha256, str(prepare)
        check_finite(network.state_dict(), where or name)
        self.device = torch.device(device)
        with memory_explained(name, "a smaller extractor or another device"):
            self.network = network.float().eval().requires_grad_(False).to(self.device)
        self._look, self._prepare = look, prepare
        probe = self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        if probe.pool.ndim != 2 or not probe.pool.shape[1]:
            raise DataError(f"{where or name}: gives {tuple(probe.pool.shape)} for one picture, expected one row")
        self.dim = probe.pool.shape[1]
        self.num_classes = None if probe.logits is None else probe.logits.shape[1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        check_pictures(images)
        with exact(self.device):
            pool, logits = self._look(self._prepare(images.to(self.device)))
        return Features(pool.float(), None if logits is None else logits.float())


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Float32 as it is written, whatever is chosen around it: no autocast, no TensorFloat-32."""
    before = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.flags(allow_tf32=False) if device.type == "cuda" else nullcontext()
    with torch.autocast(device.type, enabled=False), cudnn:
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def check_pictures(images: Tensor) -> None:
    """UsageError for anything but uint8 (B, 3, H, W) with something in it."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"an extractor is given uint8 pictures (B, 3, H, W), got {got}")
    if not images.numel():
        raise UsageError(f"an extractor is given pictures, got none: {tuple(images.shape)}")


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """NonFiniteError that names the first tensor of NaN or infinity."""
    for key, weight in state.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise NonFiniteError(f"{where}: {key!r} holds NaN or infinity")


@contextmanager
def untouched() -> Iterator[None]:
    """Build a network whose first weights are drawn and thrown away, without a change of anyone's random numbers, and
    without a word of other libraries that its weights are random."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.disable(before)


def fill(network: nn.Module, state: Mapping[str, Any], what: str, path: Path) -> None:
    """Give a network the weights of a file.

    Counts of batches, which only training reads, may be missing. Raises DataError in one line for what is no state dict
    of exactly its tensors.
    """
    own: Any = network.state_dict()
    counts = {key: x for key, x in own.items() if key.endswith("num_batches_tracked")}
    weights: Any = OrderedDict({**counts, **check_state(state, path)})
    if problem := misfit(own, weights):
        raise DataError(f"{path}: no weights of {what}: the file {problem}")
    weights._metadata = own._metadata  # the layout is that of this version, as the line before has made sure
    network.load_state_dict(weights)


def check_state(state: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, out of the wrappers that trainings put around them; DataError for other things."""
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(x, Tensor) for x in state.values()):
        raise DataError(f"{path}: holds no state dict, expected tensors by name")
    plain = {str(key): weight for key, weight in state.items()}
    if all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): weight for key, weight in plain.items()}
    return plain


def digest(files: Sequence[Path]) -> str:
    """SHA-256 of one file, as `sha256sum` prints it; of several, of their digests in the order of their names."""
    each = [sha256_of(path) for path in sorted(files)]
    return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder; DataError if it has none, which is said of pickles as well."""
    if found := sorted(folder.glob("*.safetensors")):
        return found
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    more = f"; {pickles[0].name} is a pickle, which is not read from folders" if pickles else ""
    raise DataError(f"{folder}: no weights in safetensors{more}")


def named_only(files: Sequence[Path], folder: Path) -> Path:
    """The one file of weights of a folder; DataError if there are several, of which none is chosen."""
    if len(files) > 1:
        raise DataError(f"{folder}: has {len(files)} files of weights, {files[0].name} and more; leave one there")
    return files[0]


def side(size: Any, where: str) -> int:
    """The side of a square that a config asks for, as one number, as (H, W) or as a mapping; DataError for others."""
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    elif isinstance(size, list | tuple):
        size = size[-1] if len(set(size[-2:])) == 1 else None
    if isinstance(size, bool) or not isinstance(size, int | float) or not math.isfinite(size) or not 1 <= size <= 4096:
        raise DataError(f"{where}: says no size of pictures that is read, got {size!r}")
    return int(size)
