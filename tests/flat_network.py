"""A small flat U-Net that nobody published, keys as in guided-diffusion."""

import torch
from golden_tools import fill_state_dict

from t2i.stages.decoder.convert import flat_entries
from t2i.stages.decoder.model import Decoder, DecoderConfig

SMALL = {  # a network that nobody published
    "unet": {"channels": 32, "multipliers": [1, 2], "num_blocks": 1, "attention": [2], "head_channels": 16},
    "image_size": 16,
    "ports": {"classes": {"num": 5}},
}
FACTS = ["head_channels=16", "image_size=16", "schedule=cosine", "num_steps=1000", "rescale_timesteps=false"]


def unpublished() -> tuple[DecoderConfig, dict[str, torch.Tensor]]:
    """Its config, and weights by their foreign keys."""
    config = DecoderConfig.model_validate(SMALL)
    wanted = {key: tuple(value.shape) for key, value in Decoder(config).state_dict().items()}
    keys = {k: s for e in flat_entries(config, "new") for ks, _, s in e.tensors(wanted) for k in ks}
    return config, fill_state_dict(keys)
