"""The consistency decoder: latents of an autoencoder become a picture in two evaluations of a diffusion network.

DALL-E 3 (Betker et al. 2023, appendix A) draws so what its latent diffusion gives; the network is that of
openai/consistencydecoder, its method that of Song et al. 2023 (arXiv 2303.01469). Convolutions only: it takes any size.

In: latents (B, C, h, w) of about unit variance. Out: pictures (B, 3, h · factor, w · factor) in [-1, 1].

    t2i train configs/shapes/consistency.yaml              train the teacher
    t2i train configs/shapes/consistency-distilled.yaml    distil it to two evaluations
    t2i convert decoder.pt --out FOLDER                    read OpenAI's, of which nothing is run
    sample(decoder, latents, streams)                      use it (`t2i.stages.consistency_decoder.sample`)
"""

from t2i.stages.consistency_decoder.convert import layouts
from t2i.stages.consistency_decoder.model import ConsistencyDecoder, ConsistencyDecoderConfig
from t2i.stages.consistency_decoder.policy import complete, draw, example, fits, num_evaluations, rows
from t2i.stages.consistency_decoder.presets import PRESETS
from t2i.stages.consistency_decoder.task import ConsistencyDecoderOptions, ConsistencyDecoderTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="consistency_decoder",
    config=ConsistencyDecoderConfig,
    model=ConsistencyDecoder,
    options=ConsistencyDecoderOptions,
    task=ConsistencyDecoderTask,
    presets=PRESETS,
    makes="pictures",
    draw=draw,
    stepped=False,
    num_evaluations=num_evaluations,
    rows=rows,
    example=example,
    complete=complete,
    fits=fits,
    layouts=layouts,
)
