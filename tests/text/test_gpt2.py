"""GPT-2's tokeniser as GLIDE uses it, here with a small vocabulary of its own."""

from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer

from t2i.core.errors import UsageError
from t2i.text.tokenizers import GPT2Tokenizer, TokenizerConfig, tokenize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpt2")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["a corgi in a field, an oil painting of a corgi"] * 3, vocab_size=290, min_frequency=1)
    bpe.save_model(str(path))
    return path


def test_rows_hold_no_start_and_no_end(folder: Path) -> None:
    tokenizer = GPT2Tokenizer(12, str(folder))
    tokens, mask = tokenizer(
        ["a corgi", "A Corgi", "an oil painting of a corgi in a field of corgi, oil, an oil field", ""]
    )
    assert tokens.shape == mask.shape == (4, 12)
    assert torch.equal(tokens[0], tokens[1]), "lower-cased"
    spoken = int(mask[0].sum())
    assert 0 < spoken < 12
    assert (tokens[0, spoken:] == 50256).all()
    assert mask[0].tolist() == [True] * spoken + [False] * (12 - spoken)
    assert tokens[0, :spoken].tolist() == tokenizer._tokenizer("a corgi")["input_ids"]
    assert torch.equal(tokenizer(["\ufeffa corgi"])[0][0], tokens[0]), "a byte order mark is no word"
    assert mask[2].all(), "cut"
    assert not mask[3].any()


def test_what_is_said_of_captions(folder: Path) -> None:
    tokenizer = GPT2Tokenizer(4, str(folder))
    assert tokenizer.room == 4
    assert tokenizer.truncated("zebra crossing")
    assert not tokenizer.truncated("a")
    assert tokenizer.unknown("a griffin") == []


def test_it_is_saved_as_data(folder: Path) -> None:
    config = TokenizerConfig.model_validate({"kind": "gpt2", "context": 8, "source": str(folder)})
    assert config.vocab_size == 50257
    tokens, mask = tokenize(config.build(), ["a", " "])
    assert tokens.shape == (2, 8)
    assert mask.sum(dim=1).tolist() == [1, 0]


def test_a_folder_without_it_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"neither in the folder .* nor found by that name") as error:
        GPT2Tokenizer(8, str(tmp_path))
    assert "\n" not in str(error.value)
