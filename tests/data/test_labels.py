"""Classes: of the shapes world, of folders, of shards; and what a network over classes is told of them."""

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from files_of_data import make_shard
from PIL import Image

from t2i import run as recipe
from t2i.core.errors import UsageError
from t2i.data import shapes
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.data.opening import class_names
from t2i.data.shapes.write import write_shards
from t2i.data.source import Needs
from t2i.run import train
from t2i.stages.decoder.model import Decoder
from t2i.stages.registry import load_stage, stage


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for i in range(4):
        folder = tmp_path / "pets" / ("dog", "cat")[i % 2] / "more"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(folder / f"{i}.png")
    return tmp_path / "pets"


def test_scenes_are_labelled_by_their_first_thing() -> None:
    batch = shapes.batch(range(20), 16, num_things={1: 1})
    assert len(shapes.CLASSES) == 60 == len(set(shapes.CLASSES))
    for scene, label in zip(batch["scene"], batch["label"], strict=True):
        thing = shapes.Scene.from_dict(json.loads(scene)).things[0]
        assert shapes.CLASSES[label] == f"{thing.colour} {thing.shape}"


def test_folders_are_classes(pets: Path) -> None:
    config = DataConfig(source=str(pets), size=16, num_workers=0, val_fraction=0)
    assert class_names(config) == ("cat", "dog")
    batch = next(iter(Loader(config, seed=0, batch_size=8, needs=Needs(("image",)))))
    for key, label in zip(batch["key"], batch["label"].tolist(), strict=True):
        assert key.startswith(("cat", "dog")[label])


def test_pictures_beside_folders_have_no_classes(pets: Path) -> None:
    Image.new("RGB", (32, 32)).save(pets / "stray.png")
    config = DataConfig(source=str(pets), size=16, num_workers=0, val_fraction=0)
    assert class_names(config) == ()
    assert "label" not in next(iter(Loader(config, seed=0, batch_size=4, needs=Needs(("image",)))))


def test_shards_of_the_world_keep_labels(tmp_path: Path) -> None:
    write_shards(tmp_path, count=6, size=16, num_things={1: 1})
    config = DataConfig(source=str(tmp_path), size=16, num_workers=0, val_fraction=0)
    batch = next(iter(Loader(config, seed=0, batch_size=6)))
    for key, label in zip(batch["key"], batch["label"].tolist(), strict=True):
        assert label == shapes.batch([int(key)], 16, num_things={1: 1})["label"][0]


SMALL = ["train.steps=1", "train.batch_size=2", "train.sample_every=0", "train.val_every=0", "data.num_workers=0"]


def test_a_network_knows_what_its_classes_are_called(pets: Path, tmp_path: Path) -> None:
    data = [f"data.source={pets}", f"train.out={tmp_path / 'out'}", *SMALL]
    wrong = r"model\.ports\.classes\.num=60, but .*pets has 2 classes \(cat, dog\); model\.ports\.classes\.num=0 takes"
    with pytest.raises(UsageError, match=wrong):
        train("configs/shapes/adm.yaml", [*data, "model.ports.classes.num=60"])
    train("configs/shapes/adm.yaml", [*data, "model.ports.classes.num=2"])
    model = load_stage(tmp_path / "out")
    assert isinstance(model, Decoder)
    assert model.config.ports.classes.names == ("cat", "dog")


