"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193): the features of FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675), which
follow people's judgement better than Inception's. The CLS token after the last norm, of pictures of 224 pixels.

N places of the grid of patches · D width
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.core.errors import DataError
from t2i.io.foreign import read_foreign
from t2i.io.weights import load_config
from t2i.measures.extractors.base import (
    Features,
    Network,
    Preparation,
    check_state,
    digest,
    fill,
    named_only,
    untouched,
    weight_files,
)  # fmt: skip
from t2i.measures.extractors.folder import from_transformers

_SIZES = {384: ("small", "S"), 768: ("base", "B"), 1024: ("large", "L"), 1536: ("giant", "g")}  # by width
_PATCH, _SIDE = 14, 224
_GRID = _SIDE // _PATCH
_PREPARE = Preparation(_SIDE, "bicubic")
_TYPES = ("dinov2", "dinov2_with_registers")


def open_dinov2(path: Path, device: torch.device | str) -> Network:
    """DINOv2 from Facebook's `dinov2_vit*14_pretrain.pth` or timm's file, or from a folder of transformers or of timm.

    Raises DataError for what holds another network.
    """
    if not path.is_dir():
        return _from_file(path, device)
    config = load_config(path)
    if isinstance(config.get("architecture"), str) and "dinov2" in config["architecture"]:
        return _from_file(named_only(weight_files(path), path), device)
    if (kind := config.get("model_type")) not in _TYPES:
        raise DataError(f"{path}: a {kind or 'folder'} and no DINOv2; folder= takes other backbones")
    model, _ = from_transformers(path)
    places = model.embeddings.position_embeddings
    model.embeddings.position_embeddings = nn.Parameter(positions(places, kind == _TYPES[1]))
    size = _SIZES.get(model.config.hidden_size) if model.config.patch_size == _PATCH else None
    name = _name(size[1] if size else f"{model.config.hidden_size} wide", kind == _TYPES[1])

    def look(x: Tensor) -> Features:
        return Features(model(pixel_values=x).last_hidden_state[:, 0])

    return Network(
        name, model, look, _prepare(model), sha256=digest(weight_files(path)), device=device, where=str(path)
    )


def _prepare(model: Any) -> Preparation:
    """224 pixels, of other patches than 14 as many of them."""
    patch = model.config.patch_size
    return _PREPARE if patch == _PATCH else Preparation(_GRID * patch)


def _from_file(path: Path, device: torch.device | str) -> Network:
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = check_state(read_foreign(path), path)
    places, width = state.get("pos_embed"), state.get("cls_token", torch.empty(0)).shape[-1]
    if places is None or width not in _SIZES or "blocks.0.ls1.gamma" not in state:
        raise DataError(f"{path}: no DINOv2 of Facebook or timm: it has no pos_embed, cls_token and blocks of one")
    registers = "register_tokens" in state or "reg_token" in state
    size, letter = _SIZES[width]
    with untouched():
        kind = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2"
        network: Any = timm.create_model(kind, pretrained=False, num_classes=0, img_size=_SIDE)
    state = {**state, "pos_embed": positions(places, registers, with_class="reg_token" not in state)}
    state.setdefault("mask_token", torch.zeros(1, width))  # by which timm knows Facebook's names
    renamed: Mapping[str, Tensor] = checkpoint_filter_fn(state, network)
    fill(network, renamed, f"DINOv2 ViT-{letter}/14", path)

    def look(x: Tensor) -> Features:
        return Features(network.forward_features(x)[:, 0])

    return Network(
        _name(letter, registers), network, look, _PREPARE, sha256=digest([path]), device=device, where=str(path)
    )


def _name(size: str, registers: bool) -> str:
    return f"DINOv2 ViT-{size}/14{' with registers' if registers else ''}" if len(size) == 1 else f"DINOv2 {size}"


def positions(embedding: Tensor, registers: bool, with_class: bool = True) -> Tensor:
    """Embeddings of places (1, 1 + N, D) → (1, 1 + 256, D), the first being the class token's, as Facebook's own code
    does it for 224 pixels: bicubic, by a scale that is 0.1 places too large; with registers antialiased and exact."""
    first, places = (embedding[:, :1], embedding[:, 1:]) if with_class else (embedding[:, :0], embedding)
    side = round(places.shape[1] ** 0.5)
    if side == _GRID:
        return embedding.detach()
    grid = places.detach().float().reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, side, side)
    if registers:
        grid = F.interpolate(grid, size=(_GRID, _GRID), mode="bicubic", antialias=True)
    else:
        grid = F.interpolate(grid, scale_factor=((_GRID + 0.1) / side,) * 2, mode="bicubic")
    return torch.cat([first.detach().float(), grid.flatten(2).transpose(1, 2)], dim=1)
