"""CLIP: unit vectors, sizes, the contrastive loss in closed form, and open_clip's own numbers."""

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from conftest import CONTEXT, WORDS, small_clip
from tiny_run import contrast

from t2i.io import weights
from t2i.nn.contrastive import contrastive_loss
from t2i.stages.clip.model import OPENAI_MEAN, OPENAI_STD, ClipConfig, ClipEncoder, build_clip
from t2i.stages.clip.task import ClipTask
from t2i.text.tokenizers import TokenizerConfig


def test_embeddings_have_unit_norm_and_any_picture_size_is_taken() -> None:
    clip = small_clip()
    for size in (32, 48, 64):
        z = clip.encode_image(torch.rand(2, 3, size, size) * 2 - 1)
        assert z.shape == (2, 16)
        torch.testing.assert_close(z.norm(dim=-1), torch.ones(2))
    text = clip.encode_text(["a red cube", "a blue sphere and a cube"])
    assert text.pooled.shape == (2, 16)
    assert text.sequence.shape == (2, 8, 32)  # as long as the longest sentence
    assert text.mask.sum(dim=1).tolist() == [5, 8]
    torch.testing.assert_close(text.pooled.norm(dim=-1), torch.ones(2))


def test_text_embedding_equals_open_clips() -> None:
    clip = small_clip()
    tokens, mask = clip.tokenizer(["a red cube", "a blue sphere and a cube"])
    torch.testing.assert_close(clip.encode_tokens(tokens, mask).pooled, clip.clip.encode_text(tokens, normalize=True))


def test_padding_does_not_change_a_caption() -> None:
    clip = small_clip()
    alone = clip.encode_text(["a red cube"]).pooled
    torch.testing.assert_close(clip.encode_text(["a red cube", "a blue sphere and a green cube"]).pooled[:1], alone)


def test_loss_is_the_closed_form_for_orthogonal_pairs() -> None:
    z = torch.eye(4)
    loss, accuracy = contrastive_loss(z, z, torch.arange(4), torch.tensor(10.0))
    expected = -math.log(math.exp(10) / (math.exp(10) + 3))
    torch.testing.assert_close(loss, torch.full((4,), expected))
    assert accuracy.tolist() == [1, 1, 1, 1]


def test_equal_captions_are_all_matches() -> None:
    z = torch.eye(2).repeat_interleave(2, dim=0)
    loss, accuracy = contrastive_loss(z, z, torch.tensor([1, 1, 2, 2]), torch.tensor(20.0))
    torch.testing.assert_close(loss, torch.full((4,), math.log(2)), rtol=1e-4, atol=1e-4)
    assert accuracy.tolist() == [1, 1, 1, 1]
    assert contrastive_loss(z, z, torch.arange(4), torch.tensor(20.0))[1].mean() < 1


def test_two_processes_contrast_as_one(tmp_path: Path) -> None:
    contrast(tmp_path, 0, 1)
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=contrast, args=(tmp_path, rank, 2)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    whole, *parts = (weights.load_tensors(tmp_path, name) for name in ("1-0", "2-0", "2-1"))
    assert 0 < whole["hit"].mean() < 1
    for name in ("loss", "hit"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])
    for part in parts:
        torch.testing.assert_close(part["grad"], whole["grad"])


def test_a_few_steps_teach_red_from_blue() -> None:
    clip = small_clip().train()
    task = ClipTask(clip)
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    image = torch.full((8, 3, 32, 32), -1.0)
    image[:4, 0], image[4:, 2] = 1.0, 1.0
    captions = ["a red cube"] * 4 + ["a blue cube"] * 4
    for _ in range(30):
        loss = task.loss({"image": image + 0.1 * torch.randn_like(image), "caption": captions})["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clip.eval()
    scores = clip.encode_image(image) @ clip.encode_text(["a red cube", "a blue cube"]).pooled.T
    assert (scores[:4, 0] > scores[:4, 1]).all()
    assert (scores[4:, 1] > scores[4:, 0]).all()


def test_resnet_tower_and_published_architecture() -> None:
    config = {
        "embed_dim": 8,
        "vision": {"image_size": 32, "width": 8, "layers": [1, 1, 1, 1], "head_width": 16},
        "text": {"width": 16, "layers": 1, "heads": 1},
        "tokenizer": {"context": CONTEXT, "words": WORDS},
    }
    clip = ClipEncoder(ClipConfig.model_validate(config)).eval()
    assert clip.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 8)
    with pytest.raises(ValueError, match="ViT-B-23"):
        ClipEncoder(ClipConfig(architecture="ViT-B-23"))


