"""Sentences of a call that are upsampled before they are drawn: what was sent is drawn, told and kept, beside what was
asked."""

import logging
from typing import TYPE_CHECKING, Any

from t2i.core.errors import quoted, shown
from t2i.pipeline.arguments import Prompts, Texts, prompt_rows, read_prompts, repeat_each
from t2i.pipeline.placement import on_device
from t2i.text.upsampling import WAYS, upsample_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from t2i.core.types import Tokenizer
    from t2i.pipeline.base import Pipeline

log = logging.getLogger(__name__)


def upsampled_rows(
    pipe: "Pipeline",
    upsample_prompt: str | None,
    prompt: Prompts,
    negative: Prompts | None,
    num_images_per_prompt: int,
    tokenizers: "Sequence[Tokenizer]",
) -> Texts:
    """`prompt_rows` of what is drawn instead of the prompts, with what was asked.

    Args:
        upsample_prompt: as in `upsample_prompts`, where "lm" is the part `rewriter` of the pipeline; or the folder of a
            rewriter; None leaves the prompts as they are.

    Raises UsageError for prompts and ways that are none, DataError for a folder that holds another stage.
    """
    if upsample_prompt is None:
        return prompt_rows(prompt, negative, num_images_per_prompt, tokenizers)
    asked, _ = read_prompts(prompt, ())
    sent = _sent(pipe, asked, upsample_prompt)
    for before, after in dict(zip(asked, sent, strict=True)).items():
        log.info("%s is drawn as: %s", quoted(before), shown(after, 1000))
    texts = prompt_rows(sent, negative, num_images_per_prompt, tokenizers)
    return texts._replace(asked=repeat_each(asked, len(texts.prompts) // len(asked)))


def _sent(pipe: "Pipeline", prompts: list[str], how: str) -> list[str]:
    from t2i.stages.registry import find_stage, load_stage

    if how == "lm" and "rewriter" in pipe.parts:
        with on_device(pipe, "rewriter"):
            return upsample_prompts(prompts, how, pipe.parts["rewriter"])
    if isinstance(how, str) and how not in WAYS and "://" not in how and (find_stage(how) / "config.json").is_file():
        rewriter: Any = load_stage(how, "rewriter")
        return upsample_prompts(prompts, "lm", rewriter)
    return upsample_prompts(prompts, how)
