"""The decoder network: one U-Net and the ports that turn captions, CLIP embeddings and labels into its `Condition`.

B batch · H W pixels · L tokens · D width of CLIP embeddings · W of CLIP's text states · S of the context
V width of the time embedding
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.types import Condition, TextFeatures
from t2i.diffusion.prediction import Parametrisation, Target, Variance
from t2i.nn.layers import fit, masked
from t2i.nn.transformer import TextConfig, TextTransformer
from t2i.nn.unet import UNet, UNetConfig
from t2i.text.tokenizers import TokenizerConfig


class DecoderConfig(Config):
    """Everything about a decoder.

    Attributes:
        unet: the network; its `context_dim` must be the width of the text features (or be free, without text).
        text: a text transformer trained with the U-Net, or None.
        clip_dim: width D of CLIP image embeddings, or None for no such port.
        clip_mark: `ClipEncoder.mark` of the CLIP it was trained with, empty if unknown.
        clip_text_width: width W of CLIP's text states, which then stand for `text` (Karlo), or None.
        num_clip_tokens: context tokens made of one image embedding.
        clip_scale: image embeddings are multiplied by it first; √D gives unit vectors unit variance.
        num_classes: size of a label table, or None.
        null_class: a further row of that table stands for no class, for classifier-free guidance.
        class_names: what users call the classes, empty if they have no names.
        inpaint: sees a masked picture and its mask beside x_t, as 4 image channels (GLIDE, section 3.2).
        image_size: of the pictures it was trained on.
        target, variance, schedule, num_steps, rescale_timesteps: see `t2i.diffusion`.
        tokenizer: what `text` was trained with.
    """

    unet: UNetConfig
    text: TextConfig | None = None
    clip_dim: int | None = Field(default=None, ge=1)
    clip_mark: tuple[float, ...] = ()
    clip_text_width: int | None = Field(default=None, ge=1)
    num_clip_tokens: int = Field(default=4, ge=1)
    clip_scale: float = 1.0
    num_classes: int | None = Field(default=None, ge=1)
    null_class: bool = False
    class_names: tuple[str, ...] = ()
    inpaint: bool = False
    image_size: int = Field(default=64, ge=1)
    target: Target = "eps"
    variance: Variance = "learned_range"
    schedule: Literal["linear", "cosine"] = "cosine"
    num_steps: int = Field(default=1000, ge=1)
    rescale_timesteps: bool = False
    tokenizer: TokenizerConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        unet, wanted = self.unet, self.parametrisation.num_outputs(self.unet.in_channels)
        if unet.out_channels != wanted:
            raise ValueError(f"variance {self.variance!r} needs unet.out_channels={wanted}, got {unet.out_channels}")
        if self.null_class and self.num_classes is None:
            raise ValueError("null_class=True needs num_classes, got None")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for num_classes={self.num_classes}")
        if unet.image_channels != (4 if self.inpaint else 0):
            raise ValueError(f"inpaint={self.inpaint} does not fit unet.image_channels={unet.image_channels}")
        if self.image_size % unet.factor:
            raise ValueError(f"image_size={self.image_size} is not a multiple of {unet.factor}, which the U-Net folds")
        if self.text is not None and unet.context_dim != self.text.width:
            raise ValueError(f"unet.context_dim={unet.context_dim} must equal text.width={self.text.width}")
        if self.clip_dim is not None and unet.context_dim is None:
            raise ValueError(f"clip_dim={self.clip_dim} needs a unet.context_dim for its tokens, got None")
        if self.clip_text_width is not None and (self.clip_dim is None or self.text is not None):
            raise ValueError(f"clip_text_width={self.clip_text_width} needs a clip_dim, and no text of its own")
        if self.text is None and self.tokenizer is not None:
            raise ValueError("a tokenizer needs a text transformer to read its tokens, got text=None")
        if self.text is not None and self.tokenizer is not None and "vocab_size" in self.text.model_fields_set:
            ours, theirs = (
                (self.text.vocab_size, self.text.context),
                (self.tokenizer.vocab_size, self.tokenizer.context),
            )
            if ours[0] < theirs[0] or ours[1] != theirs[1]:
                raise ValueError(f"text has (vocab_size, context) {ours}, its tokenizer {theirs}")
        return self

    @property
    def parametrisation(self) -> Parametrisation:
        """What the network's output means."""
        return Parametrisation(self.target, self.variance)


