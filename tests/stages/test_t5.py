"""T5: the published encoder's numbers through the path that users take, span corruption, and what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_tools import check, fill_state_dict, load_case, make_input
from safetensors.torch import save_file
from small import TOKENIZER, t5
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers import T5Config as Shape
from typer.testing import CliRunner

from t2i.cli.main import app
from t2i.core.errors import DataError, UsageError
from t2i.core.types import TextEncoder
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.data.source import Needs
from t2i.stages.registry import load_stage, save_stage
from t2i.stages.t5.model import T5, T5Config
from t2i.stages.t5.policy import complete, example
from t2i.stages.t5.task import T5Options, T5Task, hide_spans
from t2i.text.t5 import PretrainedT5

CASE = load_case("t5.json", "dev-t5-gated-gelu")
CAPTIONS = ["a red cube", "a blue sphere and a red cube", "a green cube"]


def weights() -> dict[str, torch.Tensor]:
    return fill_state_dict(CASE["weights"][0]["keys"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden encoder as transformers keeps it, with a tokeniser of 50 words."""
    out = tmp_path_factory.mktemp("t5")
    Shape(**CASE["config"]["T5Config"], architectures=["T5EncoderModel"]).save_pretrained(out)
    save_file(weights(), out / "model.safetensors", metadata={"format": "pt"})
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, 50)}
    pieces = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(out)
    return out


def sentences() -> list[str]:
    """Those whose tokens the golden case reads."""
    rows = make_input(CASE["inputs"]["input_ids"]).tolist()
    return [" ".join(f"w{i}" for i in row if i > 1) for row in rows]


def test_a_folder_of_transformers_gives_the_references_numbers(folder: Path) -> None:
    model = T5(T5Config(source=str(folder)))
    out = model.encode_tokens(*(make_input(CASE["inputs"][name]) for name in ("input_ids", "attention_mask")))
    check(CASE["outputs"]["last_hidden_state"], out.sequence)
    check(CASE["outputs"]["masked_mean"], out.pooled)
    read = model.encode_text(sentences())  # through its own tokeniser
    check(CASE["outputs"]["masked_mean"], read.pooled)
    assert torch.equal(read.mask, out.mask)
    assert model.width == 32
    assert isinstance(model, TextEncoder)


def test_sizes_of_our_own_give_the_same_numbers_from_the_same_weights() -> None:
    config = T5Config(
        width=32, head_width=8, hidden=48, layers=3, heads=4, buckets=16, max_distance=32,
        tokenizer=TOKENIZER.model_copy(update={"context": 12}), sentinels=50 - TOKENIZER.vocab_size,
    )  # fmt: skip
    model = T5(config).eval()
    given = {name.replace("shared", "encoder.embed_tokens"): value for name, value in weights().items()}
    model.load_state_dict(given)
    out = model.encode_tokens(*(make_input(CASE["inputs"][name]) for name in ("input_ids", "attention_mask")))
    check(CASE["outputs"]["last_hidden_state"], out.sequence)
    check(CASE["outputs"]["masked_mean"], out.pooled)


def test_a_stage_with_a_source_keeps_its_name_and_no_weights(folder: Path, tmp_path: Path) -> None:
    model = T5(T5Config(source=str(folder), offload=True, dtype="bfloat16"))
    save_stage(tmp_path, "t5", model)
    loaded: Any = load_stage(tmp_path, expect="t5")
    assert (loaded.config, loaded.state_dict(), list(loaded.parameters())) == (model.config, {}, [])
    counted = example(loaded)
    counted.step(counted.once())
    assert "encoder" not in vars(loaded.pretrained), "nothing is opened before it is used"
    near = T5(T5Config(source=str(folder))).encode_text(sentences()).pooled
    torch.testing.assert_close(loaded.encode_text(sentences()).pooled, near, atol=0.1, rtol=0.1)
    assert {p.dtype for p in loaded.pretrained.encoder.parameters()} == {torch.bfloat16}
    assert (tmp_path / "model.safetensors").stat().st_size < 200


