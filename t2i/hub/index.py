"""The rows of `weights/index.yaml`: every model known by name, and the published files that they are made of."""

from collections.abc import Mapping
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import Field, field_validator, model_validator

from t2i.core.assets import asset
from t2i.core.config import Config, parse
from t2i.core.errors import UsageError, did_you_mean, quoted

Settings = dict[str, dict[str, Any]]
"""What a pipeline draws with: {"steps": {"decoder": 50}, ...}."""


KINDS = {"dalle2": "DALLE2", "ddpm": "DDPM", "adm": "ADM", "glide": "GLIDE", "dalle3": "DALLE3"}
"""Pipelines by the name in `model_index.json`: module of `t2i.pipelines` → class."""


def kind_name(kind: object) -> str:
    """The name of a kind of pipeline; UsageError for an unknown one."""
    if not isinstance(kind, str) or kind not in KINDS:
        known = f"known: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}"
        raise UsageError(f"unknown kind of pipeline {quoted(kind)}; {known}")
    return kind


class Checkpoint(Config):
    """One published file (`url`), or one folder of a Hugging Face repository (`hub`)."""

    family: str
    stage: str
    """What it is turned into."""
    config: str
    """Its network, a name of `t2i.convert.layouts()`."""
    licence: str
    parameters: int = Field(gt=0)
    megabytes: float = Field(ge=0)
    """Of its numbers in float32, 10^6 bytes each."""
    url: str | None = None
    md5: str | None = None
    file: str | None = None
    """Its name, where the address does not end in it."""
    hub: str | None = None
    folder: str = ""
    """Of the repository; "" for the whole of it."""

    @model_validator(mode="after")
    def _check(self) -> "Checkpoint":
        if (self.url is None) == (self.hub is None):
            raise ValueError("a checkpoint has a url or a hub, one of them")
        return self

    @property
    def filename(self) -> str:
        """How a downloaded file is called on this machine; ValueError for a repository."""
        if self.url is None:
            raise ValueError(f"{self.hub} is a repository, not a file")
        return PurePosixPath(self.file or urlsplit(self.url).path).name


class Entry(Config):
    """One model by name. A bundled one has no `pipeline` and no `parts`: its folder says what it is."""

    description: str
    licence: str
    pipeline: str = ""
    parts: Mapping[str, tuple[str, ...]] = {}
    """Names of checkpoints by slot; two make one noised CLIP."""
    settings: Mapping[str, dict[str, Any]] = {}
    """The recipe that it was released with."""

    @field_validator("parts", mode="before")
    @classmethod
    def _one_or_more(cls, parts: dict[str, Any]) -> dict[str, Any]:
        return {slot: (names,) if isinstance(names, str) else names for slot, names in parts.items()}

    @property
    def published(self) -> bool:
        """Whether it is downloaded and converted on first use."""
        return bool(self.parts)


class PriorPreset(Config):
    """What a preset changes in the sampling of a diffusion prior."""

    clamp: float | None
    """Bound of x_0; None for none."""
    variance: str


class Preset(Config):
    """How others sample unCLIP's chain."""

    prior: PriorPreset
    settings: Settings


class Index(Config):
    """The whole file; `families` and `recipes` hold what rows share."""

    families: Mapping[str, dict[str, Any]] = {}
    recipes: Mapping[str, Settings] = {}
    presets: Mapping[str, Preset] = {}
    checkpoints: Mapping[str, Checkpoint] = {}
    models: Mapping[str, Entry] = {}

    @model_validator(mode="after")
    def _check(self) -> "Index":
        for model, entry in self.models.items():
            for name in (name for names in entry.parts.values() for name in names):
                if name not in self.checkpoints:
                    raise ValueError(
                        f"{model}: unknown checkpoint {quoted(name)}{did_you_mean(name, self.checkpoints)}"
                    )
        return self


@cache
def read_index() -> Index:
    """`weights/index.yaml`, read once."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time
    return parse(yaml.load(asset("weights", "index.yaml").read_text(), Loader=loader), Index, source="index.yaml")


def models() -> Mapping[str, Entry]:
    """Every model known by name."""
    return read_index().models


def presets() -> Mapping[str, Preset]:
    """How others sample unCLIP's chain, by name."""
    return read_index().presets


def checkpoint(name: str) -> Checkpoint:
    """A published file by name; UsageError with the nearest name for an unknown one."""
    rows = read_index().checkpoints
    if not isinstance(name, str) or name not in rows:
        raise UsageError(f"unknown checkpoint {quoted(name)}{did_you_mean(name, rows)}")
    return rows[name]


def parts(model: str) -> dict[str, list[Checkpoint]]:
    """The checkpoints of a published model by slot; a noised CLIP has two."""
    return {slot: [checkpoint(name) for name in names] for slot, names in models()[model].parts.items()}


def megabytes(model: str) -> float:
    """What the files of a published model weigh, about."""
    return sum(row.megabytes for rows in parts(model).values() for row in rows)
