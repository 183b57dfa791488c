"""KL autoencoders of CompVis and diffusers are recognised, read strictly, and give the reference's numbers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_tools import check, fill_state_dict, load_case, make_input
from manifests import manifests, shapes, state
from safetensors.torch import save_file
from torch import Tensor

from t2i.convert.convert import convert_files, recognise
from t2i.core.errors import DataError, UsageError
from t2i.keymaps.flat import Layout, prefixed
from t2i.stages.autoencoder.convert import COMPVIS, DIFFUSERS, config_from, diffusers_layout, layout, layouts
from t2i.stages.autoencoder.model import Autoencoder, AutoencoderConfig, Posterior
from t2i.stages.autoencoder.presets import PRESETS
from t2i.stages.registry import load_stage

MANIFESTS = "manifests_autoencoder.json"
SMALL = AutoencoderConfig(channels=32, multipliers=(1, 2, 2), num_blocks=1, image_size=32)


def case(dialect: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A golden case, and its weights."""
    found = load_case("autoencoder.json", f"dev-vae-{dialect}")
    return found, fill_state_dict(found["weights"][0]["keys"], found["weights"][0]["overrides"])


def built(found: Layout, weights: dict[str, Tensor]) -> Autoencoder:
    model = found.model(found.config)
    model.load_state_dict(found.convert(weights))
    assert isinstance(model, Autoencoder)
    return model.eval()


def golden_layout(dialect: str) -> Layout:
    found, weights = case(dialect)
    if dialect == "compvis":
        return layout("small", SMALL, COMPVIS, found["config"]["scale_factor"])
    return diffusers_layout("small", found["config"]["AutoencoderKL"], {k: tuple(w.shape) for k, w in weights.items()})


@pytest.mark.parametrize("dialect", ["compvis", "diffusers"])
@torch.no_grad()
def test_the_numbers_are_the_references(dialect: str) -> None:
    found, weights = case(dialect)
    model, given = built(golden_layout(dialect), weights), found["inputs"]
    image, latent = make_input(given["image"]), make_input(given["latent"])
    posterior = model.posterior(image)
    noise = make_input(given["noise"]).of(len(image)).normal(*posterior.mean.shape[1:])
    sample = posterior.sample(noise)
    got = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "sample": sample,
        "scaled_sample": (sample - model.shift[:, None, None]) * model.scale[:, None, None],
        "kl": posterior.kl(),
        "decode": model.decode(latent),
        "reconstruction_of_mean": model(image),
    }
    if "moments" in given:
        got["posterior_logvar_of_moments"] = Posterior.of(make_input(given["moments"])).logvar
    for name, expected in found["outputs"].items():
        check(expected, got[name], name)


@torch.no_grad()
def test_the_scale_of_a_file_is_that_of_latents() -> None:
    _, weights = case("compvis")
    model = built(golden_layout("compvis"), weights)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = model.encode_latents(image)
    torch.testing.assert_close(latents, 0.18215 * model.posterior(image).mean)
    torch.testing.assert_close(model.decode_latents(latents), model(image))


@pytest.mark.parametrize("name", manifests(MANIFESTS))
def test_every_published_key_list_loads_strictly(name: str) -> None:
    keys = shapes(name, MANIFESTS)
    others = {"loss.logvar": (), "loss.discriminator.main.0.weight": (64, 3, 4, 4)}
    if "Stable Diffusion" in name:
        others = {"model.diffusion_model.out.0.weight": (320,), "cond_stage_model.x.weight": (768,)}
    others = {} if "diffusers" in name else others
    found = recognise(keys | others, "file.ckpt", None if "Stable Diffusion" in name else "kl-f8")
    with torch.device("meta"):
        model = found.model(found.config)
    converted = found.convert(state(keys))
    model.load_state_dict(converted, assign=True)
    assert (found.stage, found.name) == ("autoencoder", "kl-f8")
    assert (sum(p.numel() for p in model.parameters()), len(keys)) == (83_653_863, 248)
    assert torch.equal(converted["scale"], torch.full((4,), 0.18215))


def test_attention_of_earlier_diffusers_may_be_convolutions() -> None:
    keys = shapes("vae/kl-f8 (diffusers, older attention names)", MANIFESTS)
    wide = {k: (*s, 1, 1) if ".attentions." in k and len(s) == 2 else s for k, s in keys.items()}
    assert wide != keys
    assert recognise(wide, "file.bin", "kl-f8").name == "kl-f8"


@pytest.mark.parametrize("name", manifests(MANIFESTS))
def test_one_change_is_named(name: str) -> None:
    good = shapes(name, MANIFESTS)
    key = next(k for k in good if k.endswith("conv_in.bias"))
    with pytest.raises(DataError, match=r"almost kl-f8, but it lacks 'first_stage|almost kl-f8, but it lacks 'encoder"):
        recognise({k: s for k, s in good.items() if k != key}, "my.ckpt")
    with pytest.raises(DataError, match="of shape"):
        recognise(good | {key: (7,)}, "my.ckpt")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_read_in_every_dialect(name: str) -> None:
    found = [each for each in layouts() if each.name == name]
    assert len(found) == 5
    for each in found:
        assert recognise(each.shapes, "file.ckpt", name).name == name


