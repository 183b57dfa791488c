"""Any CLIP of open_clip from a local file: embeddings of pictures, and of sentences for the CLIP score.

CMMD (Jayasumana et al. 2024, arXiv 2401.09603) is made of ViT-L-14-336-quickgelu with OpenAI's file.

B pictures or sentences · D width of the embedding
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import DataError, UsageError, did_you_mean, quoted, shown
from t2i.core.paths import path_of
from t2i.io.decode import once
from t2i.io.foreign import is_program, read_foreign
from t2i.io.torchscript import read_program
from t2i.measures.extractors.base import (
    Features,
    Network,
    Preparation,
    check_state,
    digest,
    exact,
    fill,
    side,
    untouched,
)
from t2i.stages.clip.model import OPENAI_MEAN, OPENAI_STD

_FACTS = ("input_resolution", "context_length", "vocab_size")  # numbers among the weights of OpenAI's programs


class OpenClip(Network):
    """A CLIP of open_clip, see `TextExtractor`."""

    architecture: str
    tokenizer: Any = None

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """See `TextExtractor`. The tokeniser of some architectures lies on the hub: DataError if it is not at hand."""
        import open_clip

        if self.tokenizer is None:
            try:
                with untouched():
                    self.tokenizer = open_clip.get_tokenizer(self.architecture)
            except (OSError, ValueError, ImportError) as error:
                raise DataError(f"the tokeniser of {self.architecture} is not at hand: {shown(error, 200)}") from None
        with torch.no_grad(), exact(self.device):
            tokens = self.tokenizer(list(captions)).to(self.device)
            return self.network.encode_text(tokens).float()  # type: ignore[operator]


def open_open_clip(spec: str, device: torch.device | str) -> OpenClip:
    """ARCHITECTURE:FILE: an architecture of `open_clip.list_models()` with weights of open_clip's or OpenAI's names.

    Raises UsageError for an unknown architecture, DataError for a file that holds other weights.
    """
    import open_clip

    name, colon, file = spec.partition(":")
    choices = open_clip.list_models()
    if name not in choices:
        raise UsageError(f"open_clip knows no architecture {quoted(name)}{did_you_mean(name, choices)}")
    if not colon or not file:
        raise UsageError(f"expected open_clip={name}:FILE, got open_clip={spec}")
    path = path_of(file, "the file of weights").expanduser()
    state = _state(name, path)
    try:
        with untouched():
            model: Any = open_clip.create_model(name, pretrained=None, pretrained_text=False, device="cpu")
    except (OSError, RuntimeError, ValueError, ImportError) as error:  # a text tower that lies on the hub
        raise UsageError(f"open_clip builds no {name} here: {shown(error, 200)}") from None
    fill(model, _converted(model, state), f"open_clip's {name}", path)

    def look(x: Tensor) -> Features:
        return Features(model.encode_image(x))

    found = OpenClip(
        f"open_clip {name}", model, look, _prepare(name, model, path),
        sha256=digest([path]), device=device, where=str(path),
    )  # fmt: skip
    found.architecture = name
    return found


def _state(name: str, path: Path) -> dict[str, Tensor]:
    """The weights of a file; of OpenAI's programs as well, which are read and not run."""
    import open_clip

    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file of weights")
    if not is_program(path):
        return check_state(read_foreign(path), path)
    if not (open_clip.get_model_config(name) or {}).get("quick_gelu"):
        near = (
            f"{name}-quickgelu" if f"{name}-quickgelu" in open_clip.list_models() else "an architecture with QuickGELU"
        )
        raise UsageError(f"{path}: a program of OpenAI's, whose CLIPs use QuickGELU: take {near}")
    return {key: weight for key, weight in read_program(path).items() if key not in _FACTS}


def _converted(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other names and shapes that open_clip itself reads; nothing is resized."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(model, dict(state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):
        if key in state and isinstance(getattr(model, key, None), Tensor):
            state[key] = state[key].reshape(getattr(model, key).shape)
    state.pop("text.transformer.embeddings.position_ids", None)
    return {key: weight for key, weight in state.items() if key != "attn_mask"}


def _prepare(name: str, model: Any, path: Path) -> Preparation:
    """Size of the tower; mean, std and resampling of the weights published for that name, else the model's own. A file
    does not say whose it is: where published ones differ, the most common rule is taken, and a warning says so."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    own: dict[str, Any] = {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic"}
    own |= {key: value for key, value in getattr(model.visual, "preprocess_cfg", {}).items() if value}
    rules = Counter(
        (tuple(each.get("mean") or own["mean"]), tuple(each.get("std") or own["std"]), each.get("interpolation"))
        for each in (get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name))
    )
    usual = (tuple(own["mean"]), tuple(own["std"]), own["interpolation"])
    mean, std, mode = rules.most_common(1)[0][0] if rules else usual
    if len(rules) > 1:
        once(f"published weights of {name} differ in what pixels they are given: {path} is taken with mean {mean}")
    return Preparation(side(model.visual.image_size, str(path)), mode or "bicubic", mean, std)
