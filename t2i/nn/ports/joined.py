"""All ports of a network, as one config and one module.

B batch · L tokens
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.types import Condition
from t2i.nn.ports.base import Given, Port
from t2i.nn.ports.clip import ClipImageConfig, ClipImagePort, ClipTextConfig, ClipTextPort
from t2i.nn.ports.others import ClassesConfig, ClassesPort, MaskedConfig, MaskedPort
from t2i.nn.ports.states import StatesConfig, StatesPort
from t2i.nn.ports.text import TextPort, TextPortConfig


class PortsConfig(Config):
    """The ports that a network has. In the order of `READ` their tokens stand in the sequence."""

    text: TextPortConfig | None = None
    clip_image: ClipImageConfig | None = None
    clip_text: ClipTextConfig | None = None
    states: StatesConfig | None = None
    classes: ClassesConfig | None = None
    masked: MaskedConfig | None = None

    def build(self, vector_dim: int, context_dim: int | None) -> "Ports":
        """The modules, for a network with a time vector of this width and a context of that, None for no context."""
        return Ports(self, vector_dim, context_dim or 0)

    def check(self, context_dim: int | None) -> None:
        """ValueError for ports that do not fit each other, or a network whose context has this width."""
        if self.text is not None and context_dim != self.text.width:
            raise ValueError(f"unet.context_dim={context_dim} must equal ports.text.width={self.text.width}")
        if self.text is not None and self.clip_text is not None:
            raise ValueError("ports.clip_text reads the sentence, so there is no port for text of its own beside it")
        if context_dim is None and (read := [n for n in ("clip_image", "clip_text", "states") if n in self.names]):
            raise ValueError(f"ports.{read[0]} needs a unet.context_dim for its tokens, got None")

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are there, in the order in which they are read."""
        return tuple(name for name in READ if getattr(self, name) is not None)


READ = ("clip_image", "text", "clip_text", "states", "classes", "masked")
KINDS: dict[str, type[Port]] = {
    "text": TextPort,
    "clip_image": ClipImagePort,
    "clip_text": ClipTextPort,
    "states": StatesPort,
    "classes": ClassesPort,
    "masked": MaskedPort,
}


class Ports(nn.ModuleDict):
    """All ports of a network: their vectors are added, their sequences follow each other."""

    def __init__(self, config: PortsConfig, vector_dim: int, context_dim: int) -> None:
        chosen: dict[str, Any] = {name: getattr(config, name) for name in KINDS}
        parts = {name: KINDS[name](c, vector_dim, context_dim) for name, c in chosen.items() if c is not None}  # type: ignore[call-arg]
        super().__init__(parts)
        self.order = config.names

    def read(self, given: Given, size: tuple[int, int], device: torch.device) -> Condition:
        """The condition for what is given; `size` (H, W) is that of the network's pictures.

        Raises ValueError for an input that has no port here.
        """
        for name in READ:
            if name not in self and getattr(given, name) is not None:
                raise ValueError(f"this network has no port for {name}; its ports: {', '.join(self.order) or 'none'}")
        if "masked" in self and given.masked is None:
            nothing = torch.zeros(given.num, 3, *size, device=device)
            given = replace(given, masked=(nothing, nothing[:, :1]))
        return _joined([self._port(name).read(given) for name in self.order])

    def null(
        self, num: int, masked: tuple[Tensor, Tensor] | None, size: tuple[int, int], device: torch.device
    ) -> Condition:
        """The unconditional branch of guidance; what is known of a `masked` picture stays known."""
        rest = [self._port(name).null(num) for name in self.order if name != "masked"]
        shown = Condition()
        if "masked" in self:
            nothing = torch.zeros(num, 3, *size, device=device)
            shown = self._port("masked").read(Given(num, masked=masked or (nothing, nothing[:, :1])))
        return replace(_joined(rest), image=shown.image)

    def _port(self, name: str) -> Port:
        port = self[name]
        assert isinstance(port, Port)
        return port


def _joined(parts: list[Condition]) -> Condition:
    """What several ports say, as one condition."""
    vectors = [c.vector for c in parts if c.vector is not None]
    sequences = [c for c in parts if c.sequence is not None]
    mask = torch.cat([_visible(c) for c in sequences], dim=1) if any(c.mask is not None for c in sequences) else None
    return Condition(
        vector=torch.stack(vectors).sum(0) if vectors else None,
        sequence=torch.cat([c.sequence for c in sequences if c.sequence is not None], dim=1) if sequences else None,
        mask=mask,
        image=next((c.image for c in parts if c.image is not None), None),
    )


def _visible(part: Condition) -> Tensor:
    """Which tokens of a part may be attended to, (B, L)."""
    assert part.sequence is not None
    return part.sequence.new_ones(part.sequence.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
