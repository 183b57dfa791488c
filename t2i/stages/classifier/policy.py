"""What a classifier to be trained takes from its data."""

from typing import Any

from t2i.core.errors import UsageError
from t2i.data.config import DataConfig
from t2i.data.opening import class_names
from t2i.stages.classifier.model import Classifier, ClassifierConfig
from t2i.stages.follow import check_side
from t2i.stages.stage import Neighbours


def complete(config: ClassifierConfig, neighbours: Neighbours, data: DataConfig) -> ClassifierConfig:
    """The config with the names of the data's classes; UsageError if they are not as many."""
    names = class_names(data)
    if names and len(names) != config.num_classes:
        raise UsageError(f"model.num_classes={config.num_classes}, but {data.source} has {len(names)} classes")
    return config.model_copy(update={"class_names": names})


def fits(model: Classifier, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures of another side."""
    check_side(data, model.config.image_size)
