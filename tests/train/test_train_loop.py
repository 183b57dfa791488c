"""The loop learns, resumes exactly, agrees with itself over processes, and stops cleanly."""

import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import socket
import threading
import time
from functools import partial

import pytest
import torch
from PIL import Image
from tiny_run import Against, HeldOutByOne, Pairs, Pictures, TinyTask, child, curve, export, run

from t2i.core.errors import DataError, NonFiniteError, Stopped, UsageError
from t2i.core.types import Task
from t2i.data.config import DataConfig
from t2i.data.loader import Loader, _Positions
from t2i.io.lock import sole_writer
from t2i.io.weights import load_folder, load_tensors
from t2i.measures.judge import PairsJudge
from t2i.text.words import WordTokenizer
from t2i.train import OptimConfig, TrainConfig, checkpoint, fit
from t2i.train.settings import choose_dtype, is_sample_step


def weights(out):
    return load_folder(out)[1]


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def resume_state(out, step):
    folder = out / "checkpoints" / f"step-{step:06d}"
    return {n: load_tensors(folder, n) for n in ("model", "optimizer", "ema-0.999")}


def test_a_run_learns_and_leaves_everything_behind(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        result = run(tmp_path / "run", steps=60, log_every=5, save_every=50, val_every=30)
    assert (result.step, result.images, result.reason) == (60, 480, "done")
    losses = curve(tmp_path / "run")
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    assert curve(tmp_path / "run", "half")[-1] == pytest.approx(losses[-1] / 2)
    assert curve(tmp_path / "run", "val_count") == [8, 8]
    assert weights(tmp_path / "run").keys() == TinyTask().model.state_dict().keys()
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["step-000050", "step-000060"]
    assert sorted(os.listdir(tmp_path / "run" / "samples")) == ["inputs.png", "step-000000.png", "step-000060.png"]
    with Image.open(tmp_path / "run" / "samples" / "step-000060.png") as grid:
        assert min(grid.size) > 2 * 96
    assert json.loads((tmp_path / "run" / "run.json").read_text())["train"]["steps"] == 60
    text = caplog.text
    for part in ("0.00M trainable parameters on cpu", "batch 8 = 8 × accumulate 1 × processes 1", "image: (8, 3, 8, 8)",
                 "caption: picture", "step 60/60 | 0 s left | 480 img |",
                 "| data 0%", "held out | count 8"):  # fmt: skip
        assert part in text
    assert text.count("caption: ") == 2


def test_the_first_step_and_long_ones_have_a_status_line_of_their_own(tmp_path, caplog, monkeypatch):
    """`metrics.jsonl` has only the rows that it would have had."""
    with caplog.at_level(logging.INFO):
        run(tmp_path / "quick", log_every=5, val_every=6)
    assert [line.split()[1] for line in caplog.messages if line.startswith("step ")] == [
        "1/12",
        "5/12",
        "10/12",
        "12/12",
    ]
    for what in ("step", "grid", "evaluation", "save"):
        assert sum(line.startswith(f"the first {what} took ") for line in caplog.messages) == 1
    caplog.clear()
    monkeypatch.setattr("t2i.train.report.EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        run(tmp_path / "slow", log_every=5, val_every=6)
    assert sum(line.startswith("step ") for line in caplog.messages) == 12
    for name in ("step", "loss", "grad_norm", "val_loss"):
        assert curve(tmp_path / "slow", name) == curve(tmp_path / "quick", name)


def test_the_export_is_the_average_and_not_the_last_weights(tmp_path):
    task = TinyTask()
    run(tmp_path, task, ema=(0.9, 0.5))
    exported = weights(tmp_path)
    assert not torch.equal(exported["first.weight"], task.model.first.weight)
    assert torch.equal(exported["frozen.weight"], task.model.frozen.weight)
    assert_same(exported | resume_state_of(tmp_path, "ema-0.9"), exported)


def resume_state_of(out, name):
    return load_tensors(out / "checkpoints" / "step-000012", name)


def test_without_averages_the_weights_themselves_are_exported(tmp_path):
    task = TinyTask()
    run(tmp_path, task, ema=())
    assert_same(weights(tmp_path), task.model.state_dict())


def test_a_resumed_run_is_bit_equal(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "parts", max_minutes=1e-9)
    assert len(curve(tmp_path / "parts")) == 1
    for steps in (3, 4):
        with pytest.raises(Stopped):
            run(tmp_path / "parts", Interrupted(steps), steps=12)
    run(tmp_path / "parts")
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert curve(tmp_path / "parts", "lr") == curve(tmp_path / "whole", "lr")
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    for name, group in resume_state(tmp_path / "whole", 12).items():
        assert_same(resume_state(tmp_path / "parts", 12)[name], group)


class Interrupted(TinyTask):
    """Sends its own process a signal during a step."""

    def __init__(self, at, number=signal.SIGTERM):
        super().__init__()
        self.at, self.number = at, number

    def loss(self, batch):
        losses = super().loss(batch)
        if self.calls == self.at:
            os.kill(os.getpid(), self.number)
        return losses


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_signals_finish_the_step_and_save(tmp_path, number):
    ours = signal.signal(number, signal.SIG_DFL) if number == signal.SIGHUP else None  # ignored where it was ignored
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=rf"{number.name}: saved step 3 in {tmp_path}") as caught:
        run(tmp_path, Interrupted(3, number))
    assert caught.value.exit_code == 75
    assert os.listdir(tmp_path / "checkpoints") == ["step-000003"]
    assert weights(tmp_path)
    assert signal.getsignal(number) is before
    if ours is not None:
        signal.signal(number, ours)


def test_a_hang_up_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(tmp_path, Interrupted(3, signal.SIGHUP)).step == 12
    finally:
        signal.signal(signal.SIGHUP, before)


class Hanging(Pictures):
    """Waits for ever in the batch of some step, as for a pipe that nobody writes to, and a signal comes then."""

    at = 3

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == self.at:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
                time.sleep(60)
            yield batch


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_signal_ends_a_run_that_waits_for_data_with_its_last_step_saved(tmp_path, accumulate):
    how = {"accumulate": accumulate, "sample_every": 0}
    run(tmp_path / "whole", **how)
    began = time.perf_counter()
    with pytest.raises(Stopped, match=f"SIGTERM: saved step {3 // accumulate} in "):
        run(tmp_path / "parts", loader=Hanging, **how)
    assert time.perf_counter() - began < 20
    run(tmp_path / "parts", **how)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_a_signal_before_the_first_batch_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Hanging, "at", 0)
    with pytest.raises(Stopped, match="SIGTERM: before the first step; the same command"):
        run(tmp_path, loader=Hanging)
    assert not (tmp_path / "checkpoints").exists()


