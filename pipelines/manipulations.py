"""What DALL-E 2 does with pictures (Ramesh et al. 2022, arXiv 2204.06125, sections 3 and 4): it takes them apart into
(z_i, x_T), see `bipartite.py`, and puts them together again with something changed on the way.

    reconstruct    DDIM with eta 0: the picture again
    variations     DDIM with eta > 0: others in which CLIP sees the same
    interpolate    slerp of two z_i, with that of both x_T, or with one x_T for all
    text_diff      slerp of z_i towards z_d = (z_t(after) - z_t(before)) / |…|, of z_t at unit length,
                   with x_T as it was
    probe          the first k principal components of z_i, with x_T as it was

Legend: N pictures · M embeddings · D width of embeddings.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import UsageError, explain
from t2i.core.seed import Streams
from t2i.diffusion.sphere import PrincipalComponents, slerp, text_direction
from t2i.pipeline.inputs import Latent, read_embeddings
from t2i.pipeline.request import Callback, Output, Plan, prompts_of, seeds_of, whole
from t2i.pipelines.bipartite import Bipartite, Files, How, Scale, Steps

Picture = Image | Path | Latent


class Manipulations(Bipartite):
    """Of pipelines whose decoder is told CLIP image embeddings.

    A picture is a square PIL picture of any size, the `Path` of one, or what `encode` made of it: one that is used more
    than once need not be taken apart again. A string is always a sentence, and the decoder is told none.

    Arguments that all have: `steps` and `stop_after` as in a call, 50 steps in the decoder unless said; `guidance` of
    the decoder, where only 1 brings a picture back as it was; `seed` of what is drawn at random, one for all pictures
    of a sequence, so that the upsamplers treat them alike. A recipe tells how a picture was made, and does not repeat
    it without the one that it was made from.
    """

    def reconstruct(
        self,
        image: Files | Latent,
        *,
        seed: int | Sequence[int] | None = None,
        steps: Steps = None,
        guidance: Scale = 1.0,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw pictures again from what they were taken apart into; picture i uses seed + i in the upsamplers."""
        plan, how = self._plan(steps, guidance, stop_after), How(callback, progress, max_batch)
        given = self._given(image)
        seeds = seeds_of(seed, len(given))
        return self._drawn("reconstruct", self._apart(given, plan, how), plan, seeds, how)

    def variations(
        self,
        image: Files | Latent,
        n: int = 4,
        *,
        eta: float = 1.0,
        seed: int | Sequence[int] | None = None,
        steps: Steps = None,
        guidance: Scale = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw pictures in which CLIP sees the same.

        Args:
            image: one or several; the order of what is drawn is picture by picture.
            n: variations of each.
            eta: 0…1, the share of fresh noise in every step; 0, without guidance, is `reconstruct`.
            seed: variation i uses seed + i, or the i-th of a list.
            guidance: the model's own unless given.
        """
        plan, how = self._plan(steps, guidance, stop_after, _share("eta", eta)), How(callback, progress, max_batch)
        given, n = self._given(image), whole("n", n)
        seeds = seeds_of(seed, n * len(given))
        latent = self._apart(given, plan, how).repeated(n)
        return self._drawn("variations", latent, plan, seeds, how, {"eta": [eta] * len(latent)})

    def interpolate(
        self,
        a: Picture,
        b: Picture | str,
        n: int = 7,
        *,
        noise: Literal["slerp", "fixed"] = "slerp",
        seed: int | None = None,
        steps: Steps = None,
        guidance: Scale = 1.0,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw what lies between two pictures, or between a picture and a sentence: z_i = slerp(a, b, theta).

        Args:
            b: a sentence stands for the z_i that the prior draws for it, and for noise drawn at random.
            n: pictures, with both ends.
            noise: "slerp" between the two x_T, so that the ends are the pictures themselves; "fixed", one drawn at
                random for all, which shows what z_i alone does.
        """
        if noise not in ("slerp", "fixed"):
            raise UsageError(f"unknown noise {noise!r}; known are slerp and fixed")
        if whole("n", n) < 2:
            raise UsageError(f"n counts both ends of an interpolation, so it is at least 2, got {n}")
        plan, how = self._plan(steps, guidance, stop_after), How(callback, progress, max_batch)
        seeds = seeds_of(seed, 1) * n
        source, aim = self._one(a), b if isinstance(b, str) else self._one(b)
        last = self._end(aim, plan, how, seeds[0], noise).repeated(n)  # this one first: a sentence may be refused
        first = self._end(source, plan, how, seeds[0], noise).repeated(n)
        theta = torch.linspace(0, 1, n)
        with explain("interpolate", UsageError):
            latent = Latent(slerp(first.z_i, last.z_i, theta), slerp(first.x_T, last.x_T, theta))
        said = {"theta": theta.tolist()} | ({"b": [b] * n} if isinstance(b, str) else {})
        return self._drawn("interpolate", latent, plan, seeds, how, said)

    def text_diff(
        self,
        image: Picture,
        before: str,
        after: str,
        *,
        theta: float = 0.5,
        n: int = 5,
        seed: int | None = None,
        steps: Steps = None,
        guidance: Scale = 2.0,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Change a picture by what a sentence says and another does not.

        Args:
            before: describes the picture, or is a dummy such as "a photo", or empty.
            after: what it is to become.
            theta: 0…1, how far z_i is turned in the last picture; the paper's sweeps end at 0.25 to 0.5.
            n: pictures, at even steps from theta 0, the picture itself as far as guidance lets it; 1 is the last alone.
            guidance: 1 begins with the picture itself; more turns more, and keeps less of what is not spoken of.
        """
        said = [before, after] if before != "" else [after]
        prompts_of(said, self.clip.tokenizer)
        theta = _share("theta", theta)
        thetas = torch.linspace(0, theta, n) if whole("n", n) > 1 else torch.tensor([theta])
        plan, how = self._plan(steps, guidance, stop_after), How(callback, progress, max_batch)
        seeds, given = seeds_of(seed, 1) * n, self._one(image)
        with self.awake("clip"), torch.no_grad(), explain("text_diff", UsageError):
            z_t = self.clip.encode_text([before, after]).pooled.float().cpu()  # (2, D)
            z_d = text_direction(z_t[1:], z_t[:1])  # (1, D)
        latent = self._apart(given, plan, how).repeated(n)
        aim = z_d * latent.z_i.norm(dim=1, keepdim=True)  # (N, D), as long as z_i
        latent = replace(latent, z_i=slerp(latent.z_i, aim, thetas))
        rows = {"before": [before] * n, "after": [after] * n, "theta": thetas.tolist()}
        return self._drawn("text_diff", latent, plan, seeds, how, rows)

    def probe(
        self,
        image: Picture,
        embeddings: Tensor,
        components: Sequence[int] = (2, 5, 10, 20, 40, 80),
        *,
        seed: int | None = None,
        steps: Steps = None,
        guidance: Scale = 1.0,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Show what the first principal components of CLIP's embeddings hold of a picture (section 4).

        Args:
            embeddings: (M, D) of other pictures, on which the components are measured, such as `embed(paths)`; a few
                times more than the components asked for.
            components: how many are kept, for each picture drawn; all others are at their mean.
        """
        plan, how = self._plan(steps, guidance, stop_after), How(callback, progress, max_batch)
        with explain("probe", UsageError):
            known = read_embeddings(embeddings, self.clip.dim, unit_norm=False)
            axes = PrincipalComponents.of(known)
            if not isinstance(components, Sequence) or not components:
                raise ValueError(f"components must be a list of numbers, got {components!r}")
            axes.keep(axes.mean[None], max(whole("components", num) for num in components))
        given = self._one(image)
        seeds = seeds_of(seed, 1) * len(components)
        source = self._apart(given, plan, how)
        z_i = torch.cat([axes.keep(source.z_i, num) for num in components])
        latent = replace(source.repeated(len(components)), z_i=z_i)
        return self._drawn("probe", latent, plan, seeds, how, {"components": list(components)})

    def _end(self, given: Latent | list[Image] | str, plan: Plan, how: How, seed: int, noise: str) -> Latent:
        """An end of an interpolation; nothing is inverted whose x_T is not asked for."""
        if not isinstance(given, str) and noise == "slerp":
            return self._apart(given, plan, how)
        size = self._config("decoder").image_size
        x_T = Streams([seed], "decoder").normal(3, size, size)
        if isinstance(given, Latent):
            return replace(given, x_T=x_T)
        if not isinstance(given, str):
            return Latent(self.embed(given, max_batch=how.max_batch), x_T)
        if "prior" not in self.parts:
            raise UsageError("this model has no prior, so it draws no sentences; interpolate between pictures")
        drawn = self(given, seed=seed, stop_after="prior", callback=how.callback, progress=how.progress)
        assert drawn.embeddings is not None
        return Latent(drawn.embeddings, x_T)


def _share(name: str, value: Any) -> float:
    """A number from 0 to 1, or UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{name} must be a number from 0 to 1, got {value!r}")
    return float(value)
