"""The few types that every stage shares.

Legend used in this repository: B batch · C channels · H W pixels · L tokens · D width · T diffusion steps.
Pictures inside the library are float, NCHW, in [-1, 1]; at its border they are PIL or uint8 HWC (`t2i.io.images`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = dict[str, Any]
"""What a data loader yields: `image` (B, 3, H, W) in [-1, 1], `caption` list of B strings, `key` list of B strings,
`seed` list of B ints (one random stream per sample), and whatever else a stage declares that it needs."""

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Condition:
    """What a network is conditioned on, computed once per image and reused at every step.

    `vector` (B, D) is added to the time embedding, `sequence` (B, L, D) with `mask` (B, L, True where valid) is
    attended to, `image` (B, C, H, W) is concatenated to x_t. `context` holds the keys and values of `sequence`, one
    pair per attention layer, once a network has projected them.
    """

    vector: Tensor | None = None
    sequence: Tensor | None = None
    mask: Tensor | None = None
    image: Tensor | None = None
    context: tuple[KeysValues, ...] | None = None

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Condition":
        """The same condition with `fn` applied to every tensor in it."""
        changed: dict[str, Any] = {
            f.name: fn(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        if self.context is not None:
            changed["context"] = tuple((fn(k), fn(v)) for k, v in self.context)
        return replace(self, **changed)

    @staticmethod
    def cat(parts: Sequence["Condition"]) -> "Condition":
        """Join conditions along the batch axis; all parts must have the same ports."""
        first = parts[0]
        joined: dict[str, Any] = {}
        for f in fields(first):
            values = [getattr(p, f.name) for p in parts]
            if any((v is None) != (values[0] is None) for v in values):
                raise ValueError(f"conditions disagree on {f.name!r}: present in some, missing in others")
            if isinstance(values[0], Tensor):
                joined[f.name] = _cat(f.name, values)
            elif values[0] is not None:
                joined[f.name] = tuple(
                    (_cat(f.name, [k for k, _ in layer]), _cat(f.name, [v for _, v in layer]))
                    for layer in zip(*values, strict=True)
                )
        return Condition(**joined)


def _cat(name: str, values: Sequence[Tensor]) -> Tensor:
    shapes = [tuple(v.shape[1:]) for v in values]
    if len(set(shapes)) > 1:
        raise ValueError(f"conditions disagree on the shape of {name!r}: {shapes} per picture; captions of one length?")
    return torch.cat(list(values))


class Prediction(NamedTuple):
    """What a denoiser says about one step: x_0 and eps (B, C, H, W) that agree with each other and with x_t, and the
    log variance of p(x_{t-1} | x_t), broadcastable to x_t. All float32."""

    x_0: Tensor
    eps: Tensor
    log_variance: Tensor


class Denoiser(Protocol):
    """`denoise(x_t, step)`, where `step` counts the kept steps of the sampling process from 0 (nearly clean)."""

    def __call__(self, x_t: Tensor, step: int) -> Prediction: ...


StepCallback = Callable[[int, int, Tensor, Prediction], None]
"""Called after every sampling step with (steps done, steps in all, x_t, prediction)."""


class NoiseSource(Protocol):
    """Where samplers draw from: `normal(*shape)` returns (B, *shape), standard normal, float32, on the CPU."""

    def normal(self, *shape: int) -> Tensor: ...


class TextFeatures(NamedTuple):
    """A text encoder's output: `pooled` (B, D), `sequence` (B, L, W) of token states, `mask` (B, L)."""

    pooled: Tensor
    sequence: Tensor
    mask: Tensor

    def padded(self, length: int) -> "TextFeatures":
        """Sentences lengthened to L = `length` places, the new ones masked, so that both rows of guidance fit one
        batch."""
        missing = length - self.mask.shape[1]
        return TextFeatures(self.pooled, F.pad(self.sequence, (0, 0, 0, missing)), F.pad(self.mask, (0, missing)))


