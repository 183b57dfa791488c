"""CLIP: unit vectors, sizes, the contrastive loss in closed form, and open_clip's own numbers."""

import math

import pytest
import torch
from conftest import CONTEXT, WORDS, small_clip

from t2i.stages.clip.model import ClipConfig, ClipEncoder
from t2i.stages.clip.task import ClipTask, contrastive_loss


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
    scores = clip.similarity(image, ["a red cube", "a blue cube"])
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
    assert clip.encode_text(["a red cube"]).sequence.shape == (1, 77, 512)
    assert clip.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, 512)
