"""What earlier versions wrote still means the same: configs of runs, `config.json`s, tensors, checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import given, small_clip, small_decoder, small_prior, small_upsampler

from t2i.core.assets import asset
from t2i.core.errors import DataError, UsageError
from t2i.io.weights import load_folder, load_tensors, save_folder, save_tensors
from t2i.nn.older import _PREFIXES
from t2i.run import complete, load_neighbours, load_run, train
from t2i.stages.decoder.model import DecoderConfig
from t2i.stages.registry import load_stage, save_stage, stage
from t2i.train.checkpoint import _digest

UNET = """
  unet:
    channels: 64
    multipliers: [1, 2, 4]
    num_blocks: 1
    attention: [2, 4]
    attention_positions: true
    head_channels: 32
    context_dim: 128
    patch_size: 4
    fine_channels: 32
    fine_blocks: 6
    fine_patch: 2"""
OLDER = {
    "decoder": f"""
stage: decoder
clip: weights/shapes/clip
model:{UNET}
  text: {{width: 128, layers: 3, heads: 4, attend_padding: false}}
  clip_scale: 11.3
  image_size: 64
  target: x0
  variance: learned_range
  schedule: cosine
""",
    "glide": f"""
stage: decoder
model:
  clip_dim: null{UNET}
  text: {{width: 128, layers: 3, heads: 4, attend_padding: false}}
  tokenizer: {{kind: words, context: 64}}
  image_size: 64
  target: x0
  schedule: cosine
""",
    "glide-inpaint": f"""
stage: decoder
model:
  clip_dim: null{UNET}
    image_channels: 4
  text: {{width: 128, layers: 3, heads: 4, attend_padding: false}}
  tokenizer: {{kind: words, context: 64}}
  inpaint: true
  image_size: 64
  target: x0
  schedule: cosine
""",
    "adm": """
stage: decoder
model:
  clip_dim: null
  unet: {channels: 32, multipliers: [1, 2, 2], num_blocks: 2, norm_groups: 8, attention: [2, 4], head_channels: 32,
         patch_size: 2, fine_channels: 8}
  num_classes: 60
  null_class: true
  image_size: 32
  schedule: cosine
""",
    "adm-classifier": """
stage: classifier
model:
  encoder: {channels: 32, multipliers: [1, 2, 4], num_blocks: 1, attention: [4], head_channels: 32}
  num_classes: 60
  image_size: 32
  schedule: cosine