def test_stable_diffusion_xl_has_another_scale_by_its_text_encoder_or_by_name() -> None:
    keys = next(x for x in layouts() if x.name == "kl-f8" and "first_stage" in str(x.ignored)).shapes
    bare = {key.removeprefix("first_stage_model."): shape for key, shape in keys.items()}
    xl = {"conditioner.embedders.0.x.weight": (768,), "model.diffusion_model.out.0.weight": (320,)}
    for given, name in ((keys | xl, None), (bare, "kl-f8-sdxl")):
        found = recognise(given, "xl.safetensors", name)
        assert (found.name, found.constants["scale"]) == ("kl-f8-sdxl", 0.13025)
    earlier = recognise(keys | {"cond_stage_model.x.weight": (768,)}, "sd.ckpt")
    assert (earlier.name, earlier.constants["scale"]) == ("kl-f8", 0.18215)
    with pytest.raises(UsageError, match=r"its keys are those of kl-f8 and kl-f8-sdxl; give its name \(--network\)"):
        recognise(bare, "vae.safetensors")
    with pytest.raises(DataError, match="almost kl-f8, but it has"):
        recognise(keys | xl, "xl.safetensors", "kl-f8")


def test_a_folder_of_diffusers_of_any_size_becomes_a_stage(tmp_path: Path) -> None:
    """With its scale and shift; older names of attention included."""
    found, weights = case("diffusers")
    theirs = found["config"]["AutoencoderKL"] | {"_class_name": "AutoencoderKL"}
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = dict(weights)
    for key in [key for key in older if ".attentions." in key and "group_norm" not in key]:
        value, renamed = older.pop(key), key
        for new, old in words.items():
            renamed = renamed.replace(new, old)
        older[renamed] = value[..., None, None].contiguous() if value.ndim == 2 else value
    for folder, state_dict, changes in (
        ("new", weights, {"scaling_factor": 0.5, "shift_factor": 0.1}),
        ("old", older, {"scaling_factor": 0.5, "shift_factor": 0.1}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(theirs | changes))
        save_file(state_dict, tmp_path / folder / "diffusion_pytorch_model.safetensors")
        convert_files([tmp_path / folder], tmp_path / f"{folder}-stage")
    new, old = (load_stage(tmp_path / f"{name}-stage", expect="autoencoder") for name in ("new", "old"))
    assert isinstance(new, Autoencoder)
    for a, b in zip(new.state_dict().values(), old.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(new.scale, torch.full((4,), 0.5))
    assert torch.equal(new.shift, torch.full((4,), 0.1))
    with torch.no_grad():
        check(found["outputs"]["decode"], new.decode(make_input(found["inputs"]["latent"])), "decode")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "mish"}, "act_fn='mish', but the autoencoders that are read have 'silu'"),
        ({"latents_mean": [0.1] * 4}, r"latents_mean=\[0.1, 0.1, 0.1, 0.1\]"),
        ({"use_quant_conv": False}, "use_quant_conv=False, but use_post_quant_conv=True"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "down_block_types="),
    ],
)
def test_what_a_config_says_and_no_network_here_does_is_refused(change: dict[str, Any], message: str) -> None:
    theirs = case("diffusers")[0]["config"]["AutoencoderKL"]
    with pytest.raises(ValueError, match=message):
        config_from(theirs | change)


def test_latents_without_quant_convolutions_have_none_to_read() -> None:
    theirs = case("diffusers")[0]["config"]["AutoencoderKL"]
    config = config_from(theirs | {"use_quant_conv": False, "use_post_quant_conv": False})
    keys = layout("small", config, DIFFUSERS).shapes
    assert not [key for key in keys if "quant_conv" in key]
    assert config.quant_convs is False


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_files_of_trainings_and_of_whole_latent_diffusions_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    """Beside a discriminator, a U-Net with its averages and a text encoder with whole numbers."""
    known = golden_layout("compvis")
    entries = tuple(prefixed("first_stage_model.", known.entries))
    ignored = next(x.ignored for x in layouts() if "first_stage" in str(x.ignored))
    beside = replace(known, entries=entries, ignored=ignored)
    monkeypatch.setattr("t2i.convert.convert.layouts", lambda: (known, beside))
    weights = case("compvis")[1]
    file = {prefix + key: value for key, value in weights.items()} | {f"{prefix}loss.logvar": torch.zeros(())}
    if prefix:
        file |= {"model.diffusion_model.out.0.weight": torch.zeros(3), "cond_stage_model.ids": torch.arange(3)}
        file |= {"model_ema.diffusion_modelout0weight": torch.zeros(3), "model_ema.decay": torch.tensor(0.9)}
    torch.save({"state_dict": file, "global_step": 7}, tmp_path / "model.ckpt")
    done = convert_files([tmp_path / "model.ckpt"], tmp_path / "out")
    assert (done.stage, done.name) == ("autoencoder", "small")
    model = load_stage(tmp_path / "out")
    assert torch.equal(model.encoder.conv_in.weight, weights["encoder.conv_in.weight"])  # type: ignore[union-attr, operator]
