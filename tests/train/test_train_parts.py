"""Averages, schedules, checkpoints and logs, each against its closed form."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_run import Net
from torch import nn

from t2i.core import progress
from t2i.core.config import load
from t2i.core.errors import DataError, FullDiskError, UsageError
from t2i.core.progress import Alive
from t2i.io import weights
from t2i.train import OptimConfig, TrainConfig, checkpoint, log
from t2i.train.ema import Ema
from t2i.train.forecast import Forecast
from t2i.train.log import Meter, MetricsFile, status_line
from t2i.train.optim import Muon, freeze, learning_rate, make_optimizer, orthogonal
from t2i.train.parallel import Parallel
from t2i.train.report import Report
from t2i.train.settings import is_sample_step, num_times
from t2i.train.stop import StopRequest

# Averages


def test_ema_is_the_warmed_up_recursion():
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, (0.9, 0.3))
    expected = [model.weight.item()] * 2
    for n in range(200):
        with torch.no_grad():
            model.weight.fill_(float(n % 7))
        ema.update(n)
        for i, decay in enumerate((0.9, 0.3)):
            d = min(decay, (1 + n) / (10 + n))
            expected[i] = d * expected[i] + (1 - d) * (n % 7)
    assert ema.named(0)["weight"].item() == pytest.approx(expected[0], rel=1e-5)
    assert ema.named(1)["weight"].item() == pytest.approx(expected[1], rel=1e-5)


def test_ema_of_bfloat16_weights_is_float32():
    model = nn.Linear(4, 4).to(torch.bfloat16)
    ema = Ema(model, (0.9999,))
    ema.update(10**6)
    assert ema.named()["weight"].dtype == torch.float32
    with ema.swapped():
        assert model.weight.dtype == torch.bfloat16


def test_swapping_is_undone_also_after_an_error():
    model = nn.Linear(2, 2)
    ema = Ema(model, (0.9,))
    with torch.no_grad():
        model.weight.fill_(3.0)

    def look():
        with ema.swapped():
            assert not (model.weight == 3).any()
            raise RuntimeError("sampling failed")

    with pytest.raises(RuntimeError, match="sampling failed"):
        look()
    assert (model.weight == 3).all()


def test_ema_skips_frozen_parameters():
    trained = {n for n, p in Net().named_parameters() if p.requires_grad}
    assert set(Ema(Net(), (0.9,)).named()) == {*trained, "scale"}


def test_running_statistics_are_averaged_like_the_weights():
    model = nn.BatchNorm1d(2)
    model.register_buffer("table", torch.ones(1), persistent=False)
    ema = Ema(model, (0.9,))
    assert set(ema.named()) == {"weight", "bias", "running_mean", "running_var"}  # neither counts nor what is not saved
    expected = torch.zeros(2)
    for n in range(20):
        model(torch.randn(8, 2, generator=torch.Generator().manual_seed(n)) + n)
        ema.update(n)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.running_mean
    live = model.running_mean.clone()
    with ema.swapped():
        torch.testing.assert_close(model.running_mean, expected)
    assert torch.equal(model.running_mean, live)
    assert not torch.allclose(live, expected)


def test_constant_buffers_stay_as_they_are():
    model = Net()
    ema = Ema(model, (0.9999, 0.1))
    model.scale.fill_(0.1)
    ema.load(0, {})
    for n in range(50):
        ema.update(n)
    assert ema.named(0)["scale"] == model.scale


def test_averages_that_a_checkpoint_lacks_start_from_the_model():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, (0.9,))
    model.running_mean.fill_(3.0)
    ema.load(0, {"weight": torch.full((2,), 5.0)})
    assert ema.named()["weight"].tolist() == [5, 5]
    assert ema.named()["running_mean"].tolist() == [3, 3]
    ema.update(1000)
    assert model.running_mean.tolist() == [3, 3]


# Optimiser


def test_constant_with_warmup():
    config = OptimConfig(lr=1.0, warmup=4)
    assert [learning_rate(config, s, 100) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.55), ("linear", 0.55)])
def test_decays_end_at_the_final_fraction(schedule, middle):
    config = OptimConfig(lr=2.0, warmup=10, schedule=schedule, final=0.1)
    assert learning_rate(config, 10, 110) == pytest.approx(2.0)
    assert learning_rate(config, 60, 110) == pytest.approx(2 * middle)
    assert learning_rate(config, 110, 110) == learning_rate(config, 500, 110) == pytest.approx(0.2)


def test_weight_decay_spares_vectors_and_frozen_weights():
    model = Net()
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1))
    decayed, spared = optimizer.param_groups
    assert {id(p) for p in decayed["params"]} == {id(model.first.weight), id(model.last.weight)}
    assert len(spared["params"]) == 4
    assert spared["weight_decay"] == 0
    with pytest.raises(UsageError, match="no trainable"):
        make_optimizer(Net().requires_grad_(False), OptimConfig())


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16)])
def test_orthogonal_keeps_directions_and_evens_their_sizes(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = (u * torch.logspace(0, 1, min(shape))) @ v  # (U, sizes from 1 to 10, Vᵀ)
    even = torch.linalg.svdvals(orthogonal(matrix, steps=8))
    assert even.min() > 0.6
    assert even.max() < 1.3
    found = u.T @ orthogonal(matrix, steps=8) @ v.T  # diagonal in the same basis
    assert (found - found.diagonal().diag()).abs().max() < 1e-9


def test_muon_moves_kernels_as_far_as_adamw_and_leaves_the_rest_to_it():
    steps = {}
    for kind in ("adamw", "muon"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.GroupNorm(4, 64))
        model.conv_out = nn.Conv2d(64, 3, 1)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = make_optimizer(model, OptimConfig(kind=kind, lr=1e-3, weight_decay=0.1))
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        steps[kind] = {name: (p - before[name]) for name, p in model.named_parameters()}
    assert isinstance(optimizer, Muon)
    for name in before:
        if name in ("0.weight", "1.weight"):
            size = steps["muon"][name].square().mean().sqrt().item()
            assert size == pytest.approx(0.2e-3, rel=0.2), name  # AdamW's usual root mean square is 0.2 to 0.4 of lr
        else:
            torch.testing.assert_close(steps["muon"][name], steps["adamw"][name])


def test_muon_moves_parameters_of_one_shape_as_each_alone(monkeypatch):
    """In one stack, in pieces of it, and by themselves; kernels of another memory layout too."""

    def trained(together):
        monkeypatch.setattr("t2i.train.optim._TOGETHER", together)
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1)
        )
        model[1].to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, OptimConfig(kind="muon", lr=1e-2, weight_decay=0.1))
        for _ in range(3):
            model(torch.randn(4, 4, 8, 8)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    alone = trained(1)
    assert (alone[0] - alone[2]).abs().max() > 1e-3
    for together in (2**26, 2 * 144):
        for a, b in zip(trained(together), alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_muon_decays_weights_and_learns():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16)), torch.randn(64, 16)
    optimizer = make_optimizer(model, OptimConfig(kind="muon", lr=2e-2))
    losses = []
    for _ in range(60):
        loss = (model(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    still = nn.Linear(4, 4, bias=False)
    optimizer, weight = make_optimizer(still, OptimConfig(kind="muon", lr=0.1, weight_decay=0.5)), still.weight.clone()
    still.weight.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(still.weight, 0.95 * weight)


def test_only_what_is_named_trains():
    model = Net()
    freeze(model, [])
    assert model.first.weight.requires_grad
    freeze(model, ["last.", "norm.weight"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"last.weight", "last.bias", "norm.weight"}
    with pytest.raises(
        UsageError, match=r"optim\.only: no parameter begins with 'lost'; they begin with .*first\.bias"
    ):
        freeze(model, ["lost"])


@pytest.mark.parametrize("betas", ["[2, 3]", "[0.9, 1]", "[-0.1, 0.9]"])
def test_impossible_averages_are_wrong_settings(betas):
    with pytest.raises(UsageError, match=r"^config: betas.\d: "):
        load(None, [f"betas={betas}"], OptimConfig)
    with pytest.raises(UsageError, match=r"^config: ema.\d: "):
        load(None, [f"ema={betas}", "steps=1", "batch_size=1", "out=x"], TrainConfig)


# Checkpoints


def saved(folder, step, keep=2):
    return checkpoint.save(folder, step, {"model": {"w": torch.full((3,), step)}}, numbers(step), keep)


def numbers(step):
    return {"step": step, "images": 8 * step, "minutes": 0.5, "config": {}}


def test_rotation_keeps_the_newest(tmp_path):
    for step in (1, 3, 20, 1000000):
        saved(tmp_path, step)
    assert sorted(os.listdir(tmp_path)) == ["step-000020", "step-1000000"]
    path = checkpoint.find(tmp_path, "auto")
    tensors, state = checkpoint.load(path)
    assert path.name == "step-1000000"
    assert state == numbers(1000000)
    assert tensors["model"]["w"].tolist() == [1000000] * 3


def test_a_run_that_went_back_keeps_what_it_writes(tmp_path):
    for step in (900, 1000):
        saved(tmp_path, step)
    path = saved(tmp_path, 500)
    assert os.listdir(tmp_path) == ["step-000500"]
    assert checkpoint.find(tmp_path, "auto") == path


def test_nothing_whole_is_lost_to_a_damaged_newer_checkpoint(tmp_path):
    saved(tmp_path, 10, keep=1)
    (tmp_path / "step-000010" / "model.safetensors").unlink()
    assert checkpoint.verify(saved(tmp_path, 7, keep=1)) is None


def test_a_run_started_from_another_continues_from_its_own(tmp_path):
    other, own = tmp_path / "other" / "checkpoints", tmp_path / "own" / "checkpoints"
    start = saved(other, 50)
    for choice in (start, other, other.parent):
        assert checkpoint.find(own, str(choice)) == start
    saved(own, 60)
    newest = saved(own, 70)
    for choice in (start, other, other.parent, "auto", own.parent, own):
        assert checkpoint.find(own, str(choice)) == newest
    assert checkpoint.find(own, str(own / "step-000060")) == own / "step-000060"  # going back is asked for by name


def test_saving_a_step_again_replaces_it(tmp_path):
    saved(tmp_path, 5)
    saved(tmp_path, 5)
    assert os.listdir(tmp_path) == ["step-000005"]
    assert checkpoint.verify(tmp_path / "step-000005") is None


def test_unfinished_folders_are_ignored_and_replaced(tmp_path):
    saved(tmp_path, 5)
    (tmp_path / "step-000009.tmp").mkdir()
    (tmp_path / "step-000009.tmp" / "junk").write_text("x")
    assert checkpoint.find(tmp_path, "auto").name == "step-000005"
    saved(tmp_path, 9)
    assert "junk" not in os.listdir(tmp_path / "step-000009")


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_found(tmp_path, damage):
    path = saved(tmp_path, 5)
    weights = path / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    if damage == "flip":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    if damage == "remove":
        weights.unlink()
    if damage == "manifest":
        (path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"no checkpoint of .* is whole .step-000005: "):
        checkpoint.find(tmp_path, "auto")
    saved(tmp_path, 4)
    assert checkpoint.find(tmp_path, "auto").name == "step-000004"


def test_a_look_at_what_is_there_reads_no_weights(tmp_path):
    saved(tmp_path, 4)
    weights = saved(tmp_path, 5) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert checkpoint.find(tmp_path, "auto", whole=False).name == "step-000005"
    assert checkpoint.find(tmp_path, "auto").name == "step-000004"
    weights.write_bytes(b"")
    assert checkpoint.find(tmp_path, "auto", whole=False).name == "step-000004"
    weights.unlink()
    assert checkpoint.find(tmp_path, "auto", whole=False).name == "step-000004"


def test_checking_takes_the_memory_of_one_tensor(tmp_path, monkeypatch):
    state = {f"layer{i}": torch.ones(1000) for i in range(20)}
    path = checkpoint.save(tmp_path, 5, {"model": state, "optimizer": {f"{k}/exp_avg": state[k] for k in state}},
                           numbers(5), keep=9)  # fmt: skip
    monkeypatch.setattr(checkpoint.weights, "load_tensors", None)
    assert checkpoint.verify(path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"step": "5"},
        {"step": True},
        {"images": -1},
        {"images": 10**30},
        {"images": 0.5},
        {"minutes": float("nan")},
        {"minutes": None},
        {"config": [1]},
    ],
    ids=str,
)
def test_numbers_that_no_run_has_are_damage(tmp_path, change):
    saved(tmp_path, 4)
    damaged = checkpoint.save(tmp_path, 5, {"model": {"w": torch.ones(3)}}, numbers(5) | change, keep=2)
    assert checkpoint.verify(damaged).startswith("state.json: ")
    assert checkpoint.find(tmp_path, "auto").name == "step-000004"


def test_a_checkpoint_of_weights_that_are_not_finite_is_passed_over(tmp_path, caplog):
    good = {"w": torch.ones(3), "table": torch.full((2,), torch.nan)}  # the second is not trained
    moments = {"w/exp_avg": torch.ones(3), "w/step": torch.tensor(4.0)}
    state = {"model": good, "ema-0.9": good, "optimizer": moments}
    checkpoint.save(tmp_path, 4, state, numbers(4), keep=9)
    assert checkpoint.verify(tmp_path / "step-000004") is None
    bad = torch.tensor([1.0, torch.inf, 1.0])
    for name, key in (("model", "w"), ("ema-0.9", "w"), ("optimizer", "w/exp_avg")):
        broken = state | {name: state[name] | {key: bad}}
        assert checkpoint.non_finite(broken) == [name]
        checkpoint.save(tmp_path, 5, broken, numbers(5), keep=9)
        assert checkpoint.find(tmp_path, "auto").name == "step-000004"
        assert f"skipped checkpoint {tmp_path}/step-000005: {name} hold NaN or infinity" in caplog.text
    critic = {"phase-critic": {"w": bad}, "optimizer-critic": moments}
    assert checkpoint.non_finite(critic) == ["phase-critic"]
    with pytest.raises(DataError, match="step-000005 is damaged: optimizer hold NaN or infinity"):
        checkpoint.find(tmp_path, str(tmp_path / "step-000005"))


def test_resume_choices(tmp_path):
    run = tmp_path / "run" / "checkpoints"
    assert checkpoint.find(run, "auto") is None
    assert checkpoint.find(run, "none") is None
    with pytest.raises(UsageError, match="nowhere does not exist"):
        checkpoint.find(run, str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no checkpoint"):
        checkpoint.find(run, str(tmp_path / "empty"))
    path = saved(run, 7)
    with pytest.raises(UsageError, match="nowhere does not exist"):
        checkpoint.find(run, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="already holds checkpoints"):
        checkpoint.find(run, "none")
    other = tmp_path / "other"
    for choice in (path, run, run.parent):
        assert checkpoint.find(other, str(choice)) == path
    (path / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"step-000007 is damaged: .*model.safetensors"):
        checkpoint.find(other, str(path))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimiser_state_goes_by_name_and_keeps_its_layout(tmp_path, kind):
    def stepped():
        torch.manual_seed(0)
        model = Net().to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, OptimConfig(kind=kind))
        return model, optimizer

    model, optimizer = stepped()
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    values = checkpoint.optimizer_state(model, optimizer)
    assert {k.rpartition("/")[0] for k in values} == {n for n, p in model.named_parameters() if p.requires_grad}
    weights.save_tensors(tmp_path, values, "optimizer")
    other, restored = stepped()
    checkpoint.load_optimizer(other, restored, weights.load_tensors(tmp_path, "optimizer"))
    for name, p in other.named_parameters():
        for key, value in restored.state.get(p, {}).items():
            original = optimizer.state[dict(model.named_parameters())[name]][key]
            assert torch.equal(value, original)
            assert value.stride() == original.stride()


def test_state_of_another_optimiser_is_refused():
    model = Net()
    optimizer = make_optimizer(model, OptimConfig())
    with pytest.raises(UsageError, match=r"'other.weight'"):
        checkpoint.load_optimizer(model, optimizer, {"other.weight/exp_avg": torch.ones(1)})


# Logs


def test_meter_averages_by_name():
    meter = Meter()
    meter.add({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
    meter.add({"a": torch.tensor(2.0)})
    names, values = meter.means()
    assert dict(zip(names, values.tolist(), strict=True)) == {"a": 1.5, "b": 4.0}
    meter.add({"a": torch.tensor(7.0)})
    assert meter.means()[1].tolist() == [7.0]


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for step in (1, 2, 3):
        file.add({"step": step})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    MetricsFile(path, 2).add({"step": 3, "again": True})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.path.symlink_to("/dev/full")
    with pytest.raises(FullDiskError, match=r"no space left to write .*/metrics.jsonl"):
        file.add({"step": 1})


def test_status_line():
    row = {"step": 12000, "images": 3_070_000, "img_per_s": 412.3, "loss": 0.0421, "lr": 1e-4}
    row |= {"grad_norm": 0.31, "memory_gb": 31.2, "data_fraction": 0.04}
    assert status_line(row, 20_000, 8640) == (
        "step 12000/20000 | 2.4 h left | 3.07M img | 412.3 img/s | loss 0.0421 | lr 1.0e-04 | gnorm 0.31 | mem 31.2G | "
        "data 4%"
    )


@pytest.mark.parametrize("step", [0, 1, 99, 100, 450, 1000, 1234])
@pytest.mark.parametrize("every", [None, 0, 1, 100, 300, 5000])
def test_what_is_to_come_is_counted_as_the_loop_does_it(step, every):
    end = 1234
    times = [at for at in range(step + 1, end + 1) if at == end or is_sample_step(at, every)]
    assert num_times(step, end, every) == (0 if every == 0 else len(times))


def test_a_forecast_counts_steps_grids_evaluations_and_saves(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("t2i.train.forecast.time.perf_counter", lambda: now[0])
    config = TrainConfig(steps=1000, batch_size=1, out="x", sample_every=500, val_every=250, save_every=100)
    forecast = Forecast(config, speaks=False, alive=Alive("training"))

    def goes_by(seconds):
        now[0] += seconds
        forecast.step()

    goes_by(60)  # the first step is slow, and is all that is known
    assert forecast.left(1, 0) == 999 * 60
    goes_by(2)
    assert forecast.left(2, 0) == 998 * 2
    for seconds in (2, 2, 30, 2):  # one that waited for a disk
        goes_by(seconds)
    assert forecast.left(6, 0) == 994 * 2
    for what, seconds in (("grid", 50), ("evaluation", 7), ("save", 3)):
        with forecast.measured(what):
            now[0] += seconds
    goes_by(2)  # what was beside it is no part of a step
    assert forecast.left(7, 0) == 993 * 2 + 2 * 50 + 4 * 7 + 10 * 3
    assert forecast.left(1000, 0) == 0
    limited = Forecast(config.model_copy(update={"max_minutes": 2.0}), speaks=False, alive=Alive("training"))
    limited.took = forecast.took
    assert limited.left(7, minutes=0.5) == 90
    assert limited.left(7, minutes=3) == 0


def test_what_comes_before_the_first_step_is_not_called_training(tmp_path):
    config = TrainConfig(steps=2, batch_size=1, out=tmp_path)
    report = Report(Parallel("cpu"), config, step=0, minutes=0.0, began=0.0)
    assert report.alive.what == "starting"
    report.forecast.start()
    assert report.alive.what == "training"


@pytest.mark.parametrize("at", range(2, 12))
def test_one_step_that_waited_changes_no_forecast(monkeypatch, at):
    now = [0.0]
    monkeypatch.setattr("t2i.train.forecast.time.perf_counter", lambda: now[0])
    config = TrainConfig(steps=100, batch_size=1, out="x", sample_every=0, val_every=0, save_every=100)
    forecast = Forecast(config, speaks=False, alive=Alive("training"))
    for step in range(1, 12):
        now[0] += {1: 60, at: 30}.get(step, 2)
        forecast.step()
    assert len(forecast.took["step"]) == 10  # all but the first
    assert forecast.left(11, 0) == 89 * 2


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("comes", [True, False])
def test_one_of_several_processes_that_hangs_is_ended_when_asked_to(before, comes):
    """Data that come in time change nothing; a signal may be there before the wait begins."""
    kill = "os.kill(os.getpid(), 15)"
    code = f"""
