"""The decoder network: one U-Net, and the ports that turn captions, CLIP embeddings and labels into its `Condition`.

B batch · H W pixels · S side of the picture
"""

from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.sizes import Channels, Side
from t2i.core.types import Condition
from t2i.diffusion.config import Diffusion, diffusion_section
from t2i.nn.older import ports_section
from t2i.nn.ports import Given, PortsConfig
from t2i.nn.unet import UNet, UNetConfig


class LatentsConfig(Config):
    """Of which autoencoder the latents are that a decoder draws; all of it follows from that."""

    channels: Channels | None = Field(None, description="of a latent")
    factor: Side | None = Field(None, description="pixels of a side that share a place")
    fingerprint: tuple[float, ...] = Field((), description="`LatentCodec.fingerprint`, empty if unknown")


class DecoderConfig(Config):
    """Everything about a decoder."""

    unet: UNetConfig = Field(
        description="the network; its context_dim is the width of what the ports give to attend to"
    )
    diffusion: Diffusion = Field(Diffusion(), description="what it was trained on")
    ports: PortsConfig = Field(PortsConfig(), description="what it is conditioned on, beside x_t and t")
    image_size: Side = Field(
        64, description="side of the pictures it was trained on, in pixels; in latent space, places of a side"
    )
    latents: LatentsConfig | None = Field(
        None, description="of what autoencoder, where diffusion.space is latents; follows from autoencoder=FOLDER"
    )

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        return ports_section(diffusion_section(data))

    @model_validator(mode="after")
    def _check(self) -> Self:
        unet, wanted = self.unet, self.diffusion.num_outputs(self.unet.in_channels)
        if unet.out_channels != wanted:
            raise ValueError(
                f"variance {self.diffusion.variance!r} needs unet.out_channels={wanted}, got {unet.out_channels}"
            )
        if unet.image_channels != (4 if self.ports.masked is not None else 0):
            masked = "a port for masked pictures" if self.ports.masked is not None else "no port for masked pictures"
            raise ValueError(f"{masked} does not fit unet.image_channels={unet.image_channels}; it needs 4, or else 0")
        if self.image_size % unet.factor:
            raise ValueError(f"image_size={self.image_size} is not a multiple of {unet.factor}, which the U-Net folds")
        self.ports.check(unet.context_dim)
        if self.ports.clip_text is not None and self.ports.states is not None:
            raise ValueError("ports.clip_text and ports.states both are what one frozen encoder says: name one of them")
        if self.latents is not None:
            self._check_latents(self.latents)
        if self.ports.clip_text is not None and self.ports.clip_image is None:
            raise ValueError("ports.clip_text needs ports.clip_image beside it")
        return self

    def _check_latents(self, latents: LatentsConfig) -> None:
        if self.diffusion.space != "latents":
            raise ValueError(f"latents are given, so diffusion.space must be 'latents', got {self.diffusion.space!r}")
        if latents.channels not in (None, self.unet.in_channels):
            raise ValueError(f"unet.in_channels={self.unet.in_channels}, latents have {latents.channels} channels")
        if self.ports.masked is not None or self.ports.clip_image is not None:
            raise ValueError("a decoder over latents has no ports that see pictures, ports.masked and ports.clip_image")


class Decoder(nn.Module):
    """`decoder(x_t, t, decoder.condition(Given(…))) → raw output`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config, context_dim = config, config.unet.context_dim
        if context_dim is not None and not {"clip_image", "text", "clip_text", "states"} & {*config.ports.names}:
            raise ValueError(f"unet.context_dim={context_dim}, but no port gives tokens to attend to")
        self.unet = UNet(config.unet)
        self.ports = config.ports.build(config.unet.time_dim, config.unet.context_dim)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """(B, 3, H, W) and timesteps (B,) → (B, out_channels, H, W); see `UNet.forward`."""
        out: Tensor = self.unet(x_t, t, condition)
        return out

    def condition(self, given: Given) -> Condition:
        """What the network is conditioned on (unCLIP, section 2.1); see `Ports.read` for errors."""
        return self.ports.read(given, *self._pictures)

    def null_condition(self, num: int, masked: tuple[Tensor, Tensor] | None = None) -> Condition:
        """The unconditional branch of guidance for `num` pictures: empty captions, the null embedding and the absent
        class; what is known of a `masked` picture stays known.

        Raises:
            ValueError: for networks over classes that know no absent class, and for those that read CLIP's states, of
                the empty sentence too.
        """
        return self.ports.null(num, masked, *self._pictures)

    def project(self, condition: Condition) -> Condition:
        """See `UNet.project`: do this once before sampling, so that every step reuses the keys and values."""
        return self.unet.project(condition)

    @property
    def _pictures(self) -> tuple[tuple[int, int], torch.device]:
        """Size and device."""
        return (self.config.image_size, self.config.image_size), self.unet.conv_in.weight.device
