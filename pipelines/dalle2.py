"""DALL-E 2 (Ramesh et al. 2022, arXiv 2204.06125): a sentence becomes a picture in four steps.

    sentence y ──CLIP text tower──▶ z_t
    (y, z_t)   ──diffusion prior──▶ z_i, the CLIP embedding of a picture that fits        P(z_i | y)
    (z_i, y)   ──decoder──────────▶ the picture at 64 × 64                                P(x | z_i, y)
    64 × 64    ──upsampler────────▶ 256 × 256 ──upsampler──▶ 1024 × 1024

Legend: N pictures · D width of CLIP embeddings · S side of a picture in pixels.
"""

import operator
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from t2i import __version__
from t2i.diffusion.samplers import SAMPLERS
from t2i.diffusion.sampling import Sampling
from t2i.diffusion.schedules import respaced_steps
from t2i.errors import DataError, UsageError, did_you_mean
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
from t2i.text.tokenizers import tokenize

_SAME_CLIP = 0.98  # cosine of two marks; rounding to 8 bits moves it by less than a hundredth
CANDIDATES = 2  # embeddings drawn by the prior, of which the better is kept (section 2.2)


@dataclass
class Call:
    """One call, resolved: every row is one picture; `sampling` holds the stages that run, in order."""

    prompts: list[str]
    negatives: list[str]
    seeds: list[int]
    sampling: dict[str, Sampling]
    max_batch: int
    callback: Callable[[Progress], None] | None
    bar: tqdm
    timings: dict[str, float] = field(default_factory=dict)


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
        "steps": {"prior": 25, "decoder": 20, "up256": 10, "up1024": 6},
        "guidance": {"prior": 2.0, "decoder": 3.0},
        "sampler": {"prior": "ddpm", "decoder": "ddim", "up256": "ddim", "up1024": "ddim"},
    }

    def __init__(
        self, parts: Mapping[str, nn.Module], settings: Mapping[str, Mapping[str, Any]], source: str = ""
    ) -> None:
        super().__init__(parts, settings, source)
        _check_fit(self.parts)
        self._sampling()
        spelled = self._config("decoder").tokenizer if "decoder" in self.parts else None
        self._tokenizer = spelled.build() if spelled is not None else None

    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        steps: int | str | Mapping[str, int | str] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        sampler: str | Mapping[str, str] | None = None,
        stop_after: str | None = None,
        callback: Callable[[Progress], None] | None = None,
        progress: bool = True,
        max_batch: int = 8,
    ) -> Output:
        """Draw pictures.

        Args:
            prompt: one sentence or several; the order of pictures is prompt by prompt.
            negative_prompt: what guidance moves away from, in the prior and in the decoder, instead of nothing; one
                sentence for all, or one for each prompt.
            seed: picture i uses seed + i, or the i-th of a list; drawn at random, and told, if None.
            steps, guidance, sampler: one value, or a dict by stage; guidance acts in the prior and the decoder, a
                sampler is one of ddpm, ddim and dpm_solver_pp_2m.
            stop_after: the last stage to run; "decoder" gives 64 px pictures, "prior" embeddings only.
            callback: called with `Progress` after every step; its `preview()` is the present guess.
            max_batch: pictures that are drawn at once, at most; costly stages take fewer.

        Raises:
            UsageError: an argument that cannot be. NonFiniteError: a stage broke down.
        """
        readers = [self.clip.tokenizer] + ([self._tokenizer] if self._tokenizer is not None else [])
        prompts, truncated = self.check_prompts(prompt, *readers)
        nothing = "" if negative_prompt is None else negative_prompt
        negatives, _ = self.check_prompts(nothing, *readers, negative=True)
        if len(negatives) not in (1, len(prompts)):
            raise UsageError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
        num = _whole("num_images_per_prompt", num_images_per_prompt)
        call = Call(
            prompts=[p for p in prompts for _ in range(num)],
            negatives=[n for n in negatives for _ in range(num * len(prompts) // len(negatives))],
            seeds=_seeds(seed, len(prompts) * num),
            sampling=self._sampling(steps, guidance, sampler, stop_after),
            max_batch=_whole("max_batch", max_batch),
            callback=callback,
            bar=tqdm(disable=not progress, unit="step", leave=False),
        )
        if any(negatives) and all(chosen.guidance == 1 for chosen in call.sampling.values()):
            warnings.warn("a negative prompt says nothing where guidance is 1", stacklevel=2)
        call.bar.total = self._total(call)
        with call.bar:
            z_i, x = self._draw(call)
        return Output(
            images=to_pil(x) if x is not None else [],
            seeds=call.seeds,
            prompts=call.prompts,
            recipe=self._recipe(call),
            embeddings=z_i.cpu(),
            timings=call.timings,
            truncated=[cut for cut in truncated for _ in range(num)],
        )

    def _draw(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """The story itself: embeddings (N, D), and pictures (N, 3, S, S) in [-1, 1] unless it stops before."""
        z_i = self._each(call, "prior", self._prior)  # (N, D)
        x = None
        if "decoder" in call.sampling:
            x = self._each(call, "decoder", self._decoder, z_i)  # (N, 3, 64, 64)
        for stage in list(call.sampling)[2:]:
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
        condition = model.condition(*self._tokens(call.prompts[rows]), z_i)
        null = None
        if sampling.guidance != 1:
            drop = torch.zeros(len(z_i), dtype=torch.bool, device=z_i.device)
            null = model.condition(*self._tokens(call.negatives[rows]), z_i, clip_keep=drop)
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

    def _config(self, stage: str) -> Any:
        return self.parts[stage].config

    def _tokens(self, sentences: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Tokens and mask for the decoder's own text path, if it has one."""
        if self._tokenizer is None:
            return None, None
        tokens, mask = tokenize(self._tokenizer, sentences)
        return tokens.to(self.device), mask.to(self.device)

    def _chunks(self, call: Call, stage: str) -> list[slice]:
        """Rows that a stage draws at once: `max_batch`, or fewer where its U-Net works on more than 64 × 64 places."""
        config = self._config(stage)
        places = 1 if stage == "prior" else config.image_size // config.unet.patch_size
        return chunks(len(call.seeds), call.max_batch, call.max_batch * 64**2 // places**2)

    def _each(self, call: Call, stage: str, fn: Callable[..., Tensor], inputs: Tensor | None = None) -> Tensor:
        """Run one stage over all rows, a chunk at a time."""
        on_step = self.watch(stage, call.bar, call.callback)
        with self.running(stage, call.timings):
            done = [
                fn(call, stage, rows, on_step, None if inputs is None else inputs[rows])
                for rows in self._chunks(call, stage)
            ]
        return check_finite(stage, torch.cat(done).float())

    def _sampling(
        self, steps: Any = None, guidance: Any = None, sampler: Any = None, stop_after: str | None = None
    ) -> dict[str, Sampling]:
        """How every stage up to `stop_after` samples, in order."""
        stages = [stage for stage in self.drawing if stage in self.parts]
        if stop_after is not None and stop_after not in stages:
            hint = did_you_mean(stop_after, stages)
            raise UsageError(f"stop_after: unknown stage {stop_after!r}{hint}; stages are {', '.join(stages)}")
        num_steps = self.choose("steps", steps, self._check_steps)
        scales = self.choose("guidance", guidance, _check_guidance)
        samplers = self.choose("sampler", sampler, _check_sampler)
        last = len(stages) - 1 if stop_after is None else stages.index(stop_after)
        return {s: Sampling(num_steps[s], samplers[s], scales[s]) for s in stages[: last + 1]}

    def _total(self, call: Call) -> int:
        """Steps of the progress bar."""
        rounds = {stage: len(self._chunks(call, stage)) for stage in call.sampling}
        rounds["prior"] *= CANDIDATES
        return sum(rounds[stage] * self._num_steps(stage, chosen.steps) for stage, chosen in call.sampling.items())

    def _num_steps(self, stage: str, spec: int | str) -> int:
        return len(respaced_steps(spec, self._config(stage).num_steps))

    def _check_steps(self, stage: str, value: Any) -> int | str:
        try:
            if isinstance(value, bool) or not isinstance(value, Integral | str):
                raise ValueError(f"expected a whole number or a spacing such as 'ddim50', got {value!r}")
            value = value if isinstance(value, str) else int(value)
            self._num_steps(stage, value)
        except ValueError as error:
            raise UsageError(f"steps of {stage}: {error}") from error
        return value

    def _recipe(self, call: Call) -> dict[str, Any]:
        """Everything that decides the pictures, as JSON, row by row."""
        return {
            "t2i": __version__,
            "torch": torch.__version__,
            "model": self.source,
            "weights": self.weights,
            "device": self.device.type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "arguments": {
                "prompt": call.prompts,
                "negative_prompt": call.negatives if any(call.negatives) else None,
                "seed": call.seeds,
                "steps": {stage: chosen.steps for stage, chosen in call.sampling.items()},
                "guidance": {s: call.sampling[s].guidance for s in ("prior", "decoder") if s in call.sampling},
                "sampler": {stage: chosen.sampler for stage, chosen in call.sampling.items()},
                "stop_after": list(call.sampling)[-1],
                "max_batch": call.max_batch,
            },
        }


def chunks(count: int, group: int, size: int) -> list[slice]:
    """Rows 0 … count-1 in groups of `group`, each cut into parts of `size` from its own start, at least 1.

    What a group is cut into does not depend on the groups before it, so it can be drawn again alone.
    """
    size = min(max(size, 1), group)
    return [
        slice(i, min(i + size, first + group, count))
        for first in range(0, count, group)
        for i in range(first, min(first + group, count), size)
    ]


def _check_fit(parts: Mapping[str, Any]) -> None:
    """DataError if a stage was trained beside another one than its neighbour in this chain."""

    def same(what: str, giver: str, given: int, taker: str, taken: int | None) -> None:
        if given != taken:
            raise DataError(f"{taker} takes {what} {taken}, but {giver} gives {given}: they do not belong together")

    clip, prior = parts["clip"], parts["prior"].config
    same("embeddings of width", "clip", clip.dim, "prior", prior.clip_dim)
    same("text states of width", "clip", clip.text_width, "prior", prior.text_width)
    if clip.tokenizer.context > prior.context:
        raise DataError(f"prior reads {prior.context} tokens, but clip gives {clip.tokenizer.context}")
    mark = torch.tensor(clip.mark())
    for name in ("prior", "decoder"):
        theirs = torch.tensor(parts[name].config.clip_mark if name in parts else ())
        if len(theirs) and (len(theirs) != len(mark) or torch.cosine_similarity(mark, theirs, dim=0) < _SAME_CLIP):
            raise DataError(f"{name} was trained with another CLIP than this one: they do not belong together")
    if "decoder" in parts:
        same("embeddings of width", "clip", clip.dim, "decoder", parts["decoder"].config.clip_dim)
    for small, large in (("decoder", "up256"), ("up256", "up1024")):
        if large in parts:
            same("pictures of side", small, parts[small].config.image_size, large, parts[large].config.low_size)
            if parts[large].config.text is not None:
                raise DataError(f"{large} reads text; upsamplers of this chain see pictures only")
    for name, part in parts.items():
        if getattr(part.config, "num_classes", None) is not None:
            raise DataError(f"{name} needs a class label, which a sentence does not give")


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def _seeds(seed: Any, count: int) -> list[int]:
    if seed is None:
        seed = secrets.randbelow(2**31)
    several = isinstance(seed, Iterable)
    try:
        seeds = [operator.index(s) for s in (seed if several else [seed])]
    except TypeError:
        raise UsageError(f"a seed must be a whole number, or a list with one for each picture, got {seed!r}") from None
    if not several:
        return [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise UsageError(f"{len(seeds)} seeds for {count} pictures; give one whole number, or one for each")
    return seeds


def _check_guidance(stage: str, value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1000:
        raise UsageError(f"guidance of {stage}: expected a number from 0 to 1000, got {value!r}")
    if stage not in ("prior", "decoder") and value != 1:
        raise UsageError(f"guidance of {stage}: this stage is not guided, only prior and decoder are")
    return float(value)


def _check_sampler(stage: str, value: Any) -> str:
    if str(value) not in SAMPLERS:
        known = f"{did_you_mean(value, SAMPLERS)}; known are {', '.join(SAMPLERS)}"
        raise UsageError(f"sampler of {stage}: unknown {value!r}{known}")
    return str(value)
