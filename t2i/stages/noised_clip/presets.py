"""The published noised CLIP, with the facts that no weight file shows."""

from t2i.diffusion.config import Noise
from t2i.stages.noised_clip.model import NoisedClipConfig, TowerConfig
from t2i.text.tokenizers import TokenizerConfig

PRESETS: dict[str, NoisedClipConfig] = {
    "glide-clip": NoisedClipConfig(  # GLIDE (filtered): 86 M parameters for pictures, 72 M for text
        embed_dim=512,
        image_size=64,
        patch_size=4,
        vision=TowerConfig(width=768, layers=12, heads=12),
        text=TowerConfig(width=512, layers=12, heads=8),
        tokenizer=TokenizerConfig(kind="clip", context=77),
        table_size=65536,
        scale=100.0,
        diffusion=Noise(schedule="cosine", num_steps=1000),
    ),
}
"""Published sizes by name."""
