"""Bounds of the sizes in the configs of networks: at least four times the largest published, so that a wrong number is
an error at its key and not a machine without memory."""

from typing import Annotated

from pydantic import Field

Channels = Annotated[int, Field(ge=1, le=2**13)]
"""Of a picture's features at the finest level."""
Width = Annotated[int, Field(ge=1, le=2**16)]
"""Of transformers, embeddings, tokens and heads."""
Heads = Annotated[int, Field(ge=1, le=2**10)]
Layers = Annotated[int, Field(ge=1, le=256)]
Blocks = Annotated[int, Field(ge=1, le=64)]
"""Of one level."""
Multiplier = Annotated[float, Field(gt=0, le=64)]
Side = Annotated[int, Field(ge=1, le=2**14)]
"""Of pictures and patches, in pixels."""
Length = Annotated[int, Field(ge=1, le=2**14)]
"""Tokens of a sequence."""
Steps = Annotated[int, Field(ge=1, le=10**5)]
"""Of a diffusion process."""
Entries = Annotated[int, Field(ge=1, le=10**7)]
"""Of a table: words, classes."""
MAX_LEVELS = 16
