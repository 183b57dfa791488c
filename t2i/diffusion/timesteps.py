"""At which timesteps a network is trained."""

from torch import Tensor


def shifted(step: Tensor, num_steps: int, shift: float = 1.0) -> Tensor:
    """Uniform steps, crowded towards noise (shift > 1) or towards the picture (shift < 1).

    With u the middle of a step on [0, 1] it becomes shift·u / (1 + (shift − 1)·u) (Esser et al. 2024, eq. 23): with a
    shift of 3 half of the steps are the noisiest quarter, where a caption decides what goes where.

    Args:
        step: int64 in {0 … num_steps − 1}.
        num_steps: of the process.
        shift: greater than 0; 1 changes nothing.

    Returns:
        int64 in the same range, the same shape.
    """
    u = (step.double() + 0.5) / num_steps
    return (shift * u / (1 + (shift - 1) * u) * num_steps).long().clamp_(max=num_steps - 1)
