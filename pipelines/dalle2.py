"""DALL-E 2 (Ramesh et al. 2022, arXiv 2204.06125): a sentence becomes a picture in four steps.

    sentence y ──CLIP text tower──▶ z_t
    (y, z_t)   ──diffusion prior──▶ z_i, the CLIP embedding of a picture that fits        P(z_i | y)
    (z_i, y)   ──decoder──────────▶ the picture at 64 × 64                                P(x | z_i, y)
    64 × 64    ──upsampler────────▶ 256 × 256 ──upsampler──▶ 1024 × 1024

Legend: N pictures · D width of CLIP embeddings · S side of a picture in pixels.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from t2i import __version__
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.schedules import respaced_steps
from t2i.errors import UsageError, did_you_mean
from t2i.images import to_pil
from t2i.pipeline import Output, Pipeline, Progress, check_finite
from t2i.seed import Streams
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.decoder import sample as decoder
from t2i.stages.decoder.model import Decoder
from t2i.stages.prior import sample as prior
from t2i.stages.prior.model import Prior
from t2i.stages.upsampler import sample as upsampler
from t2i.stages.upsampler.model import Upsampler

CANDIDATES = 2  # embeddings drawn by the prior, of which the better is kept (section 2.2)


@dataclass
class Call:
    """One call, resolved: every row is one picture."""

    prompts: list[str]
    negatives: list[str]
    seeds: list[int]
    sampling: dict[str, Sampling]
    stages: list[str]
    max_batch: int
    timings: dict[str, float]
    callback: Callable[[Progress], None] | None
    bar: tqdm


class DALLE2(Pipeline):
    """`pipe("a red cube")`. Stages that draw: prior, decoder, up256, up1024; a model may stop earlier."""

    kind = "dalle2"
    drawing = ("prior", "decoder", "up256", "up1024")
    places: ClassVar = {
        "clip": "clip",
        "prior": "prior",
        "decoder": "decoder",
        "up256": "upsampler",
        "up1024": "upsampler",
    }
    defaults: ClassVar = {  # steps and samplers of Table 3, fewer where small networks need fewer
        "steps": {"prior": 25, "decoder": 30, "up256": 10, "up1024": 6},
        "guidance": {"prior": 2.0, "decoder": 3.0},
        "sampler": {"prior": "ddpm", "decoder": "ddim", "up256": "ddim", "up1024": "ddim"},
    }

    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        stop_after: str | None = None,
        callback: Callable[[Progress], None] | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw pictures.

        Args:
            prompt: one sentence or several; the order of pictures is prompt by prompt.
            negative_prompt: what guidance moves away from, in the prior and in the decoder, instead of nothing.
            seed: picture i uses seed + i, or the i-th of a list; drawn at random, and told, if None.
            steps, guidance: one value, or a dict by stage; guidance acts in the prior and the decoder.
            stop_after: the last stage to run; "decoder" gives 64 px pictures, "prior" embeddings only.
            callback: called with `Progress` after every step; its `preview()` is the present guess.
            max_batch: pictures of the smallest size that are drawn at once; larger sizes take fewer.

        Raises:
            UsageError: an argument that cannot be. NonFiniteError: a stage broke down.
        """
        prompts, truncated = self.check_prompts(prompt, self.clip.tokenizer)
        call = self._resolve(
            prompts,
            negative_prompt,
            num_images_per_prompt,
            seed,
            steps,
            guidance,
            stop_after,
            callback,
            progress,
            max_batch,
        )
        with call.bar:
            z_i, x = self._draw(call)
        return Output(
            images=to_pil(x) if x is not None else [],
            seeds=call.seeds,
            prompts=call.prompts,
            recipe=self._recipe(call, prompt, negative_prompt, num_images_per_prompt),
            embeddings=z_i.cpu(),
            timings=call.timings,
            truncated=[cut for cut in truncated for _ in range(num_images_per_prompt)],
        )

    def _draw(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The story itself: embeddings (N, D), and pictures (N, 3, S, S) in [-1, 1] unless it stops before."""
        z_i = self._each(call, "prior", self._prior)  # (N, D)
        x = None
        if "decoder" in call.stages:
            x = self._each(call, "decoder", self._decoder, z_i)  # (N, 3, 64, 64)
        for stage in call.stages[2:]:
            x = self._each(call, stage, self._upsampler, x)  # (N, 3, 256, 256), (N, 3, 1024, 1024)
        return z_i, x

    def _prior(self, call: Call, stage: str, rows: slice, on_step: Any, _: Tensor | None) -> Tensor:
        sampling = call.sampling[stage]
        text = self.clip.encode_text(call.prompts[rows])
        null = self.clip.encode_text(call.negatives[rows]) if sampling.guidance != 1 else None
        streams = Streams(call.seeds[rows], stage)
        model: Prior = self.parts["prior"]  # type: ignore[assignment]
        return prior.sample(model, text, streams, sampling, null=null, num_candidates=CANDIDATES, callback=on_step)

    def _decoder(self, call: Call, stage: str, rows: slice, on_step: Any, z_i: Tensor) -> Tensor:
        sampling = call.sampling[stage]
        model: Decoder = self.parts["decoder"]  # type: ignore[assignment]
        condition = model.condition(*self._tokens(model, call.prompts[rows]), z_i)
        null = None
        if sampling.guidance != 1:
            drop = torch.zeros(len(z_i), dtype=torch.bool, device=z_i.device)
            null = model.condition(*self._tokens(model, call.negatives[rows]), z_i, clip_keep=drop)
        return decoder.sample(model, condition, Streams(call.seeds[rows], stage), sampling, null=null, callback=on_step)

    def _upsampler(self, call: Call, stage: str, rows: slice, on_step: Any, low_res: Tensor) -> Tensor:
        model: Upsampler = self.parts[stage]  # type: ignore[assignment]
        streams = Streams(call.seeds[rows], stage)
        return upsampler.sample(model, low_res, streams, call.sampling[stage], callback=on_step)

    # -- what surrounds the story --------------------------------------------------------------------------------------

    @property
    def clip(self) -> ClipEncoder:
        """The frozen CLIP model that the prior and the decoder were trained with."""
        return self.parts["clip"]  # type: ignore[return-value]

    def size(self, stage: str) -> int:
        """Side in pixels of what a stage draws; 64 for the prior, whose rows cost about as much."""
        return 64 if stage == "prior" else int(self.parts[stage].config.image_size)  # type: ignore[union-attr, arg-type]

    def _tokens(self, model: Decoder, sentences: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Tokens and mask for the decoder's own text path; the empty sentence has no real token there."""
        if model.config.tokenizer is None:
            return None, None
        tokens, mask = model.config.tokenizer.build()(sentences)
        said = torch.tensor([bool(s.strip()) for s in sentences])
        return tokens.to(self.device), (mask & said[:, None]).to(self.device)

    def _chunks(self, call: Call, stage: str) -> list[slice]:
        size = max(1, call.max_batch * 64**2 // self.size(stage) ** 2)
        return [slice(i, i + size) for i in range(0, len(call.seeds), size)]

    def _each(self, call: Call, stage: str, fn: Callable[..., Tensor], inputs: Tensor | None = None) -> Tensor:
        """Run one stage over all rows, a chunk at a time."""
        on_step = self.watch(stage, call.bar, call.callback)
        with self.running(stage, call.timings):
            done = [
                fn(call, stage, rows, on_step, None if inputs is None else inputs[rows])
                for rows in self._chunks(call, stage)
            ]
        return check_finite(stage, torch.cat(done).float())

    def _resolve(
        self, prompts: list[str], negative: Any, num: int, seed: Any, steps: Any, guidance: Any, stop_after: str | None,
        callback: Any, progress: bool, max_batch: int,
    ) -> Call:  # fmt: skip
        stages = [stage for stage in self.drawing if stage in self.parts]
        if stop_after is not None:
            if stop_after not in stages:
                hint = did_you_mean(stop_after, stages)
                raise UsageError(f"stop_after: unknown stage {stop_after!r}{hint}; stages are {', '.join(stages)}")
            stages = stages[: stages.index(stop_after) + 1]
        for name, value in (("num_images_per_prompt", num), ("max_batch", max_batch)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
        negatives = [negative or ""] * len(prompts) if negative is None or isinstance(negative, str) else list(negative)
        if len(negatives) != len(prompts):
            raise UsageError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
        seeds = _seeds(seed, len(prompts) * num)
        chosen_steps = self.choose("steps", steps, self._check_steps)
        scales = self.choose("guidance", guidance, _check_guidance)
        samplers = self.settings.get("sampler", {})
        sampling = {
            s: Sampling(chosen_steps[s], samplers.get(s, "ddim"), 1.0 if scales[s] is None else scales[s])
            for s in stages
        }
        call = Call(
            [p for p in prompts for _ in range(num)], [n for n in negatives for _ in range(num)],
            seeds, sampling, stages, max_batch, {}, callback, tqdm(disable=not progress, unit="step", leave=False),
        )  # fmt: skip
        call.bar.total = sum(
            len(self._chunks(call, s)) * self._num_steps(s, chosen_steps[s]) * (CANDIDATES if s == "prior" else 1)
            for s in stages
        )
        return call

    def _num_steps(self, stage: str, spec: int | str) -> int:
        return len(respaced_steps(spec, self.parts[stage].config.num_steps))  # type: ignore[union-attr, arg-type]

    def _check_steps(self, stage: str, value: Any) -> int | str:
        try:
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise ValueError(f"expected a whole number or a spacing such as 'ddim50', got {value!r}")
            self._num_steps(stage, value)
        except ValueError as error:
            raise UsageError(f"steps of {stage}: {error}") from error
        return value

    def _recipe(self, call: Call, prompt: Any, negative: Any, num: int) -> dict[str, Any]:
        """Everything that decides the pictures, as JSON."""
        return {
            "t2i": __version__,
            "torch": torch.__version__,
            "model": self.source,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "arguments": {
                "prompt": prompt if isinstance(prompt, str) else list(prompt),
                "negative_prompt": negative if negative is None or isinstance(negative, str) else list(negative),
                "num_images_per_prompt": num,
                "seed": call.seeds,
                "steps": {s: call.sampling[s].steps for s in call.stages},
                "guidance": {s: call.sampling[s].guidance for s in call.stages if s in ("prior", "decoder")},
                "stop_after": call.stages[-1],
            },
        }


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    if seed is None:
        seed = secrets.randbelow(2**31)
    if isinstance(seed, int):
        return [seed + i for i in range(count)]
    if len(seed) != count or not all(isinstance(s, int) for s in seed):
        raise UsageError(f"{len(seed)} seeds for {count} pictures; give one whole number, or one for each")
    return list(seed)


def _check_guidance(stage: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1000:
        raise UsageError(f"guidance of {stage}: expected a number from 0 to 1000, got {value!r}")
    if stage not in ("prior", "decoder") and value != 1:
        raise UsageError(f"guidance of {stage}: this stage is not guided, only prior and decoder are")
    return float(value)
