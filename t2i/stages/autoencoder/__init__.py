"""The autoencoder of latent diffusion: a picture becomes a small grid of latents, and comes back (Rombach et al. 2022,
arXiv 2112.10752, section 3.1). DALL-E 3 draws latents of such a one (Betker et al. 2023, appendix A).

In: pictures (B, 3, H, W) in [-1, 1]. Out: latents (B, C, H/f, W/f) of about unit variance, and pictures again.

    t2i train configs/shapes/autoencoder.yaml           train it
    Autoencoder.encode_latents(x), .decode_latents(z)   use it (`t2i.stages.autoencoder.model`)
    t2i convert vae/ --out FOLDER                       read those of latent diffusion and Stable Diffusion
"""

from t2i.stages.autoencoder.convert import layouts
from t2i.stages.autoencoder.model import Autoencoder, AutoencoderConfig
from t2i.stages.autoencoder.policy import draw, example, fits, num_evaluations, rows
from t2i.stages.autoencoder.presets import PRESETS
from t2i.stages.autoencoder.task import AutoencoderOptions, AutoencoderTask
from t2i.stages.stage import Stage

STAGE = Stage(
    name="autoencoder",
    config=AutoencoderConfig,
    model=Autoencoder,
    options=AutoencoderOptions,
    task=AutoencoderTask,
    presets=PRESETS,
    makes="pictures",
    draw=draw,
    stepped=False,
    num_evaluations=num_evaluations,
    rows=rows,
    example=example,
    fits=fits,
    layouts=layouts,
)
