"""Classifiers of torchvision from a local file: what the last layer is given, and what it says.

B pictures · D features · K classes
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.core.errors import DataError, UsageError, did_you_mean, quoted, shown
from t2i.core.paths import path_of
from t2i.io.foreign import read_foreign
from t2i.measures.extractors.base import Features, Network, Preparation, check_state, digest, fill, untouched

_PUBLISHED: dict[str, dict[str, Any]] = {
    "inception_v3": {"transform_input": True, "init_weights": False},
    "googlenet": {"transform_input": True, "init_weights": False},
}  # as their weights were published with


def open_torchvision(spec: str, device: torch.device | str) -> Network:
    """NAME:FILE of a classifier of torchvision.

    Resized and normalised as the published weights say whose file this is, by its hash; of other files as the first
    that were published for that name.

    Raises UsageError for an unknown name, DataError for a file that holds other weights.
    """
    import torchvision

    name, colon, file = spec.partition(":")
    choices = torchvision.models.list_models(module=torchvision.models)
    if name not in choices:
        raise UsageError(f"torchvision knows no classifier {quoted(name)}{did_you_mean(name, choices)}")
    if not colon or not file:
        raise UsageError(f"expected torchvision={name}:FILE, got torchvision={spec}")
    path = path_of(file, "the file of weights").expanduser()
    state = check_state(read_foreign(path), path)
    network, last = _built(name, state, path)
    fill(network, state, f"torchvision's {name}", path)
    head = network.get_submodule(last)
    owner, _, attribute = last.rpartition(".")
    sha256 = digest([path])
    setattr(network.get_submodule(owner), attribute, nn.Identity())
    both = nn.ModuleDict({"body": network, "head": head})

    def look(x: Tensor) -> Features:
        pool = network(x).flatten(1)
        return Features(pool, head(pool))

    prepare = _prepare(name, sha256)
    return Network(f"torchvision {name}", both, look, prepare, sha256=sha256, device=device, where=str(path))


def _built(name: str, state: dict[str, Tensor], path: Path) -> tuple[nn.Module, str]:
    """A network of as many classes as the file has, and the name of its last layer."""
    import torchvision

    def build(**how: Any) -> nn.Module:
        with untouched():
            made: nn.Module = torchvision.models.get_model(name, weights=None, **_PUBLISHED.get(name, {}), **how)
            return made

    network = build()
    last = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        raise UsageError(f"torchvision's {name} ends in no linear layer, so nothing is given to it")
    weight = state.get(f"{last[-1]}.weight")
    if weight is None or weight.ndim != 2:
        raise DataError(f"{path}: no weights of torchvision's {name}: the file lacks {f'{last[-1]}.weight'!r}")
    if len(weight) != 1000:
        try:
            network = build(num_classes=len(weight))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: {name} of {len(weight)} classes: {shown(error)}") from None
    return network, last[-1]


def _prepare(name: str, sha256: str) -> Preparation:
    import torchvision

    published = list(torchvision.models.get_model_weights(name))
    own = [each for each in published if sha256.startswith(each.url.rpartition("-")[2].partition(".")[0])]
    rule = (own or published)[0].transforms()
    return Preparation(rule.crop_size[0], rule.interpolation.value, tuple(rule.mean), tuple(rule.std))