def from_folder(folder):
    (folder / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i, i, i)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text("grey")
    return partial(Loader, DataConfig(source=str(folder / "pictures"), size=8, num_workers=1))


def in_a_loader(monkeypatch, what):
    """Do something in the process that loads pictures, in its third batch."""
    real = _Positions.__getitem__

    def item(positions, start):
        if start == 16:
            what()
        return real(positions, start)

    monkeypatch.setattr(_Positions, "__getitem__", item)


def test_a_loader_that_is_killed_is_one_line_about_its_number(tmp_path, monkeypatch):
    in_a_loader(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match=r"loads pictures was killed, .* memory .*: fewer data.num_workers") as caught:
        run(tmp_path / "run", loader=from_folder(tmp_path), sample_every=0)
    assert caught.value.exit_code == 3


def test_a_loader_that_hangs_is_ended_with_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.3)
    in_a_loader(monkeypatch, lambda: time.sleep(600))
    threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Stopped, match="SIGTERM: saved step 2 in "):
        run(tmp_path / "run", loader=from_folder(tmp_path), sample_every=0)
    assert not [child for child in multiprocessing.active_children() if child.join(5) is None and child.is_alive()]


def test_the_time_limit_saves_and_returns(tmp_path):
    result = run(tmp_path, max_minutes=1e-9)
    assert (result.reason, result.step) == ("max_minutes", 1)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000001"]
    assert run(tmp_path).step == 12
    assert run(tmp_path / "short", steps=1, max_minutes=1e-9).reason == "done"


