"""The autoencoder: latents of about unit variance, the losses in closed form, two phases, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_clip
from safetensors.torch import save_file
from small import autoencoder
from torch import Tensor

from t2i.core.errors import DataError, UsageError
from t2i.core.measures import psnr
from t2i.core.seed import Streams
from t2i.core.types import LatentCodec
from t2i.data.config import DataConfig
from t2i.diffusion.sampling import Sampling
from t2i.run import train
from t2i.stages.autoencoder import STAGE
from t2i.stages.autoencoder.discriminator import Discriminator, adaptive_weight, hinge
from t2i.stages.autoencoder.model import Autoencoder, AutoencoderConfig, Posterior
from t2i.stages.autoencoder.perceptual import FeatureMaps, Lpips, LpipsFiles, distance
from t2i.stages.autoencoder.task import AutoencoderOptions, AutoencoderTask
from t2i.stages.follow import same_neighbour
from t2i.stages.reader.model import Reader, ReaderConfig
from t2i.stages.registry import load_stage, save_stage
from t2i.stages.stage import How, Inputs

HOW = How(Sampling(), Streams([0, 1], "autoencoder"))


def batch(count: int = 4, side: int = 32, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(count, 3, side, side, generator=generator) * 2 - 1,
        "seed": list(range(count)),
        "caption": ["a cube"] * count,
    }


# -- the network -------------------------------------------------------------------------------------------------------


def test_it_is_a_codec_of_pictures_of_any_size() -> None:
    model = autoencoder(mid_attention=False)
    assert isinstance(model, LatentCodec)
    assert (model.channels, model.factor) == (4, 8)
    for height, width in ((32, 32), (16, 40)):
        image = torch.rand(2, 3, height, width) * 2 - 1
        latents = model.encode_latents(image)
        assert latents.shape == (2, 4, height // 8, width // 8)
        assert model.decode_latents(latents).shape == image.shape


@torch.no_grad()
def test_measured_latents_have_mean_0_and_variance_1() -> None:
    model = autoencoder()
    image = batch(8)["image"]
    raw = model.posterior(image).mean
    model.measure(raw)
    latents = model.encode_latents(image)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.square().mean(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.decode_latents(latents), model.decode(raw), atol=1e-5, rtol=0)


def test_measuring_in_parts_forgets_what_was_before() -> None:
    model, generator = autoencoder(), torch.Generator().manual_seed(1)
    for _ in range(600):
        model.measure(torch.randn(16, 4, 4, 4, generator=generator) * 5 + 3, 0.02)
    torch.testing.assert_close(model.shift, torch.full((4,), 3.0), atol=0.3, rtol=0)
    torch.testing.assert_close(1 / model.scale, torch.full((4,), 5.0), atol=0.3, rtol=0)


def test_constant_latents_do_not_become_infinite() -> None:
    model = autoencoder()
    model.measure(torch.ones(2, 4, 4, 4))
    assert torch.isfinite(model.scale).all()


def test_kl_of_a_standard_normal_is_0_and_of_others_as_written() -> None:
    zero = torch.zeros(2, 4, 3, 3)
    assert torch.equal(Posterior(zero, zero).kl(), torch.zeros(2))
    mean, logvar = torch.full_like(zero, 0.5), torch.full_like(zero, math.log(4))
    expected = 36 * 0.5 * (0.25 + 4 - 1 - math.log(4))
    torch.testing.assert_close(Posterior(mean, logvar).kl(), torch.full((2,), expected))


@torch.no_grad()
def test_a_fingerprint_knows_its_autoencoder_and_its_scale(tmp_path: Path) -> None:
    model = autoencoder()
    model.measure(model.posterior(batch(8)["image"]).mean)
    own = model.fingerprint()
    save_stage(tmp_path, "autoencoder", model, dtype="int8")
    stored = load_stage(tmp_path)
    assert isinstance(stored, Autoencoder)
    assert same_neighbour(own, stored.fingerprint())
    other = autoencoder()
    for p in other.parameters():
        p.add_(0.1 * torch.randn_like(p))
    other.measure(other.posterior(batch(8)["image"]).mean)
    assert not same_neighbour(own, other.fingerprint())
    for factor in (1.2, 1 / 1.2):
        model.scale.mul_(factor)
        assert not same_neighbour(own, model.fingerprint())
        assert not same_neighbour(model.fingerprint(), own)
        model.scale.div_(factor)
    assert same_neighbour(own, model.fingerprint())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_convs": False, "embed_dim": 8}, "without quant_convs embed_dim=8 must equal z_channels=4"),
        ({"norm_groups": 7}, r"level widths \[16, 32, 32\] are not positive multiples of norm_groups=7"),
        ({"attention": (8,)}, r"attention at factors \[8\], but the levels have factors \[1, 2, 4\]"),
        ({"image_size": 36}, "image_size=36 is not a multiple of 8"),
    ],
)
def test_a_config_that_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        autoencoder(**change)


def test_attention_stands_where_it_is_asked_for() -> None:
    model = autoencoder(attention=(4,))
    assert [len(level.attentions) for level in model.encoder.down] == [0, 0, 1]
    assert [len(level.attentions) for level in model.decoder.up] == [0, 0, 2]
    assert model(batch()["image"]).shape == (4, 3, 32, 32)


# -- what it refuses, and drawing --------------------------------------------------------------------------------------


@torch.no_grad()
def test_pictures_and_latents_that_do_not_fit_are_one_line() -> None:
    model = autoencoder()
    with pytest.raises(UsageError, match="pictures of 36 × 32 pixels have no latents: 8 × 8 share a place") as caught:
        model.encode_latents(torch.zeros(1, 3, 32, 36))
    assert "\n" not in str(caught.value)
    for latents in (torch.zeros(1, 8, 4, 4), torch.zeros(4, 4, 4)):
        with pytest.raises(UsageError, match=r"latents of shape \(.*\), but this autoencoder's are \(B, 4, h, w\)"):
            STAGE.draw(model, Inputs(1, latents=latents), HOW)  # type: ignore[misc]


def test_data_that_the_factor_does_not_divide_are_refused() -> None:
    model = autoencoder()
    plain, sharp = AutoencoderOptions(), AutoencoderOptions(adversarial=0.5)
    STAGE.fits(model, DataConfig(size=256, crop=128), plain, {})
    with pytest.raises(UsageError, match=r"data\.crop=100 is not a multiple of 8"):
        STAGE.fits(model, DataConfig(size=256, crop=100), plain, {})
    STAGE.fits(model, DataConfig(size=16), plain, {})
    STAGE.fits(model, DataConfig(size=32), sharp, {})
    assert Discriminator()(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 2, 2)
    with pytest.raises(UsageError, match=r"data\.size=16: task\.adversarial=0\.5 needs 32 pixels"):
        STAGE.fits(model, DataConfig(size=16), sharp, {})


@torch.no_grad()
def test_latents_are_drawn_as_pictures_in_one_evaluation() -> None:
    model = autoencoder()
    model.decoder.conv_out.bias += 5  # type: ignore[operator]
    latents = torch.randn(2, 4, 4, 4)
    assert STAGE.draw is not None
    drawn = STAGE.draw(model, Inputs(2, latents=latents), HOW)
    assert torch.equal(drawn, model.decode_latents(latents).clamp(-1, 1))
    assert float(drawn.max()) == 1
    assert (STAGE.stepped, STAGE.num_evaluations(model.config, Sampling())) == (False, 1)


# -- the losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_losses_are_sums_over_a_picture(kind: Any) -> None:
    model, data = autoencoder(), batch()
    losses = AutoencoderTask(model, AutoencoderOptions(reconstruction=kind, kl=0.1)).loss(data)
    apart = (model(data["image"]) - data["image"]).abs()  # out of training the mean is decoded
    apart = apart if kind == "l1" else apart**2
    kl = model.posterior(data["image"]).kl()
    torch.testing.assert_close(losses["loss"], apart.flatten(1).sum(dim=1) + 0.1 * kl)
    torch.testing.assert_close(losses["reconstruction"], apart.flatten(1).mean(dim=1))


def test_a_sample_learns_the_same_alone_and_in_a_batch() -> None:
    model, data = autoencoder().train(), batch()
    task = AutoencoderTask(model)
    alone = {"image": data["image"][2:3], "seed": data["seed"][2:3]}
    torch.testing.assert_close(task.loss(data)["loss"][2], task.loss(alone)["loss"][0])


def test_training_follows_its_latents_and_looking_does_not() -> None:
    model = autoencoder()
    task = AutoencoderTask(model)
    task.prepare(iter([batch(8)]))
    before = model.scale.clone()
    assert not torch.equal(before, torch.ones(4))
    task.loss(batch())
    assert torch.equal(model.scale, before)
    model.train()
    task.loss(batch(seed=3))
    assert not torch.equal(model.scale, before)


def test_psnr_in_closed_form() -> None:
    x = torch.zeros(2, 3, 4, 4)
    torch.testing.assert_close(psnr(x, x + 0.2), torch.full((2,), 20.0))
    assert torch.equal(psnr(x, x), torch.full((2,), 100.0))
    assert AutoencoderTask(autoencoder()).metrics(batch())["psnr"] > 0


def test_the_decoder_alone_may_learn() -> None:
    model = autoencoder().train()
    task = AutoencoderTask(model, AutoencoderOptions(decoder_only=True))
    task.prepare(iter([]))  # nothing to measure
    task.loss(batch())["loss"].mean().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {
        "decoder",
        "post_quant_conv",
    }
    assert torch.equal(model.scale, torch.ones(4))


def test_an_encoder_that_has_learned_nothing_is_not_left_as_it_is() -> None:
    new = Autoencoder(autoencoder().config)
    with pytest.raises(UsageError, match=r"this one is untrained: name an autoencoder to start from, init=FOLDER"):
        AutoencoderTask(new, AutoencoderOptions(decoder_only=True)).prepare(iter([]))


# -- perceptual distances ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [small_clip, lambda: Reader(ReaderConfig(widths=(8, 8, 16), blocks=(0, 1, 1)))])
def test_networks_of_ours_tell_pictures_apart(network: Any) -> None:
    seeing = network().requires_grad_(False)
    assert isinstance(seeing, FeatureMaps)
    task = AutoencoderTask(autoencoder(), perceptual=seeing)
    x = batch()["image"]
    assert task.distance is not None
    near, far = (task.distance(x, (x + s * torch.randn_like(x)).clamp(-1, 1)) for s in (0.02, 0.5))
    assert near.shape == (4,)
    assert (near < far).all()
    torch.testing.assert_close(task.distance(x, x), torch.zeros(4))
    losses = task.loss(batch())
    plain = AutoencoderTask(autoencoder()).loss(batch())
    torch.testing.assert_close(losses["loss"], plain["loss"] + 3 * 32 * 32 * losses["perceptual"])


def test_distance_in_closed_form() -> None:
    """Of unit vectors at right angles it is 2 at a place, and each head weighs its own channel."""
    a, b = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    a[:, 0], b[:, 0, :, 0], b[:, 1, :, 1] = 3.0, 7.0, 2.0  # alike at the first place, at right angles at the second
    torch.testing.assert_close(distance([a], [b]), torch.tensor([1.0]))
    torch.testing.assert_close(distance([a, a], [b, a]), torch.tensor([0.5]))
    torch.testing.assert_close(distance([a], [b], [torch.tensor([0.5, 3.0])]), torch.tensor([1.75]))


VGG = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)] + [(512, 512)] * 5
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of VGG16's convolutions among its layers


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> LpipsFiles:
    """Random weights by the names of torchvision and of the package lpips."""
    folder, generator = tmp_path_factory.mktemp("lpips"), torch.Generator().manual_seed(0)
    vgg: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    for place, (before, width) in zip(PLACES, VGG, strict=True):
        scale = (2 / (9 * before)) ** 0.5
        vgg[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * scale
        vgg[f"features.{place}.bias"] = torch.randn(width, generator=generator) * 0.01
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(vgg, folder / "vgg16.pth")
    torch.save(heads, folder / "heads.pth")
    return LpipsFiles(vgg=folder / "vgg16.pth", heads=folder / "heads.pth")


@torch.no_grad()
def test_lpips_is_as_published(lpips_files: LpipsFiles) -> None:
    """Written out once more: after the 2nd, 4th, 7th, 10th and 13th convolution, halved after each of these."""
    x, y = (batch(2, 32, seed)["image"] for seed in (0, 1))
    vgg, heads = (torch.load(path, weights_only=True) for path in (lpips_files.vgg, lpips_files.heads))
    mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total, level = torch.zeros(2), 0
    a, b = ((image - mean[:, None, None]) / std[:, None, None] for image in (x, y))
    for number, place in enumerate(PLACES, 1):
        weight, bias = vgg[f"features.{place}.weight"], vgg[f"features.{place}.bias"]
        a, b = (F.conv2d(z, weight, bias, padding=1).relu() for z in (a, b))
        if number in (2, 4, 7, 10, 13):
            apart = (F.normalize(a, dim=1) - F.normalize(b, dim=1)) ** 2
            total += F.conv2d(apart, heads[f"lin{level}.model.1.weight"]).mean(dim=(1, 2, 3))
            a, b, level = F.max_pool2d(a, 2), F.max_pool2d(b, 2), level + 1
    torch.testing.assert_close(Lpips.load(lpips_files)(x, y), total, rtol=1e-4, atol=1e-5)


def test_a_task_with_lpips_learns_from_it(lpips_files: LpipsFiles) -> None:
    model = autoencoder().train()
    task = AutoencoderTask(model, AutoencoderOptions(lpips=lpips_files, perceptual=0.5))
    losses = task.loss(batch(2))
    losses["loss"].mean().backward()
    expected = 3 * 32 * 32 * (losses["reconstruction"] + 0.5 * losses["perceptual"]) + 1e-6 * losses["kl"]
    torch.testing.assert_close(losses["loss"], expected)
    assert not any(p.requires_grad for p in task.distance.parameters())  # type: ignore[union-attr]


def test_files_that_are_no_lpips_are_one_line(lpips_files: LpipsFiles, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights at all")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(
        torch.load(lpips_files.heads, weights_only=True) | {"lin5.model.1.weight": torch.zeros(1)},
        tmp_path / "more.pth",
    )
    save_file({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "less.safetensors")
    for files, message in (
        ({"vgg": tmp_path / "gone.pth"}, "gone.pth does not exist"),
        ({"vgg": tmp_path / "text.pth"}, "is text and not weights"),
        ({"vgg": lpips_files.heads}, "not torchvision's VGG16: it lacks 'features.0.weight'"),
        ({"heads": tmp_path / "list.pth"}, "not LPIPS' heads for VGG16: expected a dictionary of tensors"),
        ({"heads": tmp_path / "more.pth"}, r"has the unknown 'lin5\.model\.1\.weight'"),
        ({"heads": tmp_path / "less.safetensors"}, r"lacks 'lin1\.model\.1\.weight'"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            Lpips.load(lpips_files.model_copy(update=files))
        assert "\n" not in str(caught.value)


def test_what_sees_is_said_once(lpips_files: LpipsFiles) -> None:
    with pytest.raises(ValueError, match=r"task\.perceptual=2: name what sees, task\.lpips or needs\.perceptual"):
        AutoencoderTask(autoencoder(), AutoencoderOptions(perceptual=2.0))
    with pytest.raises(ValueError, match="leave one out"):
        AutoencoderTask(autoencoder(), AutoencoderOptions(lpips=lpips_files), perceptual=small_clip())


# -- the discriminator -------------------------------------------------------------------------------------------------


def test_the_discriminator_is_patchgan() -> None:
    with torch.device("meta"):
        net = Discriminator()
    assert sum(p.numel() for p in net.parameters()) == 2_765_633
    assert net(torch.zeros(1, 3, 256, 256, device="meta")).shape == (1, 1, 30, 30)


def test_hinge_and_adaptive_weight_in_closed_form() -> None:
    real, drawn = torch.tensor([2.0, 0.0]).view(2, 1, 1, 1), torch.tensor([-3.0, 1.0]).view(2, 1, 1, 1)
    assert hinge(real, drawn).tolist() == [0.0, 1.5]
    last = torch.tensor([3.0, 4.0], requires_grad=True)
    weight = adaptive_weight(2 * last.sum(), 0.5 * last.sum(), last)
    assert float(weight) == pytest.approx(2 * 2**0.5 / (0.5 * 2**0.5 + 1e-4))
    assert not weight.requires_grad
    assert float(adaptive_weight(1e9 * last.sum(), 1e-9 * last.sum(), last)) == 1e4


def test_the_discriminator_begins_when_it_is_told_to_and_both_learn_apart() -> None:
    model = autoencoder().train()
    task = AutoencoderTask(model, AutoencoderOptions(adversarial=0.5, adversarial_start=2))
    assert [phase.name for phase in task.phases()] == ["main", "discriminator"]
    assert task.discriminator is not None
    assert "adversarial" not in task.loss(batch())
    quiet = task.discriminator_loss(batch())["loss"]
    assert torch.equal(quiet, torch.zeros(4))
    quiet.mean().backward()
    assert all(not p.grad.any() for p in task.discriminator.parameters() if p.grad is not None)
    task.after_step(2)
    losses = task.loss(batch())
    assert losses["adversarial"].shape == (4,)
    loud = task.discriminator_loss(batch())["loss"]
    model.zero_grad()
    loud.mean().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in task.discriminator.parameters())
    model.eval()
    assert "adversarial" not in task.loss(batch())


def test_a_run_that_goes_on_knows_that_the_discriminator_has_begun() -> None:
    options = AutoencoderOptions(adversarial=0.5, adversarial_start=5)
    first, second = (AutoencoderTask(autoencoder().train(), options) for _ in range(2))
    first.after_step(7)
    assert first.discriminator is not None
    assert second.discriminator is not None
    second.discriminator.load_state_dict(first.discriminator.state_dict())
    assert "adversarial" in second.loss(batch())


SMALL = [
    "model={channels: 16, multipliers: [1, 2], num_blocks: 1, norm_groups: 8, patch_size: 4, quant_convs: false, "
    "mid_attention: false}",
    "data={source: shapes, size: 32, crop: null, num_workers: 0}", "save_dtype=float32", "train.batch_size=4",
    "train.num_samples=2", "train.val_batches=1", "train.save_every=2", "train.val_every=4", "train.log_every=1",
    "optim={warmup: 0, schedule: constant}",
]  # fmt: skip


def test_both_phases_train_resume_and_give_the_same(tmp_path: Path) -> None:
    run = [*SMALL, "task={adversarial: 0.5, adversarial_start: 1}"]
    path = "configs/shapes/autoencoder.yaml"
    whole = train(path, [*run, f"train.out={tmp_path / 'whole'}", "train.steps=4"])
    assert {"discriminator/loss", "adversarial"} <= whole.metrics.keys()
    for steps in (2, 4):
        train(path, [*run, f"train.out={tmp_path / 'parts'}", f"train.steps={steps}"])
    a, b = (load_stage(tmp_path / name) for name in ("whole", "parts"))
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert '"val_psnr"' in (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_the_reader_may_see_for_a_run(tmp_path: Path) -> None:
    run = [*SMALL, "needs.perceptual=weights/shapes-reader", "train.steps=1", "train.sample_every=0"]
    result = train("configs/shapes/autoencoder.yaml", [*run, f"train.out={tmp_path}", "train.val_every=0"])
    assert 0 < result.metrics["perceptual"] < 2


def test_defaults_are_kl_f8() -> None:
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig())
    assert sum(p.numel() for p in model.encoder.parameters()) == 34_163_592
    assert sum(p.numel() for p in model.decoder.parameters()) == 49_490_179
