"""Writing token after token: greedy, by chance, or with a beam, over any causal network.

B rows · K beams of a row · R = B·K rows that the network sees · n tokens · V entries of the vocabulary
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t2i.core.decoding import Decoding
from t2i.core.errors import NonFiniteError
from t2i.core.seed import Streams, upload
from t2i.core.types import KeysValues


@dataclass(frozen=True)
class Cache:
    """What a network has read, rows first: keys and values of the tokens so far, which grow, and of what all of them
    look at, such as a picture, which stay. `()` is nothing yet."""

    past: tuple[KeysValues, ...] = ()
    context: tuple[KeysValues, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens have been read."""
        return self.past[0][0].shape[-2] if self.past else 0

    def rows(self, index: Tensor) -> "Cache":
        """These rows, one cache for each."""
        return Cache(_rows(self.past, index), _rows(self.context, index))

    def followed(self, index: Tensor) -> "Cache":
        """The pasts of these rows, each within what shares one context."""
        return Cache(_rows(self.past, index), self.context)


def _rows(pairs: tuple[KeysValues, ...], index: Tensor) -> tuple[KeysValues, ...]:
    return tuple((k[index], v[index]) for k, v in pairs)


Step = Callable[[Tensor, Cache], tuple[Tensor, Cache]]
"""Tokens (R, n) that follow those in the cache → logits (R, V) of the token after them, and the cache with them. What
must never be written has the logit -inf."""


