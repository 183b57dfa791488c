"""Weights of others are recognised, read strictly, and never run."""

import json
import pickle
import sys
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from flat_network import FACTS, SMALL, unpublished
from manifests import manifests, shapes, state
from safetensors.torch import load_file, save_file
from torch import nn

from t2i.cli.main import main
from t2i.convert.convert import convert_files, layouts, read_weights, recognise
from t2i.convert.custom import ASKED, read_shapes
from t2i.core.errors import DataError, UsageError
from t2i.io.weights import stored_dtype
from t2i.keymaps.flat import rekey
from t2i.stages.decoder.convert import convert as convert_decoder
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.noised_clip.convert import join
from t2i.stages.registry import load_stage, save_stage

NETWORKS = {
    "iddpm/imagenet64_uncond": "iddpm-64",
    "iddpm/cifar10_uncond": "iddpm-cifar10",
    "iddpm/imagenet64_cond": "iddpm-64-classes",
    "iddpm/lsun_uncond": "iddpm-lsun",
    "iddpm/upsample_cond": "iddpm-256",
    "adm/64x64_diffusion": "adm-64",
    "adm/128x128_diffusion": "adm-128",
    "adm/256x256_diffusion": "adm-256",
    "adm/256x256_diffusion_uncond": "adm-256-uncond",
    "adm/512x512_diffusion": "adm-512",
    "adm/lsun": "adm-256-uncond",
    "adm/64_256_upsampler": "adm-64-256",
    "adm/128_512_upsampler": "adm-128-512",
    "adm/64x64_classifier": "adm-64-classifier",
    "adm/128x128_classifier": "adm-128-classifier",
    "adm/256x256_classifier": "adm-256-classifier",
    "adm/512x512_classifier": "adm-512-classifier",
    "glide/base": "glide",
    "glide/upsample": "glide-256",
    "glide/base_inpaint": "glide-inpaint",
    "glide/upsample_inpaint": "glide-256-inpaint",
    "ddpm/cifar10 (pesser)": "ddpm-cifar10",
    "ddpm/lsun_256 (pesser)": "ddpm-256",
    "ddpm/cifar10-32 (diffusers)": "ddpm-cifar10",
    "ddpm/256 (diffusers)": "ddpm-256",
}
CLIP = ("glide/clip_image_enc", "glide/clip_text_enc")


def test_no_manifest_is_left_out() -> None:
    assert {*NETWORKS, *CLIP} == set(manifests())


@pytest.mark.parametrize(("manifest", "network"), NETWORKS.items())
def test_every_published_key_list_loads_strictly(manifest: str, network: str) -> None:
    layout = recognise(shapes(manifest), "file.pt")
    assert layout.name == network
    with torch.device("meta"):
        model = layout.model(layout.config)
    model.load_state_dict(layout.convert(state(shapes(manifest))), assign=True)
    assert sum(p.numel() for p in model.parameters()) == manifests()[manifest]["n_params"]


