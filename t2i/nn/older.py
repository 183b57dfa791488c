"""Configs and weights of before version 0.2, in which every port stood flat among the keys of its network."""

from typing import Any

from t2i.core.config import over

FLAT = {
    "clip_dim": ("clip_image", "dim"),
    "clip_mark": ("clip_image", "fingerprint"),
    "num_clip_tokens": ("clip_image", "num_tokens"),
    "clip_scale": ("clip_image", "scale"),
    "clip_text_width": ("clip_text", "width"),
    "num_classes": ("classes", "num"),
    "null_class": ("classes", "null_class"),
    "class_names": ("classes", "names"),
}
"""Flat key → port and its key there; `text`, `tokenizer` and `inpaint` are moved by hand."""
_PREFIXES = {
    "text.": "ports.text.encoder.",
    "text_vector.": "ports.text.vector.",
    "clip_vector.": "ports.clip_image.vector.",
    "clip_tokens.": "ports.clip_image.tokens.",
    "clip_null": "ports.clip_image.nothing",
    "clip_text_vector.": "ports.clip_text.vector.",
    "clip_text.": "ports.clip_text.states.",
    "classes.": "ports.classes.table.",
}


def ports_section(data: dict[str, Any]) -> dict[str, Any]:
    """A network's config with its flat keys moved into `ports`.

    Where a key stands in both places, today's counts.
    """
    flat = {key: value for key, value in data.items() if key in FLAT or key in ("text", "tokenizer", "inpaint")}
    if not flat:
        return data
    ports: dict[str, Any] = {}
    for key, (port, name) in FLAT.items():
        if key in flat:
            ports.setdefault(port, {})[name] = flat[key]
    dim = flat.get("clip_dim")
    if "clip_dim" in flat and dim is None:
        ports["clip_image"] = None
    if flat.get("clip_text_width") is None:
        ports["clip_text"] = None
    elif dim is not None:
        ports["clip_text"]["dim"] = dim
    if flat.get("num_classes") is None:
        if flat.get("null_class"):
            raise ValueError("null_class=True needs num_classes, got None")
        ports["classes"] = None
    if flat.get("inpaint"):
        ports["masked"] = {}
    ports["text"] = _text(flat.get("text"), flat.get("tokenizer"))
    rest = {key: value for key, value in data.items() if key not in flat}
    return rest | {"ports": over(ports, data.get("ports") or {})}


def renamed(key: str) -> str:
    """The name that a tensor has today."""
    return next((new + key.removeprefix(old) for old, new in _PREFIXES.items() if key.startswith(old)), key)


def _text(text: Any, tokenizer: Any) -> Any:
    if text is None:
        if tokenizer is not None:
            raise ValueError("a tokenizer needs a text transformer to read its tokens, got text=None")
        return None
    given = text if isinstance(text, dict) else text.model_dump(exclude_unset=True)
    return given if tokenizer is None else {**given, "tokenizer": tokenizer}
