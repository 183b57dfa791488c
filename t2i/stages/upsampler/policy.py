"""The upsampler in a chain and in a training."""

from math import lcm
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.data.config import DataConfig
from t2i.diffusion.tiles import SMALLEST
from t2i.nn.ports import Given
from t2i.stages.follow import class_port, text_port
from t2i.stages.stage import Example, How, Inputs, Neighbours
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig
from t2i.stages.upsampler.sample import quantised, sample
from t2i.text.tokenizers import tokenize


def draw(model: Upsampler, inputs: Inputs, how: How) -> Tensor:
    """Pictures (B, 3, H, W), those of `low_res` enlarged; of the rest it takes what it has ports for."""
    assert inputs.low_res is not None
    ports, text = model.config.ports, None
    side = inputs.low_res.shape[-1] * model.config.magnification
    if ports.text is not None and ports.text.tokenizer is not None:
        tokens, mask = tokenize(ports.text.tokenizer.build(), inputs.prompts)
        text = tokens.to(inputs.low_res.device), mask.to(inputs.low_res.device)
    given = Given(
        inputs.num,
        text=text,
        classes=inputs.classes if ports.classes is not None else None,
        masked=inputs.masked(side) if inputs.masked and ports.masked is not None else None,
    )
    condition = model.condition(quantised(model, inputs.low_res), given)
    return sample(
        model, condition, how.streams, how.sampling, hooks=how.hooks, max_tile=how.max_tile, callback=how.callback
    )


def rows(config: UpsamplerConfig, max_batch: int, max_tile: int | None) -> int:
    """`max_batch`, or fewer where the U-Net works on more than 64 × 64 places at once."""
    side = config.image_size if max_tile is None else min(config.image_size, max_tile)
    places = side // config.unet.patch_size
    return max_batch * 64**2 // places**2


def check_tile(config: UpsamplerConfig, side: int) -> None:
    """ValueError for tiles that the U-Net cannot fold, and for networks that see more than the small picture."""
    if config.ports.names:
        raise ValueError(f"an upsampler that reads {config.ports.names[0]} sees its picture whole")
    if side < (least := SMALLEST * config.unet.factor):
        raise ValueError(f"must be at least {least}, got {side}")
    if config.unet.attention_positions:
        raise ValueError("not for a network that knows where in the whole picture a pixel lies")


def example(model: Upsampler) -> Example:
    """A whole small picture, and one step of the large one."""
    c = model.config

    def once() -> Any:
        text = classes = None
        if c.ports.text is not None:
            text = torch.zeros(1, c.ports.text.context, dtype=torch.long), None
        if c.ports.classes is not None:
            classes = torch.zeros(1, dtype=torch.long)
        low_res = torch.zeros(1, 3, c.low_size, c.low_size)
        return model.project(model.condition(low_res, Given(1, text=text, classes=classes)))

    def step(condition: Any) -> None:
        x_t = torch.zeros(1, c.unet.in_channels, c.image_size, c.image_size)
        model(x_t, torch.zeros(1, dtype=torch.long), condition)

    return Example(once, step)


def complete(config: UpsamplerConfig, neighbours: Neighbours, data: DataConfig) -> UpsamplerConfig:
    """The config with what follows from its tokeniser and from the classes of the data."""
    found: dict[str, Any] = {}
    if config.ports.text is not None:
        found["text"] = text_port(config.ports.text, None)
    if config.ports.classes is not None:
        found["classes"] = class_port(config.ports.classes, data)
    return config.model_copy(update={"ports": config.ports.model_copy(update=found)})


def fits(model: Upsampler, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for crops that the network cannot fold, whole pictures of another side, or too wide a blur."""
    config, side = model.config, data.side
    if side % (step := lcm(config.magnification, config.unet.factor)):
        raise UsageError(f"{data.side_key}={side} must be a multiple of {step}, or the network cannot fold it")
    drawn = any(source.src == "shapes" for source in data.sources)  # files may hold crops already
    if drawn and data.size != config.image_size:
        raise UsageError(f"data.size={data.size} must equal model.image_size={config.image_size}")
    blur, small = options.degradation, side // config.magnification
    if blur.blur and blur.kernel // 2 >= small:
        raise UsageError(f"task.degradation.kernel={blur.kernel} is too wide for small pictures of {small} pixels")
