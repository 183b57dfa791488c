"""What every port has in common.

B batch · L tokens · D width of embeddings · S of the context · V of the time vector
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from t2i.core.types import Condition, TextFeatures


@dataclass(frozen=True)
class Given:
    """What is said of `num` pictures; every field is read by the port of its name, None where nothing is said.

    Attributes:
        text: tokens (B, L) int64 and their mask (B, L) bool, True on real tokens; a mask of None means all of them.
        clip_image: (B, D) CLIP image embeddings.
        clip_text, states: what a frozen encoder says of the sentences; networks that read it must be given it.
        classes: (B,) int64; networks over classes must be given them, `num` of the port is the absent class.
        masked: a picture (B, 3, H, W) in [-1, 1] and a mask (B, 1, H, W), 1 where the picture is known.
        dropped: (B,) bool by port, True where what was said counts as not said.
    """

    num: int
    text: tuple[Tensor, Tensor | None] | None = None
    clip_image: Tensor | None = None
    clip_text: TextFeatures | None = None
    states: TextFeatures | None = None
    classes: Tensor | None = None
    masked: tuple[Tensor, Tensor] | None = None
    dropped: Mapping[str, Tensor] = field(default_factory=dict)


class Port(nn.Module):
    """One kind of input. `read(given)` is its part of the condition, `null(num)` what stands where nothing is said."""

    def read(self, given: Given) -> Condition:
        """`vector` (B, V), `sequence` (B, L, S) with `mask` (B, L) unless all is visible, or `image` (B, C, H, W).

        Raises ValueError for an input of another shape, and where one must be given and is not.
        """
        raise NotImplementedError

    def null(self, num: int) -> Condition:
        """The same for `num` pictures of which nothing is said; ValueError where there is no such thing."""
        return self.read(Given(num))


def mean_of(features: Tensor, visible: Tensor) -> Tensor:
    """(B, L, S) and (B, L) → (B, S), the mean over what is visible."""
    weight = visible[..., None].to(features.dtype)
    return (features * weight).sum(dim=1) / weight.sum(dim=1)
