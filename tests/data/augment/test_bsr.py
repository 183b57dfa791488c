"""BSR: every law within its range, every order to the same size, and a written record that repeats it to the bit."""

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from t2i.core.seed import Streams
from t2i.data.augment import bsr as chain
from t2i.data.augment.bsr import (
    STEPS,
    Blur,
    Damage,
    Decimate,
    Noise,
    Resize,
    arranged,
    bsr,
    degrade,
    draw_damage,
    noise_like,
)
from t2i.data.augment.degrade import jpeg
from t2i.data.augment.filters import gaussian_kernel
from t2i.stages.upsampler.task import psnr


def pictures(count: int = 4, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth waves with some grain."""
    waves = F.interpolate(Streams(range(count), "waves").uniform(3, 4, 4), size=(height, width), mode="bicubic")
    return ((2 * waves - 1) * 0.8 + 0.1 * Streams(range(count), "grain").normal(3, height, width)).clamp(-1, 1)


def drawn(count: int, scale: int = 4, light: bool = False) -> list[Damage]:
    return [draw_damage(g, scale, light=light) for g in Streams(range(count), "bsr").generators]


def harmless(**changes: object) -> Damage:
    """A damage that leaves little but a change of size."""
    nothing = Blur(variances=(0, 0), size=7)
    given = {
        "scale": 4,
        "halved": None,
        "order": STEPS,
        "blur": nothing,
        "blur_again": None,
        "shrink": Resize(factor=1, how="linear"),
        "resize": "area",
        "noise": Noise(kind="grey", level=0, seed=0),
        "jpeg": None,
        "last_jpeg": 100,
    }
    return Damage.model_validate(given | changes)


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("light", [False, True])
def test_every_number_is_drawn_from_its_range(scale: int, light: bool) -> None:
    damages = drawn(600, scale, light)
    worst, weaker = (80, 4) if light else (30, 1)
    sizes = {"stretched": set(), "round": set()}
    for d in damages:
        s = scale // 2 if d.halved else scale
        for blur in (d.blur, d.blur_again):
            if blur is None:
                continue
            round_ = blur.variances[0] == blur.variances[1]
            widest = ((2 + 0.2 * s) / weaker) ** 2 if round_ else (4 + s) / weaker
            assert all(0 <= v <= widest for v in blur.variances)
            assert 0 <= blur.angle <= (0 if round_ else math.pi)
            sizes["round" if round_ else "stretched"].add(blur.size)
        if isinstance(d.shrink, Resize):
            assert 1 <= d.shrink.factor <= 2 * s
        else:
            assert 0.1 <= d.shrink.std <= 0.6 * s
        quiet, loud = (1, 2) if light else (2, 25)
        assert quiet <= d.noise.level <= loud
        assert d.noise.kind != "correlated" or d.noise.level == loud
        assert all(worst <= quality <= 95 for quality in (d.jpeg or worst, d.last_jpeg))
    odd = set(range(7, 26, 2))
    assert sizes["stretched"] == (set(range(5, 15)) if light else odd)
    assert sizes["round"] == ({5, 6, 7} if light else odd)
    assert all((d.blur_again is None) == light for d in damages)

    def share(count: int) -> float:
        return count / len(damages)

    assert share(sum(d.halved is not None for d in damages)) == pytest.approx(0.25 if scale == 4 else 0, abs=0.06)
    assert share(sum(isinstance(d.shrink, Resize) for d in damages)) == pytest.approx(0.8 if light else 0.75, abs=0.06)
    assert share(sum(d.jpeg is not None for d in damages)) == pytest.approx(0.9, abs=0.05)
    assert share(sum(d.blur.variances[0] == d.blur.variances[1] for d in damages)) == pytest.approx(0.5, abs=0.07)
    kinds = Counter(d.noise.kind for d in damages)
    for kind, expected in (("colour", 0.4), ("grey", 0.4), ("correlated", 0.2)):
        assert share(kinds[kind]) == pytest.approx(expected, abs=0.07)
    first = Counter(d.order[0] for d in damages)
    assert first["resize"] == 0
    assert share(first["shrink"]) == pytest.approx(2 / 7, abs=0.06)


def test_shrinking_precedes_resizing_in_every_order() -> None:
    orders = list(itertools.permutations(STEPS))
    assert len(orders) == 5040
    for order in orders:
        found = arranged(order)
        assert found.index("shrink") < found.index("resize")
        others = [(i, step) for i, step in enumerate(order) if step not in ("shrink", "resize")]
        assert [(i, step) for i, step in enumerate(found) if step not in ("shrink", "resize")] == others


def test_the_size_is_that_of_whole_blocks_in_every_order() -> None:
    """An order changes the size at "shrink" and "resize" only, so those two may stand anywhere among the others."""
    x = pictures(1, 19, 30)
    some = [d for d in drawn(40) if d.halved] + [d for d in drawn(40) if not d.halved][:10]
    places = itertools.combinations(range(len(STEPS)), 2)
    others = [step for step in STEPS if step not in ("shrink", "resize")]
    for (a, b), damage in zip(places, itertools.cycle(some), strict=False):
        order = list(others)
        order.insert(a, "shrink")
        order.insert(b, "resize")
        assert degrade(x, [damage.model_copy(update={"order": tuple(order)})]).shape == (1, 3, 4, 7)
    assert bsr(pictures(6, 19, 30), 2, Streams(range(6))).shape == (6, 3, 9, 15)


def test_compression_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out is what PIL makes of what the steps leave, whole levels and all."""
    calls = []
    monkeypatch.setattr(chain, "jpeg", lambda x, quality: calls.append((x, quality.tolist())) or jpeg(x, quality))
    damages = drawn(5)
    y = degrade(pictures(5), damages)
    x, qualities = calls[-1]
    assert qualities == [d.last_jpeg for d in damages]
    assert torch.equal(y, jpeg(x, torch.tensor(qualities)))
    levels = (y + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert sum(len(q) == 1 for _, q in calls) == sum(d.jpeg is not None for d in damages)


@pytest.mark.parametrize("light", [False, True])
def test_a_record_replays_and_a_picture_is_the_same_alone(light: bool) -> None:
    x = pictures(5)
    together = bsr(x, 4, Streams(range(5), "bsr"), light=light)
    assert not torch.equal(together, bsr(x, 4, Streams(range(1, 6), "bsr"), light=light))
    for i, damage in enumerate(drawn(5, light=light)):
        again = Damage.model_validate_json(damage.model_dump_json())
        assert again == damage
        assert torch.equal(degrade(x[i : i + 1], [again])[0], together[i])
        assert torch.equal(bsr(x[i : i + 1], 4, Streams([i], "bsr"), light=light)[0], together[i])


def test_light_stays_closer_to_plain_bicubic() -> None:
    x = pictures(24, 64, 64)
    plain = F.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True)
    original, light = (bsr(x, 4, Streams(range(24)), light=light) for light in (False, True))
    assert psnr(light, plain) > psnr(original, plain) + 3
    assert 15 < psnr(original, plain) < 40


def test_a_harmless_damage_is_an_area_average_of_8_bits() -> None:
    """Every step is there and hurts nothing: what is left is rounding, and JPEG at its best of a grey picture."""
    smooth = F.interpolate(Streams([0, 1]).uniform(1, 4, 4), size=(64, 64), mode="bicubic").clamp(0, 1) * 1.8 - 0.9
    smooth = smooth.expand(-1, 3, -1, -1)
    after = ("noise", "camera", "jpeg", "shrink", "resize", "blur", "blur_again")
    found = degrade(smooth, [harmless(), harmless(order=after)])
    assert (found - F.avg_pool2d(smooth, 4)).abs().max() < 3 / 127.5


def test_decimation_keeps_the_place_of_things() -> None:
    """A ramp is blurred and every fourth pixel kept: those are the centres of blocks, inside."""
    ramp = torch.linspace(-0.9, 0.9, 128).expand(1, 3, 128, 128)
    found = degrade(ramp, [harmless(shrink=Decimate(std=1.5))])
    inside = (slice(None), slice(None), slice(6, -6), slice(6, -6))
    assert (found - F.avg_pool2d(ramp, 4))[inside].abs().max() < 2 / 127.5


def test_even_kernels_move_a_picture_by_half_a_pixel() -> None:
    ramp = torch.linspace(-0.9, 0.9, 64).expand(1, 3, 64, 64)
    moved = degrade(ramp, [harmless(scale=1, blur=Blur(variances=(1, 1), size=6))])
    step = float(ramp[0, 0, 0, 1] - ramp[0, 0, 0, 0])
    assert float((moved - ramp)[..., 8:-8, 8:-8].mean()) == pytest.approx(step / 2, abs=0.1 * step)


def test_noise_is_of_its_level_and_kind() -> None:
    x = torch.zeros(3, 200, 200)
    colour, grey, both = (noise_like(x, Noise(kind=k, level=20, seed=3)) for k in ("colour", "grey", "correlated"))
    for noise, channels in ((colour, 3), (grey, 1)):
        assert noise.shape == (channels, 200, 200)
        assert noise.std() == pytest.approx(2 * 20 / 255, rel=0.02)
    assert torch.corrcoef(colour.flatten(1))[0, 1].abs() < 0.03
    g = torch.Generator().manual_seed(3)
    d, u = torch.rand(3, generator=g, dtype=torch.float64), torch.rand(3, 3, generator=g, dtype=torch.float64)
    u = torch.linalg.svd(u).U
    values, vectors = torch.linalg.eigh((u.T @ torch.diag(d) @ u).abs())
    expected = (2 * 20 / 255) ** 2 * (vectors @ torch.diag(values.abs()) @ vectors.T)
    assert torch.allclose(torch.cov(both.flatten(1)).double(), expected, atol=5e-4)


def test_narrow_kernels_of_even_size_are_not_empty() -> None:
    kernel = gaussian_kernel(6, torch.eye(2, dtype=torch.float64) * 1e-5)
    assert torch.allclose(kernel[2:4, 2:4], torch.tensor(0.25, dtype=torch.float64))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="4 pictures need as many streams, got 2"):
        bsr(pictures(), 4, Streams(range(2)))
    with pytest.raises(ValueError, match="a picture of 3×32 cannot be shrunk by 4"):
        bsr(pictures(1, 3, 32), 4, Streams([0]))
