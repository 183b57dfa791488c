"""Published sizes of KL autoencoders, by name (Rombach et al. 2022, table 8)."""

from t2i.stages.autoencoder.model import AutoencoderConfig

PRESETS: dict[str, AutoencoderConfig] = {
    "kl-f4": AutoencoderConfig(multipliers=(1, 2, 4), z_channels=3, embed_dim=3),
    "kl-f8": AutoencoderConfig(),  # of Stable Diffusion: 83,653,863 parameters
    "kl-f16": AutoencoderConfig(multipliers=(1, 1, 2, 2, 4), z_channels=16, embed_dim=16, attention=(16,)),
    "kl-f32": AutoencoderConfig(multipliers=(1, 1, 2, 2, 4, 4), z_channels=64, embed_dim=64, attention=(16, 32)),
}
SCALE = {"kl-f8": 0.18215}
"""What latents are multiplied with by Stable Diffusion 1 and 2; of the others none was published."""
SDXL = ("kl-f8-sdxl", 0.13025)
"""Stable Diffusion XL's is of KL-f8's size and keys, with other weights and this scale."""
