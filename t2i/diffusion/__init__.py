"""The mathematics of diffusion: no networks; a model is any callable.

schedules     betas, and which steps to keep
process       tables, q_sample, posterior, respacing
prediction    a network's output → Prediction(x_0, eps, log_variance)
losses        per-sample training losses and the variational bound
samplers      ddpm, ddim, ddim_invert, dpm_solver_pp_2m
guidance      classifier-free, and by the gradient of a classifier or CLIP
"""

from t2i.diffusion.guidance import ClassifierFree, score_guided
from t2i.diffusion.losses import training_losses
from t2i.diffusion.prediction import ModelDenoiser, Parametrisation
from t2i.diffusion.process import Process
from t2i.diffusion.samplers import SAMPLERS, ddim, ddim_invert, ddpm, dpm_solver_pp_2m
from t2i.diffusion.schedules import SCHEDULES, respaced_steps

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "ClassifierFree",
    "ModelDenoiser",
    "Parametrisation",
    "Process",
    "ddim",
    "ddim_invert",
    "ddpm",
    "dpm_solver_pp_2m",
    "respaced_steps",
    "score_guided",
    "training_losses",
]
