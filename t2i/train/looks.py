"""What a run looks at and when: grids, held-out numbers, measures of what it draws."""

from typing import NamedTuple

from t2i.train.evaluation import Evaluation
from t2i.train.held_out import HeldOut
from t2i.train.limit import TimeLimit
from t2i.train.parallel import Parallel
from t2i.train.report import Report
from t2i.train.settings import TrainConfig, is_sample_step


class Due(NamedTuple):
    """Whether a grid is drawn, held-out numbers are taken, and drawn pictures are judged."""

    sample: bool = False
    measure: bool = False
    judge: bool = False


class Looks:
    """Looks at a run; the run stays as it is."""

    def __init__(
        self, config: TrainConfig, held_out: HeldOut, evaluation: Evaluation | None, report: Report, limit: TimeLimit,
        parallel: Parallel,
    ) -> None:  # fmt: skip
        self.config, self.held_out, self.evaluation = config, held_out, evaluation
        self.report, self.limit, self.parallel = report, limit, parallel

    def prepare(self) -> None:
        """Look once where a limit of time asks what that takes."""
        self.limit.prepare(self.held_out.measure, self.evaluation.measure if self.evaluation is not None else None)

    def due(self, step: int, last: bool) -> Due:
        """What belongs to a step, or to the last one."""
        grids, judged = self.config.sample_every, self.evaluation.config.every if self.evaluation is not None else 0
        sample = grids != 0 and self.held_out.draws and (last or is_sample_step(step, grids))
        return Due(sample, *(n > 0 and (last or step % n == 0) for n in (self.config.val_every, judged)))

    def missed(self, step: int, last: bool) -> Due:
        """What of `due` is not there: the run was ended between saving this step and looking."""
        path = self.config.out / "samples" / f"step-{step:06d}.png"
        there = self.parallel.on_main(lambda: (path.exists(), *(self.report.has(step, n) for n in ("val_", "eval_"))))
        return Due(*(due and not done for due, done in zip(self.due(step, last), there, strict=True)))

    def look(self, step: int, images: int, due: Due) -> None:
        """Sample grid (first process), held-out numbers and measures of what is drawn (all processes)."""

        def draw() -> None:
            with self.limit.timing("grid"):
                self.held_out.sample(self.config.out / "samples" / f"step-{step:06d}.png", f"step {step}")

        if due.sample:
            self.parallel.on_main(draw)
        if due.measure:
            with self.limit.timing("evaluation"):
                names, values = self.held_out.measure()
            self.report.write_held_out(step, images, names, values)
        if due.judge and self.evaluation is not None:
            with self.limit.timing("judgement"):
                found = self.evaluation.measure()
            self.report.write_evaluation(step, images, found)
