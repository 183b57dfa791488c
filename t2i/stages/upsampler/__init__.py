"""The upsampler: a diffusion model of large pictures, conditioned on the same picture small.

unCLIP (Ramesh et al. 2022, arXiv 2204.06125, section 2.1): convolutions only, trained on crops, any size at sampling.
With text it is GLIDE's upsampler (arXiv 2112.10741), with labels ADM's (arXiv 2105.05233).

In: x_t (B, 3, H, W) in [-1, 1] plus noise, t (B,), low_res (B, 3, h, w) in [-1, 1].
Out: eps, and with a learned variance as many channels again (B, 6, H, W).

    t2i train configs/shapes/up256.yaml                         train it; up1024.yaml for the next size
    Upsampler(config)(x_t, t, upsampler.condition(low_res))     use it (`t2i.stages.upsampler.model`)
    convert(state, config, order)                               read published weights (`t2i.stages.upsampler.convert`)
"""

from t2i.nn.older import renamed
from t2i.stages.stage import Stage
from t2i.stages.upsampler.convert import layouts
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig
from t2i.stages.upsampler.policy import check_tile, complete, draw, example, fits, rows
from t2i.stages.upsampler.presets import PRESETS
from t2i.stages.upsampler.task import UpsamplerOptions, UpsamplerTask

STAGE = Stage(
    name="upsampler",
    config=UpsamplerConfig,
    model=Upsampler,
    options=UpsamplerOptions,
    task=UpsamplerTask,
    presets=PRESETS,
    makes="pictures",
    draw=draw,
    rows=rows,
    check_tile=check_tile,
    example=example,
    complete=complete,
    fits=fits,
    layouts=layouts,
    renamed=renamed,
    halved=True,
)
