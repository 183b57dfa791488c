"""`max_minutes`: what fits, and what a decay does that does not."""

import json
import re
from itertools import pairwise

import pytest
from tiny_run import TinyTask, run

from t2i.core.progress import Alive
from t2i.train import OptimConfig, TrainConfig
from t2i.train.forecast import Forecast
from t2i.train.limit import TimeLimit
from t2i.train.optim import learning_rate


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """One that stands still but for what a test adds."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


class Machine:
    """A clock, and a run in which steps, saves, grids and held-out numbers take as long as said."""

    def __init__(self, clock, tmp_path, optim, seconds, **changes):
        self.clock, self.costs = clock, {"step": 1.0, "save": 0.0, "grid": 0.0, "evaluation": 0.0} | seconds
        settings = {"steps": 1000, "batch_size": 1, "out": tmp_path, "sample_every": 0, "save_every": 10**6} | changes
        self.config, self.optim = TrainConfig(**settings), optim
        forecast = Forecast(self.config, speaks=False, alive=Alive("training"))
        self.limit = TimeLimit(self.config, optim, 0, {}, forecast, began=clock[0])
        self.lr = []

    def add(self, what):
        self.clock[0] += self.costs[what]

    def spend(self, what):
        with self.limit.timing(what):
            self.add(what)

    def run(self):
        """Steps done; grids and held-out numbers every 100 steps."""
        began, step = self.clock[0], 0
        looks = {"grid": self.config.sample_every != 0, "evaluation": self.config.val_every > 0}
        if looks["grid"]:
            self.spend("grid")
        self.limit.prepare(lambda: self.add("evaluation"))
        while True:
            self.lr.append(learning_rate(self.optim, step, self.config.steps, self.limit.ahead()))
            self.clock[0] += self.costs["step"] * (20 if step == 0 else 1)  # the first is slow
            step += 1
            due = {what: is_on and step % 100 == 0 for what, is_on in looks.items()}
            saves = step % self.config.save_every == 0
            last = step == self.config.steps or self.limit.late(step, due["grid"], due["evaluation"])
            if last or saves:
                self.spend("save")
            for what, is_on in looks.items():
                if (last and is_on) or due[what]:
                    self.spend(what)
            if last:
                self.minutes = (self.clock[0] - began) / 60
                return step


@pytest.mark.parametrize(
    ("costs", "least"),  # minutes: where one more round of looks does not fit, none is made
    [({"save": 20}, 19.6), ({"save": 60, "grid": 100, "evaluation": 30}, 16.8), ({"step": 7, "grid": 300}, 18)],
)
def test_the_limit_is_kept_with_everything_that_comes_at_the_end(clock, tmp_path, costs, least):
    how = {"sample_every": 100, "val_every": 100, "save_every": 100, "max_minutes": 20}
    machine = Machine(clock, tmp_path, OptimConfig(), costs, **how)
    assert machine.run() < 1000
    assert least <= machine.minutes <= 20 + 1e-6


def test_a_run_that_fits_is_the_same_with_a_limit_as_without(clock, tmp_path):
    optim = OptimConfig(schedule="cosine", warmup=10)
    free = Machine(clock, tmp_path, optim, {})
    assert free.run() == 1000
    limited = Machine(clock, tmp_path, optim, {}, max_minutes=20)
    assert limited.run() == 1000
    assert free.lr == limited.lr
    assert free.lr == [learning_rate(optim, step, 1000) for step in range(1000)]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_decay_that_does_not_fit_follows_the_time_and_says_so(clock, tmp_path, schedule, caplog):
    optim = OptimConfig(schedule=schedule, warmup=10, lr=1.0)
    machine = Machine(clock, tmp_path, optim, {"save": 30}, max_minutes=10)
    machine.limit.seconds["save"] = 30.0
    steps = machine.run()
    assert 500 < steps < 600
    text = f"train.max_minutes=10 ends near step 5\\d\\d of 1000: optim.schedule={schedule} follows the time instead"
    assert [record for record in caplog.records if re.search(text, record.getMessage())]
    assert len(caplog.records) == 1
    after = machine.lr[10:]
    assert all(now <= before for before, now in pairwise(after))
    assert max(before - now for before, now in pairwise(after)) < 0.01  # nothing jumps
    assert machine.lr[-1] < 0.01


def test_a_constant_rate_stays_and_says_nothing(clock, tmp_path, caplog):
    machine = Machine(clock, tmp_path, OptimConfig(lr=0.5), {}, max_minutes=10)
    assert machine.run() < 1000
    assert {*machine.lr} == {0.5}
    assert caplog.text == ""


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_warm_up_takes_a_tenth_of_a_decay_that_follows_the_time(schedule):
    optim = OptimConfig(schedule=schedule, warmup=300, lr=1.0)
    rates = [learning_rate(optim, step, 2000, ahead=step / 100) for step in range(101)]
    assert rates[0] == learning_rate(optim, 0, 2000)
    assert rates[10] == max(rates)
    assert rates[10] > 0.89
    assert rates[100] == pytest.approx(1.0 if schedule == "constant" else 0.0, abs=1e-9)
    assert max(abs(now - before) for before, now in pairwise(rates)) < 0.11  # nothing jumps


class SlowToMeasure(TinyTask):
    """Steps take a second, held-out numbers a minute."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def loss(self, batch):
        self.clock[0] += self.model.training
        return super().loss(batch)

    def metrics(self, batch):
        self.clock[0] += 15
        return super().metrics(batch)


def test_the_first_evaluation_is_the_one_at_the_end_and_fits(clock, tmp_path):
    began = clock[0]
    result = run(tmp_path, SlowToMeasure(clock), steps=1000, val_every=500, max_minutes=5)
    assert result.reason == "max_minutes"
    assert 290 <= clock[0] - began <= 300
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_count" in row] == [result.step]
    began = clock[0]
    run(tmp_path, SlowToMeasure(clock), steps=1000, val_every=500, max_minutes=3)  # which knows what it takes
    assert 170 <= clock[0] - began <= 180


def test_the_time_runs_from_where_a_training_starts(clock, tmp_path):
    began = clock[0]
    clock[0] += 200  # loading and preparing
    run(tmp_path, SlowToMeasure(clock), steps=1000, max_minutes=5, began=began)
    assert 290 <= clock[0] - began <= 300