def test_the_time_limit_reports_measures_and_draws_as_the_end_does(tmp_path):
    result = run(tmp_path, max_minutes=1e-9, log_every=50, val_every=50)
    assert result.metrics["step"] == 1
    assert len(curve(tmp_path, "loss")) == len(curve(tmp_path, "val_loss")) == 1
    assert "step-000001.png" in os.listdir(tmp_path / "samples")


def test_without_held_out_samples_nothing_is_measured_and_grids_show_others(tmp_path, caplog):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i, i, i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("grey")
    loader = partial(Loader, DataConfig(source=str(folder), size=8, num_workers=0))
    run(tmp_path / "run", loader=loader, steps=4, val_every=1, sample_every=2)
    assert curve(tmp_path / "run", "val_loss") == []
    assert caplog.text.count("no held-out numbers: data.val_fraction 0.02") == 1
    assert "step-000004.png" in os.listdir(tmp_path / "run" / "samples")


def test_a_finished_run_has_nothing_to_do(tmp_path):
    run(tmp_path, steps=3)
    task = TinyTask()
    assert run(tmp_path, task, steps=3).step == 3
    assert task.calls == 0


class Undrawn(TinyTask):
    sample = Task.sample


@pytest.mark.parametrize(
    ("task", "held_out", "missing"),
    [(TinyTask, True, False), (TinyTask, False, False), (Undrawn, False, False), (TinyTask, True, True)],
)
def test_a_finished_run_needs_its_data_for_what_is_missing_only_and_ends_well_without(
    tmp_path, caplog, task, held_out, missing
):
    folder, out = tmp_path / "pictures", tmp_path / "run"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (9, 9), (i, i, i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("grey")
    config = DataConfig(source=str(folder), size=8, num_workers=0, val_fraction=0.5 if held_out else 0.0)
    opened = []

    def loader(**how):
        opened.append(how["split"])
        return Loader(config, **how)

    run(out, task(), loader=loader, steps=2, val_every=2)
    assert len(curve(out, "val_loss")) == held_out
    shutil.rmtree(folder)
    if missing:
        (out / "samples" / "step-000002.png").unlink()
    opened.clear()
    caplog.clear()
    assert run(out, task(), loader=loader, steps=2, val_every=2).reason == "done"
    assert opened == (["val"] if missing else [])
    assert ("a grid or held-out numbers are missing, and so are their data: " in caplog.text) == missing


def test_a_finished_run_repairs_an_export_that_was_cut_off(tmp_path):
    run(tmp_path, steps=3)
    exported = weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").unlink()
    task = TinyTask()
    run(tmp_path, task, steps=3)
    assert_same(weights(tmp_path), exported)
    assert not torch.equal(task.model.first.weight, exported["first.weight"])


def test_a_checkpoint_without_averaged_buffers_still_resumes(tmp_path):
    run(tmp_path / "whole")
    run(tmp_path / "old", max_minutes=1e-9)
    folder = tmp_path / "old" / "checkpoints" / "step-000001"
    tensors, state = checkpoint.load(folder)
    assert set(state) == {"step", "images", "minutes", "config", "seconds"}
    del tensors["ema-0.999"]["scale"]
    checkpoint.save(folder.parent, 1, tensors, state, keep=2)
    run(tmp_path / "old")
    assert_same(weights(tmp_path / "old"), weights(tmp_path / "whole"))


def test_words_that_the_vocabulary_lacks_are_told(tmp_path, caplog):
    class Reading(TinyTask):
        keys = ("image", "caption", "seed")
        tokenizer = WordTokenizer(["picture"])

    run(tmp_path / "a", Reading(), steps=1)
    assert (
        "50% of the words of the first captions are not in the vocabulary and all read alike, such as '" in caplog.text
    )
    assert "model.tokenizer.kind=clip reads any word" in caplog.text
    caplog.clear()
    Reading.tokenizer = WordTokenizer(["picture", *(caption.split()[1] for caption in first_captions())])
    run(tmp_path / "b", Reading(), steps=1)
    run(tmp_path / "c", TinyTask(), steps=1)
    assert "vocabulary" not in caplog.text


def first_captions():
    where = {"accumulate": 1, "rank": 0, "world": 1, "start": 0, "split": "train", "bad_log": None}
    return next(iter(Pictures(seed=0, batch_size=8, **where)))["caption"]


def test_accumulated_micro_batches_follow_the_whole_batch(tmp_path):
    run(tmp_path / "one", TinyTask(dropout=0.0))
    task = TinyTask(dropout=0.0)
    run(tmp_path / "four", task, accumulate=4)
    assert task.calls == 48
    assert curve(tmp_path / "four") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)
    assert curve(tmp_path / "four", "grad_norm") == pytest.approx(curve(tmp_path / "one", "grad_norm"), rel=1e-3)


