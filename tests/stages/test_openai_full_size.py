"""The published networks in their full size, on synthetic weights: recognised by their real key lists, converted, run.

`pytest -m slow tests/stages/test_openai_full_size.py` takes minutes, and up to 8 GB.
"""

from typing import Any

import pytest
import torch
from conftest import given
from golden_tools import check, fill_state_dict, load_case, make_input
from manifests import shapes
from torch import Tensor, nn

from t2i.convert.convert import recognise
from t2i.keymaps.flat import Layout, RowOrder
from t2i.stages.decoder.convert import flat_entries
from t2i.stages.decoder.model import Decoder

FILE = "openai_nets.json"
pytestmark = pytest.mark.slow


def published(case: dict[str, Any], order: RowOrder | None = None) -> Any:
    """The network of a case with its weights; in another order of attention rows than its own, if one is given."""
    manifest = case["weights"][0]["manifest"]
    layout = recognise(shapes(manifest), manifest)
    if order is not None:
        layout = Layout("decoder", "other", layout.config, Decoder, tuple(flat_entries(layout.config, order)))  # type: ignore[arg-type]
    with torch.device("meta"):
        model: nn.Module = layout.model(layout.config)
    model.load_state_dict(layout.convert(fill_state_dict(shapes(manifest))), assign=True)
    return model.eval()


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    return {name: make_input(rule) for name, rule in case["inputs"].items() if rule["rule"] != "constant"}


@pytest.mark.parametrize("name", ["F-iddpm-cifar10", "F-iddpm-lsun", "F-adm256-uncond", "F-ddpm-cifar10"])
@torch.no_grad()
def test_unconditional(name: str) -> None:
    case = load_case(FILE, name)
    i = inputs(case)
    check(case["outputs"]["output"], published(case)(i["x"], i["t"]))


@pytest.mark.parametrize(("name", "order"), [("F-adm64", None), ("F-adm64-legacy-reading", "legacy")])
@torch.no_grad()
def test_classes(name: str, order: RowOrder | None) -> None:
    case = load_case(FILE, name)
    model, i = published(case, order), inputs(case)
    check(case["outputs"]["output"], model(i["x"], i["t"], model.condition(given(labels=i["y"]))))


@torch.no_grad()
def test_upsampler() -> None:
    case = load_case(FILE, "F-adm-64-256")
    model, i = published(case), inputs(case)
    check(case["outputs"]["output"], model(i["x"], i["t"], model.condition(i["low_res"], given(labels=i["y"]))))


@torch.no_grad()
def test_glide() -> None:
    case = load_case(FILE, "F-glide-base")
    model, i = published(case), inputs(case)
    condition = model.condition(given(i["tokens"], i["mask"]))
    check(case["outputs"]["xf_proj"], condition.vector, "xf_proj")
    check(case["outputs"]["output"], model(i["x"].expand(2, -1, -1, -1), i["t"], condition))


@torch.no_grad()
def test_glide_upsampler_inpaint() -> None:
    case = load_case(FILE, "F-glide-upsample-inpaint")
    model, i = published(case), inputs(case)
    kept: Tensor = (torch.arange(64) < 20).float()[:, None].expand(1, 1, 64, 64)
    condition = model.condition(i["low_res"], given(i["tokens"], i["mask"], known=(i["inpaint_image"], kept)))
    check(case["outputs"]["output"], model(i["x"], i["t"], condition))
