"""The consistency decoder: the reference's numbers, published files, training, distillation, drawing, bad input."""

import json
import re
import tarfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec import SmallCodec
from golden_tools import check, fill, fill_state_dict, load_case, make_input
from manifests import shapes, state
from pydantic import ValidationError
from safetensors.torch import save_file
from small import autoencoder, of
from small import consistency_decoder as small
from torch import Tensor, nn

from t2i.cli.describe import describe
from t2i.convert import convert as converter
from t2i.convert import program
from t2i.convert.convert import convert_files, recognise
from t2i.convert.diffusers import layout_of
from t2i.core.errors import DataError, UsageError
from t2i.core.measures import psnr
from t2i.core.seed import Streams
from t2i.data.config import DataConfig
from t2i.diffusion.consistency import Consistency, Distillation, few_steps
from t2i.diffusion.sampling import Sampling
from t2i.io.images import to_pil
from t2i.io.torchscript import read_program, sha256_of
from t2i.keymaps.flat import Layout
from t2i.run import train
from t2i.stages.consistency_decoder import convert as published
from t2i.stages.consistency_decoder.model import ConsistencyDecoder, ConsistencyDecoderConfig, LatentsConfig
from t2i.stages.consistency_decoder.presets import KL_F8, PRESETS
from t2i.stages.consistency_decoder.sample import sample
from t2i.stages.consistency_decoder.task import ConsistencyDecoderOptions, ConsistencyDecoderTask
from t2i.stages.registry import load_stage, save_stage, stage
from t2i.stages.stage import How, Inputs

MANIFESTS = "manifests_consistency.json"
load = partial(load_case, "consistency.json")
SMALL = small().config.unet


# -- the reference's numbers -------------------------------------------------------------------------------------------


def original() -> tuple[Layout, dict[str, Tensor], dict[str, Any]]:
    case = load("dev-consistency-decoder")
    decoder, table = case["weights"]
    weights = fill_state_dict(decoder["keys"], decoder["overrides"]) | fill_state_dict(table["keys"])
    unet = of(PRESETS["consistency-decoder"].unet, channels=32, multipliers=(1, 2, 3, 3))
    return published.original_layout("small", ConsistencyDecoderConfig(unet=unet, latents=KL_F8)), weights, case


def built(layout: Layout, weights: dict[str, Tensor]) -> ConsistencyDecoder:
    model: Any = layout.model(layout.config)
    model.load_state_dict(layout.convert(weights))
    return model.eval()


@torch.no_grad()
def test_it_gives_openais_numbers() -> None:
    layout, weights, case = original()
    model, i, want = (
        built(layout, weights),
        {n: make_input(rule) for n, rule in case["inputs"].items()},
        case["outputs"],
    )
    plain = built(published.original_layout("small", layout.config, ""), weights_without(weights))
    features = model.condition(i["features"] * model.std + model.mean)
    for network in (model, plain):
        check(want["forward"], network(i["x"], i["t"], features), "forward")
    z = 0.18215 * i["latent"]
    condition = model.condition(z)
    check(want["features_normalised"], condition.image[:, :, ::8, ::8], "features_normalised")
    seen: list[Tensor] = []
    inside = model.estimate.model
    estimate = model.estimate.__class__(lambda x, t, c: (seen.append(x), inside(x, t, c))[1], model.estimate.process)
    image = few_steps(
        estimate, condition, model.estimate.process, model.config.diffusion.steps(), (3, 32, 32), i["noise"].of(1)
    )
    check(want["net_input_step_2"], seen[1], "net_input_step_2")
    check(want["image"], image, "image")
    i["noise"] = make_input(case["inputs"]["noise"])
    check(want["image"], sample(model, z, i["noise"].of(1)), "image")


