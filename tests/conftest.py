"""Small stages and a small pipeline that the tests share; nothing here is trained."""

import os
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported; a GOMP_SPINCOUNT counts more

import pytest
import torch

from t2i.nn.encoder import EncoderConfig
from t2i.nn.ports import Given
from t2i.nn.transformer import TextConfig
from t2i.nn.unet import UNetConfig
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.classifier.model import Classifier, ClassifierConfig
from t2i.stages.clip.model import ClipConfig, ClipEncoder
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.noised_clip.model import NoisedClip, NoisedClipConfig, TowerConfig
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig
from t2i.text.tokenizers import TokenizerConfig

WORDS = ("a", "red", "blue", "green", "cube", "sphere", "and")
CONTEXT = 12


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks are faster on one thread, and sums come out the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _new_accelerator() -> None:
    """accelerate keeps the first device that a process asks for; every test may ask for its own."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


def given(
    tokens: Any = None, mask: Any = None, embedding: Any = None, *, num: int | None = None, clip_text: Any = None,
    labels: Any = None, known: Any = None, image_embedding: Any = None, text_keep: Any = None, clip_keep: Any = None,
) -> Given:  # fmt: skip
    """`Given` for as many pictures as there are rows."""
    embedding = image_embedding if embedding is None else embedding
    rows = [
        tokens,
        embedding,
        labels,
        None if known is None else known[0],
        None if clip_text is None else clip_text.mask,
    ]
    num = num if num is not None else next((len(r) for r in rows if r is not None), 1)
    dropped = {port: ~keep for port, keep in (("text", text_keep), ("clip_image", clip_keep)) if keep is not None}
    text = None if tokens is None else (tokens, mask)
    return Given(num, text, embedding, clip_text, classes=labels, masked=known, dropped=dropped)


def captioned(captions: list[str], n: int) -> dict:
    """A batch of n random pictures of 32 pixels, with captions in turn."""
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(n, 3, 32, 32, generator=generator) * 2 - 1,
        "caption": (captions * n)[:n],
        "seed": list(range(n)),
        "key": [str(i) for i in range(n)],
    }


def small_clip(embed_dim: int = 16) -> ClipEncoder:
    torch.manual_seed(0)
    config = ClipConfig.model_validate(
        {
            "embed_dim": embed_dim,
            "vision": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
            "text": {"width": 32, "layers": 1, "heads": 2},
            "tokenizer": {"kind": "words", "context": CONTEXT, "words": WORDS},
        }
    )
    return ClipEncoder(config).eval()


def small_prior() -> Prior:
    torch.manual_seed(1)
    prior = Prior(PriorConfig(clip_dim=16, text_width=32, context=CONTEXT, width=32, layers=2, heads=2)).eval()
    prior.calibrate(torch.nn.functional.normalize(torch.randn(64, 16), dim=-1))
    return prior


def small_decoder() -> Decoder:
    torch.manual_seed(2)
    tokenizer = TokenizerConfig(words=WORDS, context=CONTEXT)
    config = DecoderConfig(
        unet=UNetConfig(
            channels=32,
            multipliers=(1, 2),
            num_blocks=1,
            attention=(2,),
            head_channels=32,
            context_dim=32,
            patch_size=4,
        ),
        text=TextConfig(width=32, layers=1, heads=2, vocab_size=tokenizer.vocab_size, context=CONTEXT),
        clip_dim=16,
        clip_scale=4.0,
        image_size=32,
        target="v",
        tokenizer=tokenizer,
    )
    return shaken(Decoder(config)).eval()


def small_upsampler(low_size: int, image_size: int) -> Upsampler:
    torch.manual_seed(3)
    unet = UNetConfig(
        channels=32, multipliers=(1, 1), num_blocks=1, attention=(), mid_attention=False, image_channels=3, patch_size=4
    )
    config = UpsamplerConfig(unet=unet, low_size=low_size, image_size=image_size, target="v", schedule="cosine")
    return shaken(Upsampler(config)).eval()


def small_classifier(num_classes: int = 5) -> Classifier:
    torch.manual_seed(4)
    encoder = EncoderConfig(channels=32, multipliers=(1, 1), num_blocks=1, attention=(2,), head_channels=16)
    return shaken(Classifier(ClassifierConfig(encoder=encoder, num_classes=num_classes, image_size=32))).eval()


def small_noised_clip() -> NoisedClip:
    torch.manual_seed(5)
    tower = TowerConfig(width=32, layers=2, heads=2)
    tokenizer = TokenizerConfig(words=WORDS, context=CONTEXT)
    config = NoisedClipConfig(
        embed_dim=16, image_size=32, patch_size=8, vision=tower, text=tower, tokenizer=tokenizer, scale=20.0
    )
    return NoisedClip(config).eval()


def with_diffusion(config: Any, **changes: Any) -> Any:
    """A stage's config with other facts of its diffusion."""
    data = config.model_dump()
    return type(config).model_validate(data | {"diffusion": data["diffusion"] | changes})


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Networks start with zeroed last layers; give them something to say."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model


@pytest.fixture(scope="session")
def pipe() -> DALLE2:
    """Untrained, all five stages, 32 → 64 → 128 px."""
    parts = {
        "clip": small_clip(),
        "prior": small_prior(),
        "decoder": small_decoder(),
        "up256": small_upsampler(32, 64),
        "up1024": small_upsampler(64, 128),
    }
    settings = {
        "steps": {"prior": 4, "decoder": 5, "up256": 3, "up1024": 2},
        "guidance": {"prior": 2.0, "decoder": 3.0},
        "sampler": {"prior": "ddpm", "decoder": "ddim", "up256": "ddim", "up1024": "ddim"},
    }
    return DALLE2(parts, settings, "small").to("cpu", "float32")
