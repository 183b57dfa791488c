"""Pictures of which a part, or a rough version, is known already: any denoiser fills in or redraws the rest.

B batch · C channels · H W pixels. A mask (B, 1, H, W) is 1 where the picture is known and 0 where it is to be painted.
"""

from collections.abc import Callable

from torch import Tensor

from t2i.core.types import Denoiser, NoiseSource, Prediction
from t2i.diffusion.process import Process


def keep_known(known: Tensor, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """A `processed` for `Parametrisation.predict` that puts what is known (B, C, H, W) into every predicted x_0, as
    GLIDE's inpainting does: the last step returns it exactly."""

    def processed(x_0: Tensor) -> Tensor:
        return x_0 * (1 - mask) + known * mask

    return processed


def replaced(denoise: Denoiser, known: Tensor, mask: Tensor, process: Process, noise: NoiseSource | Tensor) -> Denoiser:
    """Imputation (Song et al. 2021, appendix I.2): before every call what is known in x_t becomes
    q(x_t | known), as noisy as the rest, so that the network sees a state it was trained on.

    Args:
        known: (B, C, H, W) in [-1, 1]; mask: (B, 1, H, W).
        noise: drawn from once per step; a tensor is the noise of all steps, for samplers that add none of their own.
    """

    def consistent(x_t: Tensor, step: int) -> Prediction:
        eps = noise if isinstance(noise, Tensor) else noise.normal(*known.shape[1:])
        of_known = process.q_sample(known, step, eps.to(known.device))
        return denoise(x_t * (1 - mask) + of_known * mask, step)

    return consistent


def noised_start(process: Process, x_0: Tensor, strength: float, noise: Tensor) -> tuple[Tensor, Process | None]:
    """Where an edit of x_0 begins: noised by round(strength · T) of T steps (SDEdit, Meng et al. 2021, algorithm 1).

    Args:
        process: of the sampler, already respaced.
        x_0: (B, C, H, W) in [-1, 1]. noise: standard normal, of its shape.
        strength: 0 keeps the picture, 1 goes through all steps and leaves next to nothing of it.

    Returns x_t and the process of the steps that are left, or x_0 and None where there are none. Raises ValueError for
    a strength outside of 0…1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"the strength of an edit lies in 0…1, got {strength}")
    num_steps = round(strength * process.num_steps)
    if num_steps == 0:
        return x_0.float(), None
    return process.q_sample(x_0, num_steps - 1, noise), process.first(num_steps)
