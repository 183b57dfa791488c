"""Any backbone by its folder: of transformers (`config.json` with a `model_type`) or of timm (with an `architecture`).
Safetensors alone, and no code but what is installed.

B pictures · D features
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor

from t2i.core.errors import DataError, UsageError, did_you_mean, quoted, shown
from t2i.io.files import read_json
from t2i.io.foreign import read_foreign
from t2i.io.weights import load_config
from t2i.measures.extractors.base import (
    Features,
    Network,
    Preparation,
    digest,
    exact,
    fill,
    named_only,
    side,
    untouched,
    weight_files,
)  # fmt: skip

_BROKEN = (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, AttributeError, SafetensorError,
           StrictDataclassError)  # fmt: skip
_MODES = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}  # PIL's numbers, timm's words


def open_folder(folder: Path, device: torch.device | str) -> Network:
    """A backbone of transformers or timm, see the module.

    Raises UsageError for a folder of something else, DataError for one that is damaged or incomplete.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; a file is given to dinov2=, open_clip=, torchvision= or inception=")
    config = load_config(folder)
    if isinstance(stage := config.get("stage"), str):
        raise UsageError(
            f"{folder} is a stage of t2i, {shown(stage)}; of those clip={folder} and reader= are extractors"
        )
    if isinstance(config.get("architecture"), str):
        return _open_timm(folder, config, device)
    if isinstance(config.get("model_type"), str):
        return _open_transformers(folder, device)
    raise DataError(f"{folder}: its config.json has neither the model_type of transformers nor timm's architecture")


def from_transformers(folder: Path) -> tuple[Any, set[str]]:
    """A model of transformers on the CPU in float32, and what its weights lack; DataError if it cannot be opened."""
    from transformers import AutoModel
    from transformers.utils import logging

    weight_files(folder)
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    how: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
    try:
        with untouched():
            model, found = AutoModel.from_pretrained(
                folder.as_posix(), dtype=torch.float32, output_loading_info=True, **how
            )
    except _BROKEN as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = shown(lines[0] if lines else type(error).__name__, 300)
        raise DataError(f"{folder}: no model of transformers that can be opened: {said}") from None
    finally:
        if bar:
            logging.enable_progress_bar()
    lacking = {str(key) for key in found["missing_keys"]}
    wrong = [*sorted(key for key in lacking if "pooler." not in key), *found["mismatched_keys"]]
    if wrong:
        raise DataError(f"{folder}: its weights lack {quoted(wrong[0])} and {len(wrong) - 1} more of its config")
    return model, lacking


class JointNetwork(Network):
    """A CLIP of transformers, which reads as well, see `TextExtractor`."""

    folder: Path

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """See `TextExtractor`."""
        from transformers import AutoTokenizer

        how: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        try:
            with untouched():
                words: Any = AutoTokenizer.from_pretrained(self.folder.as_posix(), **how)
            if len(words) <= len({*words.all_special_tokens}) + 1:  # of missing files transformers makes one without
                raise OSError("it has no words, so its files are missing")
        except _BROKEN as error:
            raise DataError(f"{self.folder}: no tokeniser that can be opened: {shown(error, 300)}") from None
        limit = self.network.config.text_config.max_position_embeddings  # type: ignore[union-attr]
        tokens = words(list(captions), padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad(), exact(self.device):
            return _pooled(self.network.get_text_features(**tokens.to(self.device))).float()  # type: ignore[operator]


def _open_transformers(folder: Path, device: torch.device | str) -> Network:
    """Its pooled output; of one whose file has no pooler, as classifiers have none, the first token."""
    model, lacking = from_transformers(folder)
    kind = model.config.model_type
    joint = hasattr(model, "get_image_features")
    if not joint and model.main_input_name != "pixel_values":
        raise UsageError(f"{folder}: a {kind} is given {model.main_input_name} and no pictures")

    def look(x: Tensor) -> Features:
        if joint:
            return Features(_pooled(model.get_image_features(pixel_values=x)))
        out = model(pixel_values=x)
        pool = None if lacking else getattr(out, "pooler_output", None)
        return Features(out.last_hidden_state[:, 0] if pool is None else pool.flatten(1))

    made: type[Network] = JointNetwork if joint else Network
    found = made(
        f"{kind} {folder.absolute().name}", model, look, _processor(folder),
        sha256=digest(weight_files(folder)), device=device, where=str(folder),
    )  # fmt: skip
    if isinstance(found, JointNetwork):
        found.folder = folder
    return found


def _pooled(out: Any) -> Tensor:
    """What `get_image_features` gives: a tensor, or, of newer versions of transformers, one beside others."""
    pooled: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return pooled


def _processor(folder: Path) -> Preparation:
    """What the folder's own image processor says of size, mean and std; its crop is left out, all is seen."""
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("image_processor"), dict):
        content = content["image_processor"]
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object")
    size = content.get("crop_size") if content.get("do_center_crop", "crop_size" in content) else content.get("size")
    scale = 255 * content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 255
    mean, std = content.get("image_mean", ()), content.get("image_std", ())
    if not content.get("do_normalize", True):
        mean, std = (0, 0, 0), (1, 1, 1)
    return _prepared(size, content.get("resample", 2), [m / scale for m in mean], [s / scale for s in std], path)


def _prepared(size: Any, mode: Any, mean: Sequence[float], std: Sequence[float], where: Path) -> Preparation:
    if mode not in _MODES:
        raise DataError(f"{where}: resizes by {quoted(mode)}; bilinear and bicubic are known")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise DataError(f"{where}: mean and std must be of three colours, got {quoted(mean)} and {quoted(std)}")
    return Preparation(side(size, str(where)), _MODES[mode], tuple(mean), tuple(std))


def _open_timm(folder: Path, config: dict[str, Any], device: torch.device | str) -> Network:
    """What its classifier is given, and the classes if it has one."""
    import timm

    name = config["architecture"]
    if not timm.is_model(name):
        raise DataError(f"{folder}: timm knows no architecture {quoted(name)}{did_you_mean(name, timm.list_models())}")
    about, path = config.get("pretrained_cfg"), named_only(weight_files(folder), folder)
    about = about if isinstance(about, dict) else config
    classes, more = config.get("num_classes", about.get("num_classes", 1000)), config.get("model_args")
    try:
        with untouched():
            network: Any = timm.create_model(name, pretrained=False, num_classes=classes, **(more or {}))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise DataError(f"{folder}: timm builds no {name} of its config.json: {shown(error)}") from None
    fill(network, read_foreign(path), f"timm's {name}", path)
    where = folder / "config.json"
    prepare = _prepared(
        about.get("input_size"),
        about.get("interpolation", "bicubic"),
        about.get("mean", ()),
        about.get("std", ()),
        where,
    )

    def look(x: Tensor) -> Features:
        maps = network.forward_features(x)
        pool = network.forward_head(maps, pre_logits=True).flatten(1)
        return Features(pool, network.forward_head(maps) if classes else None)

    return Network(f"timm {name}", network, look, prepare, sha256=digest([path]), device=device, where=str(path))
