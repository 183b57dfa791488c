"""Prompt upsampling: what a person types becomes what a descriptive caption says (Betker et al. 2023, section 3.5).

A model that learned from descriptive captions draws best from them. Four ways: leave the prompt as it is, a template, a
small language model of ours (the stage `rewriter`), or any model that an OpenAI-compatible server has. Nothing heavy is
imported.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from t2i.core.errors import DataError, UsageError, did_you_mean, quoted, shown
from t2i.core.paths import path_of
from t2i.io.chat import Endpoint, is_address, open_endpoint

WAYS = ("identity", "rule", "lm")
"""Beside the address of a server."""
LEAST, MOST = 15, 80
"""Words of a caption that a server writes, as the paper asks for."""
TEMPLATE = "the picture shows {prompt}. the floor is wooden."
"""What the rule adds: an opening and a floor, in words of the shapes world."""

Turn = tuple[str, str]
"""What was asked for, and the caption that was written of it."""

RULES = f"""You write captions for a model that draws pictures. It was trained on long, literal captions, and draws \
best from such ones. The user says what they want to see. Answer with the caption of that picture, and nothing else.

- One picture and one caption: no list, no title, no quotation marks around it, no remark before or after.
- Between {LEAST} and {MOST} words in plain sentences. What comes after {MOST} words is not read.
- Keep all that was asked for: things and how many, colours, places, words to be written, style. Decide the rest: \
surroundings, background, light, colours, style.
- Where the user wants the picture before changed, write its whole caption anew with the change worked in. Never \
append it.
- Where the user wants another picture, forget those before."""
EXAMPLES: tuple[Turn, ...] = (
    (
        "an old lighthouse",
        "a weathered white lighthouse with a red lantern room stands on a cliff of dark rock. waves break into foam "
        "below it, and long grass bends in the wind. grey evening clouds, with a band of orange light at the horizon.",
    ),
    (
        "by night please",
        "a weathered white lighthouse with a red lantern room stands on a cliff of dark rock by night. its beam cuts "
        "a pale yellow line through the mist. waves glint below it, and the sky above is deep blue and full of stars.",
    ),
    (
        "two cats playing chess, as a woodcut",
        "a woodcut in black ink on cream paper: two striped cats sit upright on either side of a small round table and "
        "play chess. one lifts a paw over a knight. behind them a window with bare branches, in bold parallel lines.",
    ),
)


_SMALL_WORDS = {
    "a", "an", "the", "and", "or", "of", "to", "in", "on", "at", "by", "with", "from", "is", "are", "it", "its", "this",
    "that", "there", "some",
}  # fmt: skip


class Rewriter(Protocol):
    """A model of the stage `rewriter`."""

    @property
    def tokenizer(self) -> Any: ...

    def rewrite(self, sentences: Sequence[str]) -> list[str]: ...


def check_way(how: object) -> str:
    """How prompts are upsampled: a name, or an address; UsageError for anything else."""
    if not isinstance(how, str) or not (how in WAYS or is_address(how)):
        known = f"{', '.join(WAYS)}, a server's http://HOST/v1#MODEL and, in a pipeline, the folder of a rewriter"
        raise UsageError(f"upsample_prompt={quoted(how)}: known are {known}{did_you_mean(how, WAYS)}")
    return how


def check_upsample_prompt(how: str) -> None:
    """UsageError for a way that is none, nor a folder; before a model is opened."""
    if how in WAYS or "://" in how or not (path_of(how, "upsample_prompt").exists() or how.startswith("weights/")):
        check_way(how)


def upsample_prompts(
    prompts: Sequence[str], how: str, rewriter: Rewriter | None = None, history: Sequence[Turn] = ()
) -> list[str]:
    """What is drawn instead of each prompt.

    Args:
        how: "identity"; "rule", see `by_rule`; "lm", by a `rewriter`; or a server, `http://HOST/v1#MODEL`.
        history: earlier turns, which a server is told: a prompt may ask for a change of the last one.

    A server that fails, and a rewriter that does not know a word, leave the prompt as it is, and a warning says why.

    Raises UsageError for another way, for a server's address that is none, and for "lm" without a rewriter.
    """
    check_way(how)
    if how == "identity":
        return list(prompts)
    if how == "rule":
        return [by_rule(prompt) for prompt in prompts]
    if how == "lm":
        if rewriter is None:
            raise UsageError('upsample_prompt="lm": this model has no rewriter; name the folder of one, or use "rule"')
        return [_rewritten(prompt, rewriter) for prompt in prompts]
    done: list[str] = []
    try:
        endpoint = open_endpoint(how)
        for prompt in prompts:
            done.append(by_endpoint(prompt, endpoint, history))
    except DataError as error:  # those that follow would wait for it as long
        left = f"{len(prompts) - len(done)} of {len(prompts)} prompts are" if len(prompts) > 1 else "the prompt is"
        warnings.warn(f"prompt upsampling: {error}; {left} drawn as given", stacklevel=2)
    return done + list(prompts[len(done) :])


def by_rule(prompt: str, template: str = TEMPLATE) -> str:
    """A prompt in a template, unless it is as long as a descriptive caption."""
    return prompt if len(prompt.split()) >= LEAST else template.format(prompt=prompt.strip().rstrip(" .,;:!?"))


def by_endpoint(prompt: str, endpoint: Endpoint, history: Sequence[Turn] = ()) -> str:
    """The caption that a server's model writes, in one line of at most `MOST` words.

    Raises DataError as `Endpoint.ask`, and for an answer of fewer than `LEAST` words, asked for twice.
    """
    messages = [{"role": "system", "content": RULES}]
    for asked, caption in (*EXAMPLES, *history):
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": caption}]
    messages.append({"role": "user", "content": prompt})
    words: list[str] = []
    for _ in range(2):
        words = endpoint.ask(messages).strip('"“” ').split()
        if len(words) >= LEAST:
            return " ".join(words[:MOST])
    said = quoted(shown(" ".join(words), 60))
    raise DataError(f"{endpoint.url} wrote {len(words)} words instead of {LEAST} to {MOST}: {said}")


def lost_words(prompt: str, text: str) -> list[str]:
    """Words that say something, in a prompt, and are not in what was written of it, a plural as well as a singular."""
    asked, there = (re.findall(r"\w+", part.lower()) for part in (prompt, text))
    stems = {word.rstrip("s") for word in there}
    return [word for word in dict.fromkeys(asked) if word not in _SMALL_WORDS and word.rstrip("s") not in stems]


def _rewritten(prompt: str, rewriter: Rewriter) -> str:
    """What a rewriter writes, of a prompt that it can read as a whole."""
    problem = ""
    if unknown := rewriter.tokenizer.unknown(prompt):
        problem = f"the rewriter does not know: {', '.join(dict.fromkeys(unknown))}"
    elif rewriter.tokenizer.truncated(prompt):
        problem = f"the rewriter reads {rewriter.tokenizer.room} tokens, and this has more: {shown(prompt, 60)}"
    elif text := rewriter.rewrite([prompt])[0].strip():
        if not (lost := lost_words(prompt, text)):
            return text
        problem = f"the rewriter leaves out {', '.join(lost)}"
    warnings.warn(
        f"prompt upsampling: {problem or 'the rewriter wrote nothing'}; the prompt is drawn as given", stacklevel=3
    )
    return prompt
