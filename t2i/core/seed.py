"""Random numbers that belong to pictures, not to batches.

Picture i owns one generator per stage, on the CPU and in float32, so it comes out the same alone, in a batch of 64, on
a GPU, or after a resume (the habit of EDM2's sampler, applied to training noise as well).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any mixture of integers and names; different parts give unrelated streams."""
    text = "\x1f".join(str(p) for p in parts).encode(errors="surrogatepass")  # file names may not be UTF-8
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def upload(x: Tensor, device: torch.device | str) -> Tensor:
    """A CPU tensor on a device; a GPU fetches it when it gets there, and nobody waits."""
    device = torch.device(device)
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class Streams:
    """One independent random stream per sample.

    Args:
        seeds: one integer per sample.
        stage: a name mixed into every seed, so that two stages of one picture draw unrelated noise.
    """

    def __init__(self, seeds: Sequence[int], stage: str = "") -> None:
        self.seeds = [int(s) for s in seeds]
        self.generators = [torch.Generator().manual_seed(mix(s, stage)) for s in self.seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, (B, *shape), float32, CPU."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """Uniform on [0, 1), (B, *shape), float32, CPU."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators])

    def integers(self, high: int, *shape: int) -> Tensor:
        """Uniform on {0 … high-1}, (B, *shape), int64, CPU."""
        return torch.stack([torch.randint(high, shape, generator=g) for g in self.generators])
