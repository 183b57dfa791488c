"""The rewriter learns pairs of captions, sees nothing that follows, and writes the same with its cache as without."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_data import make_tar, picture
from pydantic import ValidationError
from small import rewriter

from t2i.core.seed import Streams
from t2i.data import shapes
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.data.source import Needs
from t2i.run import load_run, train
from t2i.stages.registry import load_stage, stage
from t2i.stages.rewriter.model import Rewriter, RewriterConfig
from t2i.stages.rewriter.task import RewriterTask
from t2i.text.tokenizers import TokenizerConfig

PAIRS = [
    ("a red cube", "a red cube and a blue sphere"),
    ("a sphere", "a green sphere"),
    ("blue", "a a blue cube and a green cube and red"),
    ("a cube and a sphere", "green"),
]


def batch() -> dict[str, Any]:
    return {"short": [a for a, _ in PAIRS], "descriptive": [b for _, b in PAIRS], "seed": [0, 1, 2, 3]}


def learned(model: Rewriter, steps: int = 120) -> Rewriter:
    task, optimizer = RewriterTask(model), torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(batch())["loss"].mean().backward()
        optimizer.step()
    return model.eval()


def test_four_pairs_are_learned_and_written_back() -> None:
    model = learned(rewriter())
    with torch.no_grad():
        losses = RewriterTask(model).loss(batch())
    assert float(losses["loss"].max()) < 0.05
    assert losses["accuracy"].tolist() == [1.0] * 4
    assert model.rewrite([a for a, _ in PAIRS]) == [b for _, b in PAIRS]
    assert RewriterTask(model).metrics(batch())["words"] == pytest.approx((6 + 3 + 8 + 1) / 4, abs=0.8)


def test_a_token_changes_nothing_before_it() -> None:
    model = rewriter()
    tokens, _ = model.pairs(*zip(*PAIRS, strict=True))
    before = model(tokens)
    for place in range(1, tokens.shape[1]):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 1) % 8
        assert torch.equal(model(changed)[:, :place], before[:, :place])


def test_the_cache_changes_nothing() -> None:
    model = rewriter()
    tokens, _ = model.pairs(["a red cube"], ["a blue sphere"])
    whole, context = model(tokens), None
    for place in range(tokens.shape[1]):
        logits, context = model.extend(tokens[:, place : place + 1], context)
        torch.testing.assert_close(logits[:, 0], whole[:, place], atol=1e-5, rtol=1e-5)


def test_the_loss_is_that_of_the_second_sentence_and_of_its_end() -> None:
    """Against a sum over its tokens, one by one; padding and the first sentence count for nothing."""
    model = rewriter()
    losses = RewriterTask(model).loss(batch())["loss"].detach()
    for i, (a, b) in enumerate(PAIRS):
        tokens, written = model.pairs([a], [b])
        assert int(written.sum()) == len(b.split()) + 1
        assert int(tokens[0, 0]) == 1
        assert int(tokens[0, len(a.split()) + 1]) == model.separator
        log_p = model(tokens)[0].detach().log_softmax(-1)
        places = written[0].nonzero()[:, 0].tolist()
        nats = [-float(log_p[place - 1, tokens[0, place]]) for place in places]
        assert float(losses[i]) == pytest.approx(sum(nats) / len(nats), rel=1e-4)


def test_words_are_drawn_from_the_stream_of_each_sentence() -> None:
    model = rewriter()
    draw = {"temperature": 1.0}
    both = model.rewrite(["a cube", "a red cube"], streams=Streams([4, 5]), **draw)
    assert model.rewrite(["a red cube"], streams=Streams([5]), **draw) == both[1:]
    assert model.rewrite(["a red cube"], streams=Streams([6]), **draw) != both[1:]
    with pytest.raises(ValueError, match=r"temperature=1.0 draws tokens: give 1 streams"):
        model.rewrite(["a cube"], temperature=1.0)


def test_nothing_is_written_that_is_no_word() -> None:
    model = rewriter()
    with torch.no_grad():
        model.tokens.weight[[0, 1, 3, model.separator]] *= 50
    for text in model.rewrite(["a cube"] * 20, temperature=3.0, streams=Streams(range(20))):
        assert model.tokenizer.unknown(text) == []
    assert all(len(text.split()) <= 11 for text in model.rewrite(["a cube"]))


def test_clip_reads_and_writes_any_word() -> None:
    tokenizer = TokenizerConfig(kind="clip", context=12)
    model = rewriter(tokenizer=tokenizer)
    tokens, written = model.pairs(["a corgi"], ["a fluffy corgi on a beach"])
    assert tokens[0, 0] == 49406
    assert model.tokenizer.decode(tokens[0, written[0]].tolist()) == "a fluffy corgi on a beach"
    assert isinstance(model.rewrite(["a corgi"])[0], str)


def test_a_tokeniser_without_marks_is_refused() -> None:
    with pytest.raises(ValidationError, match="marks neither start nor end"):
        RewriterConfig(tokenizer=TokenizerConfig(kind="gpt2"))
    with pytest.raises(ValidationError, match="width=30 is not a multiple of heads=4"):
        RewriterConfig(width=30, heads=4)


def test_scenes_give_both_captions_of_one_scene_and_no_picture() -> None:
    batches = iter(Loader(DataConfig(num_workers=0), seed=0, batch_size=8, needs=Needs(RewriterTask.keys)))
    got = next(batches)
    assert "image" not in got
    for key, short, long in zip(got["key"], got["short"], got["descriptive"], strict=True):
        assert (
            shapes.texts([int(key)])["captions"][0] | {"short": short, "descriptive": long}
            == shapes.texts([int(key)])["captions"][0]
        )


def test_recaptioned_shards_give_both_captions(tmp_path: Path) -> None:
    def own(i: int) -> bytes:
        return json.dumps({"captions": {"short": f"s{i}", **({"descriptive": f"d{i}"} if i else {})}}).encode()

    make_tar(
        tmp_path / "0.tar", [(f"{i}.{t}", d) for i in range(3) for t, d in (("png", picture(i)), ("json", own(i)))]
    )
    config = DataConfig(source=str(tmp_path / "0.tar"), num_workers=0, val_fraction=0)
    loader = Loader(config, seed=0, batch_size=6, needs=Needs(RewriterTask.keys))
    got = next(iter(loader))
    assert set(zip(got["short"], got["descriptive"], strict=True)) == {("s1", "d1"), ("s2", "d2")}
    assert loader.bad["no descriptive caption"] >= 1


def test_a_run_of_a_few_steps_leaves_a_rewriter(tmp_path: Path) -> None:
    small = ["model.width=32", "model.layers=1", "model.heads=2", "data.num_workers=0", "train.steps=3"]
    more = ["train.batch_size=4", "train.val_batches=1", "train.val_every=3"]
    train("configs/shapes/rewriter.yaml", [*small, *more, f"train.out={tmp_path}"])
    model: Any = load_stage(tmp_path, "rewriter")
    assert set(model.rewrite(["a red cube"])[0].replace(",", " ,").replace(".", " .").split()) <= set(shapes.WORDS)


def test_the_bundled_size_has_room_for_the_longest_pair() -> None:
    run = load_run("configs/shapes/rewriter.yaml", [])
    config: Any = stage("rewriter").complete(run.model, {}, run.data)
    model = Rewriter(config)
    assert sum(p.numel() for p in model.parameters()) == 433_152
    for texts in shapes.texts(range(300))["captions"]:
        assert not model.tokenizer.truncated(texts["descriptive"])
