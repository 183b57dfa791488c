"""The decoder of DALLE2-pytorch, whose weights LAION published in 2022: another U-Net for the same task.

In: x_t (B, 3, H, W) in [-1, 1] plus noise, t (B,), a CLIP image embedding (B, D), and CLIP's states of a sentence.
Out: eps, and with a learned variance as many channels again (B, 6, H, W).

    t2i convert latest.pth --out FOLDER --set era=C              read published weights (`.convert`)
    sample(decoder, condition, null, …)                          draw 64 pixel pictures (`.sample`)

Its attention changed while its key names stayed, so a checkpoint must say from when it is: `era` in the config.
"""

from t2i.stages.dalle2_pytorch.decoder.convert import layouts
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoder, LaionDecoderConfig
from t2i.stages.dalle2_pytorch.decoder.policy import clip_facts, complete, draw, inverted
from t2i.stages.dalle2_pytorch.decoder.presets import PRESETS
from t2i.stages.dalle2_pytorch.decoder.sample import check
from t2i.stages.dalle2_pytorch.decoder.task import LaionDecoderOptions, LaionDecoderTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="laion_decoder",
    config=LaionDecoderConfig,
    model=LaionDecoder,
    options=LaionDecoderOptions,
    task=LaionDecoderTask,
    presets=PRESETS,
    makes="pictures",
    draw=draw,
    invert=inverted,
    check=check,
    clip_facts=clip_facts,
    complete=complete,
    layouts=layouts,
)
