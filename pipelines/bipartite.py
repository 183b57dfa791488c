"""Pictures as DALL-E 2 takes them apart (Ramesh et al. 2022, arXiv 2204.06125, section 3): (z_i, x_T), its bipartite
latent representation.

    picture ──CLIP image tower───────────▶ z_i    what CLIP sees in it
    picture, z_i ──DDIM, run backwards───▶ x_T    all the rest (Dhariwal & Nichol 2021, appendix F)
    (z_i, x_T) ──DDIM────────────────────▶ the picture again, and larger by the upsamplers

The decoder is told no words here, and draws without guidance on the way to x_T.

Legend: N pictures · D width of CLIP embeddings · s side of the decoder's pictures in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.core.types import Condition
from t2i.io.images import square
from t2i.pipeline.inputs import Latent, read_pictures
from t2i.pipeline.request import Call, Callback, Output, Plan, check_finite, chunks, repeated, step_bar, whole
from t2i.pipelines.upsampling import Upsampling
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.dalle2_pytorch.decoder import sample as laion_decoder
from t2i.stages.dalle2_pytorch.prior.model import LaionPrior
from t2i.stages.decoder import sample as decoder
from t2i.stages.decoder.model import Decoder

Files = Image | Path | Sequence[Image | Path]
Steps = int | str | Mapping[str, int | str] | None
Scale = float | Mapping[str, float] | None

STEPS = 50
"""Of the decoder, both ways: a picture needs more to come back than to be drawn."""


class How(NamedTuple):
    """What a call wants to be told, and how much it may do at once."""

    callback: Callback | None
    progress: bool
    max_batch: int


class Bipartite(Upsampling):
    """Of pipelines whose decoder is told CLIP image embeddings; they fill in `_output` and `_wordless`."""

    @property
    def clip(self) -> ClipEncoder:
        """The frozen CLIP model that the prior and the decoder were trained with."""
        return self.parts["clip"]  # type: ignore[return-value]

    @torch.no_grad()
    def embed(self, image: Files, *, max_batch: int = 8) -> Tensor:
        """CLIP image embeddings (N, D) of square pictures, float32 on the CPU."""
        size = max(self.clip.image_size, 1)  # a CLIP without a tower for pictures says so itself
        pixels = torch.stack([square(one, size) for one in read_pictures(image)])
        with self.running("clip", {}):
            parts = [
                self.clip.encode_image(part.to(self.device)) for part in pixels.split(whole("max_batch", max_batch))
            ]
        return check_finite("clip", torch.cat(parts).float().cpu())

    @torch.no_grad()
    def encode(
        self,
        image: Files,
        *,
        steps: int | str = STEPS,
        corrections: int = 1,
        callback: Callback | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Latent:
        """Take pictures apart.

        Args:
            image: one or several; each is resized to what CLIP sees, and to what the decoder draws.
            steps: of the decoder; the way back should have as many.
            corrections: calls of the decoder at every step beyond the first, see `ddim_invert`; 0 is the paper's way.
            callback: called after every step of the stage "invert".
        """
        model = self.parts.get("decoder")
        invert = decoder.invert if isinstance(model, Decoder) else laion_decoder.invert
        steps = self._plan({"decoder": steps}, None, "decoder").sampling["decoder"].steps
        if isinstance(corrections, bool) or not isinstance(corrections, int) or corrections < 0:
            raise UsageError(f"corrections must be a whole number from 0, got {corrections!r}")
        if (num_steps := self._num_steps("decoder", steps)) < 2:
            raise UsageError(f"steps of decoder must be at least 2 to invert a picture, got {steps!r}")
        pictures = read_pictures(image)
        x_0 = torch.stack([square(one, self._config("decoder").image_size) for one in pictures])  # (N, 3, s, s)
        z_i = self.embed(pictures, max_batch=max_batch)
        groups = chunks(len(x_0), len(x_0), max_batch)
        moves = len(groups) * (num_steps - 1)
        with step_bar(progress, moves) as bar, self.running("decoder", {}):
            on_step = self.watch("invert", bar, callback)
            x_T = [
                invert(
                    model,  # type: ignore[arg-type]
                    self._wordless(z_i[rows].to(self.device)),
                    x_0[rows].to(self.device),
                    steps,
                    corrections=corrections,
                    callback=on_step,
                ).cpu()
                for rows in groups
            ]
        return Latent(z_i, check_finite("invert", torch.cat(x_T)))

    # -- what is done with them ----------------------------------------------------------------------------------------

    def _output(self, call: Call, cut: list[bool], task: str | None = None) -> Output:
        """Run a call that brings a `Latent`."""
        raise NotImplementedError

    def _wordless(self, z_i: Tensor) -> Condition:
        """What the decoder is told where nothing is said but z_i (N, D)."""
        raise NotImplementedError

    def _plan(self, steps: Steps, guidance: Scale, stop_after: str | None, eta: float = 0.0) -> Plan:
        """How the decoder, by DDIM, and the stages after it sample."""
        self.check_pictures()
        if steps is None or isinstance(steps, Mapping):
            steps = {"decoder": STEPS, **(steps or {})}
        stages = self.drawing[self.drawing.index("decoder") :]
        plan = self.plan(steps, guidance, {"decoder": "ddim"}, stop_after, stages)
        plan.sampling["decoder"] = replace(plan.sampling["decoder"], eta=float(eta))
        return plan

    @property
    def _unit_norm(self) -> bool:
        """Whether all embeddings have length 1, as CLIP's do; LAION's prior draws some of nearly that."""
        return self.clip.config.unit_norm and not isinstance(self.parts.get("prior"), LaionPrior)

    def _given(self, image: Any) -> Latent | list[Image]:
        """What a user brings, opened and checked."""
        if not isinstance(image, Latent):
            return read_pictures(image)
        return image.check(self.clip.dim, self._config("decoder").image_size, self._unit_norm)

    def _one(self, image: Any) -> Latent | list[Image]:
        """The same, of a single picture."""
        given = self._given(image)
        if len(given) != 1:
            raise UsageError(f"expected one picture, got {len(given)}")
        return given

    def _apart(self, given: Latent | list[Image], plan: Plan, how: How) -> Latent:
        """Taken apart, unless it is already."""
        if isinstance(given, Latent):
            return given
        steps = plan.sampling["decoder"].steps
        return self.encode(given, steps=steps, callback=how.callback, progress=how.progress, max_batch=how.max_batch)

    def _drawn(
        self,
        task: str,
        latent: Latent,
        plan: Plan,
        seeds: list[int],
        how: How,
        said: Mapping[str, list[Any]] | None = None,
    ) -> Output:
        """The pictures of `latent`; `said` is what was asked for each of them, for the recipe."""
        nothing = repeated([""], len(latent))
        rows = {"prompt": nothing, "negative_prompt": nothing, **(said or {})}
        call = self.begin(
            rows, seeds, plan, max_batch=how.max_batch, callback=how.callback, progress=how.progress, brought=latent
        )
        return self._output(call, [False] * len(latent), task=task)