def launch(out, world=1, kill_at=-1, signal_at=-1, **changes):
    """Processes of their own, forked from a server that has imported the slow packages."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "torch._inductor", "accelerate", "PIL.Image"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in range(world):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        environment = address | {name: str(number) for name, number in numbers.items()} if world > 1 else {}
        arguments = (out, out.with_suffix(".txt"), environment, kill_at, signal_at, changes)
        processes.append(context.Process(target=child, args=arguments))
        processes[-1].start()
    return processes


def finish(processes):
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def test_kill_9_loses_nothing_that_was_saved(tmp_path):
    run(tmp_path / "whole")
    assert finish(launch(tmp_path / "parts", kill_at=8)) == [-signal.SIGKILL]
    assert os.listdir(tmp_path / "parts" / "checkpoints") == ["step-000005"]
    assert len(curve(tmp_path / "parts")) == 7
    run(tmp_path / "parts")
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


class CutOff(TinyTask):
    """Ends its run, without a save, while it looks for the n-th time."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def sample(self, batch):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("cut off")
        return super().sample(batch)


@pytest.mark.parametrize("at", [2, 4], ids=["at a save", "at the end"])
def test_what_was_due_when_a_run_was_cut_off_after_saving_is_made_up_for(tmp_path, at):
    how = {"save_every": 5, "val_every": 5, "sample_every": 5}
    run(tmp_path / "whole", **how)
    with pytest.raises(RuntimeError, match="cut off"):
        run(tmp_path / "parts", CutOff(at), **how)
    assert len(curve(tmp_path / "parts", "val_loss")) == at - 2
    task = TinyTask()
    run(tmp_path / "parts", task, **how)
    assert (task.calls == 0) == (at == 4)
    run(tmp_path / "parts", **how)  # nothing twice
    for name in ("loss", "val_loss", "step"):
        assert curve(tmp_path / "parts", name) == curve(tmp_path / "whole", name)
    grids = sorted(os.listdir(tmp_path / "whole" / "samples"))
    assert grids == ["inputs.png", *(f"step-0000{step}.png" for step in ("00", "05", "10", "12"))]
    for name in grids[1:]:
        assert (tmp_path / "parts/samples" / name).read_bytes() == (tmp_path / "whole/samples" / name).read_bytes()
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_a_signal_at_a_step_that_is_looked_at_loses_no_look(tmp_path):
    run(tmp_path / "whole", val_every=3, sample_every=3)
    with pytest.raises(Stopped, match="saved step 3"):
        run(tmp_path / "parts", Interrupted(3), val_every=3, sample_every=3)
    assert curve(tmp_path / "parts", "val_loss") == []
    run(tmp_path / "parts", val_every=3, sample_every=3)
    assert curve(tmp_path / "parts", "val_loss") == curve(tmp_path / "whole", "val_loss")
    assert {*os.listdir(tmp_path / "parts/samples")} == {*os.listdir(tmp_path / "whole/samples")}


def memory_of(out, step=12):
    return load_tensors(out / "checkpoints" / f"step-{step:06d}", "memory")


