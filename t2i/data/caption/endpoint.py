"""Captions by a model that somebody serves: any OpenAI-compatible endpoint that sees pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL import Image

from t2i.core.decoding import Decoding
from t2i.core.errors import DataError, UsageError
from t2i.data.caption.captioner import PROMPTS, Kind, bounded
from t2i.io.chat import Endpoint

MAX_SIDE = 1024
"""Pixels of the longer side of a picture that is sent; larger ones are reduced."""


class EndpointCaptioner:
    """Asks a server for the caption of each picture, a batch at a time at once.

    Args:
        endpoint: the model of a server.
        prompts: what is asked, by kind.
        decoding: of it a server is told the length and how to draw; with beams, or a ban of repetitions, it is refused.

    Raises UsageError for what a server cannot be told.
    """

    def __init__(
        self, endpoint: Endpoint, prompts: Mapping[Kind, str] = PROMPTS, decoding: Decoding = Decoding()
    ) -> None:
        given = bounded(decoding).model_dump(exclude_defaults=True)
        told = {"temperature": given.pop("temperature", 0.0), "max_tokens": given.pop("max_length")}
        if "top_p" in given:
            told["top_p"] = given.pop("top_p")
        for name, value in given.items():
            raise UsageError(f"{name}={value}: an endpoint takes no such setting")
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
