"""Half precision as it was published: the weights of ADM and GLIDE that are stored in float16, and no others."""

from typing import TypeVar

import torch
from torch import nn

from t2i.nn.attention import Attention
from t2i.nn.encoder import Encoder
from t2i.nn.ports import TextPort
from t2i.nn.transformer import TextTransformer

M = TypeVar("M", bound=nn.Module)


def half_trunk(module: M, dtype: torch.dtype = torch.float16) -> M:
    """Convert a U-Net, or a stage around one, in place (guided-diffusion's and GLIDE's `convert_to_fp16`).

    Half become the convolutions and attention layers of the U-Net, the linear layers and the token table of the text
    transformer, and what makes its vector. In float32 stay every norm, everything of time, labels and CLIP embeddings,
    the rows of positions and padding, and what turns features into an output: the U-Net's last convolution, a
    classifier's head.
    """
    for part in module.modules():
        if isinstance(part, Encoder):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d | Attention) and layer is not getattr(part, "conv_out", None):
                    layer.to(dtype)
        elif isinstance(part, TextTransformer):
            part.tokens.to(dtype)
            for layer in part.modules():
                if isinstance(layer, nn.Linear):
                    layer.to(dtype)
        elif isinstance(part, TextPort):
            part.vector.to(dtype)
    return module