def test_kill_9_loses_no_memory_of_losses(tmp_path):
    """By step 5 every level of noise has its ten losses, so that the steps after it are drawn by them."""
    run(tmp_path / "whole", TinyTask(memory=True))
    assert finish(launch(tmp_path / "parts", kill_at=8, memory=True)) == [-signal.SIGKILL]
    seen = memory_of(tmp_path / "parts", 5)["seen"]
    assert seen.sum() == 40
    assert seen.min() >= 10
    run(tmp_path / "parts", TinyTask(memory=True))
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert_same(memory_of(tmp_path / "parts"), memory_of(tmp_path / "whole"))


def test_what_is_held_out_is_not_remembered(tmp_path):
    run(tmp_path / "looks", TinyTask(memory=True), val_every=3)
    run(tmp_path / "does_not", TinyTask(memory=True))
    assert_same(memory_of(tmp_path / "looks"), memory_of(tmp_path / "does_not"))
    assert memory_of(tmp_path / "looks")["seen"].sum() == 12 * 8


def test_a_checkpoint_without_a_memory_starts_an_empty_one(tmp_path, caplog):
    run(tmp_path, steps=5)
    with caplog.at_level(logging.INFO):
        run(tmp_path, TinyTask(memory=True), steps=12)
    assert "step-000005 has no memory: starting it anew" in caplog.text
    assert memory_of(tmp_path)["seen"].sum() == 7 * 8
    run(tmp_path, steps=13)
    assert not (tmp_path / "checkpoints" / "step-000013" / "memory.safetensors").exists()


def test_two_processes_remember_as_one_does(tmp_path):
    run(tmp_path / "one", TinyTask(dropout=0.0, memory=True))
    assert finish(launch(tmp_path / "two", world=2, dropout=0.0, memory=True)) == [0, 0]
    one, two = memory_of(tmp_path / "one"), memory_of(tmp_path / "two")
    assert torch.equal(one["seen"], two["seen"])
    torch.testing.assert_close(two["history"], one["history"], rtol=1e-3, atol=1e-4)
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-3)


def test_kill_9_at_any_moment_leaves_a_run_that_continues(tmp_path):
    run(tmp_path / "whole", steps=24, save_every=1)
    folder = tmp_path / "parts" / "checkpoints"

    def steps():
        """Names of whole and half checkpoints, without the file that only asks whether one can write."""
        return {path.name for path in folder.glob("step-*")}

    for delay in (0.0, 0.013, 0.021):
        before = steps()
        (process,) = launch(tmp_path / "parts", steps=24, save_every=1)
        while process.is_alive() and steps() <= before:
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert steps() - before
    run(tmp_path / "parts", steps=24, save_every=1)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert_same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_a_second_training_in_one_folder_is_refused_and_touches_nothing(tmp_path):
    run(tmp_path / "run", steps=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    task = TinyTask()
    with sole_writer(tmp_path / "run", "trained"), pytest.raises(UsageError, match="is being trained by process") as e:
        run(tmp_path / "run", task, steps=9)
    assert str(e.value).endswith("; stop it or choose another train.out")
    assert task.calls == 0
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    with sole_writer(tmp_path / "run", "trained"):
        assert finish(launch(tmp_path / "run", world=2, steps=9)) == [1, 1]
    assert (tmp_path / "run.txt").read_text().count("is being trained by process") == 2


def test_what_killed_runs_left_goes_with_the_next_one(tmp_path):
    run(tmp_path, steps=5)
    dead = finish(processes := launch(tmp_path / "other", kill_at=1)) and processes[0].pid
    os.rename(tmp_path / "checkpoints" / "step-000005", tmp_path / "checkpoints" / "step-000005.old")
    for name in ("checkpoints/step-000005.tmp", "checkpoints/step-000009.tmp"):
        (tmp_path / name).mkdir()
    left = [
        tmp_path / f"{name}.{dead}.tmp" for name in (".model.safetensors", "samples/.t2i-a.png", "checkpoints/.t2i-a")
    ]
    for path in left:
        path.write_text("x")
    assert run(tmp_path, steps=5).step == 5
    assert os.listdir(tmp_path / "checkpoints") == ["step-000005"]
    assert not any(path.exists() for path in left)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    codes = finish(launch(out, world=2, dropout=0.0, val_every=6))
    printed = out.with_suffix(".txt").read_text()
    assert codes == [0, 0], printed
    return out, printed


def test_two_processes_follow_the_curve_of_one(two_processes, tmp_path):
    out, printed = two_processes
    run(tmp_path, TinyTask(dropout=0.0), val_every=6)
    for name in ("loss", "half", "grad_norm", "lr", "val_loss", "images"):
        assert curve(out, name) == pytest.approx(curve(tmp_path, name), rel=2e-3), name
    assert curve(out, "loss") == pytest.approx(curve(tmp_path, "loss"), rel=1e-4)
    for name, tensor in weights(tmp_path).items():
        assert torch.allclose(weights(out)[name], tensor, atol=2e-4), name
    assert "batch 8 = 4 × accumulate 1 × processes 2" in printed
    assert printed.count("step 12/12 |") == 1


def test_two_processes_draw_and_measure_as_one_does(tmp_path):
    measured = {"every": 3, "metrics": ("frechet", "precision"), "num": 21, "batch_size": 4, "extractor": "pixels=4"}
    judge = PairsJudge(measured["metrics"], measured["extractor"])
    run(tmp_path / "one", Pairs(0.0), judge=judge, eval=measured, steps=3)
    assert finish(launch(tmp_path / "two", world=2, eval=measured, steps=3)) == [0, 0]
    for name in ("frechet_distance", "precision", "recall"):
        assert curve(tmp_path / "two", f"eval_{name}") == pytest.approx(
            curve(tmp_path / "one", f"eval_{name}"), rel=2e-2
        )
    assert curve(tmp_path / "two", "eval_num") == [21]


def test_a_run_of_two_processes_continues_on_one(two_processes, tmp_path):
    shutil.copytree(two_processes[0], tmp_path / "run")
    assert run(tmp_path / "run", TinyTask(dropout=0.0), steps=14).images == 14 * 8
    assert len(curve(tmp_path / "run")) == 14


def test_two_processes_and_two_micro_batches(tmp_path):
    run(tmp_path / "one", TinyTask(dropout=0.0), steps=4)
    assert finish(launch(tmp_path / "two", world=2, dropout=0.0, steps=4, accumulate=2)) == [0, 0]
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)


