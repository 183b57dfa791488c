"""CLIP: a joint space of pictures and sentences (Radford et al. 2021, arXiv 2103.00020).

In: pictures (B, 3, H, W) in [-1, 1] of any size, and sentences. Out: unit vectors (B, D) for both, and the text
tower's token states (B, L, W) for stages that read the whole sentence.

    t2i train configs/shapes/clip.yaml                       train it
    ClipEncoder.encode_image(pictures), .encode_text(words)  use it (`t2i.stages.clip.model`)
    architecture: ViT-L-14, tokenizer: {kind: clip, context: 77} in a config
                                                             open_clip's two plain towers of that name
    t2i convert text_encoder image_encoder --out FOLDER      read OpenAI's weights as transformers has them

Not every architecture of open_clip is one: those with a tower of another library, another vocabulary or text that
attends both ways (SigLIP, CoCa, CLIPA, multilingual ones) are refused by name.
"""

from t2i.stages.clip.convert import layouts
from t2i.stages.clip.model import ClipConfig, ClipEncoder
from t2i.stages.clip.policy import complete, example, fits
from t2i.stages.clip.presets import PRESETS
from t2i.stages.clip.task import ClipOptions, ClipTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="clip",
    config=ClipConfig,
    model=ClipEncoder,
    options=ClipOptions,
    task=ClipTask,
    presets=PRESETS,
    example=example,
    complete=complete,
    fits=fits,
    layouts=layouts,
    contrastive=lambda options: True,
)
