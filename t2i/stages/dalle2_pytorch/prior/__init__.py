"""The diffusion prior of DALLE2-pytorch, whose weights LAION published in 2022: another transformer for the same task.

In: what a frozen CLIP says of a sentence, `TextFeatures`. Out: CLIP image embeddings (B, D), near unit norm.

    t2i convert latest.pth --out FOLDER --set era=C     read published weights (`.convert`)
    sample(prior, text, …)                              draw embeddings, best of two by default (`.sample`)

Its attention changed three times, and keys tell that only in part, so a checkpoint must say from when it is: `era` in
the config.
"""

from t2i.stages.dalle2_pytorch.prior.convert import layouts
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior, LaionPriorConfig
from t2i.stages.dalle2_pytorch.prior.policy import clip_facts, complete, draw
from t2i.stages.dalle2_pytorch.prior.presets import PRESETS
from t2i.stages.dalle2_pytorch.prior.sample import check
from t2i.stages.dalle2_pytorch.prior.task import LaionPriorOptions, LaionPriorTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="laion_prior",
    config=LaionPriorConfig,
    model=LaionPrior,
    options=LaionPriorOptions,
    task=LaionPriorTask,
    presets=PRESETS,
    makes="embeddings",
    draw=draw,
    check=check,
    clip_facts=clip_facts,
    rough_norm=True,
    complete=complete,
    layouts=layouts,
)
