"""`train.eval`, losses by noise level, and trackers: what a run measures beside its losses, without being changed."""

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import HeldOutByOne, Pairs, Pictures, TinyTask, curve, export

from t2i.core.errors import UsageError
from t2i.diffusion.losses import by_level, of_levels
from t2i.io.weights import load_folder
from t2i.measures.gaussian import frechet_of_features
from t2i.measures.judge import PairsJudge, key_of
from t2i.run import train
from t2i.train import OptimConfig, Result, TrainConfig, fit
from t2i.train.tracking import check_trackers, flat

SMALL = [
    "data.size=8", "model.image_size=8", "model.unet.channels=8", "model.unet.multipliers=[1]",
    "model.unet.attention=[]", "model.unet.num_blocks=1", "model.unet.norm_groups=4", "model.unet.num_heads=1",
    "train.batch_size=4", "train.device=cpu", "train.sample_every=0", "train.steps=2", "train.num_threads=1",
    "data.num_workers=0", "task.sampling={steps: 2, sampler: ddpm, guidance: 1}", "train.val_batches=2",
    "train.precision=fp32",
]  # fmt: skip


def run(out: Path, task: TinyTask | None = None, loader: Any = Pictures, judge: Any = None, **changes: Any) -> Result:
    settings: dict[str, Any] = {
        "steps": 6, "batch_size": 8, "device": "cpu", "precision": "fp32", "log_every": 1, "save_every": 3,
        "val_every": 0, "sample_every": 0, "num_threads": 1,
    } | changes  # fmt: skip
    config = TrainConfig(out=out, **settings)
    optim = OptimConfig(lr=1e-2)
    resolved = {"train": config.model_dump(mode="json"), "optim": {"lr": 1e-2}}
    return fit(task or Pairs(), loader, config, optim, export=export, resolved=resolved, judge=judge)


EVAL = {"every": 3, "metrics": ("frechet", "precision"), "num": 20, "batch_size": 8, "extractor": "pixels=4"}


def judge() -> PairsJudge:
    return PairsJudge(EVAL["metrics"], "pixels=4")  # type: ignore[arg-type]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_drawn_pictures_are_measured_and_nothing_else_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        run(tmp_path / "judged", judge=judge(), eval=EVAL)
    run(tmp_path / "plain")
    assert curve(tmp_path / "judged") == curve(tmp_path / "plain")
    a, b = (load_folder(tmp_path / name)[1] for name in ("judged", "plain"))
    assert all(torch.equal(a[key], b[key]) for key in b)
    found = [row for row in rows(tmp_path / "judged") if "eval_num" in row]
    assert [row["step"] for row in found] == [3, 6]
    assert found[0].keys() == {
        "step", "images", "eval_num", "eval_extractor", "eval_frechet_distance", "eval_precision", "eval_recall",
    }  # fmt: skip
    assert (found[0]["eval_num"], found[0]["eval_extractor"]) == (20, "pixels 4×4")
    assert "drawn | frechet_distance" in caplog.text
    assert "20 pictures by pixels 4×4" in caplog.text


def test_the_numbers_are_those_of_the_averaged_weights(tmp_path: Path) -> None:
    task = Pairs()
    run(tmp_path, task, judge=judge(), eval=EVAL | {"num": 8})
    batch = next(iter(Pictures(
        seed=0, batch_size=8, accumulate=1, rank=0, world=1, start=0, split="val", bad_log=None
    )))  # fmt: skip
    task.model.load_state_dict(load_folder(tmp_path)[1])
    task.model.eval()
    with torch.no_grad():
        real, drawn = task.sample(batch).chunk(2)
    see = judge().extractor
    pools = [see(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)).pool for x in (drawn, real)]
    assert curve(tmp_path, "eval_frechet_distance")[-1] == pytest.approx(frechet_of_features(*pools), rel=1e-4)


