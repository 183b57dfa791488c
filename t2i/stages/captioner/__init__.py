"""A captioner: CoCa, which compares pictures with sentences and writes sentences of pictures (Yu et al. 2022, arXiv
2205.01917), as DALL-E 3 trains one to caption its data anew (Betker et al. 2023, section 2).

In: pictures (B, 3, H, W) in [-1, 1] of any size, and sentences. Out: unit vectors (B, E) of both, and captions.

    t2i train configs/shapes/captioner.yaml              train it on the captions that the data has
    t2i train configs/shapes/captioner-short.yaml        from there: captions of the main subject
    t2i train configs/shapes/captioner-descriptive.yaml  from there: captions of everything
    Captioner.caption(pictures, decoding)                write (`t2i.stages.captioner.model`)
    t2i eval captions --model FOLDER                     check what it writes against scenes of the shapes world
"""

from t2i.stages.captioner.model import Captioner, CaptionerConfig
from t2i.stages.captioner.policy import complete, example, fits, start
from t2i.stages.captioner.presets import PRESETS
from t2i.stages.captioner.task import CaptionerOptions, CaptionerTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="captioner",
    config=CaptionerConfig,
    model=Captioner,
    options=CaptionerOptions,
    task=CaptionerTask,
    presets=PRESETS,
    example=example,
    complete=complete,
    fits=fits,
    start=start,
    readers=lambda model: [model.tokenizer],
    contrastive=lambda options: options.contrastive > 0,
)
