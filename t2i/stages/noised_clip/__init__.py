"""CLIP for noised pictures, whose gradient steers a diffusion model to a sentence.

GLIDE (Nichol et al. 2021, arXiv 2112.10741, section 2.4) on top of CLIP (Radford et al. 2021, arXiv 2103.00020).

In: x_t (B, 3, S, S) in [-1, 1] plus noise, t (B,), and sentences. Out: unit vectors (B, D) for both, or the gradient
(B, 3, S, S) of how well they agree.

    t2i train CONFIG                                                       train it (`stage: noised_clip`)
    partial(clip.similarity_gradient, text_embedding=clip.encode_text(*clip.tokenize(prompts)))
                                                                           steer: the `grad_fn` of `score_guided`
    convert([image_encoder, text_encoder], config)                         read published weights (`.convert`)
"""

from t2i.stages.noised_clip.convert import layouts
from t2i.stages.noised_clip.model import NoisedClip, NoisedClipConfig
from t2i.stages.noised_clip.policy import complete, fits
from t2i.stages.noised_clip.presets import PRESETS
from t2i.stages.noised_clip.task import NoisedClipOptions, NoisedClipTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="noised_clip",
    config=NoisedClipConfig,
    model=NoisedClip,
    options=NoisedClipOptions,
    task=NoisedClipTask,
    presets=PRESETS,
    complete=complete,
    fits=fits,
    layouts=layouts,
    halved=True,
    contrastive=lambda options: True,
)