class Decoder(nn.Module):
    """`decoder(x_t, t, decoder.condition(…)) → raw output`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        vector_dim, context_dim = config.unet.time_dim, config.unet.context_dim or 0
        if config.text is not None:
            self.text = TextTransformer(config.text)
            self.text_vector = nn.Linear(config.text.width, vector_dim)
        if config.clip_dim is not None:
            self.clip_vector = nn.Linear(config.clip_dim, vector_dim)
            self.clip_tokens = nn.Linear(config.clip_dim, config.num_clip_tokens * context_dim)
            self.clip_null = nn.Parameter(torch.zeros(config.clip_dim))
        if config.clip_text_width is not None:
            self.clip_text_vector = nn.Linear(config.clip_dim or 0, vector_dim)
            self.clip_text = nn.Sequential(nn.Linear(config.clip_text_width, context_dim), nn.LayerNorm(context_dim))
        if config.num_classes is not None:
            self.classes = nn.Embedding(config.num_classes + config.null_class, vector_dim)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, 3, H, W) and timesteps (B,) → (B, out_channels, H, W); see `UNet.forward`."""
        out: Tensor = self.unet(x_t, t, condition)
        return out

    def condition(
        self,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        image_embedding: Tensor | None = None,
        labels: Tensor | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        *,
        clip_text: TextFeatures | None = None,
        text_keep: Tensor | None = None,
        clip_keep: Tensor | None = None,
    ) -> Condition:
        """What the network is told, from what the user says (unCLIP section 2.1).

        Args:
            tokens: (B, L) int64; None means empty captions.
            mask: (B, L) bool, True on real tokens; None means all of them.
            image_embedding: (B, D) CLIP image embeddings; None means the learned null embedding.
            labels: (B,) int64, for class-conditional networks; `num_classes` is the absent class, if they have one.
            known: a picture (B, 3, S, S) in [-1, 1] and a mask (B, 1, S, S), 1 where it is known, for networks that
                inpaint; None means that nothing is known.
            clip_text: what CLIP says of the sentences, for networks that read it.
            text_keep: (B,) bool; captions that are not kept count as empty.
            clip_keep: (B,) bool; embeddings that are not kept are replaced by the null embedding.

        Returns:
            `vector` (B, V) or None, and `sequence` (B, L', S) or None with the CLIP tokens before the text. As in GLIDE
            the vector is made of the last feature and there is no mask, as padding has learned rows of its own; with
            `text.attend_padding` off it is made of the mean of the words, and `mask` (B, L') hides the padding; so it
            does for CLIP's states, and the vector is made of its embedding of the sentence.
            `image` (B, 4, S, S) where the network inpaints.

        Raises:
            ValueError: if an input has no port in this network, if labels are missing, or if nothing is given.
        """
        c = self.config
        self._check_ports(tokens, image_embedding, labels, known, clip_text)
        pooled, picture = (None if x is None else x[0] for x in (clip_text, known))
        given = (tokens, image_embedding, labels, picture, pooled)
        first = next((x for x in given if x is not None), None)
        if first is None:
            if c.text is not None or c.clip_dim is not None or c.inpaint:
                raise ValueError("give tokens or an image embedding, or ask for `null_condition(num)`")
            return Condition()
        vectors, sequences, visible = [], [], None
        num_clip = c.num_clip_tokens if c.clip_dim is not None else 0
        if c.clip_dim is not None:
            z = self._clip(image_embedding, clip_keep, len(first))  # (B, D)
            vectors.append(self.clip_vector(z))
            sequences.append(self.clip_tokens(z).unflatten(1, (num_clip, -1)))  # (B, 4, S)
        if c.text is not None:
            if tokens is None:
                tokens, mask = self._no_words(len(first), first.device)
            features, visible = self._read(tokens, mask, text_keep)  # (B, L, S) (B, L)
            vectors.append(self.text_vector(features[:, -1] if visible is None else _mean(features, visible)))
            sequences.append(features)
        if clip_text is not None:
            vectors.append(self.clip_text_vector(fit(clip_text.pooled, self.clip_text_vector.weight)))
            sequences.append(self.clip_text(fit(clip_text.sequence, self.clip_text_vector.weight)))  # (B, L, S)
            visible = clip_text.mask
        if labels is not None:
            vectors.append(self.classes(labels))
        return Condition(
            vector=torch.stack(vectors).sum(0) if vectors else None,
            sequence=torch.cat(sequences, dim=1) if sequences else None,
            mask=F.pad(visible, (num_clip, 0), value=True) if visible is not None else None,
            image=masked(known, len(first), (c.image_size, c.image_size), first.device) if c.inpaint else None,
        )

    def null_condition(self, num: int, known: tuple[Tensor, Tensor] | None = None) -> Condition:
        """The unconditional branch of guidance for `num` pictures: empty captions, the null embedding and the absent
        class; what is `known` of the pictures stays known.

        Raises:
            ValueError: for class-conditional networks that know no absent class, and for those that read CLIP's states,
                of the empty sentence too.
        """
        c = self.config
        if c.clip_text_width is not None:
            raise ValueError("this decoder reads what CLIP says of the empty sentence: give `condition` that")
        if c.num_classes is not None and not c.null_class:
            raise ValueError(f"a network over {c.num_classes} classes has no unconditional branch")
        device = self.unet.conv_in.weight.device
        labels = torch.full((num,), c.num_classes, device=device) if c.num_classes is not None else None
        tokens, mask = self._no_words(num, device) if c.text is not None else (None, None)
        drop = z = None
        if c.clip_dim is not None:
            z, drop = torch.zeros(num, c.clip_dim, device=device), torch.zeros(num, dtype=torch.bool, device=device)
        if tokens is z is labels is known is None:
            return Condition(image=masked(None, num, (c.image_size, c.image_size), device) if c.inpaint else None)
        return self.condition(tokens, mask, z, labels, known, clip_keep=drop)

    def project(self, condition: Condition) -> Condition:
        """See `UNet.project`: do this once before sampling, so that every step reuses the keys and values."""
        return self.unet.project(condition)

    def _clip(self, image_embedding: Tensor | None, keep: Tensor | None, batch: int) -> Tensor:
        null = self.clip_null.expand(batch, -1)
        if image_embedding is None:
            return null
        z = image_embedding.to(null.dtype) * self.config.clip_scale
        return z if keep is None else torch.where(keep[:, None], z, null)

    def _no_words(self, num: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens and mask (B, L) of empty captions."""
        assert self.config.text is not None
        tokens = torch.zeros(num, self.config.text.context, dtype=torch.long, device=device)
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)

    def _read(self, tokens: Tensor, mask: Tensor | None, keep: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features (B, L, S) of captions, and which of them are visible (B, L), if not all are."""
        mask = mask if mask is not None else torch.ones_like(tokens, dtype=torch.bool)
        if keep is not None:
            mask = keep[:, None] & mask
        return self.text(tokens, mask), self.text.visible(mask)

    def _check_ports(
        self,
        tokens: Tensor | None,
        image_embedding: Tensor | None,
        labels: Tensor | None,
        known: tuple[Tensor, Tensor] | None,
        clip_text: TextFeatures | None,
    ) -> None:
        c = self.config
        if (clip_text is None) != (c.clip_text_width is None):
            given = "missing" if clip_text is None else "given"
            raise ValueError(f"CLIP's text states are {given}, but clip_text_width={c.clip_text_width}")
        if known is not None and not c.inpaint:
            raise ValueError("this decoder sees no masked picture (inpaint=False)")
        if tokens is not None and c.text is None:
            raise ValueError("this decoder takes no captions (text=None)")
        if image_embedding is not None and (c.clip_dim is None or image_embedding.shape[-1] != c.clip_dim):
            raise ValueError(f"image embedding of width {image_embedding.shape[-1]}, expected {c.clip_dim}")
        if (labels is None) != (c.num_classes is None):
            raise ValueError(f"labels {'missing' if labels is None else 'given'}, but num_classes={c.num_classes}")


def _mean(features: Tensor, visible: Tensor) -> Tensor:
    """(B, L, S) and (B, L) → (B, S), the mean over what is visible."""
    weight = visible[..., None].to(features.dtype)
    return (features * weight).sum(dim=1) / weight.sum(dim=1)
