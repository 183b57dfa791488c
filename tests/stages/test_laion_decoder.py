"""The decoder of DALLE2-pytorch gives the reference's numbers in both eras, which its keys do not tell apart."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_tools import check, fill_state_dict, load_case, make_input
from manifests import UNCLIP, manifests, shapes, state
from torch import Tensor

from t2i.convert.convert import convert_files, recognise
from t2i.core.errors import DataError, UsageError
from t2i.core.types import Condition, Prediction, TextFeatures
from t2i.diffusion.sampling import Sampling
from t2i.stages.dalle2_pytorch.decoder.convert import layout, read
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder, LaionDecoderConfig
from t2i.stages.dalle2_pytorch.decoder.sample import sample
from t2i.stages.dalle2_pytorch.grid import grid
from t2i.stages.registry import load_stage

load = partial(load_case, "unclip_nets.json")
CASES = [("dev-d2p-decoder-1.1.0", "C"), ("dev-d2p-decoder-1.1.0-ddpm", "C"), ("dev-d2p-decoder-1.15.6", "D")]


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    """With the schedule's tables, which show its length alone."""
    tables = {key: torch.zeros(shape) for key, shape in case["weights"][0]["not_filled"]}
    return fill_state_dict(case["weights"][0]["keys"], case["weights"][0]["overrides"]) | tables


def built(case: dict[str, Any], era: str) -> LaionDecoder:
    values = weights(case)
    layout = read("small", {key: tuple(x.shape) for key, x in values.items()}, era, 16)  # type: ignore[arg-type]
    model = LaionDecoder(layout.config).eval()  # type: ignore[arg-type]
    model.load_state_dict(layout.convert(values))
    return model


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    return {name: make_input(rule) for name, rule in case["inputs"].items()}


def condition(model: LaionDecoder, i: dict[str, Any]) -> Any:
    encodings = i["text_encodings"]
    mask = (encodings != 0).any(dim=-1)
    return model.condition(i["image_embed"], TextFeatures(i["image_embed"], encodings, mask))


@pytest.mark.parametrize(("name", "era"), CASES)
@torch.no_grad()
def test_decoder(name: str, era: str) -> None:
    case = load(name)
    model, i, want = built(case, era), inputs(case), case["outputs"]
    said, null = condition(model, i), model.null_condition(2)
    forward, without = model(i["x"], i["t"], said), model(i["x"], i["t"], null)
    check(want["forward"], forward, "forward")
    check(want["forward_null"], without, "forward_null")
    check(want["forward_guided"], without + 2.0 * (forward - without), "forward_guided")
    states: list[Tensor] = []

    def keep(done: int, num_steps: int, x: Tensor, prediction: Prediction) -> None:
        states.append(x)

    every_step = case["facts"]["times"] == "all steps"
    if not every_step:
        assert grid("decoder", 4, model.config.diffusion.num_steps)[::-1] == case["facts"]["times"]
    sampling = Sampling(
        steps=model.config.diffusion.num_steps if every_step else 4,
        sampler="ddpm" if every_step else "ddim",
        guidance=2.0,
    )
    x = sample(model, said, null, i["noise"].of(2), sampling, callback=keep)
    check(want["state_after_1_steps"], states[0], "state_after_1_steps")
    check(want["state_after_2_steps"], states[1], "state_after_2_steps")
    check(want["image_01"], (x + 1) / 2, "image_01")


@pytest.mark.parametrize(("name", "era"), [CASES[0], CASES[2]])
@torch.no_grad()
def test_the_wrong_era_loads_and_gives_other_numbers(name: str, era: str) -> None:
    case = load(name)
    model, i = built(case, "D" if era == "C" else "C"), inputs(case)
    with pytest.raises(AssertionError, match="tolerance"):
        check(case["outputs"]["forward_null"], model(i["x"], i["t"], model.null_condition(2)))


@torch.no_grad()
def test_a_decoder_that_reads_no_text_is_read(tmp_path: Path) -> None:
    """Its file has a padding for sentences, but nothing that reads them; the rest of it draws as ever."""
    case = load(CASES[0][0])
    state = {key: x for key, x in weights(case).items() if ".text_to_cond." not in key}
    torch.save(state, tmp_path / "wordless.pth")
    convert_files([tmp_path / "wordless.pth"], tmp_path / "out", given=["era=C", "image_size=16"])
    model: Any = load_stage(tmp_path / "out")
    assert model.config.clip_text_width is None
    i, other = inputs(case), built(case, "C")
    said, told = model.condition(i["image_embed"]), condition(other, i)
    told = Condition(vector=told.vector, sequence=told.sequence[:, : model.config.num_clip_tokens])
    torch.testing.assert_close(model(i["x"], i["t"], said), other(i["x"], i["t"], told))


