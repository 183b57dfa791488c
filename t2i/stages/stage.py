"""What a stage says of itself, so that pipelines, the training command, converters and counters ask it and nobody else
has to know its classes.

B pictures of a batch
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from t2i.core.config import Config
from t2i.core.seed import Streams
from t2i.core.types import StepCallback, Task, TextFeatures, Tokenizer
from t2i.data.config import DataConfig
from t2i.diffusion.sampling import Hooks, Sampling
from t2i.diffusion.schedules import respaced_steps
from t2i.keymaps.flat import Layout

Neighbours = Mapping[str, Any]
"""Frozen stages that another one learns from, by the names in `Task.needs`."""


@dataclass(frozen=True)
class Inputs:
    """What a pipeline gives a stage for `num` pictures; a stage takes what it is conditioned on.

    Attributes:
        prompts, negatives: B sentences; what guidance moves away from is "" where nothing is said.
        encode: what the chain's frozen CLIP says of one list of sentences or several, B rows each.
        z_i: (B, D) CLIP image embeddings.
        classes: (B,) int64.
        masked: from a side S to a picture (B, 3, S, S) and a mask (B, 1, S, S), 1 where it is known.
        low_res: (B, 3, h, w) in [-1, 1], the picture to enlarge.
        latents: (B, C, h, w) of an autoencoder, about unit variance.
    """

    num: int
    prompts: Sequence[str] = ()
    negatives: Sequence[str] = ()
    encode: Callable[..., list[TextFeatures]] | None = None
    z_i: Tensor | None = None
    classes: Tensor | None = None
    masked: Callable[[int], tuple[Tensor, Tensor]] | None = None
    low_res: Tensor | None = None
    latents: Tensor | None = None


@dataclass(frozen=True)
class How:
    """How a stage draws B pictures.

    Attributes:
        streams: one random stream per picture.
        x_T: (B, C, …) the noise to begin from, where it is not drawn.
        num_candidates: how many are drawn of each, to keep the best.
        max_tile: pixels of a side that an upsampler sees at once.
    """

    sampling: Sampling
    streams: Streams
    hooks: Hooks = field(default_factory=Hooks)
    x_T: Tensor | None = None
    num_candidates: int = 1
    max_tile: int | None = None
    callback: StepCallback | None = None


class ClipFacts(NamedTuple):
    """What a stage took from the CLIP that it learned from, None where it takes nothing of the kind."""

    dim: int | None = None
    text_width: int | None = None
    context: int | None = None
    unit_norm: bool | None = None
    fingerprint: tuple[float, ...] = ()


class Draw(Protocol):
    """A stage's own way from inputs to embeddings (B, D) or pictures (B, 3, H, W) in [-1, 1]."""

    def __call__(self, model: Any, inputs: Inputs, how: How) -> Tensor: ...


class Invert(Protocol):
    """From pictures x_0 (B, 3, S, S) and the embeddings in `inputs` to the x_T that DDIM comes back from."""

    def __call__(
        self,
        model: Any,
        inputs: Inputs,
        x_0: Tensor,
        steps: int | str,
        *,
        corrections: int = 0,
        callback: StepCallback | None = None,
    ) -> Tensor: ...


class Example(NamedTuple):
    """One picture's work, to be counted, exported or warmed up: `once` reads what it is drawn from, `step(once())` is
    one evaluation of the network."""

    once: Callable[[], Any]
    step: Callable[[Any], Any]


def _evaluations(config: Any, sampling: Sampling) -> int:
    return len(respaced_steps(sampling.steps, config.diffusion.num_steps))


def _anything(config: Any, sampling: Sampling) -> None:
    """Every step and sampler will do."""


def _all(config: Any, max_batch: int, max_tile: int | None) -> int:
    return max_batch


def _as_given(config: Any, neighbours: Neighbours, data: DataConfig) -> Any:
    return config


def _any_data(model: Any, data: DataConfig, options: Any, neighbours: Neighbours) -> None:
    """Pictures of every size will do."""


def _whole(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return state


def _as_it_is(model: dict[str, Any], needs: Collection[str]) -> dict[str, Any]:
    return model


def _same(key: str) -> str:
    return key


def _no_facts(config: Any) -> ClipFacts:
    return ClipFacts()


def _alone(options: Any) -> bool:
    return False


def _no_readers(model: Any) -> list[Tokenizer]:
    return []


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A trainable stage: `STAGE` in `stages/<folder>/__init__.py`, and a line in `stages/registry.py`.

    Attributes:
        name: as in `config.json` and in configs.
        config, model, options, task: its classes; see `Task` for how they are made.
        presets: published networks by name.
        makes: what `draw` gives; None for stages that draw nothing. Pictures may be latents, where a network's
            `diffusion.space` says so.
        draw, invert: see `Draw` and `Invert`; None where there is none.
        stepped: whether it has steps and a sampler; without them it draws in a way of its own.
        num_evaluations: (config, sampling) → calls of the network for one picture.
        check: (config, sampling); ValueError for steps or samplers that the network cannot take.
        rows: (config, max_batch, max_tile) → pictures that may be drawn at once.
        check_tile: (config, side); ValueError for sides of tiles that the network cannot take. None for stages that see
            their pictures whole.
        clip_facts: (config) → what it took from its CLIP.
        readers: (model) → tokenisers of its own that read prompts.
        rough_norm: whether embeddings that it draws are only nearly as long as CLIP's.
        example: (model) → `Example`; None where nothing is counted.
        complete: (config, neighbours, data) → the config with all that follows from them.
        fits: (model, data, options, neighbours); UsageError for pictures that it would trip over.
        start: (weights of an earlier stage, model) → weights for this model, what is new at its own values.
        layouts: published files that it reads.
        renamed: today's name of a tensor of an earlier version.
        older: (`model` of a run's config of an earlier version, names of the neighbours that are given) → what it says
            to `config`, which reads older keys but does not see the neighbours.
        halved: whether the references say which of its weights may be stored in half precision (`nn.half`).
        contrastive: (options) → whether a picture's loss depends on the others of its micro-batch.
    """

    name: str
    config: type[Config]
    model: type[nn.Module]
    options: type[Config]
    task: type[Task]
    presets: Mapping[str, Any] = field(default_factory=dict)
    makes: Literal["embeddings", "pictures"] | None = None
    draw: Draw | None = None
    invert: Invert | None = None
    stepped: bool = True
    num_evaluations: Callable[[Any, Sampling], int] = _evaluations
    check: Callable[[Any, Sampling], None] = _anything
    rows: Callable[[Any, int, int | None], int] = _all
    check_tile: Callable[[Any, int], None] | None = None
    clip_facts: Callable[[Any], ClipFacts] = _no_facts
    readers: Callable[[Any], list[Tokenizer]] = _no_readers
    rough_norm: bool = False
    example: Callable[[Any], Example] | None = None
    complete: Callable[[Any, Neighbours, DataConfig], Any] = _as_given
    fits: Callable[[Any, DataConfig, Any, Neighbours], None] = _any_data
    start: Callable[[dict[str, Tensor], Any], dict[str, Tensor]] = _whole
    layouts: Callable[[], Iterable[Layout]] = tuple
    renamed: Callable[[str], str] = _same
    older: Callable[[dict[str, Any], Collection[str]], dict[str, Any]] = _as_it_is
    halved: bool = False
    contrastive: Callable[[Any], bool] = _alone