def test_two_processes_of_two_phases_follow_one_and_survive_kill_9(tmp_path):
    run(tmp_path / "one", Against())
    assert finish(launch(tmp_path / "two", world=2, against=True)) == [0, 0]
    assert finish(launch(tmp_path / "parts", world=2, kill_at=8, against=True)) == [-signal.SIGKILL] * 2
    assert os.listdir(tmp_path / "parts" / "checkpoints") == ["step-000005"]
    assert finish(launch(tmp_path / "parts", world=2, against=True)) == [0, 0]
    for name in ("loss", "critic/loss", "critic/grad_norm"):
        assert curve(tmp_path / "parts", name) == curve(tmp_path / "two", name)
        assert curve(tmp_path / "two", name) == pytest.approx(curve(tmp_path / "one", name), rel=2e-3), name
    last = "checkpoints/step-000012"
    for name in ("model", "optimizer", "phase-critic", "optimizer-critic"):
        assert_same(*(load_tensors(tmp_path / out / last, name) for out in ("parts", "two")))


def test_nobody_waits_for_a_process_that_has_nothing_held_out(tmp_path):
    assert finish(launch(tmp_path / "run", world=2, loader=HeldOutByOne, steps=2, val_every=1)) == [0, 0]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("val_batches") == 0] == [1, 2]
    assert not curve(tmp_path / "run", "val_loss")


