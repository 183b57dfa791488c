"""The decoder: a base diffusion model at 64 pixels that turns conditions into a small picture.

unCLIP (Ramesh et al. 2022, arXiv 2204.06125, section 2.1) on top of GLIDE (Nichol et al. 2021, arXiv 2112.10741),
or on top of what CLIP itself says of a sentence (Karlo);
without text and CLIP ports it is ADM (Dhariwal & Nichol 2021, arXiv 2105.05233) or IDDPM.

In: x_t (B, 3, H, W) in [-1, 1] plus noise, t (B,), and any of tokens (B, L), image embedding (B, D), labels (B,).
Out: eps, and with a learned variance as many channels again (B, 6, H, W).

    t2i train configs/shapes/decoder.yaml                     train it
    Decoder(config)(x_t, t, decoder.condition(Given(…)))      use it (`t2i.stages.decoder.model`)
    convert(state, config, order)                             read published weights (`t2i.stages.decoder.convert`)
"""

from t2i.nn.older import renamed
from t2i.stages.decoder.convert import layouts
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.policy import clip_facts, complete, draw, example, fits, inverted, older, readers, rows, start
from t2i.stages.decoder.presets import PRESETS
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="decoder",
    config=DecoderConfig,
    model=Decoder,
    options=DecoderOptions,
    task=DecoderTask,
    presets=PRESETS,
    makes="pictures",
    draw=draw,
    invert=inverted,
    rows=rows,
    clip_facts=clip_facts,
    readers=readers,
    example=example,
    complete=complete,
    fits=fits,
    start=start,
    layouts=layouts,
    renamed=renamed,
    older=older,
    halved=True,
)
