"""What one picture costs in arithmetic, counted without weights and without a picture: tensors are shapes.

1 picture · L caption tokens · S side in pixels
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from t2i.core.types import Condition, TextFeatures
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.schedules import respaced_steps
from t2i.stages.ar_prior.model import ArPrior
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.decoder.model import Decoder
from t2i.stages.prior.model import Prior
from t2i.stages.upsampler.model import Upsampler

_CLIP_CONTEXT = 77  # tokens of OpenAI's CLIP; networks that read its states have no limit of their own


class Cost(NamedTuple):
    """FLOPs, two for each product that is added up: `once` for a picture, to read what it is drawn from, and `step` for
    each evaluation of the network."""

    once: int
    step: int

    def of(self, sampling: Sampling, num_steps: int, passes: int = 1) -> int:
        """FLOPs of a picture; guidance reads and evaluates twice.

        Args:
            num_steps: of the training process.
            passes: how often all of it is sampled for one picture.
        """
        rows = 1 if sampling.guidance == 1 else 2
        return rows * (self.once + passes * len(respaced_steps(sampling.steps, num_steps)) * self.step)


@torch.no_grad()
def cost(model: nn.Module) -> Cost | None:
    """Of a prior, a decoder or an upsampler, or of CLIP, which sees a picture in one `step`, as an autoregressive prior
    draws all of its codes; None of others.

    Only the config of `model` counts; it may be on the meta device.
    """
    if not isinstance(model, ArPrior | Prior | Decoder | Upsampler | ClipEncoder):
        return None
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):  # other kernels of attention are not counted on a CPU
        bare = type(model)(model.config).eval()  # type: ignore[arg-type]
        once, step = FlopCounterMode(display=False), FlopCounterMode(display=False)
        if isinstance(bare, ClipEncoder):
            with step, torch.enable_grad():  # nor is the fast path of torch's attention, which is for inference
                _see(bare)
            return Cost(0, step.get_total_flops())
        with once:
            condition = _read(bare)
        with step:
            if isinstance(bare, ArPrior):
                bare(torch.zeros(1, bare.config.num_components, dtype=torch.long), condition)
            else:
                bare(_nothing(bare), torch.zeros(1, dtype=torch.long), condition)
    return Cost(once.get_total_flops(), step.get_total_flops())


def _see(clip: ClipEncoder) -> None:
    if clip.clip.visual is not None:
        clip.encode_image(torch.zeros(1, 3, clip.image_size, clip.image_size))


def _nothing(model: Prior | Decoder | Upsampler) -> Tensor:
    """An x_t of the size that the network was trained for."""
    if isinstance(model, Prior):
        return torch.zeros(1, model.config.clip_dim)
    side = model.config.image_size
    return torch.zeros(1, model.config.unet.in_channels, side, side)


def _read(model: ArPrior | Prior | Decoder | Upsampler) -> Condition:
    """What the network is told of a picture, through all of its ports and as long as can be."""
    if isinstance(model, ArPrior | Prior):
        p = model.config
        return model.condition(_sentence(p.context, p.clip_dim, p.text_width))
    c = model.config
    tokens = torch.zeros(1, c.text.context, dtype=torch.long) if c.text is not None else None
    labels = torch.zeros(1, dtype=torch.long) if c.num_classes is not None else None
    if isinstance(model, Upsampler):
        low_res = torch.zeros(1, 3, model.config.low_size, model.config.low_size)
        return model.project(model.condition(low_res, tokens, labels=labels))
    d = model.config
    z_i = torch.zeros(1, d.clip_dim) if d.clip_dim is not None else None
    text = _sentence(_CLIP_CONTEXT, d.clip_dim or 0, d.clip_text_width) if d.clip_text_width is not None else None
    if tokens is None and labels is None and z_i is None:
        return model.null_condition(1)
    return model.project(model.condition(tokens, None, z_i, labels, clip_text=text))


def _sentence(context: int, dim: int, width: int) -> TextFeatures:
    mask = torch.ones(1, context, dtype=torch.bool)
    return TextFeatures(torch.zeros(1, dim), torch.zeros(1, context, width), mask)
