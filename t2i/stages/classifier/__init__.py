"""A classifier of noised pictures, whose gradient steers a diffusion model to a class.

ADM (Dhariwal & Nichol 2021, arXiv 2105.05233, section 4): the half of the U-Net that goes down, and an
attention pool.

In: x_t (B, 3, S, S) in [-1, 1] plus noise, t (B,). Out: logits (B, num_classes), or their gradient (B, 3, S, S).

    t2i train CONFIG                                               train it (`stage: classifier`), on labelled pictures
    partial(classifier.log_probability_gradient, labels=labels)    steer: the `grad_fn` of `score_guided`
    convert(state, config)                                         read published weights (`.convert`)
"""

from t2i.stages.classifier.convert import layouts
from t2i.stages.classifier.model import Classifier, ClassifierConfig
from t2i.stages.classifier.policy import complete, fits
from t2i.stages.classifier.presets import PRESETS
from t2i.stages.classifier.task import ClassifierOptions, ClassifierTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="classifier",
    config=ClassifierConfig,
    model=Classifier,
    options=ClassifierOptions,
    task=ClassifierTask,
    presets=PRESETS,
    complete=complete,
    fits=fits,
    layouts=layouts,
    halved=True,
)
