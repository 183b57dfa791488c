"""Configs and weights of before version 0.2, in which every port stood flat among the keys of its network."""

from typing import Any

from t2i.core.config import agreed

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
    """A network's config with its flat keys moved into `ports`; ValueError where `ports` says otherwise."""
    flat = {key: value for key, value in data.items() if key in FLAT or key in ("text", "tokenizer", "inpaint")}
    if not flat:
        return data
    if flat.get("null_class") and flat.get("num_classes") is None:
        raise ValueError("null_class=True needs num_classes, got None")
    ports: dict[str, Any] = {}
    for key, (port, name) in FLAT.items():
        if key in flat:
            ports.setdefault(port, {})[name] = flat[key]
    for port, key in (("clip_image", "clip_dim"), ("clip_text", "clip_text_width"), ("classes", "num_classes")):
        if key in flat and flat[key] is None:
            ports[port] = None
        elif key not in flat and port == "classes":
            ports.pop(port, None)  # what is said of classes that there are none of
    if ports.get("clip_text") and flat.get("clip_dim") is not None:
        ports["clip_text"]["dim"] = flat["clip_dim"]
    if "inpaint" in flat:
        ports["masked"] = {} if flat["inpaint"] else None
    if "text" in flat or "tokenizer" in flat:
        ports["text"] = _text(flat.get("text"), flat.get("tokenizer"))
    rest = {key: value for key, value in data.items() if key not in flat}
    return rest | {"ports": agreed(ports, data.get("ports"), "ports")}


def renamed(key: str) -> str:
    """The name that a tensor has today."""
    return next((new + key.removeprefix(old) for old, new in _PREFIXES.items() if key.startswith(old)), key)


def _text(text: Any, tokenizer: Any) -> Any:
    if text is None:
        if tokenizer is not None:
            raise ValueError("a tokenizer needs a text transformer to read its tokens; its key is ports.text.tokenizer")
        return None
    given = text if isinstance(text, dict) else text.model_dump(exclude_unset=True)
    return given if tokenizer is None else {**given, "tokenizer": tokenizer}
