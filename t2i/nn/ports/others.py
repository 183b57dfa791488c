"""Labels, and pictures of which a part is hidden.

B batch
"""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import nn

from t2i.core.config import Config
from t2i.core.types import Condition
from t2i.nn.layers import masked
from t2i.nn.ports.base import Given, Port


class ClassesConfig(Config):
    """A table of labels."""

    num: int = Field(0, ge=0, le=10**7, description="of labels; 0 for as many as the data has folders")
    null_class: bool = Field(False, description="a further row stands for no class, for classifier-free guidance")
    names: tuple[str, ...] = Field((), description="what users call the classes, empty if they have no names")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.names and len(self.names) != self.num:
            raise ValueError(f"{len(self.names)} names for {self.num} classes")
        return self


class ClassesPort(Port):
    """A learned vector for every class."""

    def __init__(self, config: ClassesConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()
        if not config.num:
            raise ValueError("ports.classes.num is not known; it follows from the folders of the data")
        self.config = config
        self.table = nn.Embedding(config.num + config.null_class, vector_dim)

    def read(self, given: Given) -> Condition:
        if given.classes is None:
            raise ValueError(f"labels missing: this network is over {self.config.num} classes")
        labels = given.classes
        if "classes" in given.dropped:
            labels = torch.where(given.dropped["classes"], self.config.num, labels)
        return Condition(vector=self.table(labels))

    def null(self, num: int) -> Condition:
        if not self.config.null_class:
            raise ValueError(f"a network over {self.config.num} classes has no unconditional branch")
        return self.read(Given(num, classes=torch.full((num,), self.config.num, device=self.table.weight.device)))


class MaskedConfig(Config):
    """A picture of which a part is hidden, and the mask, as 4 channels beside x_t; nothing about it is learned."""


class MaskedPort(Port):
    """See `MaskedConfig`; whoever reads knows the size of a picture of which nothing is known (`Ports.read`)."""

    def __init__(self, config: MaskedConfig, vector_dim: int, context_dim: int) -> None:
        super().__init__()

    def read(self, given: Given) -> Condition:
        assert given.masked is not None
        return Condition(image=masked(*given.masked))
