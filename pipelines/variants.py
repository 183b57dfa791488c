"""Other beginnings of DALL-E 2's story than a sentence alone: a picture that is to stay in part, one to start from, and
embeddings from elsewhere.

Legend: N pictures · D width of CLIP embeddings.
"""

from collections.abc import Mapping, Sequence

from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.core.types import Tokenizer
from t2i.pipeline.inputs import read_embeddings, read_known, read_start
from t2i.pipeline.request import Callback, Output, prompts_of, sentences
from t2i.pipelines.manipulations import Manipulations


class Variants(Manipulations):
    """Of pipelines with a prior, a decoder and upsamplers; they fill in `_output` and `_readers`."""

    def inpaint(
        self,
        image: Image,
        mask: Image,
        prompt: str | Sequence[str],
        *,
        blend: float = 0.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
        max_tile: int | None = None,
    ) -> Output:
        """Draw anew what is white in `mask`; all else stays as it is, to the bit.

        Every stage that draws pixels has what is known written into its idea of x_0, at every step.

        Args:
            image: a square picture; it is resized to what the model draws.
            mask: of one channel (mode "1" or "L"), as large as the picture; above half is white.
            prompt: what the whole picture shows then.
            blend: pixels over which the old picture fades into the new one around the mask; 0 for a hard edge.

        Others as in a call.
        """
        plan = self.plan(steps, guidance, sampler, stop_after)
        self.check_pictures(list(plan.sampling)[-1])
        rows, cut = sentences(prompt, negative_prompt, num_images_per_prompt, plan, *self._readers)
        sizes = [self._config(stage).image_size for stage in list(plan.sampling)[1:]]
        known = read_known(image, mask, size=sizes[-1], base=sizes[0], blend=blend).to(self.device)
        call = self.begin(
            rows,
            seed,
            plan,
            max_batch=max_batch,
            callback=callback,
            progress=progress,
            brought=known,
            max_tile=max_tile,
        )
        return self._output(call, cut, task="inpaint")

    def edit(
        self,
        image: Image,
        prompt: str | Sequence[str],
        strength: float = 0.7,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
        max_tile: int | None = None,
    ) -> Output:
        """Draw `prompt`, starting from a noised picture (Meng et al. 2021, arXiv 2108.01073).

        Args:
            image: a square picture; its composition stays, the more the lower the strength.
            strength: share of the decoder's steps that are taken, from 0, the small picture as it is, to 1.

        Others as in a call.
        """
        plan = self.plan(steps, guidance, sampler, stop_after)
        self.check_pictures(list(plan.sampling)[-1])
        rows, cut = sentences(prompt, negative_prompt, num_images_per_prompt, plan, *self._readers)
        start = read_start(image, strength, self._config("decoder").image_size).to(self.device)
        call = self.begin(
            rows,
            seed,
            plan,
            max_batch=max_batch,
            callback=callback,
            progress=progress,
            brought=start,
            max_tile=max_tile,
        )
        return self._output(call, cut, task="edit")

    def decode(
        self,
        embeddings: Tensor,
        prompt: str | Sequence[str] | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        stop_after: str | None = None,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw pictures of embeddings, without the prior.

        Args:
            embeddings: (N, D), one for each picture, such as `embed(pictures)` or a call up to "prior" gives.
            prompt: told the decoder beside them, one for all or one for each; None for nothing.

        Others as in a call, which draws the same pictures from the same embeddings, prompts and seeds.
        """
        self.check_pictures()
        plan = self.plan(steps, guidance, sampler, stop_after, self.drawing[1:])
        z_i = read_embeddings(embeddings, self.clip.dim, self._unit_norm)
        said, cut = prompts_of(prompt, *self._readers) if prompt is not None else ([""], [False])
        if len(said) not in (1, len(z_i)):
            raise UsageError(f"{len(said)} prompts for {len(z_i)} embeddings")
        num = len(z_i) // len(said)
        rows = {"prompt": said * num, "negative_prompt": [""] * len(z_i)}
        call = self.begin(rows, seed, plan, max_batch=max_batch, callback=callback, progress=progress, brought=z_i)
        return self._output(call, cut * num, task="decode")

    @property
    def _readers(self) -> list[Tokenizer]:
        """What reads prompts."""
        raise NotImplementedError