def test_the_two_files_of_a_noised_clip_are_one_network(tmp_path: Path) -> None:
    image, text = (state(shapes(name)) for name in CLIP)
    joined = {key: tuple(value.shape) for key, value in join([text, image]).items()}
    layout = recognise(joined, "both")
    assert layout.name == "glide-clip"
    count = sum(value.numel() for value in layout.convert(join([image, text])).values())
    assert count == sum(manifests()[name]["n_params"] for name in CLIP)
    torch.save({"blocks.input.w_t": torch.zeros(1)}, tmp_path / "image.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    for paths in (["image.pt"], ["image.pt", "image.pt"], ["image.pt", "other.pt"], ["other.pt", "other.pt"]):
        with pytest.raises(DataError, match="expected one file, or both encoders of a noised CLIP"):
            convert_files([tmp_path / path for path in paths], tmp_path / "out")


def test_what_keys_do_not_show_comes_from_the_recognised_network() -> None:
    def config(manifest: str) -> DecoderConfig:
        found = recognise(shapes(manifest), "file.pt").config
        assert isinstance(found, DecoderConfig)
        return found

    assert config("iddpm/imagenet64_uncond").diffusion.rescale_timesteps
    assert not config("iddpm/imagenet64_cond").diffusion.rescale_timesteps
    assert {config(f"iddpm/{name}").diffusion.num_steps for name in ("cifar10_uncond", "imagenet64_cond")} == {4000}
    schedules = [config(f"adm/{size}_diffusion").diffusion.schedule for size in ("64x64", "128x128")]
    assert schedules == ["cosine", "linear"]
    assert config("adm/128x128_diffusion").unet.num_heads == 4
    assert config("adm/256x256_diffusion").unet.head_channels == 64
    ddpm = config("ddpm/cifar10 (pesser)")
    assert (ddpm.diffusion.variance, ddpm.unet.norm_eps, ddpm.unet.time_order) == ("fixed_large", 1e-6, "sin_cos")
    assert config("ddpm/256 (diffusers)").diffusion.variance == "fixed_small"


def test_adm_64_alone_has_the_new_order_of_attention_rows() -> None:
    """Rows 0, 1, 2 … of the fused projection land where they were, and in no other network."""
    for manifest, moved in (("adm/64x64_diffusion", False), ("adm/256x256_diffusion", True)):
        layout, key = recognise(shapes(manifest), "f"), "middle_block.1.qkv.bias"
        values = state(shapes(manifest)) | {key: torch.arange(float(shapes(manifest)[key][0]))}
        out = layout.convert(values)["unet.mid.attention.attention.qkv.bias"]
        assert bool((out != values[key]).any()) == moved


@pytest.mark.parametrize(
    "manifest", ["adm/256x256_diffusion", "glide/upsample", "ddpm/cifar10 (pesser)", "adm/64x64_classifier"]
)
def test_one_change_is_named(manifest: str) -> None:
    good = shapes(manifest)
    network = NETWORKS[manifest]
    key = next(k for k in good if k.endswith(("norm.bias", "out.0.bias", "norm_out.bias")))
    shape = good[key]
    without = {k: s for k, s in good.items() if k != key}
    flat = manifest in ("adm/256x256_diffusion", "glide/upsample")
    hint = f"; if it is a U-Net of your own, give (with --set) {ASKED}" if flat else ""
    for bad, message in (
        (without | {"renamed.bias": shape}, f"almost {network}, but it lacks {key!r}; has the unknown 'renamed.bias'"),
        (without, f"almost {network}, but it lacks {key!r}"),
        (good | {"extra.bias": (1,)}, f"almost {network}, but it has the unknown 'extra.bias'"),
        (good | {key: (7,)}, f"almost {network}, but it has {key!r} of shape (7,), expected {shape}{hint}"),
    ):
        with pytest.raises(DataError) as error:
            recognise(bad, "my.pt")
        assert str(error.value) == f"my.pt: {message}"


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_a_network_of_unknown_size_asks_for_what_keys_do_not_show(tmp_path: Path, order: str) -> None:
    config, weights = unpublished()
    torch.save(weights, tmp_path / "mine.pt")
    with pytest.raises(DataError, match=r"no published network; .*order=legacy\|new"):
        convert_files([tmp_path / "mine.pt"], tmp_path / "out")
    with pytest.raises(UsageError, match="missing key 'order'"):
        convert_files([tmp_path / "mine.pt"], tmp_path / "out", given=FACTS)
    assert not (tmp_path / "out").exists()
    done = convert_files([tmp_path / "mine.pt"], tmp_path / "out", given=[*FACTS, f"order={order}"])
    assert (done.stage, done.parameters) == ("decoder", sum(w.numel() for w in weights.values()))
    model = load_stage(tmp_path / "out", expect="decoder")
    assert model.config == config
    for key, value in convert_decoder(weights, config, order).items():  # type: ignore[arg-type]
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    "manifest", ["adm/512x512_diffusion", "iddpm/upsample_cond", "glide/upsample_inpaint", "iddpm/lsun_uncond"]
)
def test_shapes_show_a_unets_size(manifest: str) -> None:
    """All that weights show of published networks is read from them alone."""
    layout = recognise(shapes(manifest), "f")
    c, process = layout.config, layout.config.diffusion
    heads = f"num_heads={c.unet.num_heads}" if c.unet.num_heads else f"head_channels={c.unet.head_channels}"
    given = [heads, "order=legacy", f"image_size={c.image_size}", "text_heads=8"]
    given += [f"{key}={getattr(process, key)}" for key in ("schedule", "num_steps", "rescale_timesteps")]
    if layout.stage == "upsampler":
        with pytest.raises(UsageError, match=r"give also low_size=N.* and levels=rounded\|truncated"):
            read_shapes(shapes(manifest), given, "f")
        given += [f"low_size={c.low_size}", f"levels={c.levels}"]
    found = read_shapes(shapes(manifest), given, "f").config
    assert found.model_copy(update={"unet": found.unet.model_copy(update={"dropout": c.unet.dropout})}) == c


def test_three_dialects_of_ddpm_are_the_same_network() -> None:
    found = [layout for layout in layouts() if layout.name == "ddpm-cifar10"]
    assert len(found) == 3
    ours = {key: torch.randn(value.shape) for key, value in Decoder(found[0].config).state_dict().items()}
    for layout in found:
        foreign = {}
        for entry in layout.entries:
            for keys, target, shape in entry.tensors({k: tuple(v.shape) for k, v in ours.items()}):
                foreign |= dict(zip(keys, (x.reshape(shape) for x in ours[target].chunk(len(keys))), strict=True))
        back = rekey(foreign, layout.entries, lambda: Decoder(found[0].config))
        assert all(torch.equal(back[key], ours[key]) for key in ours)


