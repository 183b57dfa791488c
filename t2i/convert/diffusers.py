"""Networks whose folders say what they are, whatever their size: those of diffusers that unCLIP is made of, the KL
autoencoder of latent diffusion, and CLIP in the words of transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.convert.folder import weight_files
from t2i.core.errors import DataError, UsageError, explain
from t2i.io.files import read_json
from t2i.io.foreign import read_foreign
from t2i.keymaps.flat import Layout
from t2i.stages.autoencoder import convert as autoencoder
from t2i.stages.clip import convert as clip
from t2i.stages.consistency_decoder import convert as consistency
from t2i.stages.decoder import convert as decoder
from t2i.stages.prior import convert as prior
from t2i.stages.upsampler import convert as upsampler

SMALL = 64
"""Side of the pictures that an upsampler enlarges, where no decoder lies beside it."""


def layout_of(paths: Sequence[Path]) -> Layout | None:
    """The network of one or two folders with a `config.json`; None if their class is none of those.

    Raises:
        UsageError: a prior is not in its pipeline's folder, whose scheduler says how far x_0 is clamped.
        DataError: a config says something that no network here does.
    """
    if not all((path / "config.json").is_file() for path in paths):
        return None
    configs = [read_json(path / "config.json") for path in paths]
    if not all(isinstance(config, dict) for config in configs):
        return None
    kinds = {_kind(config): config for config in configs}
    where = " + ".join(str(path / "config.json") for path in paths)
    with explain(where, DataError):
        return _layout(kinds, configs, paths)


def _kind(config: Mapping[str, Any]) -> str:
    """The class that a folder of diffusers or transformers holds."""
    return str(config.get("_class_name") or (config.get("architectures") or ["unknown"])[0])


def _layout(kinds: Mapping[str, Any], configs: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> Layout | None:
    match tuple(sorted(kinds)):
        case ("PriorTransformer",):
            config = prior.config_from(configs[0], _clamp(paths[0]))
            return prior.diffusers_layout("PriorTransformer", config)
        case ("UNet2DConditionModel", "UnCLIPTextProjModel") as pair:
            return decoder.diffusers_layout("UNet2DConditionModel", decoder.config_from(*(kinds[k] for k in pair)))
        case ("UNet2DModel",) if len(paths) == 2:
            return upsampler.diffusers_layout("UNet2DModel", upsampler.config_from(configs[0], _low_size(paths[0])))
        case ("AutoencoderKL",):
            shapes = {key: tuple(x.shape) for file in weight_files(paths[0]) for key, x in read_foreign(file).items()}
            return autoencoder.diffusers_layout("AutoencoderKL", configs[0], shapes)
        case ("CLIPTextModelWithProjection",):
            return clip.transformers_layout("CLIP", clip.config_from(configs[0], None))
        case ("CLIPTextModelWithProjection", "CLIPVisionModelWithProjection") as pair:
            return clip.transformers_layout("CLIP", clip.config_from(*(kinds[k] for k in pair)))
        case ("ConsistencyDecoderVAE",):
            return consistency.diffusers_layout("ConsistencyDecoderVAE", consistency.config_from(configs[0]))
    return None


def _low_size(folder: Path) -> int:
    """The side of the pictures that the decoder beside an upsampler, in its pipeline's folder, draws."""
    path = folder.parent / "decoder" / "config.json"
    return int(read_json(path)["sample_size"]) if path.is_file() else SMALL


def _clamp(folder: Path) -> float:
    """How far a prior's scheduler, beside it in its pipeline's folder, clamps x_0."""
    for name in ("prior_scheduler", "scheduler"):
        path = folder.parent / name / "scheduler_config.json"
        if path.is_file():
            theirs = read_json(path)
            if theirs.get("prediction_type", "sample") != "sample" or not theirs.get("clip_sample", True):
                raise DataError(f"{path}: not the scheduler of a prior that predicts x_0 and clamps it")
            return float(theirs["clip_sample_range"])
    raise UsageError(
        f"{folder}: no scheduler beside it says how far x_0 is clamped; name the network: karlo-diffusers-prior (5) or "
        "kandinsky-2.1-prior (10)"
    )
