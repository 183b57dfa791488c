"""Ports: how what is said of a picture becomes the `Condition` of a network, one small config and module for each kind.

    text        a text transformer that is trained with the network (GLIDE, section 2)
    clip_image  a CLIP image embedding, as a vector and as a few tokens (unCLIP, section 2.1)
    clip_text   what a frozen CLIP says of a sentence (Karlo)
    states      what another frozen encoder says of it, such as T5 (DALL-E 3)
    classes     a table of labels (ADM)
    masked      a picture of which a part is hidden, and the mask (GLIDE, section 3.2)

A new kind of input is a config and a module here, and a field of that name in `PortsConfig` and in `Given`.

B batch · L tokens · D width of embeddings · W width of frozen states · S of the context · V of the time vector
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.sizes import Length, Width
from t2i.core.types import Condition, TextFeatures
from t2i.nn.layers import fit, masked
from t2i.nn.transformer import TextConfig, TextTransformer
from t2i.text.tokenizers import TokenizerConfig


@dataclass(frozen=True)
class Given:
    """What is said of `num` pictures; every field is read by the port of its name, None where nothing is said.

    Attributes:
        text: tokens (B, L) int64 and their mask (B, L) bool, True on real tokens; a mask of None means all of them.
        clip_image: (B, D) CLIP image embeddings.
        clip_text, states: what a frozen encoder says of the sentences; networks that read it must be given it.
        classes: (B,) int64; networks over classes must be given them, `num` of the port is the absent class.
        masked: a picture (B, 3, H, W) in [-1, 1] and a mask (B, 1, H, W), 1 where the picture is known.
        dropped: (B,) bool by port, True where what was said counts as not said.
    """

    num: int
    text: tuple[Tensor, Tensor | None] | None = None
    clip_image: Tensor | None = None
    clip_text: TextFeatures | None = None
    states: TextFeatures | None = None
    classes: Tensor | None = None
    masked: tuple[Tensor, Tensor] | None = None
    dropped: Mapping[str, Tensor] = field(default_factory=dict)


class Port(nn.Module):
    """One kind of input. `read(given)` is its part of the condition, `null(num)` what stands where nothing is said."""

    def read(self, given: Given) -> Condition:
        """`vector` (B, V), `sequence` (B, L, S) with `mask` (B, L) unless all is visible, or `image` (B, C, H, W).

        Raises ValueError for an input of another shape, and where one must be given and is not.
        """
        raise NotImplementedError

    def null(self, num: int) -> Condition:
        """The same for `num` pictures of which nothing is said; ValueError where there is no such thing."""
        return self.read(Given(num))


class TextPortConfig(TextConfig):
    """A text transformer, and the tokeniser that it was trained with."""

    tokenizer: TokenizerConfig | None = None

    @model_validator(mode="after")
    def _check_tokenizer(self) -> Self:
        if self.tokenizer is not None and "vocab_size" in self.model_fields_set:
            ours = (self.vocab_size, self.context)
            theirs = (self.tokenizer.vocab_size, self.tokenizer.context)
            if ours[0] < theirs[0] or ours[1] != theirs[1]:
                raise ValueError(f"text has (vocab_size, context) {ours}, its tokenizer {theirs}")
        return self


class TextPort(Port):
    """Features of the caption as sequence. As in GLIDE the vector is made of the last one and there is no mask, as
    padding has learned rows of its own; with `attend_padding` off it is made of the mean of the words, and the mask
    hides the padding."""

    def __init__(self, config: TextPortConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        self.encoder = TextTransformer(config)
        self.vector = nn.Linear(config.width, vector_dim)

    def read(self, given: Given) -> Condition:
        tokens, mask = given.text if given.text is not None else self._no_words(given.num)
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        if "text" in given.dropped:
            mask = ~given.dropped["text"][:, None] & mask
        features, visible = self.encoder(tokens, mask), self.encoder.visible(mask)  # (B, L, S) (B, L)
        pooled = features[:, -1] if visible is None else _mean(features, visible)  # (B, S)
        return Condition(vector=self.vector(pooled), sequence=features, mask=visible)

    def _no_words(self, num: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask (B, L) of empty captions."""
        shape, device = (num, self.encoder.config.context), self.vector.weight.device
        return torch.zeros(shape, dtype=torch.long, device=device), torch.zeros(shape, dtype=torch.bool, device=device)


class ClipImageConfig(Config):
    """CLIP image embeddings; `dim` and `fingerprint` follow from the CLIP that the network learns from."""

    dim: Width | None = Field(None, description="width of the embeddings")
    num_tokens: Length = Field(4, description="context tokens made of one embedding")
    scale: float = Field(1.0, description="embeddings are multiplied by it first; √D gives unit vectors unit variance")
    fingerprint: tuple[float, ...] = Field((), description="`ClipEncoder.fingerprint` of that CLIP, empty if unknown")