def test_captions_are_cut_before_the_end_token(folder: Path) -> None:
    tokenizer = PretrainedT5(str(folder), context=4).tokenizer
    tokens, mask = tokenizer(["w3 w4 w5 w6 w7", "w3"])
    assert tokens.tolist() == [[3, 4, 5, 1], [3, 1, 0, 0]]
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert tokenizer.truncated("w3 w4 w5 w6")
    assert not tokenizer.truncated("w3 w4 w5")


def opened(source: object) -> Any:
    return PretrainedT5(str(source)).encoder


def test_what_is_no_t5_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="source=nobody/nothing: neither a folder nor a T5") as caught:
        opened("nobody/nothing")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="is no T5 of transformers with safetensors"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match="is a bert of transformers, expected t5 or mt5"):
        opened(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(weights(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="is no T5 of transformers with safetensors"):
        opened(tmp_path)
    for size in (4, 5000):
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:size])
        with pytest.raises(DataError, match=r"is no T5 of transformers with safetensors: .*header"):
            opened(tmp_path)
    lacking = weights()
    del lacking["encoder.block.1.layer.0.layer_norm.weight"]
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"its weights lack 'encoder.block.1.layer.0.layer_norm.weight'"):
        opened(tmp_path)
    with pytest.raises(DataError, match="its tokenizer has no words, so its files are missing"):
        _ = PretrainedT5(str(tmp_path)).tokenizer
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": "wide"}')
    with pytest.raises(DataError, match=r"is no T5 of transformers with safetensors: .*'d_model' expected int"):
        opened(tmp_path)


