"""The contrastive objective (Radford et al. 2021, Figure 3), with repeated captions counted as matches.

B batch of one process · N batch of all processes · D embedding width
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, (B, …) → (N, …), with gradients to this process's own rows and to the others'."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    if not x.requires_grad:
        rows = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, x.contiguous())
        return torch.cat(rows)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


def contrastive_loss(image: Tensor, text: Tensor, caption: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Symmetric cross-entropy over the similarities of unit vectors (B, D); returns per-sample loss and accuracy (B,).

    `caption` (B,) holds a number per sentence, the same for equal ones; `scale` is the inverse temperature. Where a
    caption occurs more than once in the batch, every picture with it is a match and the target is spread evenly over
    them (Yang et al. 2022, arXiv 2204.03610, equation 3).
    """
    all_image, all_text, all_captions = gather(image), gather(text), gather(caption)
    same = caption[:, None] == all_captions[None]  # (B, N)
    target = same.float() / same.sum(dim=1, keepdim=True)
    by_image = scale * image @ all_text.T  # (B, N)
    by_text = scale * text @ all_image.T  # (B, N)
    loss = (
        F.cross_entropy(by_image, target, reduction="none") + F.cross_entropy(by_text, target, reduction="none")
    ) / 2
    hit = same.gather(1, by_image.argmax(dim=1, keepdim=True))[:, 0].float()
    return loss, hit
