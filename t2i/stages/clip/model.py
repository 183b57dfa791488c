"""An open_clip model behind the `Encoder` protocol.

B batch · C channels · H W pixels · L tokens · W text width · D embedding width
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from t2i.config import Config
from t2i.text.tokenizers import TokenizerConfig
from t2i.types import TextFeatures

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of pixels in [0, 1], as published with CLIP
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class VisionConfig(Config):
    """Square pictures of `image_size` pixels. One number of `layers` makes a vision transformer over patches of
    `patch_size` pixels, four make CLIP's ResNet with that many blocks per level, first level `width` channels."""

    image_size: int = 64
    patch_size: int = 8
    width: int = 256
    layers: int | tuple[int, int, int, int] = 6
    head_width: int = 64


class TextConfig(Config):
    """A causal text transformer; its context and vocabulary come from the tokeniser."""

    width: int = 256
    layers: int = 4
    heads: int = 4


class ClipConfig(Config):
    """Either `architecture`, a name that `open_clip.list_models()` lists, or the sizes of one of our own.

    `mean` and `std` normalise pixels in [0, 1] before the vision tower.
    """

    architecture: str | None = None
    pretrained: str | None = None
    embed_dim: int = 256
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


def build_clip(config: ClipConfig) -> CLIP:
    """The bare open_clip network for a config; raises ValueError for an architecture that open_clip does not know."""
    if config.architecture is not None:
        import open_clip

        if config.architecture not in open_clip.list_models():
            raise ValueError(f"open_clip knows no architecture {config.architecture!r}; see open_clip.list_models()")
        model = open_clip.create_model(config.architecture, pretrained=config.pretrained)
        if not isinstance(model, CLIP):
            raise ValueError(
                f"{config.architecture!r} is a {type(model).__name__}; only plain CLIP towers are supported"
            )
        return model
    text = CLIPTextCfg(
        context_length=config.tokenizer.context,
        vocab_size=config.tokenizer.vocab_size,
        width=config.text.width,
        heads=config.text.heads,
        layers=config.text.layers,
        pool_type="eos" if config.tokenizer.kind == "words" else "argmax",
        eos_id=2,
    )
    return CLIP(config.embed_dim, CLIPVisionCfg(**config.vision.model_dump()), text)


class ClipEncoder(nn.Module):
    """CLIP as the other stages see it (protocol `Encoder`): pictures and sentences to unit vectors."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = build_clip(config)
        self.tokenizer = config.tokenizer.build()
        visual = self.clip.visual
        size = visual.image_size
        self.image_size = size[0] if isinstance(size, tuple | list) else size
        self.dim = int(visual.output_dim)
        self.text_width = int(self.clip.ln_final.weight.shape[0])

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → unit vectors (B, D), float32. Other sizes are resized with antialiasing."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            image = F.interpolate(image.float(), size=(self.image_size,) * 2, mode="bicubic", antialias=True).clamp(
                -1, 1
            )
        mean = image.new_tensor(self.config.mean).view(3, 1, 1)
        std = image.new_tensor(self.config.std).view(3, 1, 1)
        return F.normalize(self.clip.encode_image(((image + 1) / 2 - mean) / std).float(), dim=-1)

    def encode_tokens(self, tokens: Tensor, mask: Tensor) -> TextFeatures:
        """Tokens (B, L) → pooled (B, D) unit vectors, token states (B, L, W) after the last norm, mask (B, L)."""
        clip = self.clip
        length = tokens.shape[1]  # the mask is causal: any length will do
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]  # (B, L, W)
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        pooled = text_global_pool(x, tokens, clip.text_pool_type, eos_token_id=clip.text_eos_id)
        projection = clip.text_projection
        pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return TextFeatures(F.normalize(pooled.float(), dim=-1), x, mask)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) and mask on the encoder's device, L being no longer than the longest caption needs."""
        tokens, mask = self.tokenizer(captions)
        length = int(mask.sum(dim=1).max())
        device = self.clip.logit_scale.device
        return tokens[:, :length].to(device), mask[:, :length].to(device)

    def encode_text(self, captions: Sequence[str]) -> TextFeatures:
        """B sentences → `TextFeatures` on the encoder's device, L being the longest caption's length."""
        return self.encode_tokens(*self.tokenize(captions))

    @torch.inference_mode()
    def similarity(self, image: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine similarity of every picture with every sentence, (B, N)."""
        return self.encode_image(image) @ self.encode_text(captions).pooled.T
