"""Decoding: a chain of two dice whose texts can be counted, the rules by hand, and a transformer with its cache."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from t2i.core.decoding import Decoding
from t2i.core.seed import Streams
from t2i.nn.generate import Cache, Step, _Writing, generate, nucleus, pick
from t2i.nn.transformer import Transformer, TransformerConfig

END = 0


def chain(table: Sequence[Sequence[float]]) -> Step:
    """A Markov chain: row i holds the probabilities of what follows token i."""
    log_p = torch.tensor(table).log()

    def step(tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        read = torch.cat([cache.past[0][0], tokens], dim=1) if cache.past else tokens
        return log_p[read[:, -1]], Cache(((read, read),))

    return step


def write(step: Step, prompts: Sequence[Sequence[int]] = ((1,),), streams: Streams | None = None, **how) -> list:
    return generate(step, prompts, Decoding(**how), end=END, streams=streams)


# From 1 the likeliest first token is 2 (0.6), after which nothing is likely; 3 (0.4) leads to a sure end.
GARDEN = [
    [1.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.6, 0.4, 0.0],
    [0.3, 0.0, 0.0, 0.3, 0.4],
    [0.9, 0.0, 0.0, 0.0, 0.1],
    [0.5, 0.0, 0.5, 0.0, 0.0],
]


def exhaustive(table: list[list[float]], longest: int, penalty: float) -> list[int]:
    """The best of all texts that end within so many tokens, the end among them."""
    best, found = -math.inf, []
    for length in range(longest):
        for text in itertools.product(range(1, len(table)), repeat=length):
            p = math.prod(table[a][b] for a, b in itertools.pairwise([1, *text, END]))
            if p and math.log(p) / (length + 1) ** penalty > best:
                best, found = math.log(p) / (length + 1) ** penalty, list(text)
    return found


def test_greedy_takes_the_likeliest_and_a_beam_the_best_text() -> None:
    assert write(chain(GARDEN), max_length=3) == [[2, 4]]  # 0.6 · 0.4 · 0.5 = 0.12
    for penalty in (0.0, 1.0):
        assert write(chain(GARDEN), max_length=3, num_beams=5, length_penalty=penalty) == [[3]]  # 0.4 · 0.9
        assert exhaustive(GARDEN, 3, penalty) == [3]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 3.0])
def test_a_wide_beam_finds_what_trying_everything_finds(penalty: float) -> None:
    torch.manual_seed(0)
    for _ in range(10):
        table = torch.rand(4, 4).softmax(dim=1)
        table[:, END] /= 4  # so that texts of every length are best somewhere
        chances = (table / table.sum(dim=1, keepdim=True)).tolist()
        best = exhaustive(chances, 4, penalty)
        assert write(chain(chances), max_length=4, num_beams=256, length_penalty=penalty) == [best]


def test_a_beam_of_one_is_greedy() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        step = chain((3 * torch.randn(6, 6)).softmax(dim=1).tolist())
        prompts = [[1], [2, 3], [5]]
        one = _Writing(step, prompts, Decoding(max_length=7), END, Cache(), "cpu").search()
        assert one == write(step, prompts, max_length=7)


def test_length_penalty_favours_long_texts() -> None:
    """1 → end with 0.5; or 1 → 2 → 3 → end with 0.5 · 0.9 · 0.9."""
    table = [[1.0, 0, 0, 0], [0.5, 0, 0.5, 0], [0.05, 0.05, 0, 0.9], [0.9, 0.1, 0, 0]]
    short, long = math.log(0.5), math.log(0.5 * 0.9 * 0.9)
    assert short > long
    assert short / 1 < long / 3
    assert write(chain(table), max_length=5, num_beams=2, length_penalty=0.0) == [[]]
    assert write(chain(table), max_length=5, num_beams=2, length_penalty=1.0) == [[2, 3]]


@pytest.mark.parametrize("beams", [1, 3])
def test_the_end_waits_for_the_minimum(beams: int) -> None:
    table = [[1.0, 0, 0], [0.8, 0.15, 0.05], [0.9, 0.05, 0.05]]
    assert write(chain(table), max_length=6, num_beams=beams) == [[]]
    assert write(chain(table), max_length=6, num_beams=beams, min_length=3) == [[1, 1, 1]]


@pytest.mark.parametrize("beams", [1, 3])
def test_no_n_tokens_are_written_twice(beams: int) -> None:
    table = [[1.0, 0, 0, 0], [0.01, 0, 0.9, 0.09], [0.01, 0.9, 0, 0.09], [0.5, 0.3, 0.1, 0.1]]
    (loop,) = write(chain(table), max_length=8, num_beams=beams)
    assert loop[:6] == [2, 1, 2, 1, 2, 1]
    (text,) = write(chain(table), max_length=8, num_beams=beams, no_repeat_ngram=2)
    assert text == [2, 1, 2, 3] or beams > 1  # after 2 not 1 again; the 1 of the prompt is not of the text
    pairs = list(itertools.pairwise(text))
    assert len(pairs) == len(set(pairs))
    (text,) = write(chain(table), max_length=8, num_beams=beams, no_repeat_ngram=1)
    assert len(text) == len(set(text))


def test_rules_that_leave_nothing_let_the_text_end() -> None:
    table = [[1.0, 0, 0], [0.1, 0.0, 0.9], [0.1, 0.9, 0]]
    assert write(chain(table), max_length=9, min_length=8, no_repeat_ngram=1) == [[2, 1]]


def test_a_text_has_at_most_its_length() -> None:
    table = [[1.0, 0], [0.1, 0.9]]
    for beams, longest in ((1, 4), (2, 3)):  # of what a beam holds, a text that has ended goes before one that was cut
        assert write(chain(table), [[1], [1, 1, 1]], max_length=4, num_beams=beams) == [[1] * longest] * 2
    never = [[1.0, 0, 0], [0.0, 0.9, 0.1], [0.0, 1.0, 0.0]]
    assert write(chain(never), max_length=4, num_beams=2) == [[1] * 4]


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"num_beams": 3, "no_repeat_ngram": 2}])
def test_a_row_is_the_same_alone_and_among_others_of_longer_prompts(how: dict) -> None:
    torch.manual_seed(1)
    step = chain(torch.randn(7, 7).softmax(dim=1).tolist())
    prompts = [[1, 2, 3], [4], [2, 2]]
    how |= {"max_length": 9, "min_length": 2}
    together = write(step, prompts, Streams([5, 6, 7]), **how)
    alone = [write(step, [p], Streams([seed]), **how)[0] for p, seed in zip(prompts, (5, 6, 7), strict=True)]
    assert together == alone
    assert len({tuple(text) for text in together}) > 1


def test_what_is_drawn_is_distributed_as_the_chain_says() -> None:
    table = [[1.0, 0, 0], [0.5, 0.2, 0.3], [0.5, 0.5, 0]]
    texts = write(chain(table), [[1]] * 4000, Streams(range(4000)), temperature=1.0, max_length=1)
    shares = [texts.count(text) / 4000 for text in ([], [1], [2])]
    assert shares == pytest.approx(table[1], abs=0.03)
    cold = write(chain(table), [[1]] * 2000, Streams(range(2000)), temperature=0.5, max_length=1)
    squares = [p * p for p in table[1]]
    assert cold.count([]) / 2000 == pytest.approx(squares[0] / sum(squares), abs=0.03)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    log_p = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()
    left = nucleus(log_p, Decoding(temperature=temperature, top_p=0.9))
    assert pick(left, torch.tensor([0.99])).tolist() == [1]


def test_nucleus_and_top_k_by_hand() -> None:
    log_p = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()

    def left(**how: float) -> list[int]:
        kept = nucleus(log_p, Decoding(temperature=1.0, **how))[0].isfinite()
        return kept.nonzero()[:, 0].tolist()

    assert left() == [0, 1, 2, 3]
    assert left(top_k=2) == [1, 2]
    assert left(top_k=99) == [0, 1, 2, 3]
    assert left(top_p=0.39) == [1]
    assert left(top_p=0.41) == [1, 2]
    assert left(top_p=0.71) == [1, 2, 3]
    assert left(top_k=3, top_p=0.7) == [1, 2]  # of 0.4, 0.3, 0.2 renormalised, two have 0.78


def test_quantiles() -> None:
    p = torch.tensor([0.25, 0.0, 0.75]).log().expand(4, 3)
    assert pick(p, torch.tensor([0.0, 0.24, 0.26, 0.999])).tolist() == [0, 0, 2, 2]


class Network:
    """A small causal transformer; `step` reads what is new, `whole` everything anew."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = Transformer(TransformerConfig(width=32, layers=3, heads=4, causal=True))
        self.embed, self.place, self.head = torch.randn(11, 32), torch.randn(30, 32), torch.randn(32, 11) * 0.3
        self.calls = 0

    def step(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        first = cache.num_tokens
        x = self.embed[tokens] + self.place[first : first + tokens.shape[1]]
        out, past = self.net.extend(x, None, cache.past or None)
        return out[:, -1] @ self.head, Cache(past)

    def whole(self, tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        read = torch.cat([cache.past[0][0], tokens], dim=1) if cache.past else tokens
        x = self.embed[read] + self.place[: read.shape[1]]
        return self.net(x)[:, -1] @ self.head, Cache(((read, read),))


@pytest.mark.parametrize("how", [{}, {"temperature": 1.3, "top_p": 0.9}, {"num_beams": 4}])
def test_cached_is_uncached(how: dict) -> None:
    network, prompts = Network(), [[1], [2, 3, 4]]
    for step in (network.step, network.whole):
        assert (texts := write(step, prompts, Streams([1, 2]), max_length=12, min_length=5, **how))
        network.calls += 1
    assert texts == write(network.step, prompts, Streams([1, 2]), max_length=12, min_length=5, **how)
    tokens, cache = torch.randint(0, 11, (2, 9)), Cache()
    with torch.no_grad():
        for t in range(9):
            logits, cache = network.step(tokens[:, t : t + 1], cache)
            torch.testing.assert_close(logits, network.whole(tokens[:, : t + 1], Cache())[0], rtol=1e-4, atol=1e-5)
    assert cache.num_tokens == 9


def test_a_context_stays_with_its_row_through_a_beam() -> None:
    """The chain of a row stands in its context; beams move within the row."""
    tables = torch.tensor([GARDEN, GARDEN]).log()
    tables[1] = tables[1].flip(0).roll(1, 0)

    def step(tokens: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        (table, _), rows = cache.context[0], torch.arange(len(tokens))
        return table[rows, tokens[:, -1]], Cache(((tokens, tokens),), cache.context)

    texts = generate(
        step, [[1], [1]], Decoding(max_length=3, num_beams=3), end=END, cache=Cache((), ((tables, tables),))
    )
    alone = [write(chain(table.exp().tolist()), max_length=3, num_beams=3)[0] for table in tables]
    assert texts == alone
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_p": 0.9}, r"top_p=0.9 is for tokens that are drawn: set temperature, which is 0"),
        ({"top_k": 5}, r"top_k=5 is for tokens that are drawn"),
        ({"num_beams": 2, "temperature": 1.0}, r"num_beams=2 draws nothing: leave temperature=1.0 out"),
        ({"length_penalty": 0.5}, r"length_penalty=0.5 compares beams, and num_beams is 1"),
        ({"min_length": 9, "max_length": 9}, r"min_length=9 leaves no room for the end in max_length=9"),
        ({"max_length": 0}, r"max_length"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p"),
        ({"beams": 2}, r"beams"),
    ],
)
def test_bad_settings_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Decoding(**given)


def test_what_cannot_begin_is_refused() -> None:
    with pytest.raises(ValueError, match="every prompt needs a token"):
        write(chain(GARDEN), [[1], []], max_length=3)
    for streams, got in ((None, "none"), (Streams([1, 2]), "2")):
        with pytest.raises(ValueError, match=rf"temperature=1.0 draws tokens: give 1 streams, got {got}"):
            write(chain(GARDEN), streams=streams, temperature=1.0, max_length=3)
    with pytest.raises(ValueError, match="max_length is open"):
        write(chain(GARDEN))


def test_decoding_keeps_within_the_room_of_a_network() -> None:
    assert Decoding().within(7).max_length == 7
    assert Decoding(max_length=5).within(7) == Decoding(max_length=5)
    with pytest.raises(ValueError, match="max_length=8, but there is room for 7 tokens"):
        Decoding(max_length=8).within(7)
    with pytest.raises(ValueError, match="min_length=7, but there is room for 7 tokens"):
        Decoding(min_length=7).within(7)