""",
}


@pytest.mark.parametrize("keys", [{"num_classes": 60}, {"text": {"width": 128}}, {"null_class": False}, {}])
def test_a_decoder_of_before_reads_its_clip_beside_other_ports(keys: dict[str, Any], tmp_path: Path) -> None:
    unet = {
        "channels": 32,
        "multipliers": [1],
        "num_blocks": 1,
        "attention": [],
        "context_dim": 128,
        "head_channels": 32,
    }
    data = {"stage": "decoder", "clip": "weights/shapes/clip", "model": {"unet": unet, "image_size": 64, **keys}}
    (tmp_path / "older.yaml").write_text(json.dumps(data | {"train": {"steps": 1, "batch_size": 1, "out": "out"}}))
    run = load_run(tmp_path / "older.yaml", [])
    spec = stage("decoder")
    model: Any = complete(run, spec, load_neighbours(run, spec))
    assert model.ports.clip_image.dim == 128


@pytest.mark.parametrize("needs", ["foo", "[a]", "3"])
def test_needs_that_are_no_names_are_one_line(needs: str) -> None:
    with pytest.raises(UsageError, match="needs"):
        load_run("configs/shapes/decoder.yaml", [f"needs={needs}"])


def test_the_last_clip_counts_in_either_spelling() -> None:
    for overrides, clip in ((["needs.clip=/b"], "/b"), (["clip=/a"], "/a"), (["clip=/a", "needs.clip=/b"], "/b")):
        assert load_run("configs/shapes/decoder.yaml", overrides).needs == {"clip": clip}
    assert load_run("configs/shapes/decoder.yaml", ["clip=null"]).needs == {}


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """A decoder's or an upsampler's config as 0.1 wrote it."""
    config = dict(config)
    ports, diffusion = config.pop("ports"), config.pop("diffusion")
    image, text, classes = ports["clip_image"] or {}, ports["text"], ports["classes"] or {}
    text = dict(text) if text else None
    return config | {key: diffusion[key] for key in diffusion if key != "space"} | {
        "tokenizer": text.pop("tokenizer") if text else None,
        "text": text,
        "clip_dim": image.get("dim"),
        "num_clip_tokens": image.get("num_tokens", 4),
        "clip_scale": image.get("scale", 1.0),
        "clip_mark": image.get("fingerprint", ()),
        "num_classes": classes.get("num"),
        "null_class": classes.get("null_class", False),
        "class_names": classes.get("names", ()),
        "inpaint": ports["masked"] is not None,
    }  # fmt: skip


def earlier_name(key: str) -> str:
    """The name that a tensor had in 0.1."""
    return next((old + key.removeprefix(new) for old, new in _PREFIXES.items() if key.startswith(new)), key)


@pytest.mark.parametrize("name", OLDER)
def test_a_config_of_before_is_the_one_of_today(name: str, tmp_path: Path) -> None:
    train_section = "train: {steps: 1, batch_size: 1, out: out}\n"
    (tmp_path / "older.yaml").write_text(OLDER[name] + train_section)
    said = {"adm": ["model.ports.classes.num=60"], "adm-classifier": ["model.num_classes=60"]}  # today the data's
    older, today = load_run(tmp_path / "older.yaml", []), load_run(f"configs/shapes/{name}.yaml", said.get(name, []))
    assert older.model == today.model
    assert older.needs == today.needs


def test_a_decoder_that_was_given_a_clip_read_its_embeddings(tmp_path: Path) -> None:
    text = OLDER["decoder"].replace("  clip_scale: 11.3\n", "") + "train: {steps: 1, batch_size: 1, out: out}\n"
    (tmp_path / "older.yaml").write_text(text)
    model: Any = load_run(tmp_path / "older.yaml", []).model
    assert model.ports.clip_image is not None
    (tmp_path / "older.yaml").write_text(text.replace("  unet:", "  clip_dim: null\n  unet:"))
    model = load_run(tmp_path / "older.yaml", []).model
    assert model.ports.clip_image is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("target: eps", r"diffusion\.target is 'x0', but 'eps' by its earlier name"),
        ("clip_scale: 2", r"ports\.clip_image\.scale is 11\.3, but 2 by its earlier name"),
    ],
)
def test_a_key_by_both_of_its_names_says_one_thing(override: str, message: str, tmp_path: Path) -> None:
    text = asset("configs", "shapes", "decoder.yaml").read_text().replace("  ports:", f"  {override}\n  ports:")
    (tmp_path / "both.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_run(tmp_path / "both.yaml", [])


@pytest.mark.parametrize("older_file", [True, False])
def test_overrides_win_in_either_form_over_either_form(older_file: bool, tmp_path: Path) -> None:
    (tmp_path / "older.yaml").write_text(OLDER["decoder"] + "train: {steps: 1, batch_size: 1, out: out}\n")
    path = tmp_path / "older.yaml" if older_file else "configs/shapes/decoder.yaml"
    for key in ("model.target", "model.diffusion.target"):
        model: Any = load_run(path, [f"{key}=eps"]).model
        assert model.diffusion.target == "eps"
        assert model.diffusion.schedule == "cosine"
    model = load_run(path, ["model.clip_scale=2", "model.text.layers=1", "train.clip=3"]).model
    assert (model.ports.clip_image.scale, model.ports.text.layers, model.ports.text.width) == (2, 1, 128)
    model = load_run(path, ["model.target=eps", "model.diffusion.target=v"]).model
    assert model.diffusion.target == "v", "the last one counts"
    model = load_run(path, ["clip=null", "model.clip_dim=null"]).model
    assert model.ports.clip_image is None
    assert load_run(path, ["train.clip=3"]).train.max_grad_norm == 3


@pytest.mark.parametrize(("name", "make"), [("decoder", small_decoder), ("upsampler", lambda: small_upsampler(8, 32))])
def test_a_stage_of_before_opens_to_the_same_numbers(name: str, make: Any, tmp_path: Path) -> None:
    model = make()
    save_stage(tmp_path, name, model)
    config, state = load_folder(tmp_path)
    config["model"] = flat(config["model"])
    save_folder(tmp_path, json.loads(json.dumps(config)), {earlier_name(key): value for key, value in state.items()})
    again = load_stage(tmp_path, expect=name)
    assert again.config == model.config
    if name == "decoder":
        assert {earlier_name(key) for key in state} != set(state)
        tokens = torch.tensor([[4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
        x, t, z_i = torch.randn(1, 3, 32, 32), torch.tensor([9]), torch.randn(1, 16)
        with torch.no_grad():
            a, b = (net(x, t, net.condition(given(tokens, tokens > 0, z_i))) for net in (model, again))
        assert torch.equal(a, b)


def test_a_prior_of_before_opens(tmp_path: Path) -> None:
    prior = small_prior()
    save_stage(tmp_path, "prior", prior)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    diffusion, mark = config["model"].pop("diffusion"), config["model"].pop("clip_fingerprint")
    config["model"] |= {"schedule": diffusion["schedule"], "num_steps": diffusion["num_steps"], "clip_mark": mark}
    config["model"] |= {"variance": diffusion["variance"]}
    path.write_text(json.dumps(config))
    assert load_stage(tmp_path).config == prior.config  # type: ignore[union-attr]


def test_flat_arguments_in_python_still_make_a_config() -> None:
    unet = {"channels": 32, "multipliers": [1], "num_blocks": 1, "attention": [], "head_channels": 32}
    old = DecoderConfig.model_validate({"unet": unet, "num_classes": 10, "schedule": "linear"})
    new = DecoderConfig.model_validate(
        {"unet": unet, "ports": {"classes": {"num": 10}}, "diffusion": {"schedule": "linear"}}
    )
    assert old == new


def test_a_checkpoint_of_before_goes_on_where_it_was(tmp_path: Path) -> None:
    """By the names that its tensors and its settings had."""
    save_stage(tmp_path / "clip", "clip", small_clip())
    unet = "channels: 32, multipliers: [1], num_blocks: 1, attention: [1], head_channels: 32, context_dim: 32"
    quick = ["train.batch_size=2", "train.sample_every=0", "train.val_every=0", "train.save_every=1"]
    quick += [f"clip={tmp_path / 'clip'}", f"model.unet={{{unet}, patch_size: 4}}", "model.image_size=32"]
    quick += ["data.size=32", "data.num_workers=0", "train.device=cpu"]
    quick += ["model.ports.text.width=32", "train.precision=fp32", "save_dtype=float32"]
    for out, steps in (("whole", 3), ("parts", 2)):
        train("configs/shapes/decoder.yaml", [*quick, f"train.out={tmp_path / out}", f"train.steps={steps}"])
    checkpoint = tmp_path / "parts" / "checkpoints" / "step-000002"
    renamed = 0
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_tensors(checkpoint, path.stem)
        older = {rename(key): value for key, value in tensors.items()}
        renamed += sum(key not in tensors for key in older)
        save_tensors(checkpoint, older, path.stem)
    assert renamed > 0
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {name: _digest(checkpoint / name) for name in manifest["files"]}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    train("configs/shapes/decoder.yaml", [*quick, f"train.out={tmp_path / 'parts'}", "train.steps=3"])
    a, b = (load_stage(tmp_path / out).state_dict() for out in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def rename(key: str) -> str:
    """As `earlier_name`, also behind a prefix of the optimiser's or an average's."""
    for start in ("", *(f"{name}." for name in key.split(".")[:1])):
        if (
            start
            and key.startswith(start)
            and (new := earlier_name(key.removeprefix(start))) != key.removeprefix(start)
        ):
            return start + new
    return earlier_name(key)


def test_a_folder_that_is_of_no_version_says_so(tmp_path: Path) -> None:
    save_stage(tmp_path, "decoder", small_decoder())
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model"]["portz"] = {}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"unknown key '(model\.)?portz'"):
        load_stage(tmp_path)
