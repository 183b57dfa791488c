"""What to train on, as data."""

from typing import Annotated

from pydantic import Field, model_validator

from t2i.core.config import AtHome, Config
from t2i.data.framing import CropPolicy
from t2i.data.shapes.layout import check_num_things

Weight = Annotated[float, Field(le=1e9)]


class SourceConfig(Config):
    """One source of a mixture."""

    src: Annotated[str, AtHome] = Field(description="shapes, a folder, or tar shards (path, glob or braces)")
    weight: float = Field(1.0, gt=0, le=1e9, description="share of the samples, relative to the other sources")


class DataConfig(Config):
    """What to train on."""

    source: Annotated[str, AtHome] | Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = Field(
        "shapes", description="one source, or several with weights"
    )
    size: int = Field(64, ge=4, le=8192, description="pixels of the short side")
    crop: int | None = Field(
        None, ge=4, le=8192, description="random window of the picture, pixels; None for its centre square"
    )
    crop_policy: CropPolicy = Field(
        "center",
        description="what is kept of a picture that is not square: its centre, a random square, or all, on white",
    )
    captions: dict[str, Weight] = Field(
        {}, description="weights of caption kinds; empty for those of `pick_caption`, also where none of these is there"
    )
    recaptions: Annotated[str, AtHome] | None = Field(
        None, description="folder of what t2i caption wrote of the source; None for files beside its shards, if any"
    )
    num_things: dict[int, Weight] = Field(
        {}, description="for shapes, weights of scenes with 1 to 4 things; empty for half with one, a third with two"
    )
    flip: bool = Field(
        False, description="mirror every second picture of training; not for captions with left and right"
    )
    num_workers: int | None = Field(None, ge=0, le=256, description="processes that load; None for min(2, cores)")
    val_fraction: float = Field(0.02, ge=0, lt=1, description="share of files held out, by hash of their key")
    max_bad_fraction: float = Field(0.2, ge=0, le=1, description="stop when more samples than this are unusable")

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.crop is not None and self.crop > self.size:
            raise ValueError(f"crop {self.crop} must not exceed size {self.size}")
        if any(w < 0 for w in self.captions.values()) or (self.captions and not sum(self.captions.values())):
            raise ValueError(f"caption weights must be positive, got {self.captions}")
        if self.num_things:
            check_num_things(self.num_things)
        return self

    @property
    def side(self) -> int:
        """Pixels of a side of what is trained on."""
        return self.size if self.crop is None else self.crop

    @property
    def side_key(self) -> str:
        """The key that says so."""
        return "data.size" if self.crop is None else "data.crop"

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The mixture, also where `source` is one string."""
        return (SourceConfig(src=self.source, weight=1.0),) if isinstance(self.source, str) else self.source
