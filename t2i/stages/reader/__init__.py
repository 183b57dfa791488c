"""A reader of scenes: which things a picture of the shapes world shows, and where. It judges what others draw.

In: pictures (B, 3, H, W) in [-1, 1], best between 64 and 256 pixels. Out: for each, a list of `Detection`s with shape,
colour, box and whether the thing stands on another. It shares nothing with CLIP or with any stage that draws.

    t2i train configs/shapes/reader.yaml       train it, on renders whose scenes are known exactly
    Reader.read(pictures)                      use it (`t2i.stages.reader.model`)
    t2i eval compose                           judge a pipeline with it
"""

from t2i.core.errors import UsageError
from t2i.data.config import DataConfig
from t2i.stages.reader.model import Reader, ReaderConfig
from t2i.stages.reader.task import ReaderOptions, ReaderTask
from t2i.stages.stage import Neighbours, Stage


def fits(model: Reader, data: DataConfig, options: ReaderOptions, neighbours: Neighbours) -> None:
    """UsageError for crops."""
    if data.side != data.size:
        raise UsageError(f"data.crop={data.side}: a reader learns the places of things in whole pictures; leave it out")


STAGE = Stage(name="reader", config=ReaderConfig, model=Reader, options=ReaderOptions, task=ReaderTask, fits=fits)