import os, sys, time
from t2i.core.progress import to_stderr
from t2i.train import stop
to_stderr()
stop.PATIENCE = 0.2
with stop.StopRequest() as request:
    {kill if before else ""}
    with request.patiently():
        {"" if before else kill}
        time.sleep({0 if comes else 60})
    time.sleep(0.4)
sys.exit(3)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == (3 if comes else 75)
    lost = "SIGTERM: no data came for 0.2 s: ended, and what follows the last checkpoint is lost"
    assert (lost in ended.stderr) != comes


def test_a_second_interrupt_interrupts():
    def interrupt_twice():
        with StopRequest() as stop:
            os.kill(os.getpid(), 2)
            assert stop.name == "SIGINT"
            os.kill(os.getpid(), 2)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_a_line_of_the_log_is_one_line_without_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(log.log, "hasHandlers", lambda: False)
    monkeypatch.setattr(log.log, "handlers", [])
    monkeypatch.setattr(log.log, "level", log.log.level)
    progress.to_stderr()
    log.log.info("caption: %s", "\x1b[31mred\ncube" + "a" * 5_000)
    told = capsys.readouterr().err
    assert "caption: \\x1b[31mred\\ncubeaaa" in told
    assert told.endswith("a… (5,032 characters)\n")
    assert len(told) < 2100