@runtime_checkable
class Encoder(Protocol):
    """A frozen joint encoder of pictures and sentences, such as CLIP. Embeddings have unit norm, unless it was
    published with stages that take them as they are."""

    dim: int

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], any size → (B, dim)."""

    def encode_text(self, captions: Sequence[str]) -> TextFeatures:
        """B sentences → pooled (B, dim), sequence (B, L, W), mask (B, L)."""


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen encoder of sentences, such as T5's; `width` is that of its token states and of its pooled embedding."""

    width: int

    def encode_text(self, captions: Sequence[str]) -> TextFeatures:
        """B sentences → pooled (B, width), sequence (B, L, width), mask (B, L)."""

    def fingerprint(self) -> tuple[float, ...]:
        """Numbers by which stages recognise the encoder that they were trained with."""


@runtime_checkable
class LatentCodec(Protocol):
    """A frozen autoencoder: pictures to latents of about unit variance, and back (Rombach et al. 2022, section 3.1)."""

    channels: int
    """Of latents."""
    factor: int
    """Pixels of a side that share a place of the latents."""

    def encode_latents(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], sides that `factor` divides → (B, channels, H / factor, W / factor)."""

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, channels, h, w) → (B, 3, h · factor, w · factor), about in [-1, 1]."""

    def fingerprint(self) -> tuple[float, ...]:
        """Numbers by which stages recognise the autoencoder that they were trained with."""


class Tokenizer(Protocol):
    """Sentences to integer tokens of a fixed length."""

    context: int
    room: int
    """Tokens of a caption that fit, beside those that mark its start and end."""

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences → tokens (B, context) int64, mask (B, context) bool, True on real tokens."""

    def unknown(self, caption: str) -> list[str]:
        """Words of `caption` that the vocabulary lacks, in order of appearance."""

    def truncated(self, caption: str) -> bool:
        """Whether `caption` has more tokens than `room`."""


class Phase(NamedTuple):
    """One optimiser of a task: `module`, whose parameters it moves at `lr` times the learning rate of the run, and the
    `loss` that moves them, as `Task.loss`. Its weights and its optimiser are part of every checkpoint."""

    name: str
    module: nn.Module
    loss: Callable[[Batch], dict[str, Tensor]]
    lr: float = 1.0


class Task(nn.Module):
    """One training objective: a model, what it needs from the batch and from frozen neighbours, and the loss.

    A stage's task is made as `Task(model, options, **neighbours)`, the neighbours by the names in `needs`. What is not
    overridden does nothing.

    Attributes:
        needs: protocol or class of every frozen neighbour that may be named, such as `{"clip": Encoder}`.
        keys: what a batch must hold.
        groups: what each B pictures of `sample` are, in order, such as `("held-out picture", "drawn")`.
        takes_prompts: whether `draw_prompts` draws.
        model: what is trained, averaged and exported.
        memory: what is saved and restored beside the model and the phases, such as a table of losses, or None.
    """

    needs: ClassVar[Mapping[str, type]] = {}
    keys: tuple[str, ...] = ("image",)
    groups: tuple[str, ...] = ("drawn",)
    takes_prompts: bool = False
    model: Any
    memory: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.memory = model, None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named per-sample losses, each (B,); `loss` is the one that is trained on."""
        raise NotImplementedError

    def phases(self) -> Sequence[Phase]:
        """What every step does, in order, on the same batch; the first phase trains the model. A GAN has two."""
        return [Phase("main", self.model, self.loss)]

    def prepare(self, batches: Iterable[Batch], *, anew: bool = False) -> None:
        """Called before the first step of a new run, with endless batches of 64 that are read only if asked for.

        `anew` tells that the run starts from a stage whose neighbours were others than these.
        """

    def renew(self) -> None:
        """Called before a run goes on from a checkpoint without a `memory`, once the model is put back."""

    def after_step(self, step: int) -> None:
        """Called after every step, the first being 1: here target networks follow."""

    def sample(self, batch: Batch) -> Tensor | None:
        """A grid of pictures (N, 3, H, W) in [-1, 1] that shows what the model has learned, or None; see `groups`."""
        return None

    def sample_captions(self, batch: Batch) -> list[str] | None:
        """What the model writes beneath each picture of `sample`; None for a model that writes nothing, whose pictures
        have what it is told of them there."""
        return None

    def draw_prompts(self, asked: Batch) -> Tensor:
        """(N, 3, H, W), what the model makes of the N sentences in `caption`; `image` (B, 3, H, W) are held out."""
        raise NotImplementedError

    def metrics(self, batch: Batch) -> dict[str, float]:
        """Held-out numbers beside the loss, such as retrieval accuracy."""
        return {}
