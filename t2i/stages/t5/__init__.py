"""T5: a frozen encoder of sentences, whose states latent diffusion reads (DALL-E 3, appendix A).

In: sentences. Out: states (B, L, W) of their tokens, their masked mean (B, W), mask (B, L).

    t2i train configs/shapes/t5.yaml                         train one of our own, by span corruption
    T5(T5Config(source="google/t5-v1_1-xxl")).encode_text([…])
                                                             use one of transformers, by name or folder
    t2i data encode SRC --text FOLDER …                      keep its states beside latents
"""

from t2i.stages.stage import Stage
from t2i.stages.t5.model import T5, T5Config
from t2i.stages.t5.policy import complete, example
from t2i.stages.t5.task import T5Options, T5Task

STAGE = Stage(
    name="t5",
    config=T5Config,
    model=T5,
    options=T5Options,
    task=T5Task,
    readers=lambda model: [model.tokenizer],
    example=example,
    complete=complete,
)
