"""The autoregressive prior: a CLIP image embedding as a sentence of numbers (Ramesh et al. 2022, section 2.2).

In: what a frozen CLIP says of a sentence, `TextFeatures`. Out: CLIP image embeddings (B, D), of unit norm where
CLIP's are.

    t2i train configs/shapes/ar-prior.yaml             train it
    t2i.stages.ar_prior.sample.sample(model, text, …)  draw embeddings, code after code
    t2i assemble OUT clip=… prior=FOLDER decoder=…     chain it where a diffusion prior would stand
"""

from t2i.stages.ar_prior.model import ArPrior, ArPriorConfig
from t2i.stages.ar_prior.policy import clip_facts, complete, draw, example
from t2i.stages.ar_prior.task import ArPriorOptions, ArPriorTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="ar_prior",
    config=ArPriorConfig,
    model=ArPrior,
    options=ArPriorOptions,
    task=ArPriorTask,
    makes="embeddings",
    draw=draw,
    stepped=False,
    num_evaluations=lambda config, sampling: config.num_codes,
    clip_facts=clip_facts,
    example=example,
    complete=complete,
)