def test_what_the_writing_process_cannot_do_is_told_by_all(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    assert finish(launch(tmp_path / "run", world=2, steps=2)) == [1, 1]
    ends = re.findall(r"^[\w.]*Error: .*", (tmp_path / "run.txt").read_text(), re.MULTILINE)
    told = f"t2i.core.errors.UsageError: {tmp_path / 'run' / 'checkpoints'} is a file, expected a folder"
    assert ends == [told, told]


def test_a_signal_to_one_process_stops_both(tmp_path):
    codes = finish(launch(tmp_path / "run", world=2, signal_at=3, steps=500, save_every=500))
    assert codes == [1, 1]
    printed = (tmp_path / "run.txt").read_text()
    assert printed.count("saved step 5 in") == 2
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-000005"]


def test_a_signal_to_the_group_spares_the_loaders_until_the_step_is_saved(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (9, 9), (i, i, i)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text("grey")
    (process,) = launch(tmp_path / "run", signal_at=7, steps=500, save_every=500, folder=str(tmp_path / "pictures"))
    assert finish([process]) == [1]
    assert "SIGTERM: saved step 7 in" in (tmp_path / "run.txt").read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_stops_the_run_and_is_never_saved(tmp_path, log_every):
    with pytest.raises(NonFiniteError, match="NaN or infinite at step 6 ") as caught:
        run(tmp_path, TinyTask(nan_at=7), save_every=5, log_every=log_every)
    assert caught.value.exit_code == 4
    assert os.listdir(tmp_path / "checkpoints") == ["step-000005"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    assert all(t.isfinite().all() for t in resume_state(tmp_path, 5)["model"].values())


class Diverging(TinyTask):
    """Its loss is finite, and so are its gradients; its weights are not from some step on."""

    def after_step(self, step):
        if step >= 7:
            with torch.no_grad():
                self.model.first.weight.fill_(float("inf"))


def test_weights_that_are_not_finite_are_never_saved_and_the_good_checkpoint_is_named(tmp_path):
    with pytest.raises(
        NonFiniteError, match=r"^model became NaN or infinite by step 7 .*: step-000005 is the last good"
    ):
        run(tmp_path, Diverging(), save_every=5, log_every=100, steps=7)
    assert os.listdir(tmp_path / "checkpoints") == ["step-000005"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())
    assert run(tmp_path, steps=7).step == 7
    with pytest.raises(NonFiniteError, match=r"at step 0 .*nothing was saved yet"):
        run(tmp_path / "other", TinyTask(nan_at=1))


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, steps=5)
    exported = weights(tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="no space left to write"):
        run(tmp_path, steps=10, save_every=1)
    monkeypatch.undo()
    assert os.listdir(tmp_path / "checkpoints") == ["step-000005"]
    assert_same(weights(tmp_path), exported)
    assert run(tmp_path, steps=10).step == 10


def test_a_damaged_checkpoint_is_skipped_with_a_word(tmp_path, caplog):
    run(tmp_path, steps=10)
    newest = tmp_path / "checkpoints" / "step-000010" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    with caplog.at_level(logging.INFO):
        run(tmp_path, steps=11)
    assert "step-000010: optimizer.safetensors differs from the manifest" in caplog.text
    assert "step-000005 at step 5" in caplog.text


def test_changes_of_the_configuration_are_said(tmp_path, caplog):
    run(tmp_path, steps=5)
    with caplog.at_level(logging.INFO):
        run(tmp_path, optim=OptimConfig(lr=1e-3), steps=6)
    assert "optim.lr: 0.01 → 0.001" in caplog.text


@pytest.mark.parametrize(("before", "now"), [("muon", "adamw"), ("adamw", "muon")])
def test_another_optimiser_starts_anew_with_a_warning(tmp_path, caplog, before, now):
    run(tmp_path, optim=OptimConfig(kind=before), steps=3)
    run(tmp_path, optim=OptimConfig(kind=now), steps=6)
    assert "optimiser state of 2 of 6 parameters starts anew: optim.kind or optim.only is another" in caplog.text
    kept = {name.rpartition("/")[2] for name in resume_state(tmp_path, 6)["optimizer"] if name.startswith("first.wei")}
    assert kept == ({"momentum"} if now == "muon" else {"step", "exp_avg", "exp_avg_sq"})


def test_parts_that_are_frozen_later_lose_their_state_with_a_warning_and_those_that_are_freed_start_anew(
    tmp_path, caplog
):
    run(tmp_path, optim=OptimConfig(), steps=3)
    run(tmp_path, optim=OptimConfig(only=["last"]), steps=5)
    assert "optimiser state of 4 of 6 parameters starts anew" in caplog.text
    assert {name.split(".")[0] for name in resume_state(tmp_path, 5)["optimizer"]} == {"last"}
    caplog.clear()
    assert run(tmp_path, optim=OptimConfig(), steps=7).step == 7
    assert "starts anew" not in caplog.text


@pytest.mark.parametrize("change", [{"accumulate": 2}, {"seed": 5}, {"ema": [0.9]}, {"batch_size": 4}], ids=str)
def test_what_else_of_a_run_is_changed_is_said_before_it_goes_on(tmp_path, caplog, change):
    run(tmp_path, steps=3)
    with caplog.at_level(logging.INFO):
        assert run(tmp_path, **{"steps": 6} | change).step == 6
    assert re.search(rf"resumed .* with .*train.{next(iter(change))}", caplog.text)


def test_other_data_of_a_finished_run_are_opened(tmp_path):
    def absent(**_):
        raise DataError("photos is not there")

    def go(source, loader):
        config = TrainConfig(steps=2, batch_size=4, out=tmp_path, device="cpu", sample_every=0)
        return fit(TinyTask(), loader, config, OptimConfig(), export=export, resolved={"data": {"source": source}})

    go("shapes", Pictures)
    assert go("shapes", absent).reason == "done"
    with pytest.raises(DataError, match="photos is not there"):
        go("photos", absent)
    assert go("photos", Pictures).reason == "done"


def test_another_model_is_refused(tmp_path):
    run(tmp_path, steps=2)
    task = TinyTask()
    task.model.last = torch.nn.Conv2d(8, 3, 1)
    with pytest.raises(UsageError, match=r"step-000002 does not fit this model: it has another shape of 'last.weight'"):
        run(tmp_path, task, steps=3)


def test_missing_keys_are_named(tmp_path):
    task = TinyTask()
    task.keys = ("image", "clip")
    with pytest.raises(UsageError, match=r"the task needs \['clip'\], the data has \['caption', 'image', 'seed'\]"):
        run(tmp_path, task)


def test_out_is_checked_before_work(tmp_path):
    (tmp_path / "file").write_text("x")
    task = TinyTask()
    with pytest.raises(UsageError, match="is a file, expected a folder"):
        run(tmp_path / "file", task)
    assert task.calls == 0


def test_bfloat16_autocast_runs_and_keeps_float32_weights(tmp_path):
    run(tmp_path, TinyTask(dropout=0.0), precision="bf16")
    run(tmp_path / "full", TinyTask(dropout=0.0))
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}
    assert curve(tmp_path) != curve(tmp_path / "full")
    assert curve(tmp_path) == pytest.approx(curve(tmp_path / "full"), rel=0.05)


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path,), kwargs={"steps": 2})
    thread.start()
    thread.join()
    assert os.listdir(tmp_path / "checkpoints") == ["step-000002"]


