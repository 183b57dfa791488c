"""Trackers that get the rows of `metrics.jsonl` as well: `train.trackers`, through accelerate."""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.core.errors import UsageError, shown
from t2i.io.files import read_json, write
from t2i.train.parallel import Parallel

log = logging.getLogger(__name__)

PROJECT = "t2i"
_KEPT = "trackers.json"


def check_trackers(names: Sequence[str]) -> None:
    """UsageError for a tracker that is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"train.trackers: {name} is not installed: pip install {name}, or 't2i[track]' for all")


class Tracking:
    """The trackers of a run, in project `t2i`, named after its folder. One that fails is left out with a warning; the
    training goes on.

    Args:
        folder: of the run; tensorboard's files are in `tensorboard/` there, and the number of wandb's run is kept, so
            that a resumed run goes on in it.
        config: of the whole run.
        step: where it starts, or goes on.
    """

    def __init__(
        self, parallel: Parallel, names: Sequence[str], folder: Path, config: Mapping[str, Any], step: int
    ) -> None:
        self.trackers: dict[str, Any] = {}
        if not names or not parallel.main:
            return
        run, kept = _run(folder), folder.absolute()
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": step + 1 if step else None},
            "wandb": {"name": folder.name, "dir": str(kept), "id": run, "resume": "allow"},
            "trackio": {"name": folder.name, "resume": "allow"},
        }
        for name in names:
            self._guarded(name, "start", lambda name=name: self._start(parallel, name, kept, options[name], config))

    def log(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row, at its step."""
        values = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, "take a row", lambda tracker=tracker: tracker.log(values, step=row["step"]))

    def end(self) -> None:
        """Let them write what they hold back."""
        for name, tracker in list(self.trackers.items()):
            self._guarded(name, "end", tracker.finish)
        self.trackers = {}

    def _start(
        self, parallel: Parallel, name: str, folder: Path, options: dict[str, Any], config: Mapping[str, Any]
    ) -> None:
        self.trackers[name] = parallel.tracker(name, PROJECT, folder / name, options)
        self.trackers[name].store_init_configuration(flat(config))

    def _guarded(self, name: str, doing: str, do: Any) -> None:
        try:
            do()
        except Exception as error:  # whatever a tracker does, it must not cost a training
            self.trackers.pop(name, None)
            log.warning("%s could not %s and gets no more: %s", name, doing, shown(error))


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"train.lr": 0.1}` of `{"train": {"lr": 0.1}}`; lists as text, nothing for None."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        elif value is not None:
            found[above + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return found


def _run(folder: Path) -> str:
    """The number of this run, the same when it is resumed."""
    path = folder / _KEPT
    if not path.exists():
        import secrets

        write(path, f'{{"run": "{secrets.token_hex(4)}"}}\n'.encode())
    return str(read_json(path)["run"])
