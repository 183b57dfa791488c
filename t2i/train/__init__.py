"""One loop for every stage: `fit(task, loader, TrainConfig(…), OptimConfig(…), export=…)`."""

from t2i.train.loop import Result, fit
from t2i.train.optim import OptimConfig
from t2i.train.settings import TrainConfig

__all__ = ["OptimConfig", "Result", "TrainConfig", "fit"]
