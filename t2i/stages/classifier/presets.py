"""Published sizes of classifiers, by name, with the facts that no weight file shows (Dhariwal & Nichol 2021)."""

from typing import Literal

from t2i.diffusion.config import Noise
from t2i.nn.encoder import EncoderConfig
from t2i.stages.classifier.model import ClassifierConfig


def _adm(
    size: int,
    multipliers: tuple[float, ...],
    attention: tuple[int, ...],
    depth: int = 2,
    schedule: Literal["linear", "cosine"] = "linear",
) -> ClassifierConfig:
    encoder = EncoderConfig(
        channels=128, multipliers=multipliers, num_blocks=depth, attention=attention, head_channels=64
    )
    return ClassifierConfig(encoder=encoder, num_classes=1000, image_size=size, diffusion=Noise(schedule=schedule))


PRESETS: dict[str, ClassifierConfig] = {  # of ImageNet; attention at 32, 16 and 8 pixels
    "adm-64-classifier": _adm(64, (1, 2, 3, 4), (2, 4, 8), depth=4, schedule="cosine"),
    "adm-128-classifier": _adm(128, (1, 1, 2, 3, 4), (4, 8, 16)),
    "adm-256-classifier": _adm(256, (1, 1, 2, 2, 4, 4), (8, 16, 32)),
    "adm-512-classifier": _adm(512, (0.5, 1, 1, 2, 2, 4, 4), (16, 32, 64)),
}
"""Published sizes by name."""
