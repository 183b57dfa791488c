"""T5 encoders of transformers by their name on the hub or from a folder: safetensors alone, and no code but ours and
theirs that is installed.

L tokens
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn

from t2i.core.assets import offline
from t2i.core.errors import DataError, UsageError, reason

log = logging.getLogger(__name__)

KINDS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Classes of transformers by the `model_type` of a config."""
_BROKEN = (
    OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What transformers raises for files that are missing, damaged or something else."""


class PretrainedT5:
    """An encoder and its tokeniser; each is opened when it is first asked for.

    Args:
        source: a folder, or a name on the hub; what was fetched before is not fetched again.
        context: tokens of a caption, at most; what is beyond is cut before the end token.
        dtype: of the numbers in memory. The layers that overflow in float16 stay in float32.

    Raises UsageError where nothing of that name is found, DataError for a folder that is damaged or no T5.
    """

    def __init__(self, source: str, context: int = 128, dtype: torch.dtype = torch.float32) -> None:
        self.source, self.context, self.dtype = source, context, dtype

    @cached_property
    def shape(self) -> Any:
        """Its config."""
        from transformers import AutoConfig

        found = self._opened(AutoConfig.from_pretrained)
        if found.model_type not in KINDS:
            raise DataError(f"{self.source} is a {found.model_type} of transformers, expected {' or '.join(KINDS)}")
        return found

    @cached_property
    def encoder(self) -> nn.Module:
        """The frozen encoder: `encoder(input_ids=…, attention_mask=…).last_hidden_state`."""
        import transformers

        load = getattr(transformers, KINDS[self.shape.model_type]).from_pretrained
        model, found = self._opened(load, use_safetensors=True, dtype=self.dtype, output_loading_info=True)
        if lacking := sorted([*found["missing_keys"], *found["mismatched_keys"]], key=str):
            raise DataError(f"{self.source}: its weights lack {lacking[0]!r} and {len(lacking) - 1} more of its config")
        log.info("%s: %s, width %d", self.source, KINDS[self.shape.model_type], self.shape.d_model)
        frozen: nn.Module = model.encoder.eval().requires_grad_(False)
        return frozen

    @cached_property
    def tokenizer(self) -> "T5Tokenizer":
        """Its own tokeniser."""
        return T5Tokenizer(self._opened(_pieces), self.context)

    def _opened(self, load: Callable[..., Any], **how: Any) -> Any:
        """Something of the source, from this machine if it is there."""
        folder = os.path.isdir(self.source)
        try:
            try:
                return load(self.source, local_files_only=True, trust_remote_code=False, **how)
            except _BROKEN:  # not fetched before, or not all of it
                if folder or offline():
                    raise
                return load(self.source, local_files_only=False, trust_remote_code=False, **how)
        except _BROKEN as error:
            if folder:
                raise DataError(f"{self.source} is no T5 of transformers with safetensors: {reason(error)}") from error
            raise UsageError(
                f"source={self.source}: neither a folder nor a T5 with safetensors that is found by that name on the "
                f"hub: {reason(error)}"
            ) from error


def _pieces(source: str, **how: Any) -> Any:
    """The tokeniser of a source; OSError where its files are missing, of which transformers makes one without words."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(source, **how)
    if len(found) <= len({*found.all_special_tokens}) + 1:  # and the mark of a space
        raise OSError("its tokenizer has no words, so its files are missing")
    return found


class T5Tokenizer:
    """A tokeniser of transformers as `t2i.core.types.Tokenizer`; word pieces spell every word."""

    def __init__(self, pieces: Any, context: int) -> None:
        self.context, self.room, self._pieces = context, context - 1, pieces

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B sentences → tokens (B, context) int64, mask (B, context), True up to and including the end token."""
        tokens = torch.zeros(len(captions), self.context, dtype=torch.long)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        for row, caption in enumerate(captions):
            ids = self._pieces(caption, truncation=True, max_length=self.context)["input_ids"]
            tokens[row, : len(ids)], mask[row, : len(ids)] = torch.tensor(ids, dtype=torch.long), True
        return tokens, mask

    def unknown(self, caption: str) -> list[str]:
        return []

    def truncated(self, caption: str) -> bool:
        """Whether `caption` has more tokens than fit before the end token."""
        return len(self._pieces(caption)["input_ids"]) > self.context
