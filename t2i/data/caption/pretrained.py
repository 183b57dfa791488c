"""Captions by models of transformers, from a folder or by their name on the hub. No code of theirs is run, and no
pickle is read.

B pictures · L tokens · V entries of the vocabulary
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.assets import offline
from t2i.core.choices import dtype_name
from t2i.core.decoding import Decoding
from t2i.core.devices import memory_explained
from t2i.core.errors import UsageError, shown
from t2i.core.seed import Streams
from t2i.data.caption.captioner import PROMPTS, Captioner, Kind, bounded
from t2i.io.chat import spoken
from t2i.io.decode import once
from t2i.io.weights import fingerprint

PIXELS = ("blip", "git", "vision-encoder-decoder")
"""Types of models that see a picture and are asked nothing."""


class PixelCaptioner:
    """A model that is shown pixels and asked nothing: BLIP, GIT, any vision encoder with a text decoder.

    Args:
        kind: what its captions are, which its training has decided.
        processor: makes `pixel_values` of PIL pictures.
        tokenizer: turns tokens back into text.
    """

    def __init__(
        self, model: Any, processor: Any, tokenizer: Any, kind: Kind, decoding: Decoding, name: str, revision: str
    ) -> None:
        self.model, self.processor, self.tokenizer, self.decoding = model, processor, tokenizer, decoding
        self.name, self.revision, self.settings = name, revision, {kind: _settings(model, decoding)}

    @torch.inference_mode()
    def caption(self, images: Sequence[Image], kind: Kind, seeds: Sequence[int]) -> list[str]:
        """See `Captioner`."""
        if kind not in self.settings:
            raise UsageError(f"{self.name} writes captions of one kind, {', '.join(self.settings)}")
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(pixel_values=pixels, **generation(self.decoding, seeds))
        _tell_cut(tokens, self.model, self.decoding)
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


class ChatCaptioner:
    """A model that is shown a picture and asked about it, through the chat template of its processor.

    Prompts are padded on the left, so that all answers begin at one place, and cut off.
    """

    def __init__(
        self, model: Any, processor: Any, prompts: Mapping[Kind, str], decoding: Decoding, name: str, revision: str
    ) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise UsageError(f"{name}: its processor has no chat template, so nobody knows how to ask it")
        self.model, self.processor, self.prompts, self.decoding = model, processor, prompts, decoding
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        self.name, self.revision = name, revision
        self.settings = {kind: {"prompt": prompt, **_settings(model, decoding)} for kind, prompt in prompts.items()}

    @torch.inference_mode()
    def caption(self, images: Sequence[Image], kind: Kind, seeds: Sequence[int]) -> list[str]:
        """See `Captioner`."""
        question = {"type": "text", "text": self.prompts[kind]}
        chats = [[{"role": "user", "content": [{"type": "image", "image": image}, question]}] for image in images]
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, self.model.dtype)
        more = {"pad_token_id": self.processor.tokenizer.pad_token_id}
        tokens = self.model.generate(**inputs, **more, **generation(self.decoding, seeds))  # (B, L)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        _tell_cut(answers, self.model, self.decoding)
        return [spoken(text) for text in self.processor.batch_decode(answers, skip_special_tokens=True)]


def open_pretrained(
    name: str,
    kinds: Sequence[Kind],
    prompts: Mapping[Kind, str] = PROMPTS,
    decoding: Decoding = Decoding(),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Captioner:
    """A captioner of transformers, in a folder or by its name on the hub, which calculates in `dtype`.

    Raises UsageError in one line: no such model, one that captions no pictures, one that wants to run code of its own
    or is stored as a pickle, and several kinds of captions, or prompts of the user's, for one that is asked nothing.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    # False, and not left out: transformers would ask on the terminal.
    decoding = bounded(decoding)
    how: dict[str, Any] = {"trust_remote_code": False, "local_files_only": os.path.isdir(name) or offline()}
    with memory_explained(name, "a smaller captioner"):
        config = _had(name, lambda: AutoConfig.from_pretrained(name, **how))
        pixels = config.model_type in PIXELS
        if pixels and (len(kinds) > 1 or prompts is not PROMPTS):
            what = "a prompt" if prompts is not PROMPTS else f"kinds {', '.join(kinds)}"
            raise UsageError(
                f"{name}: a {config.model_type} is asked nothing, its captions are of one kind; got {what}"
            )
        model: Any = _had(
            name,
            lambda: AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, dtype=dtype, **how),
        )
        model = model.to(device).eval()
    local = fingerprint({"captioner": Path(name)}) if os.path.isdir(name) else ""
    revision = getattr(config, "_commit_hash", None) or local
    if config.model_type == "vision-encoder-decoder":
        processor = _had(name, lambda: AutoImageProcessor.from_pretrained(name, **how))
        tokenizer = _had(name, lambda: AutoTokenizer.from_pretrained(name, **how))
    else:
        processor = _had(name, lambda: AutoProcessor.from_pretrained(name, **how))
        tokenizer = getattr(processor, "tokenizer", None)
    if pixels:
        return PixelCaptioner(model, processor, tokenizer, kinds[0], decoding, name, revision)
    return ChatCaptioner(model, processor, {kind: prompts[kind] for kind in kinds}, decoding, name, revision)


def _tell_cut(answers: Tensor, model: Any, decoding: Decoding) -> None:
    """Say once that an answer (B, L) has as many tokens as it may, and no end."""
    end = model.generation_config.eos_token_id
    ends = torch.tensor([] if end is None else end).flatten().to(answers)
    if not torch.isin(answers, ends).any(dim=1).all() and answers.shape[1] >= (decoding.max_length or 0):
        once(f"captions are cut off after {decoding.max_length} tokens: --max-length allows more")


def generation(decoding: Decoding, seeds: Sequence[int]) -> dict[str, Any]:
    """What `generate` of transformers is told. Tokens are drawn by `_Drawn`, each row from its own stream."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    rules: list[Any] = []
    if decoding.temperature > 0:
        rules.append(TemperatureLogitsWarper(decoding.temperature))
        rules += [] if decoding.top_k is None else [TopKLogitsWarper(decoding.top_k)]
        rules += [] if decoding.top_p == 1 else [TopPLogitsWarper(decoding.top_p)]
        rules.append(_Drawn(Streams(seeds, "captioner")))
    return {
        "max_new_tokens": decoding.max_length,
        "min_new_tokens": decoding.min_length or None,
        "num_beams": decoding.num_beams,
        "length_penalty": decoding.length_penalty,
        "no_repeat_ngram_size": decoding.no_repeat_ngram,
        "do_sample": False,
        "logits_processor": LogitsProcessorList(rules),
    }


class _Drawn:
    """Turns the likeliest token into one that is drawn: with Gumbel noise the argmax has the softmax's distribution."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """(B, L), (B, V) → (B, V)."""
        u = self.streams.uniform(scores.shape[1]).clamp(1e-20)
        return scores - (-u.log()).log().to(scores.device)


def _settings(model: Any, decoding: Decoding) -> dict[str, Any]:
    """What is kept beside captions: how they were written, and the precision if it is not float32."""
    exact = model.dtype == torch.float32
    return decoding.model_dump(exclude_defaults=True) | ({} if exact else {"dtype": dtype_name(model.dtype)})


def _had(name: str, load: Callable[[], Any]) -> Any:
    """What transformers opens; what it says otherwise in one line that begins with the name."""
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = shown(lines[0] if lines else type(error).__name__, 300)
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            said = "it wants to run code of its own, which is never done; take a model that transformers knows"
        raise UsageError(f"{name}: no captioner that can be opened: {said}") from None
