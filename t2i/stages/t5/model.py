"""T5's encoder (Raffel et al. 2020, arXiv 1910.10683; version 1.1: gated GELU, no dropout while frozen) behind the
`TextEncoder` protocol.

B batch · L tokens · W width
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import AtHome, Config
from t2i.core.seed import upload
from t2i.core.sizes import Entries, Heads, Layers, Length, Width
from t2i.core.types import TextFeatures, Tokenizer
from t2i.text.t5 import PretrainedT5
from t2i.text.tokenizers import TokenizerConfig

_ASKED = "a small red cube to the left of a large blue sphere"
"""What an encoder is recognised by."""


class T5Config(Config):
    """Either `source`, an encoder of others, or the sizes of our own."""

    source: Annotated[str, AtHome] | None = Field(
        None,
        description="name on the hub or folder of a T5 encoder of transformers with safetensors, read where it lies "
        "whenever it is used and not copied; google/t5-v1_1-xxl is the paper's. Null for one of our own",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of a source's numbers in memory")
    offload: bool = Field(False, description="keep a source on the CPU between two uses")
    context: Length = Field(128, description="tokens of a caption that a source reads, at most")
    width: Width = Field(256, description="of our own: d_model")
    layers: Layers = Field(4, description="of our own")
    heads: Heads = Field(4, description="of our own")
    head_width: Width = Field(64, description="of our own: d_kv")
    hidden: Width = Field(512, description="of our own: d_ff, of each half of the gated MLP")
    buckets: Entries = Field(32, description="of our own: rows of the table of relative positions")
    max_distance: Length = Field(128, description="of our own: what is further apart shares a row")
    dropout: float = Field(0.0, ge=0, lt=1, description="of our own, in training")
    sentinels: Length = Field(32, description="of our own: tokens beyond the vocabulary that stand for hidden spans")
    tokenizer: TokenizerConfig = Field(TokenizerConfig(), description="of our own")

    @property
    def vocab_size(self) -> int:
        """Words and sentinels."""
        return self.tokenizer.vocab_size + self.sentinels


class T5(nn.Module):
    """`encode_text(captions)` → states of every token, and their mean as the embedding of the whole sentence.

    The weights of a `source` are no part of this module's: they are neither saved with it nor trained, and are opened
    at the first use, on the device that the module is on then.
    """

    place: Tensor

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("place", torch.zeros(()), persistent=False)
        self.pretrained: PretrainedT5 | None = None
        if config.source is None:
            self.encoder = own_encoder(config)
            self._words = config.tokenizer.build()
        else:
            self.pretrained = PretrainedT5(config.source, config.context, getattr(torch, config.dtype))

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Also what is open of a source goes to another device; its numbers stay what `dtype` says."""
        super()._apply(fn, recurse)
        if self.pretrained is not None and "encoder" in vars(self.pretrained) and not self.config.offload:
            self.pretrained.encoder.to(self.place.device)
        return self

    @property
    def width(self) -> int:
        """W."""
        return self.config.width if self.pretrained is None else int(self.pretrained.shape.d_model)

    @property
    def tokenizer(self) -> Tokenizer:
        """What reads captions."""
        return self._words if self.pretrained is None else self.pretrained.tokenizer

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) → rows (B, L, W) of the table of words of our own."""
        table: Any = self.encoder.get_submodule("embed_tokens")
        rows: Tensor = table(tokens)
        return rows

    def encode_tokens(self, tokens: Tensor, mask: Tensor) -> TextFeatures:
        """Tokens and mask (B, L) → pooled (B, W), the mean over real tokens, sequence (B, L, W), mask; float32."""
        if self.pretrained is None:
            states = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        else:
            encoder = self.pretrained.encoder.to(self.place.device)
            with torch.no_grad(), torch.autocast(self.place.device.type, enabled=False):
                states = encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
            if self.config.offload:
                encoder.to("cpu")
        states = states.float()  # (B, L, W)
        real = mask[..., None].float()
        return TextFeatures((states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1), states, mask)

    def encode_text(self, captions: Sequence[str]) -> TextFeatures:
        """B sentences → `TextFeatures` on the module's device, L being the longest caption's length."""
        tokens, mask = self.tokenizer(captions)
        length = max(int(mask.sum(dim=1).max()), 1)
        return self.encode_tokens(*(upload(x[:, :length], self.place.device) for x in (tokens, mask)))

    @torch.no_grad()
    def fingerprint(self) -> tuple[float, ...]:
        """Where a certain sentence is embedded: by these numbers stages recognise the encoder they were trained
        with."""
        return tuple(round(x, 4) for x in self.encode_text([_ASKED]).pooled[0, :16].tolist())


def own_encoder(config: T5Config) -> nn.Module:
    """An encoder of our sizes, drawn as transformers draws it."""
    from transformers import T5EncoderModel

    encoder: nn.Module = T5EncoderModel(shape_of(config)).encoder
    return encoder


def shape_of(config: T5Config, **more: Any) -> Any:
    """Our sizes as the config of transformers."""
    from transformers import T5Config as Shape

    given: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "d_kv": config.head_width,
        "d_ff": config.hidden,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": 0,
    }
    return Shape(**(given | more))