class Malicious:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path(sys.argv[0]).parent / "executed",))


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(unpublished()[1], tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save({"a": torch.zeros(1), "steps": 3}, tmp_path / "more.pt")
    (tmp_path / "folder").mkdir()
    for name in ("cut.pt", "text.pt", "empty.ckpt", "cut.safetensors", "more.pt", "folder", "none.pt"):
        with pytest.raises(DataError, match=name) as error:
            read_weights(tmp_path / name)
        assert "\n" not in str(error.value)


def test_any_damage_is_one_line(tmp_path: Path) -> None:
    """Files of the format before zip, cut and bent at many places."""
    path, random = tmp_path / "old.ckpt", np.random.RandomState(0)
    torch.save({f"w{i}": torch.ones(5) for i in range(4)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole[: random.randint(1, len(whole))])
        data[random.randint(len(data))] ^= 255
        path.write_bytes(data)
        with suppress(DataError):  # any other error fails; a bent value may be read
            read_weights(path)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
@pytest.mark.parametrize("reader", ["torch.load", "t2i.io.foreign.ZipFile"])
def test_a_lack_of_memory_is_no_damage(
    error: Exception, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    monkeypatch.setattr(reader, full)
    with pytest.raises(type(error)) as caught:
        read_weights(tmp_path / "a.pt")
    assert caught.value is error


def test_what_is_no_dictionary_of_tensors_by_name(tmp_path: Path) -> None:
    for number, content in enumerate([{0: torch.ones(1)}, [torch.ones(1)], {}, {"model": {"model": {}}}]):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(DataError, match="expected a dictionary of tensors by name"):
            read_weights(tmp_path / f"{number}.pt")
    endless: dict = {"a": torch.ones(1)}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pt")
    with pytest.raises(DataError):
        read_weights(tmp_path / "endless.pt")


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "x")])
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"w": Malicious()}))
    torch.save({"w": Malicious()}, tmp_path / "zip.pt")
    torch.save({"args": Namespace(lr=1), "model": {"w": torch.ones(2)}}, tmp_path / "args.pt")  # as many trainers do
    for name in ("old.pt", "zip.pt", "args.pt"):
        with pytest.raises(DataError, match=f"{name}: holds more than tensors, and code from a file is never run"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_wrapped_weights_are_found(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "w.ckpt")
    assert read_weights(tmp_path / "w.ckpt")["a"].tolist() == [1, 1]


def test_a_diffusers_folder_must_mean_the_same_network(tmp_path: Path) -> None:
    weights = {k: torch.zeros(s) for k, s in shapes("ddpm/cifar10-32 (diffusers)").items()}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    config = manifests()["ddpm/cifar10-32 (diffusers)"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"flip_sin_to_cos": True}))
    with pytest.raises(DataError, match="flip_sin_to_cos=True, but the network takes False"):
        convert_files([tmp_path], tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps(config | {"sample_size": 64}))
    with pytest.raises(DataError, match="sample_size=64, but the network takes 32"):
        convert_files([tmp_path], tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    with pytest.raises(DataError, match="prediction_type='v_prediction', but the network takes 'epsilon'"):
        convert_files([tmp_path], tmp_path / "out")
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "linear", "clip_sample": True}))
    assert convert_files([tmp_path], tmp_path / "out", dtype=torch.bfloat16).name == "ddpm-cifar10"
    assert isinstance(load_stage(tmp_path / "out"), Decoder)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["unet.conv_in.weight"].dtype == torch.bfloat16
    assert stored["unet.conv_out.weight"].dtype == torch.float32
    assert all(value.dtype == torch.float32 for key, value in stored.items() if "norm" in key or "time" in key)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(unpublished()[1], tmp_path / "mine.pt")

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["t2i", "convert", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out + err

    options = [x for fact in [*FACTS, "order=new"] for x in ("--set", fact)]
    code, text = run(str(tmp_path / "mine.pt"), "--out", str(tmp_path / "out"), *options)
    assert code == 0
    assert "decoder" in text
    assert run(str(tmp_path / "none.pt"), "--out", str(tmp_path / "new"))[0] == 3
    code, text = run(str(tmp_path / "mine.pt"), "--out", str(tmp_path / "new"), "--network", "adm-63")
    assert code == 2
    assert "did you mean 'adm-64'" in text


def test_converted_weights_stay_whole(tmp_path: Path) -> None:
    """One file, whatever its size: shards are for version control."""
    model = nn.Linear(2048, 2048)
    model.config = DecoderConfig.model_validate(SMALL)  # type: ignore[assignment]
    save_stage(tmp_path / "a", "decoder", model, max_shard_size=2**32)
    save_stage(tmp_path / "b", "decoder", model)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 1
    assert len(list((tmp_path / "b").glob("*.safetensors"))) == 2


def test_converted_weights_in_int8(tmp_path: Path) -> None:
    torch.save(unpublished()[1], tmp_path / "mine.pt")
    facts = [*FACTS, "order=new"]
    with pytest.raises(UsageError, match="unknown dtype 'int9' of weights"):
        convert_files([tmp_path / "mine.pt"], tmp_path / "out", given=facts, dtype="int9")
    assert not (tmp_path / "out").exists()
    for dtype in ("float32", "int8"):
        convert_files([tmp_path / "mine.pt"], tmp_path / dtype, given=facts, dtype=dtype)
    exact, rounded = (load_stage(tmp_path / name).state_dict() for name in ("float32", "int8"))
    assert stored_dtype(tmp_path / "int8") == "int8"
    assert all((rounded[key] - value).abs().max() <= value.abs().max() / 250 for key, value in exact.items())
