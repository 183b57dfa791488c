"""Karlo and its relatives are recognised, read strictly, and opened from the folders that diffusers wrote."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from golden_tools import fill_state_dict, load_case
from manifests import UNCLIP, Shapes, manifests, shapes, state
from safetensors.torch import save_file
from torch import Tensor

from t2i import Pipeline, load_stage
from t2i.convert.convert import _check_diffusers, convert_files, read_weights, recognise
from t2i.convert.diffusers import layout_of
from t2i.core.errors import DataError, UsageError
from t2i.core.types import TextFeatures
from t2i.stages.clip import convert as clip
from t2i.stages.clip.model import ClipConfig
from t2i.stages.decoder import convert as decoders
from t2i.stages.prior import convert as priors
from t2i.stages.registry import stage
from t2i.stages.upsampler import convert as upsamplers

STATISTICS = dict.fromkeys(priors.STATISTICS, (768,))
NETWORKS: dict[tuple[str, ...], tuple[str, int]] = {
    ("karlo/prior",): ("karlo-prior", 1_022_028_544),
    ("kandinsky21/prior_fp16",): ("karlo-prior", 1_022_028_544),
    ("karlo/decoder",): ("karlo", 893_318_086),
    ("karlo/sr_64_256",): ("karlo-256", 2 * 691_579_523),
    ("clip/ViT-L-14 (OpenAI)",): ("clip-vit-l-14", 427_616_513),
    ("karlo-diffusers/prior",): ("karlo-diffusers-prior", 1_022_030_080 - 2 * 768),
    ("karlo-diffusers/decoder", "karlo-diffusers/text_proj"): ("karlo", 885_439_686 + 7_878_400),
    ("karlo-diffusers/super_res_first", "karlo-diffusers/super_res_last"): ("karlo-256", 2 * 691_579_523),
    ("karlo-diffusers/text_encoder",): ("clip-vit-l-14-text", 123_650_304 + 1),
    ("karlo-diffusers/text_encoder", "karlo-diffusers/image_encoder"): ("clip-vit-l-14", 427_616_513),
    ("kandinsky21-diffusers/prior",): ("kandinsky-2.1-prior", 1_022_030_080 - 2 * 768),
    ("kandinsky22-diffusers/prior",): ("kandinsky-2.2-prior", 1_026_225_920 - 2 * 1280),
}


def keys_of(names: tuple[str, ...]) -> Shapes:
    """Keys and shapes of the files of one network, joined as `t2i.convert.convert` joins them."""
    joined: Shapes = {}
    for name in names:
        prefix = f"{name.split('/')[1]}." if "super_res" in name else ""
        joined |= {prefix + key: shape for key, shape in shapes(name, UNCLIP).items()}
    return joined | (STATISTICS if "model.prd_emb" in joined else {})


@pytest.mark.parametrize(("names", "expected"), NETWORKS.items())
def test_every_published_key_list_loads_strictly(names: tuple[str, ...], expected: tuple[str, int]) -> None:
    keys = keys_of(names)
    keys |= {key: tuple(s) for name in names for key, s in manifests(UNCLIP)[name].get("optional_extra_keys", [])}
    alike = names[0] in ("karlo-diffusers/prior", "kandinsky21-diffusers/prior")
    if alike:
        with pytest.raises(UsageError, match=r"those of karlo-diffusers-prior and kandinsky-2\.1-prior; give its name"):
            recognise(keys, "file.ckpt")
    layout = recognise(keys, "file.ckpt", expected[0] if alike else None)
    with torch.device("meta"):
        model = layout.model(layout.config)
    model.load_state_dict(layout.convert(state(keys)), assign=True)
    assert (layout.name, sum(p.numel() for p in model.parameters())) == expected


@pytest.mark.parametrize("names", NETWORKS)
def test_one_change_is_named(names: tuple[str, ...]) -> None:
    good = keys_of(names)
    key = next(k for k in good if k.endswith(".bias"))
    without = {k: s for k, s in good.items() if k != key}
    with pytest.raises(DataError, match="lacks"):
        recognise(without, "my.ckpt")
    with pytest.raises(DataError, match=r"unknown 'extra\.bias'"):
        recognise(good | {"extra.bias": (1,)}, "my.ckpt")
    with pytest.raises(DataError, match="of shape"):
        recognise(good | {key: (7,)}, "my.ckpt")


def test_what_keys_do_not_show_is_what_was_published() -> None:
    def config(*names: str, network: str | None = None) -> Any:
        return recognise(keys_of(names), "f", network).config

    assert config("karlo/prior").clamp == config("kandinsky22-diffusers/prior").clamp == 10
    assert config("karlo-diffusers/prior", network="karlo-diffusers-prior").clamp == 5
    assert config("kandinsky21-diffusers/prior", network="kandinsky-2.1-prior").clamp == 10
    sr = config("karlo/sr_64_256")
    assert (sr.interpolation, sr.antialias, sr.levels) == ("bicubic", True, "exact")
    assert sr.diffusion.variance == "fixed_small"
    assert config("clip/ViT-L-14 (OpenAI)").quick_gelu


def test_configs_of_the_published_folders_are_the_presets() -> None:
    def theirs(name: str) -> dict[str, Any]:
        return manifests(UNCLIP)[f"karlo-diffusers/{name}"]["config"]

    assert priors.config_from(theirs("prior"), 5.0) == priors.PRESETS["karlo-diffusers-prior"]
    wide = manifests(UNCLIP)["kandinsky22-diffusers/prior"]["config"]
    assert priors.config_from(wide, 10.0) == priors.PRESETS["kandinsky-2.2-prior"]
    assert upsamplers.config_from(theirs("super_res_first"), 64) == upsamplers.PRESETS["karlo-256"]
    assert clip.config_from(theirs("text_encoder"), theirs("image_encoder")) == clip.PRESETS["clip-vit-l-14"]
    found = decoders.config_from(theirs("decoder"), theirs("text_proj"))
    kept = decoders.PRESETS["karlo"].unet.model_copy(update={"dropout": 0.0})  # which no diffusers config says
    assert found == decoders.PRESETS["karlo"].model_copy(update={"unet": kept})


@pytest.mark.parametrize("folder", ["decoder", "text_proj", "super_res_first", "prior", "text_encoder"])
def test_a_named_network_takes_the_published_folder(tmp_path: Path, folder: str) -> None:
    """As the index does, which knows what it fetches."""
    (tmp_path / "config.json").write_text(json.dumps(manifests(UNCLIP)[f"karlo-diffusers/{folder}"]["config"]))
    names = {"decoder": "karlo", "text_proj": "karlo", "super_res_first": "karlo-256"}
    presets = {**decoders.PRESETS, **upsamplers.PRESETS}
    config: Any = presets[names[folder]] if folder in names else priors.PRESETS["karlo-diffusers-prior"]
    _check_diffusers(tmp_path, config)
    if folder == "decoder":
        with pytest.raises(DataError, match="attention_head_dim=64, but the network takes 32"):
            _check_diffusers(
                tmp_path, config.model_copy(update={"unet": config.unet.model_copy(update={"head_channels": 32})})
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"additional_embeddings": 3}, "additional_embeddings=3, but a prior like Karlo's has 4"),
        ({"embedding_proj_norm_type": "layer"}, "embedding_proj_norm_type"),
    ],
)
def test_priors_of_another_kind_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        priors.config_from(manifests(UNCLIP)["karlo-diffusers/prior"]["config"] | changes, 5.0)


# -- files -------------------------------------------------------------------------------------------------------------


def karlo_files(folder: Path) -> tuple[Path, Path]:
    """A small prior as Karlo's trainer wrote it, and its statistics."""
    weights = {k: v.half() for k, v in fill_state_dict(SMALL_PRIOR).items()}
    torch.save({"state_dict": weights, "global_step": 3}, folder / "prior.ckpt")
    torch.save((torch.zeros(24), torch.ones(24)), folder / "stats.th")
    return folder / "prior.ckpt", folder / "stats.th"


