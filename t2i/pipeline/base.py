"""What every pipeline shares: stages by name on one device, their settings, and a folder of them.

The stories themselves are in `pipelines/`, one readable file per paper.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Never, Self

import torch
from torch import nn

from t2i.core.devices import device_of, dtype_of
from t2i.core.errors import UsageError, quoted
from t2i.core.types import TextFeatures
from t2i.diffusion.sampling import Hooks
from t2i.pipeline.arguments import Draw
from t2i.pipeline.habits import OPENING, check_names
from t2i.pipeline.output import Output
from t2i.pipeline.placement import move
from t2i.pipeline.present import attribute, describe, listed, preview
from t2i.pipeline.request import Request
from t2i.pipeline.saving import save_pretrained
from t2i.pipeline.slots import Planner, Slot, chain, complete_settings
from t2i.stages.registry import load_stage


class Pipeline:
    """Stages by name, on one device; open one with `Pipeline.from_pretrained`. Subclasses tell what a call does.

    Args:
        parts: the stages, such as `{"clip": …, "prior": …, "decoder": …}`; the last ones may be missing.
        settings: what differs from those of `slots`; saved in `model_index.json`.
        source: the name or folder the pipeline came from, for recipes; empty if it was never saved.

    `weights` is the fingerprint of the files it was read from or written to.

    Raises UsageError for stages or settings that the chain does not have, and for a chain with a hole.
    """

    kind: ClassVar[str]  # as in model_index.json
    subject: ClassVar[str]  # the argument that says what to draw
    number: ClassVar[str]  # the argument that says how many pictures of each
    slots: ClassVar[tuple[Slot, ...]]  # every place in the chain, in order
    sampled: ClassVar[tuple[str, ...]]  # places that a plain call draws with, in order
    judged: ClassVar[str | None] = "decoder"  # the place whose pictures are judged; None for the last

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]] | None = None, source: str = ""
    ) -> None:
        self.parts: dict[str, Any] = {name: parts[name] for name in chain(self.slots, parts)}
        self.settings = complete_settings(self.slots, self.parts, {} if settings is None else settings)
        self.source, self.weights, self.preset = source, "", ""
        self.device, self.dtype, self.offload = torch.device("cpu"), torch.float32, False
        self.check_fit()
        self.planner.plan({})

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "shapes",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        offload: bool = False,
        preset: str | None = None,
        **unknown: Never,
    ) -> Self:
        """Open a model by name (`t2i info` lists them; published ones are downloaded and converted on first use), or a
        folder written by `save_pretrained`, or one of diffusers' unCLIP pipelines as it is.

        Args:
            device: "auto" takes the GPU if there is one.
            dtype: precision of the networks' matrix products; "auto" is float32 (TF32 as torch's own settings say).
                bfloat16 and float16 are faster where a machine has units for them, but a picture then depends a little
                on the batch that it is drawn in. Weights, norms, schedules and outputs stay float32.
            offload: as in `to`.
            preset: for DALL-E 2's chain, sample it as others do, see `use_preset`. None for the model's own settings.

        Returns a pipeline of the kind that the folder says, if it is of this class.

        Raises:
            UsageError: no such name, folder, device, dtype or preset, or another kind of pipeline than this class.
            DataError: a part is missing, truncated or does not fit.
        """
        from t2i.pipeline.loading import open_pipeline

        check_names(unknown, ("device", "dtype", "offload", "preset"), OPENING)
        device, dtype = device_of(device), dtype_of(dtype)
        pipe = open_pipeline(name_or_folder, cls)
        if preset is not None:
            pipe.use_preset(preset)
        return pipe.to(device, dtype, offload=offload)

    @classmethod
    def assemble(
        cls, folders: Mapping[str, str | Path], settings: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Self:
        """Chain stages that were trained on their own: `DALLE2.assemble({"clip": "runs/clip", "prior": …})`; folders by
        slot, of which later ones may be missing, and settings that differ from those of the class.

        Raises UsageError for a slot that the chain does not have and for a hole in it, DataError for a folder that
        holds another stage and for stages that do not fit together.
        """
        accepts = {slot.name: slot.accepts for slot in cls.slots}
        names = chain(cls.slots, folders)
        return cls({name: load_stage(folders[name], expect=accepts[name]) for name in names}, settings)

    def __call__(self, *args: Any, **kwargs: Any) -> Output:
        """Draw; every kind of pipeline says what it takes."""
        raise TypeError(f"{type(self).__name__} does not draw; open a model with Pipeline.from_pretrained")

    to = move
    __repr__, __dir__ = describe, listed
    if not TYPE_CHECKING:  # to a type checker there is no more than stands here
        __getattr__ = attribute

    save_pretrained, preview = save_pretrained, preview

    def use_preset(self, preset: str) -> None:
        """Sample as a published implementation does; UsageError here, since that is for DALL-E 2's chain."""
        raise UsageError(
            f"preset={quoted(preset)}: presets are for chains of kind 'dalle2', this model is {self.kind!r}"
        )

    @property
    def planner(self) -> Planner:
        """How stages sample, by the settings."""
        return Planner(self.slots, self.sampled, self.parts, self.settings)

    def request(self, draw: Draw, **what: Any) -> Request:
        """A call, checked; see `Request` for what it may be told."""
        return Request(self, draw, **what)

    def check_fit(self) -> None:
        """DataError if a stage was trained beside another one than its neighbour in this chain."""

    def encode_texts(self, *texts: Sequence[str]) -> list[TextFeatures]:
        """What the chain's frozen encoder says of lists of sentences; only some chains have one."""
        raise TypeError(f"{type(self).__name__} has no encoder of sentences")

    def guided(self, request: Request, rows: slice, hooks: Hooks) -> Hooks:
        """`hooks` with what parts that draw nothing do to some rows of the first stage."""
        return hooks