class ClipImagePort(Port):
    """An embedding as vector and as tokens, or a learned one in its place."""

    def __init__(self, config: ClipImageConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        if config.dim is None:
            raise ValueError("ports.clip_image.dim is not known; it follows from clip=FOLDER")
        self.config = config
        self.vector = nn.Linear(config.dim, vector_dim)
        self.tokens = nn.Linear(config.dim, config.num_tokens * context_dim)
        self.nothing = nn.Parameter(torch.zeros(config.dim))

    def read(self, given: Given) -> Condition:
        z = self.nothing.expand(given.num, -1)  # (B, D)
        if given.clip_image is not None:
            if given.clip_image.shape[-1] != self.config.dim:
                raise ValueError(f"image embedding of width {given.clip_image.shape[-1]}, expected {self.config.dim}")
            cond = given.clip_image.to(z.dtype) * self.config.scale
            z = torch.where(given.dropped["clip_image"][:, None], z, cond) if "clip_image" in given.dropped else cond
        return Condition(vector=self.vector(z), sequence=self.tokens(z).unflatten(1, (self.config.num_tokens, -1)))


class StatesConfig(Config):
    """What a frozen encoder says of a sentence."""

    width: Width | None = Field(None, description="of its token states; follows from the encoder")
    dim: Width | None = Field(None, description="of its embedding of the whole sentence; follows from it as well")


class ClipTextPort(Port):
    """CLIP's states as sequence, its embedding of the sentence as vector; also of the empty sentence, so none stands
    where nothing is said."""

    reads = "clip_text"

    def __init__(self, config: StatesConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        if config.dim is None or config.width is None:
            raise ValueError(f"ports.{self.reads}.width and .dim are not known; they follow from the frozen encoder")
        self.vector = nn.Linear(config.dim, vector_dim)
        self.states = nn.Sequential(nn.Linear(config.width, context_dim), nn.LayerNorm(context_dim))

    def read(self, given: Given) -> Condition:
        text: TextFeatures | None = getattr(given, self.reads)
        if text is None:
            what = "this network reads what a frozen encoder says of a sentence, of the empty sentence too"
            raise ValueError(f"{self.reads} is missing: {what}")
        sequence = self.states(fit(text.sequence, self.vector.weight))  # (B, L, S)
        return Condition(vector=self.vector(fit(text.pooled, self.vector.weight)), sequence=sequence, mask=text.mask)


class StatesPort(ClipTextPort):
    """The same of another encoder, with one learned state in place of a sentence that is dropped or not there."""

    reads = "states"

    def __init__(self, config: StatesConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__(config, vector_dim, context_dim)
        self.null_pooled = nn.Parameter(torch.zeros(config.dim or 0))
        self.null_state = nn.Parameter(torch.zeros(config.width or 0))

    def read(self, given: Given) -> Condition:
        text = given.states if given.states is not None else self._nothing(given.num, 1)
        if "states" in given.dropped:
            dropped, nothing = given.dropped["states"], self._nothing(*text.mask.shape)
            text = TextFeatures(
                torch.where(dropped[:, None], nothing.pooled, text.pooled),
                torch.where(dropped[:, None, None], nothing.sequence, text.sequence),
                torch.where(dropped[:, None], nothing.mask, text.mask),
            )
        return super().read(replace(given, states=text))

    def _nothing(self, num: int, length: int) -> TextFeatures:
        first = (torch.arange(length, device=self.null_state.device) == 0).expand(num, -1)  # (B, L)
        return TextFeatures(self.null_pooled.expand(num, -1), self.null_state.expand(num, length, -1), first)


class ClassesConfig(Config):
    """A table of labels."""

    num: int = Field(0, ge=0, le=10**7, description="of labels; 0 for as many as the data has folders")
    null_class: bool = Field(False, description="a further row stands for no class, for classifier-free guidance")
    names: tuple[str, ...] = Field((), description="what users call the classes, empty if they have no names")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.names and len(self.names) != self.num:
            raise ValueError(f"{len(self.names)} names for {self.num} classes")
        return self


class ClassesPort(Port):
    """A learned vector for every class."""

    def __init__(self, config: ClassesConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        if not config.num:
            raise ValueError("ports.classes.num is not known; it follows from the folders of the data")
        self.config = config
        self.table = nn.Embedding(config.num + config.null_class, vector_dim)

    def read(self, given: Given) -> Condition:
        if given.classes is None:
            raise ValueError(f"labels missing: this network is over {self.config.num} classes")
        labels = given.classes
        if "classes" in given.dropped:
            labels = torch.where(given.dropped["classes"], self.config.num, labels)
        return Condition(vector=self.table(labels))

    def null(self, num: int) -> Condition:
        if not self.config.null_class:
            raise ValueError(f"a network over {self.config.num} classes has no unconditional branch")
        return self.read(Given(num, classes=torch.full((num,), self.config.num, device=self.table.weight.device)))


class MaskedConfig(Config):
    """A picture of which a part is hidden, and the mask, as 4 channels beside x_t; nothing about it is learned."""


class MaskedPort(Port):
    """See `MaskedConfig`; whoever reads knows the size of a picture of which nothing is known (`Ports.read`)."""

    def __init__(self, config: MaskedConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()

    def read(self, given: Given) -> Condition:
        assert given.masked is not None
        return Condition(image=masked(*given.masked))


class PortsConfig(Config):
    """The ports that a network has. In the order of `READ` their tokens stand in the sequence."""

    text: TextPortConfig | None = None
    clip_image: ClipImageConfig | None = None
    clip_text: StatesConfig | None = None
    states: StatesConfig | None = None
    classes: ClassesConfig | None = None
    masked: MaskedConfig | None = None

    def build(self, vector_dim: int, context_dim: int | None) -> "Ports":
        """The modules, for a network with a time vector of this width and a context of that, None for no context."""
        return Ports(self, vector_dim, context_dim or 0)

    def check(self, context_dim: int | None) -> None:
        """ValueError for ports that do not fit each other, or a network whose context has this width."""
        if self.text is not None and context_dim != self.text.width:
            raise ValueError(f"unet.context_dim={context_dim} must equal ports.text.width={self.text.width}")
        if self.text is not None and self.clip_text is not None:
            raise ValueError("ports.clip_text reads the sentence, so there is no port for text of its own beside it")
        if context_dim is None and (read := [n for n in ("clip_image", "clip_text", "states") if n in self.names]):
            raise ValueError(f"ports.{read[0]} needs a unet.context_dim for its tokens, got None")

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are there, in the order in which they are read."""
        return tuple(name for name in READ if getattr(self, name) is not None)


READ = ("clip_image", "text", "clip_text", "states", "classes", "masked")
KINDS: dict[str, type[Port]] = {
    "text": TextPort,
    "clip_image": ClipImagePort,
    "clip_text": ClipTextPort,
    "states": StatesPort,
    "classes": ClassesPort,
    "masked": MaskedPort,
}


class Ports(nn.ModuleDict):
    """All ports of a network: their vectors are added, their sequences follow each other."""

    def __init__(self, config: PortsConfig, vector_dim: int, context_dim: int) -> None:
        chosen: dict[str, Any] = {name: getattr(config, name) for name in KINDS}
        parts = {name: KINDS[name](c, vector_dim, context_dim) for name, c in chosen.items() if c is not None}  # type: ignore[call-arg]
        super().__init__(parts)
        self.order = config.names

    def read(self, given: Given, size: tuple[int, int], device: torch.device) -> Condition:
        """The condition for what is given; `size` (H, W) is that of the network's pictures.

        Raises ValueError for an input that has no port here.
        """
        for name in READ:
            if name not in self and getattr(given, name) is not None:
                raise ValueError(f"this network has no port for {name}; its ports: {', '.join(self.order) or 'none'}")
        if "masked" in self and given.masked is None:
            nothing = torch.zeros(given.num, 3, *size, device=device)
            given = replace(given, masked=(nothing, nothing[:, :1]))
        return _joined([self._port(name).read(given) for name in self.order])

    def null(
        self, num: int, masked: tuple[Tensor, Tensor] | None, size: tuple[int, int], device: torch.device
    ) -> Condition:
        """The unconditional branch of guidance; what is known of a `masked` picture stays known."""
        rest = [self._port(name).null(num) for name in self.order if name != "masked"]
        shown = Condition()
        if "masked" in self:
            nothing = torch.zeros(num, 3, *size, device=device)
            shown = self._port("masked").read(Given(num, masked=masked or (nothing, nothing[:, :1])))
        return replace(_joined(rest), image=shown.image)

    def _port(self, name: str) -> Port:
        port = self[name]
        assert isinstance(port, Port)
        return port


def _joined(parts: list[Condition]) -> Condition:
    """What several ports say, as one condition."""
    vectors = [c.vector for c in parts if c.vector is not None]
    sequences = [c for c in parts if c.sequence is not None]
    mask = torch.cat([_visible(c) for c in sequences], dim=1) if any(c.mask is not None for c in sequences) else None
    return Condition(
        vector=torch.stack(vectors).sum(0) if vectors else None,
        sequence=torch.cat([c.sequence for c in sequences if c.sequence is not None], dim=1) if sequences else None,
        mask=mask,
        image=next((c.image for c in parts if c.image is not None), None),
    )


def _visible(part: Condition) -> Tensor:
    """Which tokens of a part may be attended to, (B, L)."""
    assert part.sequence is not None
    return part.sequence.new_ones(part.sequence.shape[:2], dtype=torch.bool) if part.mask is None else part.mask


def _mean(features: Tensor, visible: Tensor) -> Tensor:
    """(B, L, S) and (B, L) → (B, S), the mean over what is visible."""
    weight = visible[..., None].to(features.dtype)
    return (features * weight).sum(dim=1) / weight.sum(dim=1)
