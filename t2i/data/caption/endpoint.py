"""Captions by a model that somebody serves: any OpenAI-compatible endpoint that sees pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL import Image

from t2i.core.errors import DataError, UsageError
from t2i.data.caption.captioner import PROMPTS, Kind, Writing
from t2i.io.chat import Endpoint

MAX_SIDE = 1024
"""Pixels of the longer side of a picture that is sent; larger ones are reduced."""


class EndpointCaptioner:
    """Asks a server for the caption of each picture, a batch at a time at once.

    Args:
        endpoint: the model of a server.
        prompts: what is asked, by kind.
        writing: of it a server is told the length and how to draw; with beams, or a ban of repetitions, it is refused.

    Raises UsageError for what a server cannot be told.
    """

    def __init__(self, endpoint: Endpoint, prompts: Mapping[Kind, str] = PROMPTS, writing: Writing = Writing()) -> None:
        told = {"temperature": writing.temperature, "max_tokens": writing.max_length}
        if writing.top_p < 1:
            told["top_p"] = writing.top_p
        for name in writing.given():
            if name not in ("max_length", "temperature", "top_p"):
                raise UsageError(f"{name}={getattr(writing, name)}: an endpoint takes no such setting")
        self.endpoint, self.prompts = replace(endpoint, settings={**told, **endpoint.settings}), prompts
        self.name, self.revision = f"{endpoint.url}#{endpoint.model}", ""
        self.settings = {kind: {"prompt": prompt, **self.endpoint.settings} for kind, prompt in prompts.items()}

    def caption(self, images: Sequence[Image.Image], kind: Kind, seeds: Sequence[int]) -> list[str | DataError]:
        """See `Captioner`; what goes wrong with one picture is its own error."""
        with ThreadPoolExecutor(max(len(images), 1)) as pool:
            return list(pool.map(lambda image, seed: self._ask(image, kind, seed), images, seeds))

    def _ask(self, image: Image.Image, kind: Kind, seed: int) -> str | DataError:
        picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
        content = [picture, {"type": "text", "text": self.prompts[kind]}]
        asked: dict[str, Any] = {"seed": seed % 2**31} if self.endpoint.settings["temperature"] else {}
        endpoint = replace(self.endpoint, settings={**self.endpoint.settings, **asked})
        try:
            return endpoint.ask([{"role": "user", "content": content}])
        except DataError as error:
            return error


def data_url(image: Image.Image) -> str:
    """A picture as a `data:` address, JPEG, at most `MAX_SIDE` wide and high."""
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
