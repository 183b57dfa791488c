"""The trainable stages by name, and how each is saved and loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from t2i.core.assets import asset
from t2i.core.config import Config, parse
from t2i.core.errors import DataError, UsageError, did_you_mean, explain
from t2i.io.weights import MAX_SHARD_SIZE, load_folder, misfit, save_folder


@dataclass(frozen=True)
class Stage:
    """Where a stage's classes live; nothing is imported before it is asked for."""

    module: str
    config: str
    model: str
    task: str
    options: str

    def _get(self, part: str, name: str) -> Any:
        return getattr(import_module(f"t2i.stages.{self.module}.{part}"), name)

    @property
    def config_class(self) -> type[Config]:
        return self._get("model", self.config)

    @property
    def model_class(self) -> Callable[[Config], nn.Module]:
        return self._get("model", self.model)

    @property
    def options_class(self) -> type[Config]:
        return self._get("task", self.options)

    @property
    def presets(self) -> Mapping[str, Config]:
        """Published networks of this stage by name, where there are any."""
        try:
            return self._get("presets", "PRESETS")
        except ModuleNotFoundError:
            return {}

    @property
    def task_class(self) -> Callable[..., nn.Module]:
        return self._get("task", self.task)


STAGES = {
    "clip": Stage("clip", "ClipConfig", "ClipEncoder", "ClipTask", "ClipOptions"),
    "prior": Stage("prior", "PriorConfig", "Prior", "PriorTask", "PriorOptions"),
    "ar_prior": Stage("ar_prior", "ArPriorConfig", "ArPrior", "ArPriorTask", "ArPriorOptions"),
    "laion_prior": Stage(
        "dalle2_pytorch.prior", "LaionPriorConfig", "LaionPrior", "LaionPriorTask", "LaionPriorOptions"
    ),
    "laion_decoder": Stage(
        "dalle2_pytorch.decoder", "LaionDecoderConfig", "LaionDecoder", "LaionDecoderTask", "LaionDecoderOptions"
    ),
    "decoder": Stage("decoder", "DecoderConfig", "Decoder", "DecoderTask", "DecoderOptions"),
    "upsampler": Stage("upsampler", "UpsamplerConfig", "Upsampler", "UpsamplerTask", "UpsamplerOptions"),
    "reader": Stage("reader", "ReaderConfig", "Reader", "ReaderTask", "ReaderOptions"),
    "classifier": Stage("classifier", "ClassifierConfig", "Classifier", "ClassifierTask", "ClassifierOptions"),
    "noised_clip": Stage("noised_clip", "NoisedClipConfig", "NoisedClip", "NoisedClipTask", "NoisedClipOptions"),
}


def stage(name: str) -> Stage:
    """A stage by name; an unknown name raises UsageError with the nearest known one."""
    if name not in STAGES:
        raise UsageError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}{did_you_mean(name, STAGES)}")
    return STAGES[name]


def save_stage(
    folder: str | Path,
    name: str,
    model: nn.Module,
    state: dict[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write `config.json` and safetensors, of `max_shard_size` bytes at most; `state` replaces the model's own weights,
    for example by their average. `dtype` is that of the stored parameters; buffers, which hold what was measured, keep
    theirs."""
    measured = {name for name, _ in model.named_buffers()}
    state = model.state_dict() if state is None else state
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() and k not in measured else v for k, v in state.items()}
    config = {"stage": name, "model": model.config.model_dump(mode="json")}  # type: ignore[union-attr, operator]
    save_folder(folder, config, state, max_shard_size=max_shard_size)


def find_stage(folder: str | Path) -> Path:
    """A stage's folder by path, or by its path below the bundled `weights/`, such as `weights/shapes/clip`."""
    folder = Path(folder)
    bundled = asset("weights", *folder.parts[1:] if folder.parts[:1] == ("weights",) else folder.parts)
    return folder if folder.is_dir() or not bundled.is_dir() else bundled


def load_stage(folder: str | Path, expect: str | Sequence[str] | None = None) -> nn.Module:
    """The model of a stage folder (see `find_stage`), in float32 on the CPU, in evaluation mode.

    `expect` is the kind of stage that it must be, or several that it may be.

    Raises DataError for a missing, truncated or foreign folder and for weights that do not fit their config.
    """
    folder = find_stage(folder)
    config, state = load_folder(folder)
    name = str(config.get("stage", ""))
    if name not in STAGES:
        raise DataError(f"{folder}: config.json names no known stage (found {name!r})")
    kinds = [expect] if isinstance(expect, str) else expect
    if kinds is not None and name not in kinds:
        raise DataError(f"{folder}: holds a {name}, expected a {' or '.join(kinds)}")
    model_config = config.get("model", {})
    elsewhere = model_config.get("pretrained") if isinstance(model_config, dict) else None  # null in what we save
    if elsewhere is not None:
        raise DataError(f"{folder}: config.json wants weights from elsewhere (pretrained={elsewhere!r})")
    unfit = f"{folder}: config.json does not fit this version of t2i"
    with explain(unfit, DataError):
        model = STAGES[name].model_class(parse(model_config, STAGES[name].config_class, f"{unfit}: model", DataError))
    if problem := misfit(model.state_dict(), state):
        raise DataError(f"{folder}: weights do not fit config.json: the folder {problem}")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval()
