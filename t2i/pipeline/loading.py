"""From a name or a folder to a pipeline."""

from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from t2i.core.errors import DataError, UsageError, quoted
from t2i.core.paths import path_of
from t2i.hub.hub import resolve
from t2i.hub.index import KINDS, kind_name, presets
from t2i.io.files import read_json
from t2i.io.weights import fingerprint, stage_folders
from t2i.pipeline.base import Pipeline

UNCLIP = ("UnCLIPPipeline", "UnCLIPImageVariationPipeline")
"""Pipelines of diffusers whose folders are opened as they are; the second has no prior."""

P = TypeVar("P", bound=Pipeline)


def pipeline_class(kind: str) -> type[Pipeline]:
    """The class of a kind of pipeline; UsageError for an unknown one."""
    cls: type[Pipeline] = getattr(import_module(f"t2i.pipelines.{kind}"), KINDS[kind_name(kind)])
    return cls


def kind_of(stages: Collection[str]) -> str:
    """The kind of pipeline that has all of these stages; DALL-E 2's where that has them, and where none has, which then
    says so. UsageError where several others have them."""
    kinds = [k for k in KINDS if {slot.name for slot in pipeline_class(k).slots} >= set(stages)]
    if "dalle2" in kinds or not kinds:
        return "dalle2"
    if len(kinds) > 1:
        raise UsageError(f"{', '.join(stages)} may be of {' or '.join(kinds)}: say --kind")
    return kinds[0]


def open_pipeline(name_or_folder: str | Path, expect: type[P]) -> P:
    """See `Pipeline.from_pretrained`; on the CPU. UsageError for a pipeline that is none of the class `expect`."""
    folder = resolve(name_or_folder)
    path = folder / "model_index.json"
    index = read_json(path)
    kind = str(index.get("_class_name")) if isinstance(index, dict) else f"a {type(index).__name__}"
    if kind not in (*KINDS, *UNCLIP):
        raise DataError(f"{path}: unknown kind of pipeline {quoted(kind)}; known: {', '.join((*KINDS, *UNCLIP))}")
    cls = pipeline_class("dalle2" if kind in UNCLIP else kind)
    if not issubclass(cls, expect):
        raise UsageError(f"{name_or_folder} is a {cls.__name__}, not a {expect.__name__}; Pipeline opens any")
    settings = index.pop("settings", None)
    stages = stage_folders(folder, index)
    try:
        if kind in UNCLIP:
            from t2i.convert.unclip import read_unclip

            pipe = cls(read_unclip(folder, index), presets()["diffusers"].settings)
        else:
            pipe = cls.assemble(stages, settings)
    except UsageError as error:  # here the folder is to blame, not who opens it
        raise DataError(f"{path}: {error}") from error
    given = path_of(name_or_folder)
    pipe.source = str(folder.resolve() if folder == given else given)
    pipe.weights = fingerprint(stages)
    return pipe
