"""An open_clip model behind the `Encoder` protocol.

B batch · C channels · H W pixels · L tokens · W text width · D embedding width
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import text_global_pool
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.errors import UsageError, did_you_mean, reason
from t2i.core.seed import upload
from t2i.core.sizes import Heads, Layers, Side, Width
from t2i.core.types import TextFeatures
from t2i.text.tokenizers import TokenizerConfig

_Count = Annotated[int, Field(ge=0, le=256)]  # of layers, or of blocks of a level
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of pixels in [0, 1], as published with CLIP
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionConfig(Config):
    """Square pictures of `image_size` pixels. One number of `layers` makes a vision transformer over patches of
    `patch_size` pixels, four make CLIP's ResNet with that many blocks per level, first level `width` channels."""

    image_size: Side = 64
    patch_size: Side = 8
    width: Width = 256
    layers: _Count | tuple[_Count, _Count, _Count, _Count] = 6
    head_width: Width = 64

    @model_validator(mode="after")
    def _check(self) -> Self:
        resnet = isinstance(self.layers, tuple)
        if (least := 32 if resnet else self.patch_size) > self.image_size:
            what = "the 32 pixels that a ResNet folds" if resnet else f"patch_size={least}"
            raise ValueError(f"image_size={self.image_size} is smaller than {what}")
        width = self.width * (32 if resnet else 1)
        if not (heads := width // self.head_width) or width % heads:
            raise ValueError(f"{width} channels cannot be split into heads of head_width={self.head_width}")
        return self


class TextConfig(Config):
    """A causal text transformer; its context and vocabulary come from the tokeniser."""

    width: Width = 256
    layers: Layers = 4
    heads: Heads = 4

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self


class ClipConfig(Config):
    """Either `architecture`, a name of `open_clip.list_models()` with two plain CLIP towers, or the sizes of our own.

    `pretrained` is one of open_clip's tags of published weights, fetched to start from. `mean` and `std` normalise
    pixels in [0, 1] before the vision tower; for an `architecture` they are OpenAI's unless given. `vision` may be
    None, for a model that only reads. `quick_gelu` is OpenAI's activation, x · sigmoid(1.702 x). `unit_norm` is off
    where the other stages take embeddings as they are.
    """

    architecture: str | None = None
    pretrained: str | None = None
    embed_dim: Width = 256
    vision: VisionConfig | None = VisionConfig()
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    quick_gelu: bool = False
    unit_norm: bool = True
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @model_validator(mode="before")
    @classmethod
    def _published(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("architecture") is not None:
            return {"mean": OPENAI_MEAN, "std": OPENAI_STD} | data
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.architecture is not None and self.tokenizer.kind != "clip":
            raise ValueError(f"architecture={self.architecture!r} reads tokenizer={{kind: clip, context: 77}}")
        if self.architecture is None and self.pretrained is not None:
            raise ValueError(f"pretrained={self.pretrained!r} needs an architecture")
        return self


def build_clip(config: ClipConfig) -> CLIP:
    """The bare open_clip network for a config; raises ValueError for an architecture that is unknown or not CLIP's."""
    if config.architecture is not None:
        return _published(config.architecture, config.pretrained, config.tokenizer)
    text = CLIPTextCfg(
        context_length=config.tokenizer.context,
        vocab_size=config.tokenizer.vocab_size,
        width=config.text.width,
        heads=config.text.heads,
        layers=config.text.layers,
        pool_type="eos" if config.tokenizer.kind == "words" else "argmax",
        eos_id=2,
    )
    vision = CLIPVisionCfg(**(config.vision or VisionConfig(layers=0, width=64)).model_dump())
    model = CLIP(config.embed_dim, vision, text, quick_gelu=config.quick_gelu)
    if config.vision is None:
        model.visual = None
    return model


def _published(architecture: str, pretrained: str | None, tokenizer: TokenizerConfig) -> CLIP:
    import open_clip

    if architecture not in (choices := open_clip.list_models()):
        hint = did_you_mean(architecture, choices) or "; see open_clip.list_models()"
        raise ValueError(f"open_clip knows no architecture {architecture!r}{hint}")
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained, device=torch.get_default_device())
    except (OSError, RuntimeError) as error:  # an unknown tag, a file that is none, or no network
        raise ValueError(f"pretrained={pretrained!r} of {architecture!r}: {reason(error)}") from error
    if not isinstance(model, CLIP) or model.vocab_size != tokenizer.vocab_size or model.attn_mask is None:
        raise ValueError(
            f"{architecture!r} is not two plain CLIP towers with CLIP's vocabulary, and others are not read"
        )
    if tokenizer.context > model.context_length:
        raise ValueError(f"{architecture!r} reads {model.context_length} tokens, tokenizer.context={tokenizer.context}")
    return model


class ClipEncoder(nn.Module):
    """CLIP as the other stages see it (protocol `Encoder`): pictures and sentences to vectors, of unit norm unless
    `unit_norm` is off."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config.model_copy(update={"pretrained": None})  # from here on these weights are what counts
        self.clip = build_clip(config)
        self.tokenizer = config.tokenizer.build()
        size = self.clip.visual.image_size if self.clip.visual is not None else 0
        self.image_size = size[0] if isinstance(size, tuple | list) else size
        self.dim = config.embed_dim if self.clip.visual is None else int(self.clip.visual.output_dim)
        self.text_width = int(self.clip.ln_final.weight.shape[0])
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → (B, D), float32. Other sizes are resized with antialiasing.

        Raises UsageError if this model has no tower for pictures.
        """
        return self._out(self.clip.encode_image(self._pixels(image)))

    def feature_maps(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] → features (B, C, h, w) of every level of a ResNet or layer of a transformer, by
        which pictures are told apart (Zhang et al. 2018); resized as in `encode_image`."""
        maps = self._tower().forward_intermediates(self._pixels(image), intermediates_only=True)["image_intermediates"]
        return list(maps)

    def _tower(self) -> Any:
        if self.clip.visual is None:
            raise UsageError("this CLIP reads sentences only (vision=None): it was published without its image encoder")
        return self.clip.visual

    def _pixels(self, image: Tensor) -> Tensor:
        """What the tower for pictures is given; UsageError if there is none."""
        self._tower()
        if image.shape[-2:] != (self.image_size, self.image_size):
            image = F.interpolate(image.float(), size=(self.image_size,) * 2, mode="bicubic", antialias=True).clamp(
                -1, 1
            )
        return ((image + 1) / 2 - self.mean.to(image.dtype)) / self.std.to(image.dtype)

    def encode_tokens(self, tokens: Tensor, mask: Tensor) -> TextFeatures:
        """Tokens (B, L) → pooled (B, D), token states (B, L, W) after the last norm, mask (B, L)."""
        clip = self.clip
        length = tokens.shape[1]  # the mask is causal: any length will do
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]  # (B, L, W)
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        pooled = text_global_pool(x, tokens, clip.text_pool_type, eos_token_id=clip.text_eos_id)
        projection = clip.text_projection
        pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return TextFeatures(self._out(pooled), x, mask)

    def _out(self, z: Tensor) -> Tensor:
        return F.normalize(z.float(), dim=-1) if self.config.unit_norm else z.float()

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) and mask on the encoder's device, L being no longer than the longest caption needs."""
        tokens, mask = self.tokenizer(captions)
        length = int(mask.sum(dim=1).max())
        device = self.clip.logit_scale.device
        return upload(tokens[:, :length], device), upload(mask[:, :length], device)

    def encode_text(self, captions: Sequence[str]) -> TextFeatures:
        """B sentences → `TextFeatures` on the encoder's device, L being the longest caption's length."""
        return self.encode_tokens(*self.tokenize(captions))

    @torch.no_grad()
    def fingerprint(self) -> tuple[float, ...]:
        """Where the empty sentence is embedded: by these numbers stages recognise the CLIP they were trained with."""
        return tuple(round(x, 4) for x in self.encode_text([""]).pooled[0, :16].tolist())
