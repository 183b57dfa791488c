"""Training T5 by span corruption (Raffel et al. 2020, section 3.1.4): hidden spans of a caption are written by a small
decoder, which is left behind when the encoder is exported.

B batch · L tokens of the caption · T tokens of the target · V vocabulary
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams, upload
from t2i.core.sizes import Layers
from t2i.core.types import Batch, Phase, Task
from t2i.stages.t5.model import T5, T5Config, shape_of

_START = 0  # what the decoder reads first, as T5's does


class T5Options(Config):
    """How a T5 of our own is trained."""

    rate: float = Field(0.15, gt=0, lt=1, description="share of the tokens that is hidden, but at least one")
    mean_span: float = Field(3.0, ge=1, description="tokens of a hidden span, on average")
    decoder_layers: Layers = Field(1, description="of the decoder, which is not exported")


class SpanDecoder(nn.Module):
    """A T5 decoder that reads the encoder's states and its table of words, and guesses the next token."""

    def __init__(self, config: T5Config, layers: int) -> None:
        super().__init__()
        from transformers.models.t5.modeling_t5 import T5Stack

        self.stack: Any = T5Stack(shape_of(config, is_decoder=True, num_layers=layers))
        self.stack.set_input_embeddings(None)  # the encoder's are read
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=config.width**-0.5)

    def forward(self, words: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (B, T, W) of the tokens so far, states (B, L, W) and their mask (B, L) → logits (B, T, V)."""
        out = self.stack(inputs_embeds=words, encoder_hidden_states=states, encoder_attention_mask=mask)
        logits: Tensor = self.head(out.last_hidden_state)
        return logits


class T5Task(Task):
    """Trains a `T5` of our own on captions; needs no pictures."""

    keys = ("caption",)
    model: T5

    def __init__(self, model: T5, options: T5Options = T5Options()) -> None:
        super().__init__(model)
        config = model.config
        if config.source is not None:
            raise ValueError(f"model.source={config.source} is read as it is, and not trained: leave it out")
        spans = max(1, round(config.tokenizer.context * options.rate / options.mean_span))
        if spans >= config.sentinels:
            raise ValueError(f"model.sentinels={config.sentinels} are too few for the {spans} spans of a long caption")
        self.options = options
        self.decoder = SpanDecoder(config, options.decoder_layers)

    def phases(self) -> Sequence[Phase]:
        """Encoder and decoder together; only the first is averaged and exported."""
        return [Phase("main", nn.ModuleDict({"model": self.model, "decoder": self.decoder}), self.loss)]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, nats per token of the target, and `accuracy`, the share of hidden tokens that are guessed; (B,)."""
        device = self.model.place.device
        seen, mask, target = (upload(x, device) for x in self.corrupted(batch["caption"], batch["seed"]))
        states = self.model.encode_tokens(seen, mask).sequence  # (B, L, W)
        before = F.pad(target[:, :-1].clamp(min=0), (1, 0), value=_START)  # (B, T)
        logits = self.decoder(self.model.embed(before), states, mask).float()  # (B, T, V)
        asked = target >= 0  # (B, T)
        nats = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=-100, reduction="none")  # (B, T)
        last = asked & ~F.pad(asked[:, 1:], (0, 1))
        words = asked & ~last & (target < self.model.config.tokenizer.vocab_size)
        right = (logits.detach().argmax(dim=2) == target) & words
        return {
            "loss": nats.sum(dim=1) / asked.sum(dim=1),
            "accuracy": right.sum(dim=1) / words.sum(dim=1).clamp(min=1),
        }

    def corrupted(self, captions: Sequence[str], seeds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What the encoder sees, tokens and mask (B, L), and what the decoder is to write, (B, T), -100 where nothing
        is asked. What is hidden of a caption follows from its seed."""
        config = self.model.config
        tokens, mask = self.model.tokenizer(captions)  # (B, L)
        draws = Streams(seeds, "spans").uniform(2 * config.tokenizer.context).tolist()
        pairs = []
        for row, real, chance in zip(tokens.tolist(), mask.sum(dim=1).tolist(), draws, strict=True):
            first, *inside, last = row[:real]
            seen, target = hide_spans(inside, chance, self.options, config.tokenizer.vocab_size)
            pairs.append(([first, *seen, last], [*target, last]))
        padded = _padded([seen for seen, _ in pairs], -1)
        return padded.clamp(min=0), padded >= 0, _padded([target for _, target in pairs], -100)


def hide_spans(
    tokens: Sequence[int], chance: Sequence[float], options: T5Options, first_sentinel: int
) -> tuple[list[int], list[int]]:
    """Tokens with a sentinel for every hidden span, and each sentinel followed by what it hides.

    Spans never touch. Unlike in T5, whose texts are long, one may begin or end the caption, or short captions would
    always lose their last word.

    Args:
        chance: at least two numbers in [0, 1) for every token.
    """
    num = len(tokens)
    if not num:
        return [], []
    hidden = min(max(1, round(num * options.rate)), num)
    spans = min(max(1, round(hidden / options.mean_span)), num - hidden + 1)
    lengths = _parts(hidden, _chosen(chance[:num], hidden - 1, spans - 1))
    free = num - hidden - (spans - 1)  # tokens that stay, beside one between two spans
    bars = _chosen(chance[num:], free + spans, spans)  # stars and bars: free tokens in spans + 1 gaps
    gaps = [after - before - 1 for before, after in zip([-1, *bars], [*bars, free + spans], strict=True)]
    seen, target, at = [], [], 0
    for number, length in enumerate(lengths):
        at_next = at + gaps[number] + (number > 0)
        seen += [*tokens[at:at_next], first_sentinel + number]
        target += [first_sentinel + number, *tokens[at_next : at_next + length]]
        at = at_next + length
    return [*seen, *tokens[at:]], target


def _chosen(chance: Sequence[float], num: int, count: int) -> list[int]:
    """`count` of the numbers below `num`, in order: those with the smallest chance."""
    return sorted(sorted(range(num), key=lambda i: chance[i])[:count])


def _parts(total: int, cuts: Sequence[int]) -> list[int]:
    """A total in parts of at least 1, cut after the tokens `cuts`."""
    ends = [*(cut + 1 for cut in cuts), total]
    return [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return out
