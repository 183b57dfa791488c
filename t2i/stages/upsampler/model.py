"""The upsampler network: one U-Net that sees x_t beside the small picture, enlarged.

B batch · H W pixels, large · h w pixels, small · L tokens · S text width · V width of the time embedding
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.types import Condition
from t2i.diffusion.prediction import Parametrisation, Target, Variance
from t2i.nn.layers import masked
from t2i.nn.transformer import TextConfig, TextTransformer
from t2i.nn.unet import UNet, UNetConfig
from t2i.text.tokenizers import TokenizerConfig


class UpsamplerConfig(Config):
    """Everything about an upsampler.

    Attributes:
        unet: the network; `image_channels` are the 3 of the small picture, and 4 more to inpaint.
        low_size, image_size: of whole pictures; their ratio is the magnification.
        levels: how small pictures become 8 bits in sampling: rounded as in GLIDE, truncated as ADM
            writes its pictures, or not at all ("exact"), so that no difference is too small to stay small.
        interpolation, antialias: how the small picture is enlarged before it is concatenated to x_t.
        residual: the network predicts what x_0 has beyond the enlarged picture; for target "x0".
        text: a text transformer trained with the U-Net, or None.
        num_classes: size of a label table, or None.
        inpaint: sees a masked picture and its mask beside x_t (GLIDE, section 3.2).
        last_step: a second network of the same shape takes the last step of sampling (Karlo).
        target, variance, schedule, num_steps, rescale_timesteps: see `t2i.diffusion`.
        tokenizer: what `text` was trained with.
    """

    unet: UNetConfig
    low_size: int = Field(default=64, ge=1)
    image_size: int = Field(default=256, ge=1)
    levels: Literal["rounded", "truncated", "exact"] = "rounded"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = False
    residual: bool = False
    text: TextConfig | None = None
    num_classes: int | None = Field(default=None, ge=1)
    inpaint: bool = False
    last_step: bool = False
    target: Target = "eps"
    variance: Variance = "learned_range"
    schedule: Literal["linear", "cosine"] = "linear"
    num_steps: int = Field(default=1000, ge=1)
    rescale_timesteps: bool = False
    tokenizer: TokenizerConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        unet, wanted = self.unet, self.parametrisation.num_outputs(self.unet.in_channels)
        if unet.out_channels != wanted:
            raise ValueError(f"variance {self.variance!r} needs unet.out_channels={wanted}, got {unet.out_channels}")
        if unet.image_channels != unet.in_channels + 4 * self.inpaint:
            raise ValueError(
                f"unet.image_channels={unet.image_channels} must be {unet.in_channels} of the small picture"
                f"{' and 4 of the masked one' if self.inpaint else ''}"
            )
        if self.residual and self.target != "x0":
            raise ValueError(f"residual=True needs target 'x0', got {self.target!r}")
        if self.image_size % self.low_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of low_size={self.low_size}")
        if unet.context_dim != (self.text.width if self.text is not None else None):
            raise ValueError(f"unet.context_dim={unet.context_dim} does not fit text={self.text}")
        if self.last_step and (self.residual or self.inpaint or self.text is not None or self.num_classes is not None):
            raise ValueError("last_step=True is for networks that see a small picture alone, and predict no residual")
        if self.text is not None and not self.text.attend_padding:
            raise ValueError("text.attend_padding=False is not for upsamplers, whose text is GLIDE's")
        return self

    @property
    def parametrisation(self) -> Parametrisation:
        """What the network's output means."""
        return Parametrisation(self.target, self.variance)

    @property
    def magnification(self) -> int:
        """Pixels of the large picture per pixel of the small one, along a side."""
        return self.image_size // self.low_size


class Upsampler(nn.Module):
    """`upsampler(x_t, t, upsampler.condition(low_res)) → raw output`, at any size if the U-Net has no attention."""

    def __init__(self, config: UpsamplerConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.last = UNet(config.unet) if config.last_step else None
        if config.text is not None:
            self.text = TextTransformer(config.text)
            self.text_vector = nn.Linear(config.text.width, config.unet.time_dim)
        if config.num_classes is not None:
            self.classes = nn.Embedding(config.num_classes, config.unet.time_dim)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """(B, 3, H, W) and timesteps (B,) → (B, out_channels, H, W); see `UNet.forward`."""
        out: Tensor = self.unet(x_t, t, condition)
        if self.config.residual:
            assert condition.image is not None
            enlarged = condition.image[:, -x_t.shape[1] :]
            out = out + F.pad(enlarged, (0, 0, 0, 0, 0, out.shape[1] - x_t.shape[1]))  # not the variance
        return out

    def enlarge(self, low_res: Tensor) -> Tensor:
        """(B, 3, h, w) → (B, 3, H, W) by the magnification of the config, corners not aligned."""
        c = self.config
        return F.interpolate(
            low_res,
            scale_factor=float(c.magnification),
            mode=c.interpolation,
            align_corners=False,
            antialias=c.antialias,
        )

    def condition(
        self,
        low_res: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> Condition:
        """What the network is told (ADM section 4.3; GLIDE section 3.1).

        Args:
            low_res: (B, 3, h, w) in [-1, 1]; a whole picture or a crop.
            tokens: (B, L) int64, if the network reads text.
            mask: (B, L) bool, True on real tokens; None means all of them.
            labels: (B,) int64, if the network is class-conditional.
            known: a large picture (B, 3, H, W) in [-1, 1] and a mask (B, 1, H, W), 1 where it is known, for networks
                that inpaint; None means that nothing is known.

        Returns:
            `image` (B, 3 or 7, H, W), with `vector` (B, V) and `sequence` (B, L, S) where it has text or labels.

        Raises:
            ValueError: if text or labels are missing, or given to a network without a port for them.
        """
        c = self.config
        for name, value, port in (("tokens", tokens, c.text), ("labels", labels, c.num_classes)):
            if (value is None) != (port is None):
                raise ValueError(f"{name} {'missing' if value is None else 'given'}, but the config says {port}")
        if known is not None and not c.inpaint:
            raise ValueError("this upsampler sees no masked picture (inpaint=False)")
        image = self.enlarge(low_res)
        if c.inpaint:
            size = (image.shape[2], image.shape[3])
            image = torch.cat([masked(known, len(image), size, image.device), image], dim=1)  # (B, 7, H, W)
        if tokens is not None:
            features = self.text(tokens, mask)  # (B, L, S)
            return Condition(vector=self.text_vector(features[:, -1]), sequence=features, image=image)
        return Condition(vector=self.classes(labels) if labels is not None else None, image=image)

    def project(self, condition: Condition) -> Condition:
        """See `UNet.project`: do this once before sampling, so that every step reuses the keys and values."""
        return self.unet.project(condition)
