"""Published sizes of CLIP, by name."""

from t2i.stages.clip.model import OPENAI_MEAN, OPENAI_STD, ClipConfig, TextConfig, VisionConfig
from t2i.text.tokenizers import TokenizerConfig

_VIT_L_14 = ClipConfig(  # OpenAI's, as Karlo and Kandinsky 2.1 use it: 428 M parameters
    embed_dim=768,
    vision=VisionConfig(image_size=224, patch_size=14, width=1024, layers=24),
    text=TextConfig(width=768, layers=12, heads=12),
    tokenizer=TokenizerConfig(kind="clip", context=77),
    quick_gelu=True,
    unit_norm=False,
    mean=OPENAI_MEAN,
    std=OPENAI_STD,
)

PRESETS: dict[str, ClipConfig] = {
    "clip-vit-l-14": _VIT_L_14,
    "clip-vit-l-14-unit": _VIT_L_14.model_copy(update={"unit_norm": True}),  # for LAION's prior, and for training anew
    "clip-vit-l-14-text": _VIT_L_14.model_copy(update={"vision": None}),  # published without the other tower: 124 M
}
