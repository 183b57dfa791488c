"""What a classifier to be trained takes from its data."""

from typing import Any

from t2i.data.config import DataConfig
from t2i.stages.classifier.model import Classifier, ClassifierConfig
from t2i.stages.follow import check_side, classes_of
from t2i.stages.stage import Neighbours


def complete(config: ClassifierConfig, neighbours: Neighbours, data: DataConfig) -> ClassifierConfig:
    """The config with number and names of the data's classes; UsageError as `classes_of`."""
    num, names = classes_of(data, config.num_classes, "model.num_classes")
    return config.model_copy(update={"num_classes": num, "class_names": names})


def fits(model: Classifier, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """UsageError for pictures of another side."""
    check_side(data, model.config.image_size)
