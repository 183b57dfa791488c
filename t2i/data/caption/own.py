"""Captions by our own stage `captioner`, as the other captioners write them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.decoding import Decoding
from t2i.core.errors import UsageError, explain
from t2i.core.seed import Streams
from t2i.data.caption.captioner import Kind
from t2i.io.images import from_pil


class Writer(Protocol):
    """A model of the stage `captioner`."""

    image_size: int

    def caption(self, images: Tensor, decoding: Decoding, *, streams: Streams) -> list[str]:
        """Captions of pictures (B, 3, S, S) in [-1, 1]."""


class OwnCaptioner:
    """One or two fine-tuned stages as a `Captioner`.

    Args:
        writers: the stage that writes each kind, on its device.
        decoding: how all of them write.
        name, revision: of the folders and of what they hold.
        device: where the stages are.
    """

    def __init__(
        self,
        writers: Mapping[Kind, Any],
        decoding: Decoding,
        name: str,
        revision: str,
        device: torch.device | str = "cpu",
    ) -> None:
        self.writers, self.decoding, self.name, self.revision = writers, decoding, name, revision
        self.device = torch.device(device)
        self.settings = {kind: decoding.model_dump(exclude_defaults=True) for kind in writers}

    @torch.inference_mode()
    def caption(self, images: Sequence[Image], kind: Kind, seeds: Sequence[int]) -> list[str]:
        """See `Captioner`; the centre square of each picture is read. UsageError for a length that it has no room
        for."""
        writer: Writer = self.writers[kind]
        x = torch.stack([from_pil(image, writer.image_size) for image in images]).to(self.device)  # (B, 3, S, S)
        with explain("captions", UsageError):
            return writer.caption(x, self.decoding, streams=Streams(seeds, "captioner"))