def test_the_published_key_list_loads_strictly() -> None:
    name = "dalle2-pytorch/decoder v1.0.2 (1.1.0)"
    keys = shapes(name, UNCLIP)
    layout = recognise(keys, "latest.pth", "laion-decoder")
    assert read("laion-decoder", keys, "C", 64).config == layout.config
    with torch.device("meta"):
        model = layout.model(layout.config)
    model.load_state_dict(layout.convert(state(keys)), assign=True)
    assert sum(p.numel() for p in model.parameters()) == manifests(UNCLIP)[name]["n_params"] == 982_610_118


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 24},
        {"num_blocks": (1, 2, 1)},
        {"memory_efficient": False},
        {"memory_efficient": False, "num_blocks": (2, 1, 3), "channels": 8, "image_size": 4},
    ],
)
@torch.no_grad()
def test_other_shapes_of_its_unet_are_read(changes: dict[str, Any], fold: bool, tmp_path: Path) -> None:
    """Channels that are no multiple of 16, other numbers of blocks in each level, levels that halve when they leave."""
    sizes = {"era": "D", "channels": 16, "multipliers": (1, 2, 3), "num_blocks": 1, "attention": (1,), "heads": 2}
    sizes |= {"head_width": 8, "context_dim": 16, "clip_dim": 8, "clip_text_width": 8, "context": 6, "image_size": 16}
    config = LaionDecoderConfig.model_validate(sizes | {"fold": fold} | changes)
    there = layout("small", config, wrapped=not fold)
    torch.save(fill_state_dict(there.shapes), tmp_path / "x.pth")
    given = ["era=D", f"image_size={config.image_size}"]
    convert_files([tmp_path / "x.pth"], tmp_path / "out", given=given)
    model: Any = load_stage(tmp_path / "out", expect="laion_decoder")
    assert model.config == config
    down = [key for key in there.shapes if ".downs." in key and there.shapes[key][-2:] == (4, 4)]
    assert len(down) == (0 if fold else 3 if config.memory_efficient else 2)
    assert ("unets.0.init_resnet_block.block1.project.weight" in there.shapes) == config.memory_efficient
    sides: list[int] = []
    model.mid_attention.register_forward_hook(lambda module, args, out: sides.append(args[0].shape[-1]))
    x = torch.randn(1, 3, config.image_size, config.image_size)
    out = model(x, torch.tensor([5]), model.null_condition(1))
    assert out.shape == (1, 6, config.image_size, config.image_size)
    assert sides == [config.image_size // (8 if config.memory_efficient else 4)]
    with torch.enable_grad():
        model(x, torch.tensor([5]), model.condition(torch.randn(1, 8))).mean().backward()
    unused = {key for key, p in model.named_parameters() if p.grad is None}
    assert unused == {"null_vector", "null_tokens", "clip_text.weight", "clip_text.bias"}


def test_the_era_is_asked_for_where_keys_cannot_tell(tmp_path: Path) -> None:
    old, new = weights(load(CASES[0][0])), weights(load(CASES[2][0]))
    torch.save({"model": old, "config": {"unet": {"dim": 16}}}, tmp_path / "old.pth")
    torch.save(new, tmp_path / "new.pth")
    with pytest.raises(UsageError, match=r"old\.pth: .*give era=C .* or era=D"):
        convert_files([tmp_path / "old.pth"], tmp_path / "out")
    done = convert_files([tmp_path / "old.pth"], tmp_path / "out", given=["era=C", "image_size=16"])
    assert done.stage == "laion_decoder"
    model: Any = load_stage(tmp_path / "out", expect="laion_decoder")
    assert (model.config.era, model.config.image_size, model.config.fold) == ("C", 16, False)
    for version, era in (("1.1.0", "C"), ("1.4.3", "D")):
        torch.save({"model": old, "version": version}, tmp_path / f"{version}.pth")
        convert_files([tmp_path / f"{version}.pth"], tmp_path / version, given=["image_size=16"])
        assert load_stage(tmp_path / version).config.era == era  # type: ignore[union-attr]
    for version in ("1.2.0", "1.4.2"):  # linear attention of D, in part or whole, and self-attention of C
        torch.save({"model": old, "version": version}, tmp_path / "between.pth")
        with pytest.raises(DataError, match=rf"of version {version}, but decoders of .* are of neither era C nor D"):
            convert_files([tmp_path / "between.pth"], tmp_path / "other", given=["era=C"])
    torch.save({"model": old, "version": "0.20.0"}, tmp_path / "older.pth")
    with pytest.raises(DataError, match=r"of version 0\.20\.0, era B, but only era C or D is read there"):
        convert_files([tmp_path / "older.pth"], tmp_path / "other")
    convert_files([tmp_path / "new.pth"], tmp_path / "new", given=["image_size=16"])
    later: Any = load_stage(tmp_path / "new")
    assert (later.config.era, later.config.fold) == ("D", True)
    with pytest.raises(UsageError, match="era=C, but its keys are those of era D"):
        convert_files([tmp_path / "new.pth"], tmp_path / "other", given=["era=C"])
    enlarging = old | {"unets.0.init_conv.convs.0.weight": torch.zeros(8, 6, 3, 3)}
    torch.save(enlarging, tmp_path / "up.pth")
    with pytest.raises(DataError, match="a U-Net that enlarges pictures"):
        convert_files([tmp_path / "up.pth"], tmp_path / "other", given=["era=C"])