def test_frozen_parts_of_a_task_are_not_trained(tmp_path):
    class ModuleTask(Task):
        keys = ("image", "seed")

        def __init__(self):
            self.tiny = [TinyTask()]
            super().__init__(self.tiny[0].model)
            self.encoder = torch.nn.Linear(2, 2)

        def loss(self, batch):
            return self.tiny[0].loss(batch)

    config = TrainConfig(steps=2, batch_size=4, out=tmp_path, device="cpu", log_every=1)
    fit(ModuleTask(), Pictures, config, OptimConfig(), export=export)
    assert weights(tmp_path).keys() == TinyTask().model.state_dict().keys()
    assert os.listdir(tmp_path / "samples") == ["inputs.png"]


def test_sample_steps_are_logarithmic_or_regular():
    assert [s for s in range(10001) if is_sample_step(s, None)] == [0, 100, 300, 1000, 3000, 10000]
    assert [s for s in range(10) if is_sample_step(s, 4)] == [0, 4, 8]
    assert not any(is_sample_step(s, 0) for s in range(10))


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    assert choose_dtype("bf16", cpu) == torch.bfloat16
    assert choose_dtype("fp32", cpu) == torch.float32
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("t2i.train.settings.fast_bfloat16", lambda _, fast=fast: fast)
        assert choose_dtype("auto", cpu) == expected
