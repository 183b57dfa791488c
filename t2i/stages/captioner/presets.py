"""The sizes of CoCa (Yu et al. 2022, table 1), by name.

The paper's vocabulary is SentencePiece's of 64,000, which nobody published; these have CLIP's of 49,408. With as many
as the paper has they would count 389, 798 and 2,212 million parameters, where the table says 383, 787 and 2.1 billion:
poolers, projections and positions are not in its two columns.
"""

from t2i.stages.captioner.model import CaptionerConfig, TowerConfig
from t2i.text.tokenizers import TokenizerConfig


def _coca(vision: TowerConfig, text: TowerConfig) -> CaptionerConfig:
    """Pictures of 288 px in patches of 18, 256 queries, and a text decoder with a table of its own to write from."""
    return CaptionerConfig(
        image_size=288,
        patch_size=18,
        vision=vision,
        text=text,
        num_queries=256,
        embed_dim=text.width,
        tied=False,
        tokenizer=TokenizerConfig(kind="clip", context=77),
    )


PRESETS: dict[str, CaptionerConfig] = {
    "coca-base": _coca(TowerConfig(width=768, layers=12, heads=12), TowerConfig(width=768, layers=12, heads=12)),
    "coca-large": _coca(TowerConfig(width=1024, layers=24, heads=16), TowerConfig(width=1024, layers=12, heads=16)),
    "coca-2.1b": _coca(
        TowerConfig(width=1408, layers=40, heads=16, mlp_ratio=6144.5 / 1408),
        TowerConfig(width=1408, layers=18, heads=16),
    ),
}
