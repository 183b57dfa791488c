"""The mathematics of diffusion: no networks; a model is any callable.

schedules     betas, and which steps to keep
process       tables, q_sample, posterior, respacing
prediction    a network's output → Prediction(x_0, eps, log_variance)
analytic      the best variances for a trained network
losses        per-sample training losses and the variational bound
timesteps     which steps are trained how often
likelihood    the whole bound, in bits per dimension
consistency   networks that draw in a few steps: scalings, sampling, distillation
samplers      ddpm, ddim, ddim_invert, dpm_solver_pp_2m
guidance      classifier-free, and by the gradient of a classifier or CLIP
inpaint       keeps what is known of a picture, or begins from one
sphere        between embeddings and between noises: slerp, what text changes, principal components
config        what a network was trained on, as data
sampling      all of these as one setting, and `draw`
"""

from t2i.diffusion.config import Diffusion, Noise
from t2i.diffusion.guidance import ClassifierFree, score_guided
from t2i.diffusion.inpaint import keep_known, noised_start, replaced
from t2i.diffusion.likelihood import bits_per_dim
from t2i.diffusion.losses import diffusion_loss, training_losses
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import SAMPLERS, ddim, ddim_invert, ddpm, dpm_solver_pp_2m
from t2i.diffusion.sampling import Hooks, Sampling, draw
from t2i.diffusion.schedules import SCHEDULES, respaced_steps
from t2i.diffusion.timesteps import LossSecondMoment

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "ClassifierFree",
    "Diffusion",
    "Hooks",
    "LossSecondMoment",
    "ModelDenoiser",
    "Noise",
    "Parametrisation",
    "Process",
    "Sampling",
    "bits_per_dim",
    "ddim",
    "ddim_invert",
    "ddpm",
    "diffusion_loss",
    "dpm_solver_pp_2m",
    "draw",
    "keep_known",
    "noised_start",
    "replaced",
    "respaced_steps",
    "score_guided",
    "training_losses",
]
