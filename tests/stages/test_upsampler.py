"""Training and sampling the upsamplers."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import small_upsampler
from torch import Tensor

from t2i.core.assets import asset
from t2i.core.errors import UsageError
from t2i.core.seed import Streams
from t2i.core.types import Batch
from t2i.data import shapes
from t2i.data.augment.bsr import bsr
from t2i.data.augment.degrade import Degradation
from t2i.diffusion import tiles
from t2i.diffusion.sampling import Sampling
from t2i.stages.registry import load_stage
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig
from t2i.stages.upsampler.sample import quantised, sample
from t2i.stages.upsampler.task import UpsamplerOptions, UpsamplerTask, psnr


def edges(seeds: range) -> Batch:
    """32 px pictures, black on the left and white on the right of a sharp edge that stands anywhere."""
    at = torch.tensor([(7 * s) % 29 + 2 for s in seeds])
    rows = torch.where(torch.arange(32) < at[:, None], -1.0, 1.0)  # (B, 32)
    return {"image": rows[:, None, None, :].expand(-1, 3, 32, -1).contiguous(), "seed": list(seeds)}


def upsampler(**changes: object) -> Upsampler:
    config = small_upsampler(8, 32).config.model_dump()
    config["diffusion"] |= {key: changes.pop(key) for key in ("target", "variance") if key in changes}
    torch.manual_seed(0)
    return Upsampler(UpsamplerConfig.model_validate(config | changes))


def error(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().mean().item()


def test_losses_belong_to_samples_and_not_to_batches() -> None:
    degradation = Degradation(blur=0.5, noise=0.1, jpeg=0.5)
    task = UpsamplerTask(small_upsampler(8, 32), UpsamplerOptions(degradation=degradation))
    whole = task.loss(edges(range(4)))
    assert {"loss", "mse", "vb", "loss_t0_249", "share_t750_999"} <= whole.keys()
    assert {tuple(x.shape) for x in whole.values()} == {(4,)}
    torch.testing.assert_close(task.loss(edges(range(2, 4)))["loss"], whole["loss"][2:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bsr", "bsr_light"])
def test_bsr_begins_at_the_large_picture(kind: str) -> None:
    degradation = Degradation.model_validate({"kind": kind})
    task = UpsamplerTask(small_upsampler(8, 32), UpsamplerOptions(degradation=degradation))
    batch = edges(range(4))
    low_res = task.degraded(batch["image"], Streams(range(4)))
    assert torch.equal(low_res, bsr(batch["image"], 4, Streams(range(4)), light=kind == "bsr_light"))
    assert low_res.shape == (4, 3, 8, 8)
    whole = task.loss(batch)["loss"]
    torch.testing.assert_close(task.loss(edges(range(2, 4)))["loss"], whole[2:], rtol=1e-4, atol=1e-5)


def test_small_pictures_are_area_averages() -> None:
    task, image = UpsamplerTask(small_upsampler(8, 32)), edges(range(6))["image"]
    expected = image.unflatten(2, (8, 4)).unflatten(4, (8, 4)).mean(dim=(3, 5))
    torch.testing.assert_close(task.low_res(image), expected)


def test_small_pictures_become_8_bits_as_the_network_wants_it() -> None:
    levels = torch.tensor([0.0, 0.4, 0.6, 127.5, 200.0, 254.7]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    found = {}
    for how in ("rounded", "truncated", "exact"):
        x = quantised(upsampler(levels=how), levels / 127.5 - 1)
        found[how] = [round(value, 3) for value in ((x + 1) * 127.5)[0, 0, 0].tolist()]
    beyond = torch.full((1, 3, 1, 1), 1.5), torch.full((1, 3, 1, 1), -1.5)
    high, low = (torch.stack([quantised(upsampler(levels=how), x) for how in found]).amax((1, 2, 3, 4)) for x in beyond)
    assert [round(value, 3) for value in ((high + 1) * 127.5).tolist()] == [319, 255, 318.75]
    assert [round(value, 3) for value in ((low + 1) * 127.5).tolist()] == [-64, 0, -63.75]
    assert found["rounded"] == [0, 0, 1, 128, 200, 255]
    assert found["truncated"] == [0, 0, 0, 127, 200, 254]
    assert found["exact"] == [0.0, 0.4, 0.6, 127.5, 200.0, 254.7]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8), r"low_res has the shape \(1, 1, 8, 8\), expected \(B, 3, h, w\)"),
        ((3, 8, 8), r"low_res has the shape \(3, 8, 8\)"),
        ((1, 3, 8, 0), "low_res is 8 × 0"),
        ((1, 3, 9, 8), "low_res is 9 × 8, but its sides must be multiples of 4"),
    ],
)
def test_small_pictures_of_a_wrong_shape_are_named(shape: tuple[int, ...], message: str) -> None:
    model = upsampler(low_size=16)  # twice as large, and folded by 8
    assert (model.config.magnification, model.config.unet.factor) == (2, 8)
    with pytest.raises(UsageError, match=message):
        model.condition(torch.zeros(shape))
    assert model.condition(torch.zeros(1, 3, 12, 8)).image.shape == (1, 3, 24, 16)


def test_an_untrained_residual_upsampler_draws_the_enlarged_picture() -> None:
    """Its last layer is zero, so x_0 is predicted to be the small picture and nothing else."""
    model = upsampler(target="x0", residual=True, interpolation="bicubic").eval()
    low_res = F.avg_pool2d(edges(range(3))["image"], 4) / 2
    drawn = sample(model, model.condition(low_res), Streams([1, 2, 3]), Sampling(steps=4))
    assert error(drawn, model.enlarge(low_res)) < 0.005


def test_held_out_pictures_are_measured_in_decibels() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    for off, dB in (
        ((0.2, 0.2), 20.0),
        ((0.02, 0.02), 40.0),
        ((0.2, 0.0), 23.0103),
    ):  # 10 log10(4 / mean squared error)
        assert abs(psnr(truth + torch.tensor(off)[:, None, None, None], truth) - dB) < 1e-3
    untrained = UpsamplerTask(upsampler(target="x0", residual=True, interpolation="bicubic").eval())
    grey = edges(range(6))
    measured = untrained.metrics(grey | {"image": grey["image"] / 2})  # no overshoot to clamp
    assert abs(measured["psnr"] - measured["psnr_enlarged"]) < 0.1
    assert 10 < measured["psnr"] < 40


def test_a_trained_upsampler_draws_sharp_edges_at_any_size() -> None:
    model = upsampler(target="x0", residual=True).train()
    options = UpsamplerOptions(degradation=Degradation(blur=0.0), kind="simple", weighting="clamped_snr")
    task = UpsamplerTask(model, options)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for i in range(150):
        optimizer.zero_grad()
        task.loss(edges(range(8 * i, 8 * i + 8)))["loss"].mean().backward()
        optimizer.step()

    model.eval()
    truth = edges(range(10_000, 10_012))["image"]
    for picture in (truth, truth.repeat(1, 1, 2, 1)):  # 32 × 32 and 64 × 32
        low_res = task.low_res(picture)
        drawn = sample(model, model.condition(low_res), Streams(range(12)), Sampling(steps=8))
        assert drawn.shape == picture.shape
        assert error(drawn, picture) < 0.5 * error(model.enlarge(low_res), picture)
        assert error(F.avg_pool2d(drawn, 4), low_res) < 0.05


def jump(x: Tensor, cuts: list[int], within: int) -> float:
    """How much stronger the mean gradient across columns is around `cuts` than elsewhere."""
    gradient = x.diff(dim=3).abs().mean((0, 1, 2))
    near = torch.zeros_like(gradient, dtype=torch.bool)
    for cut in cuts:
        near[cut - within : cut + within] = True
    return float(gradient[near].mean() / gradient[~near].mean())


def test_tiles_show_no_seam_and_come_no_less_close_to_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled network, whose group norms see a tile and not the picture: what that changes is spread evenly."""
    model = load_stage(asset("weights") / "shapes" / "up256")
    assert isinstance(model, Upsampler)
    truth = shapes.batch([500], 256)["image"]
    condition = model.condition(F.avg_pool2d(truth, 4))

    def drawn(max_tile: int | None) -> Tensor:
        return sample(model, condition, Streams([0]), Sampling(steps=3), max_tile=max_tile)

    whole, tiled = drawn(None), drawn(96)
    spans = tiles.Tiled(model, 96, 8).spans(256)
    cuts = [(a.stop + b.start) // 2 for a, b in pairwise(spans)]
    assert psnr(tiled, whole) > 38
    assert psnr(tiled, truth) > psnr(whole, truth) - 0.1
    assert jump(tiled - whole, cuts, 6) < 1.5
    assert abs(jump(tiled, cuts, 6) / jump(whole, cuts, 6) - 1) < 0.05
    monkeypatch.setattr(tiles, "OVERLAP", 0.0)
    monkeypatch.setattr(tiles, "FADE", 1e-6)
    assert jump(drawn(64) - whole, [64, 128, 192], 1) > 2


def test_no_network_sees_more_than_a_tile() -> None:
    model = upsampler(last_step=True)
    seen: dict[str, set[tuple[int, ...]]] = {"unet": set(), "last": set()}
    for name, sizes in seen.items():
        getattr(model, name).register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.add(tuple(args[0].shape[2:])))
    low_res = torch.zeros(1, 3, 24, 20)
    drawn = sample(model, model.condition(low_res), Streams([0]), Sampling(steps=2), max_tile=39)
    assert drawn.shape == (1, 3, 96, 80)
    assert seen == {"unet": {(32, 32)}, "last": {(32, 32)}}


def test_tiles_are_not_for_networks_that_know_places() -> None:
    model = upsampler()
    placed = model.config.unet.model_copy(update={"attention_positions": True})
    model.config = model.config.model_copy(update={"unet": placed})
    with pytest.raises(ValueError, match="attention_positions=True tells places in the whole picture"):
        sample(model, model.condition(torch.zeros(1, 3, 8, 8)), Streams([0]), Sampling(steps=2), max_tile=32)
