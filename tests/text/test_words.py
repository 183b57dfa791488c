"""The word tokenizer: a closed vocabulary, nothing lost on the way."""

import pytest
import torch

from t2i.core.config import parse
from t2i.core.errors import UsageError
from t2i.text.tokenizers import TokenizerConfig, tokenize
from t2i.text.words import END, PAD, START, UNKNOWN, WordTokenizer

WORDS = ("a", "red", "cube", "cubes", "and", ".", ",")


def test_layout_of_a_row():
    tokens, mask = WordTokenizer(WORDS, context=8)(["A red CUBE."])
    assert tokens.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert tokens.tolist() == [[START, 4, 5, 6, 9, END, PAD, PAD]]
    assert mask.tolist() == [[True] * 6 + [False] * 2]


def test_empty_and_unknown():
    tokenizer = WordTokenizer(WORDS, context=5)
    tokens, mask = tokenizer(["", "a mauve cube"])
    assert tokens.tolist() == [[START, END, PAD, PAD, PAD], [START, 4, UNKNOWN, 6, END]]
    assert mask.sum(1).tolist() == [2, 5]
    assert tokenizer.unknown("a Mauve cube & two teapots") == ["mauve", "two", "teapots"]
    plain, shouted = (tokenizer([caption])[0].tolist() for caption in ("a red cube", "“A Red CUBE!!”"))
    assert plain == shouted, "marks that the vocabulary lacks say nothing"
    assert tokenizer.unknown("a red cube") == []


def test_long_captions_keep_their_end_token():
    tokenizer = WordTokenizer(WORDS, context=4)
    tokens, mask = tokenizer(["red cubes and a cube"])
    assert tokens.tolist() == [[START, 5, 7, END]]
    assert mask.all()
    assert tokenizer.truncated("red cubes and")
    assert not tokenizer.truncated("red cubes")


def test_an_empty_caption_has_no_token_and_padding_of_a_whole_batch_can_be_left_away():
    tokenizer = WordTokenizer(WORDS, context=8)
    captions = ["", "a red cube", " "]
    tokens, mask = tokenize(tokenizer, captions)
    assert mask.sum(dim=1).tolist() == [0, 5, 0]
    short, visible = tokenize(tokenizer, captions, trim=True)
    assert torch.equal(short, tokens[:, :5])
    assert torch.equal(visible, mask[:, :5])
    assert [x.shape for x in tokenize(tokenizer, [""], trim=True)] == [(1, 1), (1, 1)]


def test_length_counts_special_ids():
    tokenizer = WordTokenizer(WORDS, context=16)
    assert len(tokenizer) == 11
    assert tokenizer.vocabulary == WORDS
    assert tokenizer([])[0].shape == (0, 16)


@pytest.mark.parametrize(
    ("words", "context", "message"),
    [(("a", "a"), 8, "different"), (("Red",), 8, "Red"), (("two words",), 8, "two words"), (("a",), 1, "1")],
)
def test_bad_vocabularies_are_refused(words, context, message):
    with pytest.raises(ValueError, match=message):
        WordTokenizer(words, context)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ["a", "a"]}, "words: the vocabulary has 2 words, only 1 of them different"),
        ({"words": ["A"]}, "words: not single lower-case words: 'A'"),
        ({"context": 1}, "context: input should be greater than or equal to 2, got 1"),
        ({"kind": "clip", "context": 1}, "context: input should be greater"),
    ],
)
def test_a_config_that_gives_no_tokenizer_is_refused_when_it_is_read(changes, message):
    with pytest.raises(UsageError, match=message):
        parse(changes, TokenizerConfig)


def test_one_string_is_not_a_batch():
    with pytest.raises(ValueError, match="list"):
        WordTokenizer(WORDS)("a red cube")