def weights_without(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without the word before every name."""
    return {key.removeprefix("blocks."): value for key, value in weights.items()}


def vae() -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Config and weights of the small ConsistencyDecoderVAE, and its case."""
    case = load("dev-consistency-decoder-diffusers")
    entry = case["weights"][0]
    theirs = {"_class_name": "ConsistencyDecoderVAE", **case["config"]["ConsistencyDecoderVAE"]}
    for way in ("Down", "Up"):
        theirs[f"decoder_{way.lower()}_block_types"] = [f"Resnet{way}sampleBlock2D"] * 4
    return theirs, fill_state_dict(entry["keys"], entry["overrides"]), case


@torch.no_grad()
def test_it_gives_the_numbers_of_diffusers() -> None:
    theirs, weights, case = vae()
    layout = published.diffusers_layout("small", published.config_from(theirs))
    model, i, want = (
        built(layout, weights),
        {n: make_input(rule) for n, rule in case["inputs"].items()},
        case["outputs"],
    )
    x, features = i["x7"].split([3, 4], dim=1)
    condition = model.condition(i["latent"] * 0.18215)
    check(want["decoder_unet"], model.unet(x, i["t"], condition.__class__(image=features)), "decoder_unet")
    noised: list[Tensor] = []
    image = sample(
        model, 0.18215 * i["latent"], i["noise"].of(1), clamp=None, callback=lambda done, n, x_t, p: noised.append(x_t)
    )
    check(want["state_before_step_2"], noised[1], "state_before_step_2")
    check(want["decode"], image, "decode")
    again = make_input(case["inputs"]["noise"]).of(1)
    with pytest.raises(AssertionError):  # as the original clamps
        check(want["decode"], sample(model, 0.18215 * i["latent"], again), "decode")


# -- published files ---------------------------------------------------------------------------------------------------

FILES = {
    "original": ("consistencydecoder/decoder", "consistencydecoder/embedding"),
    "diffusers": ("consistencydecoder-diffusers/vae",),
}


@pytest.mark.parametrize("names", FILES.values(), ids=list(FILES))
def test_published_key_lists_load_strictly(names: tuple[str, ...]) -> None:
    keys = {key: shape for name in names for key, shape in shapes(name, MANIFESTS).items()}
    plain = {key.removeprefix("blocks."): shape for key, shape in keys.items()}
    for given in (keys, plain):
        layout = recognise(given, "decoder.pt")
        assert (layout.stage, layout.name) == ("consistency_decoder", "consistency-decoder")
        with torch.device("meta"):
            model = layout.model(layout.config)
        model.load_state_dict(layout.convert(state(given)), assign=True)
        assert sum(p.numel() for p in model.parameters()) == 621_277_702
        assert len(model.state_dict()) == 407
    key = next(k for k in keys if k.startswith(("blocks.mid_0", "decoder_unet.mid_block")))
    with pytest.raises(DataError, match=f"lacks '{key}'"):
        recognise({k: shape for k, shape in keys.items() if k != key}, "decoder.pt")
    with pytest.raises(DataError, match=f"has '{key}' of shape"):
        recognise(keys | {key: (7,)}, "decoder.pt")


def test_the_folder_of_diffusers_says_what_it_is(tmp_path: Path) -> None:
    theirs, weights, _ = vae()
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    found = convert_files([tmp_path], tmp_path / "out")
    assert (found.stage, found.name) == ("consistency_decoder", "ConsistencyDecoderVAE")
    model = load_stage(tmp_path / "out", expect="consistency_decoder")
    expected = built(published.diffusers_layout("small", published.config_from(theirs)), weights)
    assert model.config == expected.config
    assert all(torch.equal(a, expected.state_dict()[key]) for key, a in model.state_dict().items())
    full = shapes(FILES["diffusers"][0], MANIFESTS)
    config = json.loads((Path(__file__).parents[1] / "golden" / MANIFESTS).read_text())["checkpoints"]
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "ConsistencyDecoderVAE"} | config[FILES["diffusers"][0]]["config"])
    )
    layout = layout_of([tmp_path])
    assert layout is not None
    assert layout.config == PRESETS["consistency-decoder"]
    assert layout.shapes.keys() == layout.read(full).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 16}, "latent_channels=16, but the decoders that are read have 4"),
        ({"scaling_factor": 0.13025}, r"scaling_factor=0\.13025, but"),
        ({"decoder_add_attention": True}, "add_attention=True, but"),
        ({"decoder_time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    ],
)
def test_folders_of_another_kind_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    theirs, weights, _ = vae()
    (tmp_path / "config.json").write_text(json.dumps(theirs | changes))
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(DataError, match=message):
        convert_files([tmp_path], tmp_path / "out")
    layout = published.diffusers_layout("small", published.config_from(theirs))
    monkeypatch.setattr(converter, "layouts", lambda: (layout,))
    with pytest.raises(DataError, match=message):
        convert_files([tmp_path], tmp_path / "out", network="small")
    assert not (tmp_path / "out").exists()


class Leaf(nn.Module):
    """A part of the program: letters for weights, as OpenAI's has it."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for letter, value in tensors.items():
            self.register_parameter(letter, nn.Parameter(value))
        self.sizes, self.names, self.scale = [1, 2], {"a": "b"}, 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + len(self.sizes) + len(self.names)


def tree(weights: dict[str, Tensor]) -> nn.Module:
    """Modules whose tensors have these names."""
    leaves: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        name, _, letter = key.rpartition(".")
        leaves.setdefault(name, {})[letter] = value
    root = nn.Module()
    for name, tensors in leaves.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = getattr(place, part)
        if not hasattr(place, last):
            place.add_module(last, Leaf(tensors))
    return root


@pytest.fixture
def decoder_pt(tmp_path: Path) -> tuple[Path, Layout, dict[str, Tensor]]:
    """A program of OpenAI's layout, small, whose table of timesteps is a part of it."""
    unet = of(PRESETS["consistency-decoder"].unet, channels=32, multipliers=(1,), num_blocks=1)
    layout = published.original_layout("small", ConsistencyDecoderConfig(unet=unet, latents=KL_F8))
    weights = {key: fill(key, shape) for key, shape in layout.shapes.items()}
    inside = {("blocks.embed_time.emb.w" if key == "weight" else key): value for key, value in weights.items()}
    with pytest.warns(Warning, match="deprecated"):
        torch.jit.script(tree(inside)).save(str(tmp_path / "decoder.pt"))
    return tmp_path / "decoder.pt", layout, weights


def test_a_program_gives_its_tensors_and_is_not_run(
    decoder_pt: tuple[Path, Layout, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, layout, weights = decoder_pt

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a program was run")

    monkeypatch.setattr(torch.jit, "load", never)
    monkeypatch.setitem(PRESETS, "consistency-decoder", layout.config)
    monkeypatch.setattr(converter, "layouts", lambda: (layout,))
    tensors = read_program(path)
    assert {key: tuple(value.shape) for key, value in tensors.items() if "emb.w" not in key} == {
        key: shape for key, shape in layout.shapes.items() if key != "weight"
    }
    monkeypatch.setitem(program.KNOWN, sha256_of(path), published.of_program)
    convert_files([path], tmp_path / "out")
    model = load_stage(tmp_path / "out")
    assert all(torch.equal(a, model.state_dict()[key]) for key, a in built(layout, weights).state_dict().items())


def test_a_program_of_another_digest_or_cut_short_is_refused(
    decoder_pt: tuple[Path, Layout, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, _ = decoder_pt
    with pytest.raises(
        DataError, match=r"decoder\.pt: a program .* of SHA-256 c9cebd3132dd…, but this file's is"
    ) as told:
        convert_files([path], tmp_path / "out")
    assert sha256_of(path)[:12] in str(told.value)
    assert "\n" not in str(told.value)
    whole = path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.pt: not a file of weights, or damaged or truncated"):
        convert_files([tmp_path / "cut.pt"], tmp_path / "out")
    spoilt = bytearray(whole)
    spoilt[whole.index(b"data/0") + 200] ^= 255
    (tmp_path / "spoilt.pt").write_bytes(spoilt)
    monkeypatch.setitem(program.KNOWN, sha256_of(tmp_path / "spoilt.pt"), published.of_program)
    with pytest.raises(DataError, match=r"spoilt\.pt: not a program \(TorchScript\) of tensors, or damaged"):
        convert_files([tmp_path / "spoilt.pt"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the network -------------------------------------------------------------------------------------------------------


def test_latents_decide_the_picture_and_noise_the_rest() -> None:
    model, codec = small(), SmallCodec()
    z = codec.encode_latents(torch.rand(2, 3, 32, 32) * 2 - 1)
    drawn = sample(model, z, Streams([1, 2]))
    assert drawn.shape == (2, 3, 32, 32)
    assert drawn.abs().max() <= 1
    torch.testing.assert_close(sample(model, z[1:], Streams([2])), drawn[1:])  # the same alone
    assert (sample(model, z.flip(0), Streams([1, 2])) - drawn).abs().max() > 1e-4
    assert (sample(model, z, Streams([3, 4])) - drawn).abs().max() > 1e-4
    wide = torch.cat([z, z], dim=3)
    assert sample(model, wide, Streams([1, 2])).shape == (2, 3, 32, 64)


def test_the_stage_draws_in_two_evaluations() -> None:
    spec, model = stage("consistency_decoder"), small()
    calls: list[int] = []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    z = SmallCodec().encode_latents(torch.rand(1, 3, 32, 32))
    told: list[tuple[int, int]] = []
    how = How(Sampling(), Streams([5]), callback=lambda done, n, x, p: told.append((done, n)))
    assert spec.draw is not None
    x = spec.draw(model, Inputs(1, latents=z), how)
    assert torch.equal(x, sample(model, z, Streams([5])))
    assert spec.num_evaluations(model.config, Sampling()) == 2 == len(told) == len(calls) // 2
    assert (spec.stepped, spec.makes, told) == (False, "pictures", [(1, 2), (2, 2)])
    assert spec.rows(model.config, 16, None) == 16 * (64 // 8) ** 2


def test_its_cost_is_that_of_both_evaluations() -> None:
    told = describe("configs/shapes/consistency.yaml")
    assert re.search(r"ConsistencyDecoder, 1\.46 M parameters, .* GFLOPs per picture of 2 evaluations", told)


def test_a_learned_table_of_timesteps_has_a_row_for_each() -> None:
    model = small(unet=of(SMALL, time_table=1024))
    z = SmallCodec().encode_latents(torch.rand(1, 3, 32, 32))
    before = sample(model, z, Streams([1]))
    with torch.no_grad():
        model.unet.time_table.weight[:512] += 1  # type: ignore[union-attr, index]
        assert torch.equal(sample(model, z, Streams([1])), before)
        model.unet.time_table.weight[512] += 1  # type: ignore[union-attr, index]
        assert not torch.equal(sample(model, z, Streams([1])), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": of(SMALL, image_channels=3)}, r"unet\.image_channels=3 must be latents\.channels=4"),
        ({"unet": of(SMALL, out_channels=2)}, r"unet\.out_channels=2 must be 3 at least"),
        ({"unet": of(SMALL, time_table=1000)}, r"unet\.time_table=1000 must have a row for each of .*num_steps=1024"),
        ({"image_size": 36}, "image_size=36 must be a multiple of 8"),
        ({"latents": {"mean": (0.0,)}}, r"1 values of latents\.mean, but latents\.channels=4"),
        ({"latents": {"std": (1.0, 0.0, 1.0, 1.0)}}, r"latents\.std must be above 0, got 0\.0"),
    ],
)
def test_configs_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ConsistencyDecoderConfig(**({"unet": SMALL, "image_size": 32} | changes))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 4), r"latents are of shape \(1, 3, 4, 4\), expected \(B, 4, h, w\)"),
        ((4, 4, 4), r"latents are of shape \(4, 4, 4\), expected"),
        ((1, 4, 4, 0), r"latents 4 × 0 are pictures of 32 × 0 pixels, which must be multiples of 8"),
        ((1, 4, 5, 4), r"latents 5 × 4 are pictures of 40 × 32 pixels, which must be multiples of 16"),
    ],
)
def test_latents_that_do_not_fit_are_refused(shape: tuple[int, ...], message: str) -> None:
    model = small(unet=of(SMALL, patch_size=8)) if "16" in message else small()
    with pytest.raises(UsageError, match=message):
        sample(model, torch.zeros(shape), Streams([1]))


# -- training ----------------------------------------------------------------------------------------------------------


def pictures(num: int, size: int = 32, **more: Any) -> dict[str, Any]:
    """Two halves of random colours: latents tell them, but not what is between."""
    colours = torch.rand(num, 3, 2, 1, generator=torch.Generator().manual_seed(3)) * 2 - 1
    image = colours.repeat_interleave(size // 2, dim=2).expand(-1, -1, -1, size).contiguous()
    return {"image": image, "seed": list(range(num)), **more}


def trained(task: ConsistencyDecoderTask, steps: int, lr: float = 3e-3) -> list[float]:
    optimizer = torch.optim.Adam(task.model.parameters(), lr=lr)
    task.model.train()
    losses = []
    for step in range(1, steps + 1):
        batch = pictures(8, 16) | {"seed": [step * 8 + i for i in range(8)]}
        mean = task.loss(batch)["loss"].mean()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        task.after_step(step)
        losses.append(mean.item())
    task.model.eval()
    return losses


OPTIONS: dict[str, Callable[..., ConsistencyDecoderOptions]] = {
    "denoising": partial(ConsistencyDecoderOptions, objective="denoising"),
    "consistency": partial(ConsistencyDecoderOptions, objective="consistency"),
}


def test_a_teacher_learns_and_its_student_draws_as_well_in_two_evaluations() -> None:
    codec, batch = SmallCodec(), pictures(4, 16)
    task = ConsistencyDecoderTask(small(), OPTIONS["denoising"](), autoencoder=codec)
    before = task.metrics(batch)["psnr"]
    losses = trained(task, 60)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    teacher = task.model.requires_grad_(False)
    assert (psnr_teacher := task.metrics(batch)["psnr"]) > before + 3
    student = small(1)
    distilled = ConsistencyDecoderTask(student, OPTIONS["consistency"](), autoencoder=codec, teacher=teacher)
    student.load_state_dict(teacher.state_dict())  # as `init` does
    distilled.prepare([batch])
    assert all(torch.equal(a, b) for a, b in zip(distilled.memory.parameters(), student.parameters(), strict=True))
    weights = [p.clone() for p in teacher.parameters()]
    trained(distilled, 15, lr=5e-4)
    assert distilled.metrics(batch)["psnr"] > psnr_teacher - 1
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher.parameters(), strict=True))


@pytest.mark.parametrize("num", [8, 9, 15, 32])
def test_a_student_learns_where_it_is_asked(num: int) -> None:
    how = ConsistencyDecoderOptions(objective="consistency", distillation=Distillation(num_points=num))
    task = ConsistencyDecoderTask(small(), how, autoencoder=SmallCodec())
    assert {*small().config.diffusion.steps()} <= {*task.grid}, "where it is drawn it has learned"


def test_the_target_follows_the_student_and_has_no_gradient() -> None:
    task = ConsistencyDecoderTask(small(), OPTIONS["consistency"](), autoencoder=SmallCodec())
    before = [p.clone() for p in task.memory.parameters()]
    task.loss(pictures(2))["loss"].mean().backward()
    assert all(p.grad is None for p in task.memory.parameters())
    assert all(p.grad is not None for p in task.model.parameters())
    with torch.no_grad():
        for p in task.model.parameters():
            p.add_(1.0)
    task.after_step(1)
    for p, old in zip(task.memory.parameters(), before, strict=True):
        torch.testing.assert_close(p, old + 0.05)
    assert task.memory.state_dict().keys() == task.model.state_dict().keys()


def test_a_sample_may_bring_its_latents() -> None:
    codec, batch = SmallCodec(), pictures(3)
    with_codec = ConsistencyDecoderTask(small(), autoencoder=codec)
    alone = ConsistencyDecoderTask(small())
    assert (with_codec.keys, alone.keys) == (("image",), ("image", "latents"))
    cached = batch | {"latents": codec.encode_latents(batch["image"])}
    for task in (with_codec, alone):
        torch.testing.assert_close(task.loss(cached)["loss"], with_codec.loss(batch)["loss"])
        assert torch.equal(task.sample(cached)[:3], batch["image"])
    assert alone.metrics(cached).keys() == {"psnr"}
    assert with_codec.metrics(batch).keys() == {"psnr", "psnr_autoencoder"}
    other = batch | {"latents": codec.encode_latents(torch.rand(3, 3, 64, 64))}
    with pytest.raises(DataError, match=r"latents have a standard deviation of .*, expected about 1"):
        task.prepare([batch | {"latents": torch.randn(4, 4, 4, 4) / 0.18215}])
    with pytest.raises(UsageError, match=r"latents of \(8, 8\) places, but these pictures have \(4, 4\)"):
        alone.loss(other)


def test_windows_of_pictures_and_of_their_latents_are_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, image = SmallCodec(), torch.rand(6, 3, 64, 64) * 2 - 1
    batch = {"image": image, "seed": list(range(6)), "latents": codec.encode_latents(image)}
    task = ConsistencyDecoderTask(small(), OPTIONS["denoising"](crop=32), autoencoder=codec)
    windows = task._cropped(batch, 32, Streams(range(6)))
    assert windows["image"].shape == (6, 3, 32, 32)
    torch.testing.assert_close(windows["latents"], codec.encode_latents(windows["image"]))  # of blocks of 8 pixels
    bare = {key: value for key, value in batch.items() if key != "latents"}
    torch.testing.assert_close(task.loss(batch)["loss"], task.loss(bare)["loss"])
    again = task._cropped(batch, 32, Streams(range(6)))
    assert torch.equal(again["image"], windows["image"])
    assert len({tuple(x.flatten()[:3].tolist()) for x in windows["image"]}) == 6


def test_noise_on_latents_is_of_training_alone() -> None:
    codec, batch = SmallCodec(), pictures(3)
    plain, noisy = (
        ConsistencyDecoderTask(small(), OPTIONS["denoising"](latent_noise=std), autoencoder=codec) for std in (0, 0.5)
    )
    assert (plain.loss(batch)["loss"] - noisy.loss(batch)["loss"]).abs().min() > 1e-6
    assert torch.equal(plain.sample(batch), noisy.sample(batch))


def test_what_it_learns_from_must_fit() -> None:
    spec, data, codec = stage("consistency_decoder"), DataConfig(size=32), SmallCodec()
    config = small(latents=LatentsConfig()).config
    assert spec.complete(config, {"autoencoder": codec}, data).latents.fingerprint == (0.5, 1.0)
    assert spec.complete(config, {}, data) == config
    with pytest.raises(UsageError, match=r"model\.latents\.fingerprint is of another autoencoder"):
        spec.complete(small().config, {"autoencoder": SmallCodec(mark=-0.5)}, data)
    given = config.model_copy(update={"latents": LatentsConfig(channels=4)})
    with pytest.raises(UsageError, match=r"model\.latents\.channels=4 is 8 in the autoencoder; leave it out"):
        spec.complete(given, {"autoencoder": SmallCodec(channels=8)}, data)
    with pytest.raises(UsageError, match=r"data\.size=36 must be a multiple of 8"):
        spec.fits(small(), DataConfig(size=36), spec.options(), {})
    with pytest.raises(UsageError, match=r"task\.crop=64 must be a multiple of 8, and data\.size=32 at most"):
        spec.fits(small(), data, spec.options(crop=64), {})
    with pytest.raises(UsageError, match=r"data\.flip=true mirrors pictures, but not the latents beside them"):
        spec.fits(small(), DataConfig(size=32, flip=True), spec.options(), {})
    spec.fits(small(), DataConfig(size=32, flip=True), spec.options(), {"autoencoder": codec})
    with pytest.raises(ValueError, match="'denoising' has no use for a teacher"):
        ConsistencyDecoderTask(small(), autoencoder=codec, teacher=small())
    other = small(latents=LatentsConfig(fingerprint=(-0.5, 1.0)))
    with pytest.raises(ValueError, match=r"the teacher was trained on another model\.latents\.fingerprint than"):
        ConsistencyDecoderTask(small(), OPTIONS["consistency"](), autoencoder=codec, teacher=other)
    other = small(diffusion=Consistency(sigma_data=0.1))
    with pytest.raises(ValueError, match=r"the teacher was trained on another model\.diffusion than"):
        ConsistencyDecoderTask(small(), OPTIONS["consistency"](), autoencoder=codec, teacher=other)
    rounded = small(latents=LatentsConfig(fingerprint=(0.501, 0.999)), diffusion=Consistency(drawn_at=(1.0,)))
    ConsistencyDecoderTask(small(), OPTIONS["consistency"](), autoencoder=codec, teacher=rounded)
    assert spec.complete(config, {"teacher": small()}, data).latents.fingerprint == (0.5, 1.0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A run's config on 16 pictures with latents beside them; the folder of it is the current one."""
    codec, image = SmallCodec(), pictures(16)["image"]
    with tarfile.open(tmp_path / "cache.tar", "w") as tar:
        for number, (picture, z) in enumerate(zip(to_pil(image), codec.encode_latents(image), strict=True)):
            for name, save in (("png", lambda f, p=picture: p.save(f, "png")), ("latents.npy", partial(dump, z))):
                save(file := BytesIO())
                member = tarfile.TarInfo(f"{number:03d}.{name}")
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)
    unet = small().config.unet.model_dump(mode="json")
    run = {
        "stage": "consistency_decoder",
        "model": {"unet": unet, "image_size": 32},
        "task": {"crop": 16},
        "data": {"source": str(tmp_path / "cache.tar"), "size": 32, "num_workers": 0, "val_fraction": 0.25},
        "train": {"steps": 2, "batch_size": 4, "save_every": 2, "val_every": 2, "log_every": 1, "num_samples": 2},
        "optim": {"lr": 1e-3},
        "save_dtype": "float32",
    }
    run["train"] |= {"out": str(tmp_path / "teacher"), "device": "cpu", "precision": "fp32"}
    (tmp_path / "run.yaml").write_text(json.dumps(run))
    return tmp_path / "run.yaml"


def dump(z: Tensor, file: BytesIO) -> None:
    np.save(file, z.numpy())


def curve(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "distance" in row and "loss" in row]


def test_a_distillation_from_a_cache_resumes_where_it_was(cache: Path) -> None:
    teacher, here = cache.parent / "teacher", cache.parent
    train(cache, [])
    assert "psnr" in (teacher / "metrics.jsonl").read_text()
    distil = ["task.objective=consistency", f"needs.teacher={teacher}", f"init={teacher}", "init_missing=error"]
    train(cache, [*distil, f"train.out={here / 'whole'}", "train.steps=4"])
    train(cache, [*distil, f"train.out={here / 'parts'}", "train.steps=2"])
    train(cache, [*distil, f"train.out={here / 'parts'}", "train.steps=4"])
    assert curve(here / "whole") == curve(here / "parts")
    assert len(curve(here / "whole")) >= 4
    whole, parts = (load_stage(here / name) for name in ("whole", "parts"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert (here / "whole" / "checkpoints" / "step-000004" / "memory.safetensors").is_file()
    with pytest.raises(UsageError, match=r"latents of \(4, 4\) places, but these pictures have \(2, 2\)"):
        train(cache, [f"train.out={here / 'other'}", "data.crop=16", "task.crop=null"])


def test_a_teacher_that_is_distilled_in_its_own_folder_begins_with_itself_as_target(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = []
    after = ConsistencyDecoderTask.renew

    def renew(self: ConsistencyDecoderTask) -> None:
        after(self)
        pairs = zip(self.memory.parameters(), self.model.parameters(), strict=True) if self.memory is not None else ()
        apart.append([bool((a != b).any()) for a, b in pairs])

    train(cache, [])
    monkeypatch.setattr(ConsistencyDecoderTask, "renew", renew)
    train(cache, ["task.objective=consistency", "train.steps=3"])
    assert apart
    assert not any(apart[-1])


def test_a_run_does_not_go_on_with_another_autoencoder(tmp_path: Path, cache: Path) -> None:
    for name in ("a", "b"):
        model = autoencoder()
        model.measure(model.posterior(pictures(8)["image"]).mean)
        model.scale.mul_(1.2 if name == "b" else 1)
        save_stage(tmp_path / name, "autoencoder", model)
    train(cache, [f"needs.autoencoder={tmp_path / 'a'}"])
    with pytest.raises(UsageError, match=r"step-000002 learned from another autoencoder than that of .*b: choose"):
        train(cache, [f"needs.autoencoder={tmp_path / 'b'}", "train.steps=3"])
    train(cache, [f"needs.autoencoder={tmp_path / 'a'}", "train.steps=3"])


def test_latents_beside_pictures_are_not_mirrored_with_them(cache: Path, tmp_path: Path) -> None:
    save_stage(tmp_path / "a", "autoencoder", autoencoder())
    with pytest.raises(DataError, match=r"latents that data\.flip=true would not mirror with their picture"):
        train(cache, [f"needs.autoencoder={tmp_path / 'a'}", "data.flip=true"])


def test_psnr_is_of_the_mean_squared_error() -> None:
    assert psnr(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2)) == pytest.approx(20.0)
