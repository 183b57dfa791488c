"""The diffusion prior: from a sentence to the CLIP embedding of a picture of it (Ramesh et al. 2022, section 2.2).

In: what a frozen CLIP says of a sentence, `TextFeatures`. Out: CLIP image embeddings (B, D), of unit norm where
CLIP's are.

    t2i train configs/shapes/prior.yaml                train it
    t2i calibrate PRIOR --clip FOLDER --out FOLDER     measure its analytic variances
    t2i.stages.prior.sample.sample(prior, text, …)     draw embeddings, best of two by default
    t2i convert prior.ckpt ViT-L-14_stats.th --out FOLDER   read Karlo's and Kandinsky's weights (`.convert`)
"""

from t2i.stages.prior.convert import layouts
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.prior.policy import clip_facts, complete, draw, example
from t2i.stages.prior.presets import PRESETS
from t2i.stages.prior.task import PriorOptions, PriorTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="prior",
    config=PriorConfig,
    model=Prior,
    options=PriorOptions,
    task=PriorTask,
    presets=PRESETS,
    makes="embeddings",
    draw=draw,
    clip_facts=clip_facts,
    example=example,
    complete=complete,
    layouts=layouts,
)