SMALL_PRIOR = load_case("unclip_nets.json", "dev-karlo-prior")["weights"][0]["keys"]


def test_a_prior_without_its_statistics_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = priors.PRESETS["karlo-prior"].model_copy(
        update={"clip_dim": 24, "text_width": 24, "context": 9, "width": 64, "layers": 2, "heads": 2}
    )
    monkeypatch.setattr("t2i.convert.convert.layouts", lambda: (priors.karlo_layout("small", config),))
    prior, statistics = karlo_files(tmp_path)
    with pytest.raises(DataError, match=r"without the statistics of CLIP's embeddings; .* \(ViT-L-14_stats\.th\)"):
        convert_files([prior], tmp_path / "out")
    torch.save((torch.zeros(24), torch.zeros(24)), tmp_path / "zeros.th")
    with pytest.raises(DataError, match="never measured"):
        convert_files([prior, tmp_path / "zeros.th"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = convert_files([statistics, prior], tmp_path / "out")
    assert (done.stage, done.name) == ("prior", "small")
    model: Any = load_stage(tmp_path / "out", expect="prior")
    assert model.calibrated
    assert model.config == config


# -- a whole folder of diffusers ---------------------------------------------------------------------------------------

TEXT = {
    "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 24, "intermediate_size": 96, "projection_dim": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 9, "vocab_size": 49408,
    "hidden_act": "quick_gelu",
}  # fmt: skip
VISION = {
    "architectures": ["CLIPVisionModelWithProjection"], "hidden_size": 32, "intermediate_size": 128,
    "projection_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    "hidden_act": "quick_gelu",
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / name)


def small_karlo(folder: Path, *, with_prior: bool = True, sees: bool = False) -> Path:
    """The pipeline of the golden case as diffusers saves one, with towers of CLIP as small."""
    case = load_case("unclip_nets.json", "dev-diffusers-unclip-pipeline")
    c, kinds = case["config"], {"decoder": "UNet2DConditionModel", "text_proj": "UnCLIPTextProjModel"}
    kinds |= {"super_res_first": "UNet2DModel", "super_res_last": "UNet2DModel"}
    kinds |= {"prior": "PriorTransformer"} if with_prior else {}
    for entry in case["weights"]:
        name = entry["name"]
        if name in kinds:
            weights = {k.removeprefix(f"{name}."): v for k, v in filled(entry).items()}
            write(folder / name, c[name] | {"_class_name": kinds[name]}, weights, "diffusion_pytorch_model.safetensors")
    (folder / "prior_scheduler").mkdir()
    (folder / "prior_scheduler" / "scheduler_config.json").write_text(json.dumps(c["prior_scheduler"]))
    write(folder / "text_encoder", TEXT, towers()["text"], "model.safetensors")
    if sees:
        write(folder / "image_encoder", VISION, towers()["vision"], "model.safetensors")
    index = {"_class_name": "UnCLIPPipeline" if with_prior else "UnCLIPImageVariationPipeline"}
    index |= {name: ["diffusers", kind] for name, kind in kinds.items()} | {"text_proj": ["unclip", "x"]}
    index |= {"image_encoder": ["transformers", "x"] if sees else [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def filled(entry: dict[str, Any]) -> dict[str, Tensor]:
    return fill_state_dict(entry["keys"], entry.get("overrides"))


def towers() -> dict[str, dict[str, Tensor]]:
    """Weights of both towers in the words of transformers."""
    weights = fill_state_dict(clip.transformers_layout("small", clip.config_from(TEXT, VISION)).shapes)
    text = {key: value for key, value in weights.items() if key.startswith("text_")}
    return {"text": text, "vision": {key: value for key, value in weights.items() if key not in text}}


def test_a_folder_of_diffusers_opens_and_draws(tmp_path: Path) -> None:
    pipe: Any = Pipeline.from_pretrained(small_karlo(tmp_path / "karlo"), device="cpu")
    assert pipe.settings["guidance"] == {"prior": 4.0, "decoder": 8.0}
    assert pipe.settings["candidates"] == {"prior": 1}
    assert pipe.parts["prior"].config.clamp == 5.0
    few = {"prior": 3, "decoder": 2, "up256": 3}
    out = pipe("a red cube", seed=3, steps=few, progress=False)
    assert out.images[0].size == (32, 32)
    pipe.save_pretrained(tmp_path / "ours")
    again: Any = Pipeline.from_pretrained(tmp_path / "ours", device="cpu")
    assert again("a red cube", seed=3, steps=few, progress=False).images[0].tobytes() == out.images[0].tobytes()
    with pytest.raises(UsageError, match="without its image encoder"):
        pipe.clip.encode_image(torch.zeros(1, 3, 28, 28))


def test_the_folder_of_image_variations_has_no_prior(tmp_path: Path) -> None:
    pipe: Any = Pipeline.from_pretrained(small_karlo(tmp_path / "k", with_prior=False, sees=True), device="cpu")
    assert set(pipe.parts) == {"clip", "decoder", "up256"}
    assert pipe.clip.encode_image(torch.zeros(1, 3, 28, 28)).shape == (1, 24)
    with pytest.raises(UsageError, match="no prior, so it draws no sentences"):
        pipe("a red cube", progress=False)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("text_proj", "lacks text_proj"),
        ("super_res_last", "lacks super_res_last"),
        ("text_encoder", "lacks text_encoder"),
        ("image_encoder", "lacks image_encoder"),
        ("prior", "lacks prior"),
        ("prior/config.json", "lacks prior/config.json"),
        ("prior_scheduler", "no scheduler beside it says how far x_0 is clamped"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(tmp_path: Path, broken: str, message: str) -> None:
    folder = small_karlo(tmp_path / "karlo", sees=True)
    (folder / broken).rename(tmp_path / "away")
    with pytest.raises(DataError, match=message):
        Pipeline.from_pretrained(folder, device="cpu")


def test_networks_of_a_folder_convert_one_by_one(tmp_path: Path) -> None:
    folder = small_karlo(tmp_path / "karlo", sees=True)
    for place, names, kind in (
        ("decoder", ("text_proj", "decoder"), "decoder"),
        ("up256", ("super_res_last", "super_res_first"), "upsampler"),
        ("prior", ("prior",), "prior"),
        ("clip", ("image_encoder", "text_encoder"), "clip"),
    ):
        done = convert_files([folder / name for name in names], tmp_path / place)
        assert done.stage == kind
        assert isinstance(load_stage(tmp_path / place, expect=kind), stage(kind).model)
    assert layout_of([folder / "prior_scheduler"]) is None


def test_the_two_networks_of_an_upsampler_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folder = small_karlo(tmp_path / "karlo")
    first, last = folder / "super_res_first", folder / "super_res_last"
    convert_files([last, first], tmp_path / "a")
    convert_files([first, last], tmp_path / "b")
    a, b = (load_stage(tmp_path / name).state_dict() for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    first.rename(folder / "one")
    with pytest.raises(DataError, match=r"lacks 'super_res_first\."):
        convert_files([folder / "one", last], tmp_path / "c")


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_not_unpacked(tmp_path: Path) -> None:
    """The same tensors, deflated: 4 MB of zeros in 4 KB."""
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "whole.pt")
    with ZipFile(tmp_path / "whole.pt") as whole, ZipFile(tmp_path / "bomb.pt", "w", ZIP_DEFLATED) as bomb:
        for member in whole.infolist():
            bomb.writestr(member.filename, whole.read(member))
    assert read_weights(tmp_path / "whole.pt")["w"].shape == (1_000_000,)
    with pytest.raises(DataError, match=r"bomb.pt: has [\d,]{5} bytes and unpacks to 4,0[\d,]+; torch never packs"):
        read_weights(tmp_path / "bomb.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"cut.pt: not a file of weights, or damaged or truncated"):
        read_weights(tmp_path / "cut.pt")


def test_a_program_is_not_run(tmp_path: Path) -> None:
    """OpenAI's own ViT-L-14.pt is one."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-L-14.pt"))
    with pytest.raises(DataError, match=r"ViT-L-14\.pt: a program \(TorchScript\), and code from a file is never run"):
        convert_files([tmp_path / "ViT-L-14.pt"], tmp_path / "out")


# -- CLIP --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_clip_reads_and_sees_as_that_of_transformers_does(tmp_path: Path) -> None:
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    small_karlo(tmp_path / "karlo", sees=True)
    ours: Any = Pipeline.from_pretrained(tmp_path / "karlo", device="cpu").parts["clip"]
    text = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, bos_token_id=49406, eos_token_id=49407)).eval()
    text.load_state_dict(towers()["text"], strict=True)
    tokens, mask = ours.tokenizer(["a red cube", ""])
    theirs = text(input_ids=tokens)
    features: TextFeatures = ours.encode_tokens(tokens, mask)
    torch.testing.assert_close(features.pooled, theirs.text_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.sequence, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)
    assert (features.pooled.norm(dim=1) - 1).abs().min() > 0.01, "as the tower gives it, of no unit norm"
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()
    vision.load_state_dict(towers()["vision"], strict=True)
    picture = torch.rand(2, 3, 28, 28) * 2 - 1
    pixels = ((picture + 1) / 2 - ours.mean) / ours.std
    expected = vision(pixel_values=pixels).image_embeds
    torch.testing.assert_close(ours.encode_image(picture), expected, atol=1e-5, rtol=1e-5)


def test_both_dialects_of_clip_are_the_same_network() -> None:
    config = clip.config_from(TEXT, VISION)
    assert isinstance(config, ClipConfig)
    merged = clip.transformers_layout("small", config).convert(towers()["text"] | towers()["vision"])
    openai = {key.removeprefix("clip."): value for key, value in merged.items()}
    again = clip.openai_layout("small", config).convert(openai | {"vocab_size": torch.tensor(49408)})
    assert again.keys() == merged.keys()
    assert all(torch.equal(again[key], merged[key]) for key in merged)
    assert merged["clip.logit_scale"].exp().item() == pytest.approx(100)