def test_an_evaluation_that_a_kill_took_is_done_by_the_next_run(tmp_path: Path) -> None:
    run(tmp_path, judge=judge(), eval=EVAL)
    before = rows(tmp_path)
    kept = [row for row in before if not (row["step"] == 6 and "eval_num" in row)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    run(tmp_path, judge=judge(), eval=EVAL)
    assert [row for row in rows(tmp_path) if "eval_num" in row] == [row for row in before if "eval_num" in row]


class Few(Pictures):
    """Five held-out pictures, again and again."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield batch | {"key": [str(i % 5) for i in range(len(batch["seed"]))]} if self.key[1] == "val" else batch


def test_no_picture_counts_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, loader=Few, judge=judge(), eval=EVAL)
    assert curve(tmp_path, "eval_num") == [5, 5]
    assert caplog.text.count("train.eval.num=20: only 5 pictures") == 1


class NothingHeldOut(HeldOutByOne):
    def __iter__(self) -> Any:
        if self.key[1] == "val":
            self.position = 1
        return super().__iter__()


def test_without_held_out_pictures_it_is_said_and_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, loader=NothingHeldOut, judge=judge(), eval=EVAL)
    assert curve(tmp_path, "eval_num") == [0, 0]
    assert caplog.text.count("no measures of drawn pictures") == 1


def test_a_real_stage_is_measured_by_its_config(tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ["train.eval={every: 1, num: 6, metrics: [kid, diversity], extractor: pixels=4}", f"train.out={out}"]
    train("configs/shapes/iddpm.yaml", [*SMALL, *more, "train.val_every=1"])
    assert len(curve(out, "eval_kid")) == 2
    assert curve(out, "eval_vendi_score")[0] >= 1
    names = [name for row in rows(out) for name in row if name.startswith("val_loss_t")]
    assert {"val_loss_t0_249", "val_loss_t750_999"} & set(names)
    assert not any("share" in name for row in rows(out) for name in row)


@pytest.mark.parametrize(
    ("config", "more", "said"),
    [
        ("configs/shapes/clip.yaml", [], "a clip draws no pictures"),
        ("configs/shapes/prior.yaml", [], "a prior draws no pictures"),
        ("configs/shapes/iddpm.yaml", ["train.eval.metrics=[frechett]"], "did you mean 'frechet'"),
        ("configs/shapes/iddpm.yaml", ["train.eval.metrics=[is]"], "pixels 4×4 tells none"),
        ("configs/shapes/iddpm.yaml", ["train.eval.metrics=[clip]"], "by t2i eval pictures"),
        ("configs/shapes/iddpm.yaml", ["train.eval.extractor=pixel"], "did you mean 'pixels'"),
        ("configs/shapes/iddpm.yaml", ["train.eval.num=1"], "train.eval.num"),
    ],
)
def test_mistakes_are_told_before_the_first_step(tmp_path: Path, config: str, more: list[str], said: str) -> None:
    base = ["train.eval={every: 1, num: 6, metrics: [kid], extractor: pixels=4}", f"train.out={tmp_path / 'run'}"]
    with pytest.raises(UsageError, match=said):
        train(config, [*base, *more, "train.device=cpu", "data.num_workers=0"])


def test_names_of_numbers_are_plain() -> None:
    labels = {
        "Fréchet distance (CLIP of shapes)": "frechet_distance",
        "FID": "fid",
        "Vendi score of 512 (x)": "vendi_score",
    }
    assert {label: key_of(label) for label in labels} == labels


def test_losses_by_noise_level_are_means_of_their_steps() -> None:
    loss, step = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([0, 249, 250, 999, 800])
    means = {name: float(x.mean()) for name, x in by_level(loss, step, 1000).items()}
    assert of_levels(means | {"loss": 3.0, "loss_text": 7.0}) == pytest.approx(
        {"loss_t0_249": 1.5, "loss_t250_499": 3, "loss_t750_999": 4.5, "loss": 3.0, "loss_text": 7.0}
    )
    assert len(by_level(loss, torch.zeros(5), 2)) == 4  # of a process of two steps there are two levels


class Fake:
    """A tracker that keeps what it is told."""

    requires_logging_directory = False
    made: list["Fake"] = []  # noqa: RUF012
    fails = False

    def __init__(self, project: str, **options: Any) -> None:
        self.project, self.options, self.config, self.rows, self.ended = project, options, {}, [], False
        Fake.made.append(self)

    def start(self) -> None:
        pass

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        if Fake.fails:
            raise ConnectionError("the network\nis gone")
        self.rows.append((step, values))

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.made, Fake.fails = [], False
    monkeypatch.setitem(sys.modules["accelerate.tracking"].LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    return Fake


def test_trackers_get_every_row_and_a_resumed_run_goes_on_in_its_own(tmp_path: Path, fake: type[Fake]) -> None:
    run(tmp_path, steps=3, trackers=("wandb",), val_every=3)
    run(tmp_path, steps=6, trackers=("wandb",), val_every=3)
    first, second = fake.made
    assert (first.project, first.ended) == ("t2i", True)
    assert first.options["id"] == second.options["id"]
    assert second.options["resume"] == "allow"
    assert first.config["train.steps"] == 3
    told = [(step, set(values)) for one in (first, second) for step, values in one.rows]
    assert told == [(row["step"], set(row) - {"step"}) for row in rows(tmp_path)]
    assert [step for step, _ in second.rows] == [4, 5, 6, 6]


def test_a_tracker_that_fails_costs_no_training(
    tmp_path: Path, fake: type[Fake], caplog: pytest.LogCaptureFixture
) -> None:
    fake.fails = True
    assert run(tmp_path, trackers=("wandb",)).reason == "done"
    assert caplog.text.count("wandb could not take a row and gets no more") == 1
    assert len(curve(tmp_path)) == 6


def test_tensorboard_keeps_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "t2i"))
    events.Reload()
    assert [round(e.value, 5) for e in events.Scalars("loss")] == [round(x, 5) for x in curve(tmp_path)]
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


def test_a_tracker_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"trackio is not installed: pip install trackio, or 't2i\[track\]'"):
        check_trackers(["trackio"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: types.SimpleNamespace())
    check_trackers(["trackio"])


def test_a_config_becomes_flat() -> None:
    assert flat({"a": {"b": 1, "c": None, "d": [1, 2]}, "e": "x"}) == {"a.b": 1, "a.d": "[1, 2]", "e": "x"}