@torch.no_grad()
def generate(
    step: Step,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    end: int,
    cache: Cache = Cache(),
    streams: Streams | None = None,
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """What a network writes after each of B prompts, without the end token.

    Prompts may differ in length, and are not padded: a row whose prompt is longer reads on while the others
    write, so each is written as it would be alone.

    Args:
        step: the network, one step of it.
        prompts: tokens of each row, at least one, such as the start token.
        end: the token that ends a text.
        cache: what the network has read before, of B rows, such as keys and values of pictures.
        streams: one random stream per row; needed where `decoding` draws.

    Raises:
        ValueError: an empty prompt, no `max_length`, or not one stream per row to draw from.
        NonFiniteError: logits that are NaN.
    """
    if decoding.max_length is None:
        raise ValueError("max_length is open: a network says how much room it has, Decoding.within(room)")
    if not prompts or not all(prompts):
        raise ValueError("every prompt needs a token to begin with, such as the start token")
    if decoding.temperature > 0 and (streams is None or len(streams) != len(prompts)):
        given = "none" if streams is None else len(streams)
        raise ValueError(f"temperature={decoding.temperature} draws tokens: give {len(prompts)} streams, got {given}")
    writing = _Writing(step, prompts, decoding, end, cache, device)
    return writing.search() if decoding.num_beams > 1 else writing.draw(streams)


class _Writing:
    """Texts being written. `tokens` (R, n) are all so far, prompts among them; K rows of a text stand together."""

    def __init__(
        self,
        step: Step,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        end: int,
        cache: Cache,
        device: torch.device | str,
    ) -> None:
        self.step, self.decoding, self.end, self.num = step, decoding, end, len(prompts)
        self.longest = decoding.max_length or 1
        self.lengths = [len(prompt) for prompt in prompts]
        prompt = torch.full((self.num, max(self.lengths)), end)
        for row, given in zip(prompt, prompts, strict=True):
            row[: len(given)] = torch.tensor(given)
        of_row = torch.arange(self.num, device=device).repeat_interleave(decoding.num_beams)  # (R,)
        self.prompt = upload(prompt, device)[of_row]  # (R, longest)
        self.started = upload(torch.tensor(self.lengths), device)[of_row]  # (R,)
        self.tokens = self.prompt[:, : min(self.lengths)]
        self.cache, self.unread = cache.rows(of_row), self.tokens

    def draw(self, streams: Streams | None) -> list[list[int]]:
        """One text per row, greedy or by chance."""
        u = None if streams is None else upload(streams.uniform(self.longest), self.tokens.device)
        ended = torch.zeros_like(self.started, dtype=torch.bool)
        while not (ended | self.full()).all():
            log_p = self.next()
            if self.decoding.temperature > 0:
                assert u is not None
                place = (self.tokens.shape[1] - self.started).clamp(0, self.longest - 1)
                chosen = pick(nucleus(log_p, self.decoding), u.gather(1, place[:, None])[:, 0])
            else:
                chosen = log_p.argmax(dim=1)
            ended |= (chosen == self.end) & (self.tokens.shape[1] >= self.started)
            self.append(chosen)
        return [self.text(row) for row in range(self.num)]

    def search(self) -> list[list[int]]:
        """The best text of each row that a beam finds.

        At every place the K best beginnings stay, and those that end are done. A row is finished when no beginning can
        become better than the best that has ended; what is cut at `max_length` counts where nothing has.
        """
        k, longest = self.decoding.num_beams, self.longest
        scores = torch.full((self.num, k), -torch.inf, device=self.tokens.device)
        scores[:, 0] = 0
        best: list[tuple[float, list[int]]] = [(-math.inf, [])] * self.num
        done = [False] * self.num
        while not all(done):
            log_p = self.next()
            total = (scores.reshape(-1, 1) + log_p).unflatten(0, (-1, k)).flatten(1)  # (B, K·V)
            scores, index = total.topk(k, dim=1)  # (B, K)
            beam = index // log_p.shape[1] + k * torch.arange(self.num, device=index.device)[:, None]
            self.tokens, self.cache = self.tokens[beam.flatten()], self.cache.followed(beam.flatten())
            self.append((index % log_p.shape[1]).flatten())
            for row, (beams, tokens) in enumerate(zip(scores.tolist(), self.unread.view(-1, k).tolist(), strict=True)):
                written = self.tokens.shape[1] - self.lengths[row]
                if done[row] or written < 1:
                    continue
                for i in (i for i in range(k) if tokens[i] == self.end):
                    best[row] = max(best[row], (self.score(beams[i], written), self.text(row * k + i)))
                    scores[row, i] = beams[i] = -math.inf
                bound = max(self.score(max(beams), min(written + 1, longest)), self.score(max(beams), longest))
                if written >= longest and best[row][0] == -math.inf:
                    best[row] = bound, self.text(row * k + beams.index(max(beams)))
                done[row] = written >= longest or best[row][0] >= bound
        return [text for _, text in best]

    def score(self, log_p: float, length: int) -> float:
        """What a text of so many tokens, its end among them, counts."""
        return log_p / length**self.decoding.length_penalty

    def next(self) -> Tensor:
        """Log probabilities (R, V) of the next token, float32, under the rules; where a prompt goes on, 0 for its token
        and -inf for all others."""
        logits, self.cache = self.step(self.unread, self.cache)
        log_p = logits.float().log_softmax(dim=1)
        if log_p.isnan().any():
            raise NonFiniteError("the network that writes gives logits that are no numbers")
        log_p = log_p.masked_fill(self.forbidden(log_p), -torch.inf)
        if (place := self.tokens.shape[1]) < self.prompt.shape[1]:
            told = torch.full_like(log_p, -torch.inf).scatter_(1, self.prompt[:, place : place + 1], 0.0)
            log_p = torch.where((place < self.started)[:, None], told, log_p)
        return log_p

    def forbidden(self, log_p: Tensor) -> Tensor:
        """(R, V): tokens that would repeat n tokens of what was written, and an end that is too early. Where nothing
        would be left, the text may end."""
        written = self.tokens.shape[1] - self.started  # (R,)
        banned = torch.zeros_like(log_p, dtype=torch.bool)
        n = self.decoding.no_repeat_ngram
        for row, count in enumerate(written.tolist() if n else []):
            text = self.tokens[row, self.tokens.shape[1] - max(count, 0) :].tolist() if count > 0 else []
            for i in range(len(text) - n + 1):
                if text[i : i + n - 1] == text[len(text) - n + 1 :]:
                    banned[row, text[i + n - 1]] = True
        banned[:, self.end] = written < self.decoding.min_length
        nothing = (banned | log_p.isneginf()).all(dim=1)
        banned[:, self.end] &= ~nothing
        return banned

    def append(self, chosen: Tensor) -> None:
        """Tokens (R,) after what is there."""
        self.unread = chosen[:, None]
        self.tokens = torch.cat([self.tokens, self.unread], dim=1)

    def full(self) -> Tensor:
        """(R,): rows that have all tokens they may have."""
        return self.tokens.shape[1] - self.started >= self.longest

    def text(self, row: int) -> list[int]:
        """What was written in a row of `tokens`, up to the end."""
        first = self.lengths[row // self.decoding.num_beams]
        text: list[int] = self.tokens[row, first : first + self.longest].tolist()
        return text[: text.index(self.end)] if self.end in text else text


def nucleus(log_p: Tensor, decoding: Decoding) -> Tensor:
    """Log probabilities (R, V), up to a constant, that tokens are drawn from: tempered, then of the `top_k` likeliest,
    then of the fewest that together have `top_p`."""
    log_p = (log_p - log_p.amax(dim=1, keepdim=True)) / decoding.temperature  # nothing overflows where it is tiny
    if decoding.top_k is not None:
        least = log_p.topk(min(decoding.top_k, log_p.shape[1]), dim=1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf)
    if decoding.top_p < 1:
        ordered, index = log_p.softmax(dim=1).sort(dim=1, descending=True)
        beyond = ordered.cumsum(dim=1) - ordered >= decoding.top_p  # those before have enough
        log_p = log_p.masked_fill(torch.zeros_like(beyond).scatter(1, index, beyond), -torch.inf)
    return log_p


def pick(logits: Tensor, u: Tensor) -> Tensor:
    """The entry at the u-quantile, u in [0, 1), of distributions over K entries: (B, K), (B,) → (B,).

    Logits that a larger batch rounds otherwise give the same entry, or, very rarely, its neighbour.
    """
    cdf = logits.softmax(dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)
