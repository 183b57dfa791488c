"""CoCa: who sees what, both losses from one pass, captions that are written back, and the paper's sizes."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import captioned
from small import captioner
from torch import Tensor

from t2i.core.decoding import Decoding
from t2i.core.errors import NonFiniteError, UsageError
from t2i.core.seed import Streams
from t2i.core.types import Encoder
from t2i.evals.flops import cost
from t2i.nn.generate import Cache
from t2i.run import load_run, train
from t2i.stages.captioner.model import Captioner, CaptionerConfig, marks
from t2i.stages.captioner.policy import start
from t2i.stages.captioner.presets import PRESETS
from t2i.stages.captioner.task import CaptionerOptions, CaptionerTask
from t2i.stages.registry import load_stage
from t2i.text.tokenizers import TokenizerConfig
from t2i.text.words import END, START, WordTokenizer

CAPTIONS = ["a red cube", "a blue sphere and a green cube", "a green sphere", "a blue cube and a red cube"]


def batch(num: int = 4) -> dict:
    return captioned(CAPTIONS, num)


def read(model: Captioner, captions: list[str]) -> tuple[Tensor, Tensor]:
    return model.tokenize(captions)


# -- who sees what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 6])
def test_tokens_change_nothing_before_them(k: int) -> None:
    model, image = captioner(), batch()["image"]
    tokens = torch.randint(4, 11, (4, 8))
    others = torch.cat([tokens[:, :k], torch.randint(4, 11, (4, 8 - k))], dim=1)
    mask = torch.ones(4, 8, dtype=torch.bool)
    with torch.no_grad():
        a, b = model(image, tokens, mask), model(image, others, mask)
    assert torch.equal(a.logits[:, :k], b.logits[:, :k])
    assert not torch.equal(a.logits[:, k:], b.logits[:, k:])
    assert not torch.equal(a.text, b.text)


def test_padding_never_changes_what_is_said_of_a_sentence() -> None:
    model = captioner()
    tokens, mask = read(model, [CAPTIONS[0]])
    with torch.no_grad():
        alone = model.read_tokens(tokens, mask)
        for filler in (model.pad, 5):  # whatever stands there
            padded = model.read_tokens(F.pad(tokens, (0, 4), value=filler), F.pad(mask, (0, 4)))
            torch.testing.assert_close(padded[1], alone[1], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(padded[0][:, : tokens.shape[1]], alone[0], rtol=1e-5, atol=1e-6)
        seen = model.read_tokens(F.pad(tokens, (0, 4), value=5), F.pad(mask, (0, 4), value=True))
    assert (seen[1] - alone[1]).abs().max() > 1e-3


def test_the_cls_token_sees_every_real_token_and_is_seen_by_none() -> None:
    model = captioner()
    tokens, mask = read(model, [CAPTIONS[1]])
    with torch.no_grad():
        states, cls = model.read_tokens(tokens, mask)
        for place in range(tokens.shape[1]):
            changed = tokens.clone()
            changed[:, place] = 9 if tokens[0, place] != 9 else 8
            assert (model.read_tokens(changed, mask)[1] - cls).abs().max() > 1e-4
        model.cls += 1
        assert torch.equal(model.read_tokens(tokens, mask)[0], states)
        assert not torch.equal(model.read_tokens(tokens, mask)[1], cls)


def test_captions_depend_on_the_picture_and_sentences_do_not() -> None:
    model, given = captioner(), batch()
    tokens, mask = read(model, given["caption"])
    with torch.no_grad():
        a, b = model(given["image"], tokens, mask), model(given["image"].flip(0), tokens, mask)
    assert (a.logits - b.logits).abs().max() > 1e-3
    assert torch.equal(a.text, b.text)
    torch.testing.assert_close(a.image, b.image.flip(0))


def test_one_pass_says_what_the_encoders_say() -> None:
    model, given = captioner(), batch()
    assert isinstance(model, Encoder)
    with torch.no_grad():
        out = model(given["image"], *read(model, given["caption"]))
        torch.testing.assert_close(out.image, model.encode_image(given["image"]))
        text = model.encode_text(given["caption"])
    torch.testing.assert_close(out.text, text.pooled)
    torch.testing.assert_close(out.text.norm(dim=1), torch.ones(4))
    assert text.sequence.shape == (*text.mask.shape, model.text_width)


def test_clips_padding_is_no_exclamation_mark() -> None:
    model = captioner(tokenizer=TokenizerConfig(kind="clip", context=12))
    tokens, mask = read(model, ["a cube!", "a cube"])
    assert tokens[0].tolist() == [49406, 320, 11353, 256, 49407]
    assert tokens[1].tolist()[-1] == model.pad == 49408
    assert mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    task = CaptionerTask(model)
    zero = read(model, ["!"])[0].clone()
    zero[0, 1] = 0  # the token that pads in open_clip is a token here
    task.model.tokenize = lambda captions: (zero, torch.ones_like(zero, dtype=torch.bool))  # type: ignore[method-assign]
    before = task.loss({"image": batch(1)["image"], "caption": ["!"]})["captioning"]
    model.tokens.weight.data[0] += 1
    assert not torch.equal(before, task.loss({"image": batch(1)["image"], "caption": ["!"]})["captioning"])
    assert model.tokenizer.decode([49406, 320, 11353, 49407]) == "a cube"


# -- losses ------------------------------------------------------------------------------------------------------------


def test_losses_are_the_definitions() -> None:
    model, given = captioner(), batch()
    losses = CaptionerTask(model, CaptionerOptions(contrastive=0.5, captioning=3.0)).loss(given)
    tokens, mask = read(model, given["caption"])
    out = model(given["image"], tokens, mask)
    for row, caption in enumerate(given["caption"]):
        ids = model.tokenizer([caption])[0][0][: len(caption.split()) + 2]
        log_p = out.logits[row, : len(ids) - 1].log_softmax(dim=1)
        words = -log_p.gather(1, ids[1:, None]).mean()
        torch.testing.assert_close(losses["captioning"][row], words)
        right = (log_p.argmax(dim=1) == ids[1:]).float().mean()
        torch.testing.assert_close(losses["tokens"][row], right)
    scores = out.image @ out.text.T / 0.07
    match = torch.arange(4)
    both = (F.cross_entropy(scores, match) + F.cross_entropy(scores.T, match)) / 2
    torch.testing.assert_close(losses["contrastive"].mean(), both)
    torch.testing.assert_close(losses["loss"], 0.5 * losses["contrastive"] + 3 * losses["captioning"])


def test_a_caption_alone_or_beside_longer_ones_costs_the_same() -> None:
    task = CaptionerTask(captioner())
    given = batch()
    short = {key: value[:1] for key, value in given.items()}
    torch.testing.assert_close(task.loss(short)["captioning"], task.loss(given)["captioning"][:1])


def test_an_untrained_captioner_knows_nothing_but_is_not_sure_of_it() -> None:
    losses = CaptionerTask(captioner()).loss(batch())
    vocabulary = captioner().pad
    assert losses["captioning"].mean() < 2 * math.log(vocabulary)


@pytest.mark.parametrize("tied", [True, False])
def test_four_pairs_are_learned_by_heart_and_written_back(tied: bool) -> None:
    one = {"width": 32, "layers": 1, "heads": 2}
    model, given = captioner(tied=tied, vision=one, text=one).train(), batch()
    task = CaptionerTask(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(80):
        optimizer.zero_grad()
        task.loss(given)["loss"].mean().backward()
        optimizer.step()
    model.eval()
    losses = task.loss(given)
    assert losses["captioning"].mean() < 0.05
    assert losses["tokens"].tolist() == losses["retrieval"].tolist() == [1.0] * 4
    assert model.caption(given["image"]) == given["caption"]
    assert task.sample_captions(given) == given["caption"]
    assert model.caption(given["image"], Decoding(num_beams=3)) == given["caption"]
    similarity = model.encode_text(given["caption"]).pooled @ model.encode_image(given["image"]).T
    assert similarity.argmax(dim=1).tolist() == [0, 1, 2, 3]


# -- writing -----------------------------------------------------------------------------------------------------------


def test_cached_is_uncached() -> None:
    model, image = captioner(), batch()["image"]
    tokens, mask = torch.randint(4, 11, (4, 10)), torch.ones(4, 10, dtype=torch.bool)
    with torch.no_grad():
        whole, cache = model(image, tokens, mask).logits, model.begin(image)
        for first, last in ((0, 3), (3, 4), (4, 7), (7, 10)):
            logits, cache = model.step(tokens[:, first:last], cache)
            real = [i for i in range(model.pad) if i not in marks(model.config.tokenizer)[1]]
            torch.testing.assert_close(logits[:, real], whole[:, last - 1, real], rtol=1e-4, atol=1e-5)


def test_marks_are_never_written_and_a_caption_fits_the_network() -> None:
    model, image = captioner(), batch()["image"]
    streams = Streams(range(4))
    how = Decoding(temperature=2.0, min_length=10)
    texts = model.caption(image, how, streams)
    assert all(len(text.split()) in (10, 11) and not model.tokenizer.unknown(text) for text in texts)
    with pytest.raises(ValueError, match="max_length=12, but there is room for 11 tokens"):
        model.caption(image, Decoding(max_length=12))


def test_a_row_is_written_the_same_alone_and_in_a_batch() -> None:
    model, image = captioner(), batch()["image"]
    how = Decoding(temperature=1.0, top_p=0.95)
    together = model.caption(image, how, Streams([3, 4, 5, 6]))
    alone = [model.caption(image[i : i + 1], how, Streams([3 + i]))[0] for i in range(4)]
    assert together == alone
    assert len(set(together)) > 1


def test_half_precision_writes_nearly_the_same() -> None:
    model, given = captioner(), batch()
    tokens, mask = read(model, given["caption"])
    with torch.no_grad():
        whole = model(given["image"], tokens, mask)
        with torch.autocast("cpu", torch.bfloat16):
            auto = model(given["image"], tokens, mask)
        half = model.to(torch.bfloat16)(given["image"], tokens, mask)
    for out in (auto, half):
        assert out.image.dtype == out.logits.dtype == torch.float32
        torch.testing.assert_close(out.logits, whole.logits, rtol=0.05, atol=0.05)
        torch.testing.assert_close(out.text, whole.text, rtol=0.05, atol=0.05)
    assert len(model.caption(given["image"], Decoding(num_beams=2))) == 4


def test_weights_that_are_no_numbers_write_nothing() -> None:
    model = captioner()
    model.positions.data[3] = torch.nan
    with pytest.raises(NonFiniteError, match="logits that are no numbers"):
        model.caption(batch()["image"])


def test_a_prompt_is_continued() -> None:
    model, image = captioner(), batch()["image"]
    assert all(text.startswith("a red") for text in model.caption(image, prompt="a red"))
    with pytest.raises(ValueError, match="prompt='a shiny cube' has words that this captioner does not know: shiny"):
        model.caption(image, prompt="a shiny cube")
    with pytest.raises(ValueError, match="is longer than the captions"):
        model.caption(image, prompt="a " * 11)


def test_words_are_put_together_as_they_were_taken_apart() -> None:
    words = WordTokenizer(("a", "cube", "cone", ",", ".", ":", "and"))
    for text in ("a cube, a cone and a cube. a: cone.", "", "cube"):
        tokens, mask = words([text])
        assert tokens[0, 0] == START
        assert tokens[0, mask[0]][-1] == END
        assert words.decode(tokens[0].tolist()) == text


# -- sizes and configs -------------------------------------------------------------------------------------------------

TABLE = {"coca-base": (86e6, 297e6, 383e6), "coca-large": (303e6, 484e6, 787e6), "coca-2.1b": (1e9, 1.1e9, 2.1e9)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_count_what_the_papers_table_says(name: str) -> None:
    """The table has round numbers, for the largest of one or two digits; poolers, projections and positions, 1.5 % of
    the smallest, are not in it."""
    config = PRESETS[name]
    with torch.device("meta"):
        model = Captioner(config)

    def count(*parts: torch.nn.Module) -> int:
        return sum(p.numel() for part in parts for p in part.parameters())

    vision, text, whole = TABLE[name]
    loose = 0.08 if name == "coca-2.1b" else 0.004
    tables = 2 * 64_000 * config.text.width  # of the paper's vocabulary, to read and to write
    assert count(model.vision, model.patches, model.norm_vision) == pytest.approx(vision, rel=loose)
    assert count(model.unimodal, model.multimodal) + tables == pytest.approx(text, rel=loose)
    ours = 2 * (config.tokenizer.vocab_size + 0.5) * config.text.width  # one more row for padding
    assert count(model) - ours + tables == pytest.approx(whole, rel=0.06 if name == "coca-2.1b" else 0.016)
    assert model.num_patches == 256


def test_a_captioner_of_larger_pictures_starts_from_one_of_smaller() -> None:
    small, large = captioner(), captioner(image_size=64)  # 4 × 4 patches, 8 × 8
    state = start(small.state_dict(), large)
    large.load_state_dict(state)
    assert start(before := small.state_dict(), small) is before
    flat = dict(small.state_dict(), places=torch.ones_like(small.places))
    torch.testing.assert_close(start(flat, large)["places"], torch.ones(64, 32))


def test_a_captioner_can_be_counted() -> None:
    found = cost(captioner())
    assert found is not None
    assert found.once > found.step > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.text.heads=5", r"model.text: width=\d+ is not a multiple of heads=5"),
        ("model.stem=[16,16,16,16]", "patch_size=8 is not a multiple of 16, by which the stem shrinks"),
        ("model.patch_size=7", r"image_size=\d+ cannot be cut into patches of patch_size=7"),
        ("model.tokenizer.kind=gpt2", "kind='gpt2' marks neither start nor end"),
        ("task={contrastive: 0, captioning: 0}", "leave nothing to learn"),
        ("task.captioning=-1", "task.captioning"),
        ("data.size=32", r"data.size=32 must equal model.image_size"),
    ],
)
def test_bad_configs_are_one_line(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        train("configs/shapes/captioner.yaml", [change, f"train.out={tmp_path}"])
    assert "\n" not in str(caught.value)


def test_fine_tunings_start_from_the_base_and_learn_captions_alone(tmp_path: Path) -> None:
    few = ["train.steps=1", "train.batch_size=2", "train.num_samples=2", "train.val_every=0", "data.num_workers=0"]
    few += [
        "model.text={width: 32, layers: 1, heads: 2}",
        "model.vision={width: 32, layers: 1, heads: 2}",
    ]
    base, kinds = tmp_path / "base", {}
    train("configs/shapes/captioner.yaml", [*few, f"train.out={base}", "save_dtype=float32"])
    first = load_run("configs/shapes/captioner.yaml", [])
    assert first.data.captions == {"alt": 1}
    for name in ("short", "descriptive"):
        path = f"configs/shapes/captioner-{name}.yaml"
        run = load_run(path, [])
        assert run.model == first.model
        assert run.task.contrastive == 0  # type: ignore[attr-defined]
        assert run.data.captions == {name: 1}
        train(path, [*few, f"train.out={tmp_path / name}", f"init={base}", "optim.lr=1e-30", "save_dtype=float32"])
        kinds[name] = load_stage(tmp_path / name)
        assert len(list((tmp_path / name / "samples").glob("step-*.png"))) == 2
    for tuned in kinds.values():
        for key, value in load_stage(base).state_dict().items():
            torch.testing.assert_close(tuned.state_dict()[key], value)


def test_micro_batches_of_one_are_too_small_for_contrast_alone(tmp_path: Path) -> None:
    path, few = "configs/shapes/captioner.yaml", ["train.batch_size=2", "train.accumulate=2", "train.steps=1"]
    few += ["train.sample_every=0", "train.val_every=0", "data.num_workers=0", f"train.out={tmp_path}"]
    with pytest.raises(UsageError, match="a contrastive loss tells a picture's caption from the others"):
        train(path, few)
    train(path, [*few, "task.contrastive=0"])


def test_the_config_of_the_paper_is_its_preset() -> None:
    run = load_run("configs/dalle3/captioner.yaml", [])
    assert isinstance(run.model, CaptionerConfig)
    assert run.model == PRESETS["coca-base"]
    assert (run.train.batch_size, run.train.steps, run.optim.lr) == (65536, 500_000, 8e-4)


def test_a_cache_counts_what_was_read() -> None:
    assert Cache().num_tokens == 0


def test_a_stem_shrinks_pictures_before_they_are_cut() -> None:
    """As many tokens as without, and each sees beyond its patch: one pixel changes those of its neighbours, too."""
    stemmed = captioner(stem=(8, 16))
    assert stemmed.patches.weight.shape[-1] == 2
    image = torch.zeros(1, 3, 32, 32)
    with_pixel = image.clone()
    with_pixel[:, :, 8, 8] = 1  # the first of a patch
    changed = (stemmed.patches(stemmed.stem(with_pixel)) - stemmed.patches(stemmed.stem(image))).abs().sum(1)[0]
    assert changed.shape == (4, 4)
    assert changed[1, 1] > 0
    assert stemmed.read_image(image).shape == captioner().read_image(image).shape