def test_a_tokenizer_of_which_only_the_config_was_fetched_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a config alone transformers makes a tokeniser that reads every word alike."""
    here = tmp_path / "config alone"
    here.mkdir()
    (here / "config.json").write_bytes((folder / "config.json").read_bytes())
    load = AutoTokenizer.from_pretrained

    def hub(source: str, *, local_files_only: bool, **how: Any) -> Any:
        return load(here if local_files_only else folder, local_files_only=True, **how)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", hub)
    monkeypatch.setattr("t2i.text.t5.offline", lambda: False)
    assert PretrainedT5("some/t5", context=4).tokenizer(["w3 w4"])[0].tolist() == [[3, 4, 1, 0]]
    monkeypatch.setattr("t2i.text.t5.offline", lambda: True)
    with pytest.raises(UsageError, match=r"source=some/t5: .*its tokenizer has no words"):
        _ = PretrainedT5("some/t5").tokenizer


def test_a_caption_says_the_same_alone_and_beside_a_longer_one() -> None:
    model = t5()
    alone, both = model.encode_text(CAPTIONS[:1]), model.encode_text(CAPTIONS)
    torch.testing.assert_close(alone.pooled[0], both.pooled[0])
    torch.testing.assert_close(alone.sequence[0], both.sequence[0, : alone.mask.shape[1]])
    assert model.fingerprint() == t5().fingerprint()
    assert model.fingerprint() != t5(layers=2).fingerprint()


def test_spans_and_what_is_left_make_up_the_caption() -> None:
    generator = torch.Generator().manual_seed(0)
    options, ends = T5Options(rate=0.3, mean_span=2), set()
    for num in range(1, 25):
        tokens = list(range(100, 100 + num))
        for _ in range(20):
            seen, target = hide_spans(tokens, torch.rand(2 * num, generator=generator).tolist(), options, 1000)
            spans: dict[int, list[int]] = {}
            for token in target:
                if token >= 1000:
                    spans[token] = []
                else:
                    spans[max(spans)].append(token)
            assert [t for token in seen for t in spans.get(token, [token])] == tokens
            assert list(spans) == list(range(1000, 1000 + len(spans))), "sentinels count from the first"
            assert all(spans.values()), "no span is empty"
            assert not any(a >= 1000 and b >= 1000 for a, b in pairwise(seen)), "spans never touch"
            hidden = sum(map(len, spans.values()))
            assert hidden == min(max(1, round(0.3 * num)), num)
            ends |= {seen[0] >= 1000, 10 + (seen[-1] >= 1000)} if num > 3 else set()
    assert ends == {False, True, 10, 11}, "captions may begin and end with a hidden span"
    assert hide_spans([], [], options, 1000) == ([], [])


def test_what_is_hidden_follows_from_the_seed_alone() -> None:
    task = T5Task(t5())
    seen, mask, target = task.corrupted(CAPTIONS, [5, 6, 7])
    alone = task.corrupted(CAPTIONS[1:2], [6])
    assert torch.equal(seen[1][mask[1]], alone[0][0][alone[1][0]])
    assert torch.equal(target[1][target[1] >= 0], alone[2][0])
    others = {tuple(task.corrupted(CAPTIONS[1:2], [seed])[0][0].tolist()) for seed in range(40)}
    assert len(others) > 4


def test_losses_of_a_caption_do_not_depend_on_the_others() -> None:
    task = T5Task(t5()).eval()
    both = task.loss({"caption": [*CAPTIONS, ""], "seed": [1, 2, 3, 4]})
    for i, caption in enumerate([*CAPTIONS, ""]):
        alone = task.loss({"caption": [caption], "seed": [1 + i]})
        torch.testing.assert_close(alone["loss"][0], both["loss"][i])
    assert both["accuracy"][3] == 0


def test_training_learns_to_fill_in_words() -> None:
    model = t5(width=32, head_width=16).train()
    torch.manual_seed(0)
    task = T5Task(model, T5Options(rate=0.3))
    (phase,) = task.phases()
    optimizer = torch.optim.Adam(phase.module.parameters(), lr=5e-3)
    pairs = ["a red cube and a blue sphere", "a blue sphere and a red cube", "a green cube and a green sphere"]
    for step in range(120):
        losses = phase.loss({"caption": pairs * 4, "seed": range(step * 12, step * 12 + 12)})
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        optimizer.step()
    held_out = task.eval().loss({"caption": pairs * 8, "seed": range(10**6, 10**6 + 24)})
    assert held_out["accuracy"].mean() > 0.75
    assert held_out["loss"].mean() < 1


def test_too_few_sentinels_and_a_source_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="sentinels=4 are too few for the 6 spans"):
        T5Task(t5(), T5Options(rate=0.5, mean_span=1))
    with pytest.raises(ValueError, match="is read as it is, and not trained"):
        T5Task(T5(T5Config(source=str(folder))))


def test_the_shapes_world_is_read_without_being_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="shapes", size=16, num_workers=0)
    with_pictures = next(iter(Loader(config, seed=0, batch_size=4)))
    monkeypatch.setattr("t2i.data.shapes.render", lambda *_, **__: pytest.fail("a picture was drawn"))
    batch = next(iter(Loader(config, seed=0, batch_size=4, needs=Needs(("caption",)))))
    assert "image" not in batch
    assert batch["caption"] == with_pictures["caption"]
    filled = complete(T5Config(), {}, config)
    assert filled.tokenizer.words
    task = T5Task(T5(filled.model_copy(update={"width": 16, "layers": 1, "heads": 1, "hidden": 16})))
    assert torch.isfinite(task.loss(batch)["loss"]).all()


def test_convert_points_to_an_encoder_where_it_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    argv = ["convert", folder.name, "--network", "t5", "--dtype", "bfloat16", "--out", str(tmp_path / "t5")]
    done = CliRunner().invoke(app, argv)
    assert done.exit_code == 0
    assert f"a t5 of width 32, which reads {folder.name} where it is" in done.output
    monkeypatch.chdir(tmp_path)
    loaded: Any = load_stage("t5")
    assert (loaded.config.source, loaded.config.dtype) == (str(folder), "bfloat16")
    assert loaded.encode_text(["w3"]).sequence.shape == (1, 2, 32)
    for argv in (["a", "b"], ["a", "--set", "x=1"]):
        assert isinstance(
            CliRunner().invoke(app, ["convert", *argv, "--network", "t5", "--out", "x"]).exception, UsageError
        )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = CliRunner().invoke(app, ["convert", "nobody/nothing", "--network", "t5", "--out", "x"]).exception
    assert "neither a folder nor a T5" in str(missing)
    assert not Path("x").exists()
