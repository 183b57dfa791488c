"""Sentences of a call that are upsampled before they are drawn: what was sent is drawn, told and kept, beside what was
asked."""

import logging
import warnings
from typing import TYPE_CHECKING, Any

from t2i.core.errors import UsageError, quoted, shown
from t2i.pipeline.arguments import Prompts, check_text, read_prompts
from t2i.pipeline.placement import on_device
from t2i.text.upsampling import WAYS, upsample_prompts

if TYPE_CHECKING:
    from t2i.pipeline.base import Pipeline

log = logging.getLogger(__name__)


def upsampled(pipe: "Pipeline", prompt: Prompts, how: str | None) -> tuple[Prompts, list[str] | None]:
    """What is drawn instead of prompts, and what was asked, for `prompt_rows`.

    Args:
        how: as in `upsample_prompts`, where "lm" is the part `rewriter` of the pipeline; or the folder of a rewriter;
            None leaves the prompts as they are.

    Raises UsageError for prompts and ways that are none, DataError for a folder that holds another stage.
    """
    if how is None:
        return prompt, None
    asked, _ = read_prompts(prompt, ())
    sent = list(map(_drawable, _sent(pipe, asked, how), asked))
    for before, after in dict.fromkeys(zip(asked, sent, strict=True)):
        log.info("%s is drawn as: %s", quoted(before), shown(after, 1000))
    return sent, asked


def _sent(pipe: "Pipeline", prompts: list[str], how: str) -> list[str]:
    from t2i.stages.registry import find_stage, load_stage

    if how == "lm" and "rewriter" in pipe.parts:
        with on_device(pipe, "rewriter"):
            return upsample_prompts(prompts, how, pipe.parts["rewriter"])
    named = isinstance(how, str) and how not in ("", *WAYS) and "://" not in how
    if named and (find_stage(how) / "config.json").is_file():
        rewriter: Any = load_stage(how, "rewriter")
        return upsample_prompts(prompts, "lm", rewriter)
    return upsample_prompts(prompts, how)


def _drawable(sent: str, asked: str) -> str:
    """What was written, or what was asked where a model cannot read that, such as of thousands of characters."""
    try:
        check_text("upsampled prompt", sent)
    except UsageError as error:
        warnings.warn(f"prompt upsampling: {error}; the prompt is drawn as given", stacklevel=4)
        return asked
    return sent
