"""What a run reports: means of losses since the last time, in a status line and in `metrics.jsonl`."""

import logging
from typing import Any

import torch
from torch import Tensor

from t2i.core.errors import NonFiniteError
from t2i.io import files
from t2i.train.checkpoint import last_good
from t2i.train.log import Clock, Meter, MetricsFile, memory_gb, status_line
from t2i.train.parallel import Parallel
from t2i.train.settings import TrainConfig

log = logging.getLogger(__name__)


class Report:
    """The numbers of a run.

    Args:
        step: where the run starts, or goes on.
        minutes: that it took before.
    """

    def __init__(self, parallel: Parallel, config: TrainConfig, step: int, minutes: float) -> None:
        self.parallel, self.config, self.start, self.earlier = parallel, config, step, minutes
        self.file = MetricsFile(config.out / "metrics.jsonl", step) if parallel.main else None
        self.meter, self.clock, self.row = Meter(), Clock(), dict[str, Any]()
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
        """Average over processes, check for NaN, write status line and `metrics.jsonl`: the one place that syncs."""
        self.check_finite(step, lr)
        seconds, fraction = self.clock.interval(waited)
        steps = step - self.row.get("step", self.start)
        self.row = {
            "step": step,
            "images": images,
            "img_per_s": steps * self.config.batch_size / seconds,
            **self.mean(*self.meter.means()),
            "lr": lr,
            "memory_gb": memory_gb(self.parallel.device),
            "data_fraction": fraction,
            "minutes": self.minutes,
        }
        if self.file is not None:
            self.file.add(self.row)
            log.info(status_line(self.row))

    def write_held_out(self, step: int, images: int, names: list[str], values: Tensor) -> None:
        """The same for held-out numbers of this process."""
        means = self.mean(names, values)
        if self.file is not None:
            self.file.add({"step": step, "images": images, **{f"val_{name}": v for name, v in means.items()}})
            log.info("held out | %s", " | ".join(f"{name} {value:.4g}" for name, value in means.items()))

    def has_held_out(self, step: int) -> bool:
        """Whether the held-out numbers of a step are written."""
        path = self.config.out / "metrics.jsonl"
        rows = files.json_lines(path) if path.exists() else []
        return any(row.get("step") == step and any(name.startswith("val_") for name in row) for row in rows)

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