def test_the_folders_tell_how_many_classes_there_are(
    pets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = [f"data.source={pets}", *SMALL]
    with caplog.at_level(logging.INFO):
        train("configs/shapes/adm.yaml", [*data, f"train.out={tmp_path / 'adm'}"])
    assert "model.ports.classes.num=2: cat, dog" in caplog.text
    classes = load_stage(tmp_path / "adm").config.ports.classes  # type: ignore[union-attr]
    assert (classes.num, classes.names, classes.null_class) == (2, ("cat", "dog"), True)
    wrong = r"model\.num_classes=7, but .*pets has 2 classes \(cat, dog\)"
    with pytest.raises(UsageError, match=wrong):
        train("configs/shapes/adm-classifier.yaml", [*data, "model.num_classes=7", f"train.out={tmp_path / 'x'}"])
    config = recipe.load_run("configs/shapes/adm-classifier.yaml", data)
    completed: Any = recipe.complete(config, stage("classifier"), {})
    assert (completed.num_classes, completed.class_names) == (2, ("cat", "dog"))
    shapes_run = recipe.load_run("configs/shapes/adm-classifier.yaml", [])
    completed = recipe.complete(shapes_run, stage("classifier"), {})
    assert (completed.num_classes, completed.class_names) == (60, shapes.CLASSES)


def test_sources_must_mean_the_same_classes(pets: Path, tmp_path: Path) -> None:
    mixed = f"data.source=[{{src: shapes}}, {{src: {pets}}}]"
    with pytest.raises(UsageError, match=r"classes: shapes 60 \(red cube, .* …\), .*pets 2 \(cat, dog\)"):
        train("configs/shapes/adm.yaml", [mixed, f"train.out={tmp_path / 'out'}", *SMALL])


def test_pictures_without_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "flat" / "a.png")
    data = [f"data.source={tmp_path / 'flat'}", "data.val_fraction=0", f"train.out={tmp_path / 'out'}", *SMALL]
    with pytest.raises(UsageError, match=r"model\.ports\.classes\.num is not known, and .*flat has no folders"):
        train("configs/shapes/adm.yaml", data)
    with pytest.raises(UsageError, match=r"the task needs \['label'\]"):
        train("configs/shapes/adm.yaml", [*data, "model.ports.classes.num=2"])


def test_samples_without_labels_beside_others_with_labels_are_refused(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", 0, 4, cls=lambda _: b"1")
    make_shard(tmp_path / "b.tar", 4, 4)
    sources = [{"src": str(tmp_path / name)} for name in ("a.tar", "b.tar")]
    config = DataConfig.model_validate({"source": sources, "size": 8, "num_workers": 0, "val_fraction": 0})
    with pytest.raises(UsageError, match=r"the task needs \['label'\], the data has"):
        list(islice(Loader(config, seed=0, batch_size=1, needs=Needs(("image", "label"))), 8))


@pytest.mark.parametrize("val_fraction", [0, 0.3])
def test_labels_out_of_range_are_bad_samples(pets: Path, val_fraction: float, caplog: pytest.LogCaptureFixture) -> None:
    config = DataConfig(source=str(pets), size=16, num_workers=0, val_fraction=val_fraction, max_bad_fraction=1.0)
    loader = Loader(config, seed=0, batch_size=16, needs=Needs(("image",), 1))
    assert set(next(iter(loader))["label"].tolist()) == {0}
    assert loader.bad["label out of range"] > 0
    assert "label out of range (1 (dog), of 1 classes)" in caplog.text


def test_pictures_may_be_mirrored(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    image.paste((255, 0, 0), (0, 0, 8, 16))
    image.save(tmp_path / "a.png")
    config = DataConfig(source=str(tmp_path), size=16, num_workers=0, val_fraction=0, flip=True)
    batch = next(iter(Loader(config, seed=0, batch_size=200, needs=Needs(("image",)))))
    left = batch["image"][:, 0, :, 0].mean(dim=1) > 0
    assert 60 < left.sum() < 140
    again = next(iter(Loader(config, seed=0, batch_size=100, start=100, needs=Needs(("image",)))))
    assert (left[100:] == (again["image"][:, 0, :, 0].mean(dim=1) > 0)).all(), "by position, so a resume sees the same"
    with pytest.raises(UsageError, match="shapes are not mirrored"):
        Loader(DataConfig(flip=True), seed=0, batch_size=2)
    with pytest.raises(UsageError, match=r"data\.flip=true mirrors pictures, and none are read here"):
        Loader(config, seed=0, batch_size=2, needs=Needs(("caption",)))