@pytest.mark.slow
def test_an_architecture_of_open_clip_by_name() -> None:
    clip = ClipEncoder(
        ClipConfig.model_validate({"architecture": "ViT-B-32", "tokenizer": {"kind": "clip", "context": 77}})
    )
    clip.eval()
    assert clip.dim == 512
    assert clip.encode_text(["a red cube"]).sequence.shape == (1, 5, 512)  # the longest caption with its marks
    assert clip.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 512)


def test_the_temperature_is_bounded_and_still_learns() -> None:
    clip = small_clip().train()
    task = ClipTask(clip)
    with torch.no_grad():
        clip.clip.logit_scale.fill_(9.0)
    task.loss({"image": torch.rand(2, 3, 32, 32), "caption": ["a red cube", "a cube"]})["loss"].mean().backward()
    assert clip.clip.logit_scale.item() == pytest.approx(math.log(100))
    assert clip.clip.logit_scale.grad.abs() > 0


def test_pixel_statistics_are_not_weights_and_normalise() -> None:
    clip = small_clip()
    assert not {"mean", "std"} & clip.state_dict().keys()
    other = ClipEncoder(clip.config.model_copy(update={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)})).eval()
    other.load_state_dict(clip.state_dict())
    x = torch.rand(2, 3, 32, 32)
    same = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(other.encode_image(2 * x - 1), clip.encode_image(same), rtol=1e-4, atol=1e-5)


def test_architectures_read_clips_tokens_and_pixels() -> None:
    tokens = {"kind": "clip", "context": 77}
    with pytest.raises(ValueError, match="kind: clip"):
        ClipConfig(architecture="ViT-B-32")
    with pytest.raises(ValueError, match="needs an architecture"):
        ClipConfig(pretrained="openai")
    published = ClipConfig.model_validate({"architecture": "ViT-B-32", "tokenizer": tokens})
    assert (published.mean, published.std) == (OPENAI_MEAN, OPENAI_STD)
    own = ClipConfig.model_validate({"architecture": "ViT-B-32", "tokenizer": tokens, "mean": (0.5, 0.5, 0.5)})
    assert own.mean == ClipConfig().mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="did you mean 'ViT-L-"):
        build_clip(ClipConfig.model_validate({"architecture": "ViT-L-15", "tokenizer": tokens}))


def test_published_weights_are_fetched_once_and_towers_unlike_clips_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip

    asked, tower = [], small_clip().clip

    def create_model(name: str, pretrained: str | None, device: torch.device) -> torch.nn.Module:
        asked.append(pretrained)
        return tower

    monkeypatch.setattr(open_clip, "create_model", create_model)
    tokens = {"kind": "clip", "context": CONTEXT}
    config = ClipConfig.model_validate({"architecture": "ViT-B-32", "pretrained": "openai", "tokenizer": tokens})
    with pytest.raises(ValueError, match="'ViT-B-32' is not two plain CLIP towers"):
        ClipEncoder(config)  # its vocabulary is not CLIP's
    tower.vocab_size = 49408
    saved = ClipEncoder(config).config
    assert (saved.architecture, saved.pretrained) == ("ViT-B-32", None)
    ClipEncoder(ClipConfig.model_validate(saved.model_dump()))
    assert asked == ["openai", "openai", None]
    with pytest.raises(ValueError, match=f"reads {CONTEXT} tokens, tokenizer.context=77"):
        ClipEncoder(config.model_copy(update={"tokenizer": TokenizerConfig(kind="clip", context=77)}))
