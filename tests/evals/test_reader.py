"""The reader of scenes: its targets, its loss, how it is judged, and what the bundled one can do."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i.core.seed import Streams
from t2i.data import shapes
from t2i.data.augment.degrade import gaussian_blur
from t2i.data.scenes import VAL_SCENES
from t2i.data.shapes.scene import Box
from t2i.evals.compose import load_reader, reader_accuracy
from t2i.stages.reader.model import Detection, Reader, ReaderConfig, fit
from t2i.stages.reader.task import (
    ReaderOptions,
    ReaderTask,
    accuracy,
    empty,
    listed,
    losses,
    match,
    mirror,
    spoil,
    targets,
)
from t2i.stages.registry import load_stage, save_stage

CONFIG = ReaderConfig(widths=(8, 8, 16), blocks=(0, 1, 1))
CELLS = 32


@pytest.fixture(scope="module")
def reader() -> Reader:
    return load_reader()


def exact_maps(scenes: list[list[Detection]]) -> dict[str, Tensor]:
    """What a faultless network would say."""
    aim = targets(scenes, CONFIG, CELLS, 0.9)
    maps = {name: aim[name] for name in ("offset", "extent")}
    maps["heat"] = torch.logit(aim["heat"].clamp(1e-6, 1 - 1e-6))
    maps["raised"] = 20 * aim["raised"] - 10
    for name, names in (("shape", CONFIG.shapes), ("colour", CONFIG.colours)):
        maps[name] = 20.0 * torch.nn.functional.one_hot(aim[name], len(names)).permute(0, 3, 1, 2)
    return maps


def many(count: int) -> list[list[Detection]]:
    return [listed(shapes.scene_from_seed(seed)) for seed in range(count)]


def test_targets_and_decoding_are_inverse() -> None:
    """Everything that a scene of the world holds survives the grid: no two objects are too near for it."""
    scenes = many(120)
    assert {len(things) for things in scenes} == {1, 2, 3, 4}
    maps = exact_maps(scenes)
    readings = [Reader(CONFIG)._decode({name: value[i] for name, value in maps.items()}) for i in range(len(scenes))]
    assert accuracy(readings, scenes) == {"objects": 1.0, "raised": 1.0, "pictures": 1.0}
    for found, things in zip(readings, scenes, strict=True):
        for seen, thing in zip(match(found, things), things, strict=True):
            assert seen is not None
            assert seen.box == pytest.approx(thing.box, abs=1e-4)


def test_loss_is_least_at_the_target() -> None:
    scenes = many(20)
    aim, maps = targets(scenes, CONFIG, CELLS, 0.9), exact_maps(scenes)
    best = losses(maps, aim)
    assert float(best["loss"].max()) < 0.3
    worse = {
        name: value + 1.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        for name, value in maps.items()
    }
    assert (losses(worse, aim)["loss"] > best["loss"] + 0.1).all()
    assert best["loss"].shape == (20,)


def test_loss_of_a_picture_without_objects_is_finite() -> None:
    maps = Reader(CONFIG)(torch.zeros(1, 3, 64, 64))
    loss = losses(maps, targets([[]], CONFIG, CELLS, 0.9))["loss"]
    assert loss.isfinite().all()
    assert float(loss.detach()) > 0


def test_a_small_reader_learns_one_picture() -> None:
    torch.manual_seed(0)
    seeds = list(range(4))
    drawn = shapes.batch(seeds)
    batch = {"image": drawn["image"], "scene": drawn["scene"], "seed": seeds}
    task = ReaderTask(Reader(CONFIG), options=ReaderOptions(blur=0, noise=0, light=0))
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-2)
    first = float(task.loss(batch)["loss"].mean().detach())
    for _ in range(40):
        loss = task.loss(batch)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    assert set(task.metrics(batch)) == {"objects", "raised", "pictures"}


def test_held_out_losses_see_pictures_unspoilt() -> None:
    drawn = shapes.batch([3, 4])
    task = ReaderTask(Reader(CONFIG)).eval()
    one, other = (task.loss({**drawn, "seed": seeds})["loss"] for seeds in ([1, 2], [3, 4]))
    assert torch.equal(one, other)
    task.train()
    one, other = (task.loss({**drawn, "seed": seeds})["loss"] for seeds in ([1, 2], [3, 4]))
    assert not torch.equal(one, other)


def test_mirrored_pictures_have_mirrored_boxes() -> None:
    """A picture and its mirror image have the same targets, read from the other side."""
    things = listed(shapes.scene_from_seed(5))
    plain, mirrored = (targets([t], CONFIG, CELLS, 0.9) for t in (things, [mirror(t) for t in things]))
    assert torch.allclose(plain["heat"].flip(-1), mirrored["heat"], atol=1e-5)
    assert mirror(mirror(things[0])).box == pytest.approx(things[0].box)


def test_spoiling_is_the_same_alone_and_in_a_batch_and_can_be_turned_off() -> None:
    image = shapes.batch(range(6))["image"]
    whole, mirrored = spoil(image, Streams(range(6), "reader"), ReaderOptions())
    alone, flag = spoil(image[4:5], Streams([4], "reader"), ReaderOptions())
    assert torch.allclose(whole[4:5], alone, atol=1e-5)
    assert mirrored[4] == flag[0]
    assert len(set(mirrored)) == 2
    assert whole.abs().max() <= 1
    clean, flags = spoil(image, Streams(range(6), "reader"), ReaderOptions(blur=0, noise=0, light=0))
    for before, after, m in zip(image, clean, flags, strict=True):
        assert torch.allclose(before.flip(-1) if m else before, after, atol=1e-5)


def test_blank_pictures_are_smooth_and_as_frequent_as_asked() -> None:
    image = torch.randn(400, 3, 16, 16)
    blank, chosen = empty(image, Streams(range(400), "blank"), 0.3)
    assert 0.2 < sum(chosen) / 400 < 0.4
    assert torch.equal(blank[~torch.tensor(chosen)], image[~torch.tensor(chosen)])
    rows = blank[torch.tensor(chosen)]
    assert (rows - rows[..., :1]).abs().max() == 0
    flat = (rows - rows[..., :1, :]).abs().amax((1, 2, 3)) == 0
    assert 0.3 < flat.float().mean() < 0.7


def test_spoiling_reads_nothing_back_from_the_device() -> None:
    """Pictures of the meta device have a shape and no values; which are mirrored is known all the same."""
    image = torch.zeros(6, 3, 16, 16)
    spoilt, mirrored = spoil(image.to("meta"), Streams(range(6), "reader"), ReaderOptions())
    assert spoilt.device.type == "meta"
    assert mirrored == spoil(image, Streams(range(6), "reader"), ReaderOptions())[1]


def test_a_reader_is_saved_and_loaded(tmp_path: Path) -> None:
    reader = Reader(CONFIG)
    torch.nn.init.normal_(reader.out.weight)
    save_stage(tmp_path, "reader", reader)
    loaded = load_stage(tmp_path, expect="reader")
    assert isinstance(loaded, Reader)
    assert loaded.config == CONFIG
    image = torch.rand(2, 3, 64, 64)
    assert loaded.read(image) == reader.read(image)
    assert any(reader.read(image)), "or nothing is compared"


def test_accuracy_counts_every_kind_of_fault() -> None:
    box = Box(0.4, 0.4, 0.6, 0.6)
    thing = Detection("cube", "red", box)
    other = Detection("cone", "blue", Box(0.1, 0.1, 0.3, 0.3))

    def judged(*found: Detection) -> tuple[float, float]:
        result = accuracy([list(found)], [[thing, other]])
        return result["objects"], result["pictures"]

    assert judged(other, thing) == (1, 1)
    assert judged(thing) == (0.5, 0)
    assert judged() == (0, 0)
    assert judged(thing._replace(colour="blue"), other) == (0.5, 0)
    assert judged(thing._replace(shape="cone"), other) == (0.5, 0)
    assert judged(thing._replace(box=Box(0.55, 0.4, 0.75, 0.6)), other) == (0.5, 0)
    assert judged(thing, other, other) == (pytest.approx(2 / 3), 0)
    assert judged(thing._replace(raised=True), other) == (1, 0)


@pytest.mark.parametrize("wrong", [{"image_size": 60}, {"widths": (0, 8, 16)}, {"blocks": (1, -1, 1)}])
def test_sizes_that_no_reader_has_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"multiple of 8|greater than or equal to"):
        ReaderConfig.model_validate(wrong)


def test_any_size_is_brought_to_the_readers() -> None:
    picture = torch.rand(1, 3, 256, 256)
    assert torch.allclose(fit(picture, 64), picture.view(1, 3, 64, 4, 64, 4).mean(dim=(3, 5)), atol=1e-6)
    assert fit(torch.rand(2, 3, 32, 48), 64).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        Reader(CONFIG).read(torch.zeros(shape))


def test_bundled_reader_reads_held_out_renders(reader: Reader) -> None:
    result = reader_accuracy(reader, num=64)
    assert result["objects"] >= 0.98
    assert result["pictures"] >= 0.95


@pytest.mark.slow
def test_bundled_reader_reads_99_percent(reader: Reader) -> None:
    result = reader_accuracy(reader, num=1000)
    assert result["objects"] >= 0.99
    assert result["pictures"] >= 0.98


def test_bundled_reader_reads_other_sizes(reader: Reader) -> None:
    assert reader_accuracy(reader, size=128, num=16)["objects"] >= 0.95


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.4, 1.0])
def test_bundled_reader_sees_nothing_where_nothing_is(reader: Reader, value: float) -> None:
    assert reader.read(torch.full((1, 3, 64, 64), value)) == [[]]


def test_bundled_reader_sees_nothing_on_an_empty_floor(reader: Reader) -> None:
    """Floors and skies without things, at every combination that the world has."""
    empty = [
        shapes.Scene.from_dict({**json.loads(shapes.sample(1)["scene"]), "things": (), "floor": floor, "sky": sky})
        for floor in shapes.scene.FLOORS
        for sky in shapes.scene.SKIES
    ]
    assert reader.read(shapes.render(empty)) == [[] for _ in empty]


def test_bundled_reader_reads_spoilt_pictures(reader: Reader) -> None:
    """Blurred, noisy and dimmed renders, as pictures drawn by a model are."""
    scenes = [shapes.scene_from_seed(VAL_SCENES | seed) for seed in range(32)]
    image = gaussian_blur(shapes.render(scenes), torch.full((32,), 0.7), 7)
    image = (0.92 * image + 0.05 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert accuracy(reader.read(image), [listed(scene) for scene in scenes])["objects"] >= 0.95
