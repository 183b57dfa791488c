"""What a run reports: means of losses since the last time, in a status line and in `metrics.jsonl`."""

import logging
import time
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import NonFiniteError
from t2i.core.progress import EVERY, Alive
from t2i.diffusion.losses import LEVEL, of_levels
from t2i.io import files
from t2i.train.checkpoint import last_good
from t2i.train.forecast import Forecast
from t2i.train.log import Clock, Meter, MetricsFile, memory_gb, status_line
from t2i.train.parallel import Parallel
from t2i.train.settings import TrainConfig
from t2i.train.tracking import Tracking

log = logging.getLogger(__name__)


class Report:
    """The numbers of a run.

    Args:
        step: where the run starts, or goes on.
        minutes: that it took before.
        began: when `max_minutes` began, by `time.perf_counter`.
        tracking: what gets every row as well.
    """

    def __init__(
        self,
        parallel: Parallel,
        config: TrainConfig,
        step: int,
        minutes: float,
        began: float,
        tracking: Tracking | None = None,
    ) -> None:
        self.parallel, self.config, self.start, self.earlier, self.began = parallel, config, step, minutes, began
        self.tracking = tracking
        self.file = MetricsFile(config.out / "metrics.jsonl", step) if parallel.main else None
        self.meter, self.clock, self.row = Meter(), Clock(), dict[str, Any]()
        self.alive = Alive("starting", log.info if parallel.main else lambda _: None)
        self.forecast = Forecast(config, parallel.main, self.alive)
        self.told: float | None = None
        self.first_bad = torch.full((), -1, device=parallel.device, dtype=torch.int64)

    @property
    def minutes(self) -> float:
        """That the run has taken in all."""
        return self.earlier + self.clock.minutes()

    def add(self, step: int, means: list[dict[str, Tensor]], finite: Tensor) -> None:
        """Take in a step; waits for no device."""
        for values in means:
            self.meter.add(values)
        self.first_bad = torch.where(~finite & (self.first_bad < 0), step, self.first_bad)

    def write(self, step: int, images: int, waited: float, lr: float) -> None:
        """Average over processes, check for NaN, add to `metrics.jsonl`: the one place where all processes wait."""
        self.check_finite(step, lr)
        means = self.mean(*self.meter.means())
        self.row = self._row(step, images, means, self.clock.interval(waited), lr)
        self._keep(self.row)

    def tell(self, step: int, images: int, waited: float, lr: float) -> None:
        """Call after every step: a status line at the first one, where `write` was called, and every 30 seconds; in
        between of this process's own losses."""
        self.forecast.step()
        if self.file is None:
            return
        if self.row.get("step") == step:
            row = self.row
        elif self.told is None or time.monotonic() - self.told >= 0.8 * EVERY:
            names, values = self.meter.so_far()
            means = dict(zip(names, values.tolist(), strict=True))
            row = self._row(step, images, means, self.clock.so_far(waited), lr)
        else:
            return
        left = self.forecast.left(step, (time.perf_counter() - self.began) / 60)
        log.info(status_line(row, self.config.steps, left))
        self.told = time.monotonic()
        self.alive.did()

    def _row(
        self, step: int, images: int, means: dict[str, float], timed: tuple[float, float], lr: float
    ) -> dict[str, Any]:
        seconds, fraction = timed
        steps = step - self.row.get("step", self.start)
        return {
            "step": step,
            "images": images,
            "img_per_s": steps * self.config.batch_size / seconds,
            **means,
            "lr": lr,
            "memory_gb": memory_gb(self.parallel.device),
            "data_fraction": fraction,
            "minutes": self.minutes,
        }

    def write_held_out(self, step: int, images: int, names: list[str], values: Tensor) -> None:
        """The same for held-out numbers of this process; where there are none, a row that says so."""
        if not names:
            self._keep({"step": step, "images": images, "val_batches": 0})
            return
        means = of_levels(self.mean(names, values))
        self._keep({"step": step, "images": images, **{f"val_{name}": v for name, v in means.items()}})
        if self.file is not None:
            said = {name: value for name, value in means.items() if LEVEL not in name}
            log.info("held out | %s", " | ".join(f"{name} {value:.4g}" for name, value in said.items()))

    def write_evaluation(self, step: int, images: int, found: dict[str, Any]) -> None:
        """Measures of drawn pictures, which all processes have; where there are none, a row that says so."""
        row = {f"eval_{name}": value for name, value in found.items()} or {"eval_num": 0}
        self._keep({"step": step, "images": images, **row})
        if self.file is not None and found:
            numbers = {name: value for name, value in found.items() if isinstance(value, float)}
            said = " | ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            log.info("drawn | %s | %d pictures by %s", said, found["num"], found["extractor"])

    def has(self, step: int, beginning: str) -> bool:
        """Whether a row of a step is written whose names begin so: `val_` or `eval_`."""
        path = self.config.out / "metrics.jsonl"
        rows = files.json_lines(path) if path.exists() else []
        return any(row.get("step") == step and any(name.startswith(beginning) for name in row) for row in rows)

    def _keep(self, row: dict[str, Any]) -> None:
        if self.file is not None:
            self.file.add(row)
            if self.tracking is not None:
                self.tracking.log(row)

    def mean(self, names: list[str], values: Tensor) -> dict[str, float]:
        """Numbers by name, over all processes."""
        return dict(zip(names, self.parallel.reduce(values, "mean").tolist(), strict=True))

    def check_finite(self, step: int, lr: float) -> None:
        """NonFiniteError if a loss or gradient of any process was not finite since the start."""
        if int(self.parallel.reduce(self.first_bad.float(), "sum").item()) != -self.parallel.world:
            bad = int(self.first_bad) if self.first_bad >= 0 else step
            raise NonFiniteError(
                f"loss or gradient became NaN or infinite at step {bad} (learning rate {lr:.2g}): "
                f"lower it or train in fp32; {last_good(self.config.out / 'checkpoints')}"
            )
