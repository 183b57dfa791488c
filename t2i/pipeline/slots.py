"""The places of a chain: what may fill each, and how it draws unless a model or a call says otherwise."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from t2i.core.choices import sampler_name
from t2i.core.errors import UsageError, did_you_mean, explain, quoted
from t2i.diffusion.sampling import Sampling
from t2i.pipeline.arguments import Draw, by_stage, check_draw, check_guidance, check_steps, positive_int
from t2i.stages.registry import stage_of


@dataclass(frozen=True)
class Slot:
    """One place of a chain.

    Attributes:
        name: of the place, in `model_index.json` and in every setting by stage.
        accepts: kinds of stage that may fill it, the usual one first.
        role: "draws" embeddings or pictures; "guides" what others draw; "reads" what they are conditioned on.
        optional: may be empty although later places are filled.
        steps, sampler: of a place that draws.
        guided: whether it has a guidance; `guidance` None is 1, and one number for all is not meant for it.
        candidates: how many it draws of each, to keep the best.
        temperature: factor of its initial noise.
        tiled: whether it may see its picture in tiles.
    """

    name: str
    accepts: tuple[str, ...]
    role: Literal["draws", "guides", "reads"] = "draws"
    optional: bool = False
    steps: int | str | None = None
    sampler: str | None = None
    guided: bool = False
    guidance: float | None = None
    candidates: int | None = None
    temperature: float = 1.0
    tiled: bool = False


Settings = dict[str, dict[str, Any]]
"""How a model draws, by what and by place: `{"steps": {"prior": 25}, "guidance": …, "sampler": …, "candidates": …}`,
and with a preset `clamp` and `variance`."""
MAX_CANDIDATES, MAX_CLAMP = 1000, 1e6
SETTINGS = ("steps", "guidance", "sampler", "candidates", "clamp", "variance")


def chain(slots: Sequence[Slot], names: Collection[str]) -> list[str]:
    """`names` in the order of the chain; UsageError for one that it does not have, and for a hole."""
    places = [slot.name for slot in slots]
    if not isinstance(names, Collection):
        raise UsageError(f"stages are given by name, for {', '.join(places)}, got {quoted(names)}")
    for name in names:
        if name not in places:
            hint = did_you_mean(name, places)
            raise UsageError(f"unknown stage {quoted(name)}; stages are {', '.join(places)}{hint}")
    first = next(slot.name for slot in slots if slot.role == "draws")
    last = max(places.index(name) for name in (first, *names))
    found = [slot.name for slot in slots[: last + 1] if slot.name in names or not slot.optional]
    if missing := [name for name in found if name not in names]:
        raise UsageError(f"the chain {' → '.join(found)} lacks {', '.join(missing)}")
    return found


def complete_settings(
    slots: Sequence[Slot], parts: Mapping[str, nn.Module], given: Mapping[str, Mapping[str, Any]]
) -> Settings:
    """Those of the parts that are there, by default and over that as `given`; guidance alone for one without steps."""
    defaults: Settings = {
        "steps": {slot.name: slot.steps for slot in slots if slot.steps is not None},
        "guidance": {slot.name: slot.guidance for slot in slots if slot.guided},
        "sampler": {slot.name: slot.sampler for slot in slots if slot.sampler is not None},
        "candidates": {slot.name: slot.candidates for slot in slots if slot.candidates is not None},
    }
    if not isinstance(given, Mapping) or not all(isinstance(values, Mapping) for values in given.values()):
        raise UsageError(f"settings must hold values by stage for each of {', '.join(SETTINGS)}, got {quoted(given)}")
    places = [slot.name for slot in slots]
    for what, values in given.items():
        if what not in SETTINGS:
            raise UsageError(f"unknown setting {quoted(what)}{did_you_mean(what, SETTINGS)}")
        for name in values:
            if name not in places:
                raise UsageError(f"{what}: unknown stage {quoted(name)}{did_you_mean(name, places)}")
    stepped = [name for name, part in parts.items() if stage_of(part).stepped]
    settings: Settings = {}
    for what in SETTINGS:
        values = {**defaults.get(what, {}), **given.get(what, {})}
        there = {n: v for n, v in values.items() if n in parts and (what == "guidance" or n in stepped)}
        if there or defaults.get(what):
            settings[what] = there
    return settings


def _sampler(stage: str, name: Any) -> str:
    return sampler_name(f"sampler of {stage}", name)


class Planner:
    """How the stages of a call sample: the settings of a model, and over them what the call says."""

    def __init__(
        self, slots: Sequence[Slot], sampled: Sequence[str], parts: Mapping[str, nn.Module], settings: Settings
    ) -> None:
        self.sampled = sampled
        self.slots = {slot.name: slot for slot in slots if slot.name in parts}
        self.stages = {name: stage_of(part) for name, part in parts.items()}
        self.configs: dict[str, Any] = {name: part.config for name, part in parts.items()}
        self.settings = settings

    def plan(self, draw: Draw, sampled: Sequence[str] | None = None) -> tuple[dict[str, Sampling], dict[str, float]]:
        """`Sampling` of the stages up to `stop_after`, in order, and the scales of the parts that guide.

        Args:
            draw: what a call says of it; what is not given is as the model is set.
            sampled: the stages of this kind of call, those of a plain one if None; what is not there is passed over.

        Raises UsageError for what cannot be.
        """
        check_draw(draw)
        steps, guidance, sampler = draw.get("steps"), draw.get("guidance"), draw.get("sampler")
        stages = [name for name in sampled or self.sampled if name in self.slots]
        stop_after = draw.get("stop_after")
        if stop_after is not None and not (isinstance(stop_after, str) and stop_after in stages):
            hint = did_you_mean(stop_after, stages)
            raise UsageError(f"stop_after: unknown stage {quoted(stop_after)}; stages are {', '.join(stages)}{hint}")
        guides = [name for name, slot in self.slots.items() if slot.role == "guides"]
        stepped = self._stepped(stages, steps=steps, sampler=sampler)
        settings, guided = self.settings, [name for name, slot in self.slots.items() if slot.guided]
        num_steps = by_stage("steps", steps, stepped, settings["steps"], self._check_steps)
        samplers = by_stage("sampler", sampler, stepped, settings["sampler"], _sampler)
        scales = by_stage(
            "guidance",
            guidance,
            [*stages, *guides],
            settings["guidance"],
            lambda name, value: check_guidance(name, value, guided, default=float(name in stages)),
        )
        last = len(stages) - 1 if stop_after is None else stages.index(stop_after)
        plan = {
            name: Sampling(
                num_steps.get(name, 1),
                samplers.get(name, "ddim"),
                scales[name],
                temperature=self.slots[name].temperature,
                **self._own(name),
            )
            for name in stages[: last + 1]
        }
        for name, sampling in plan.items():
            self._check(name, sampling)
        return plan, {name: scales[name] for name in guides}

    def _own(self, name: str) -> dict[str, Any]:
        """Bound of x_0 and variance that the settings say; UsageError for others than there are."""
        own = {what: self.settings.get(what, {}).get(name) for what in ("clamp", "variance")}
        clamp, variance = own["clamp"], own["variance"]
        number = isinstance(clamp, int | float) and not isinstance(clamp, bool) and 0 < clamp <= MAX_CLAMP
        if clamp is not None and clamp is not False and not number:
            raise UsageError(f"clamp of {name} must be above 0, or false for no bound, got {quoted(clamp)}")
        if variance not in (None, *(choices := ("fixed_small", "fixed_large", "analytic"))):
            raise UsageError(f"variance of {name} must be one of {', '.join(choices)}, got {quoted(variance)}")
        positive_int(f"candidates of {name}", self.settings.get("candidates", {}).get(name, 1), MAX_CANDIDATES)
        return own

    def _stepped(self, stages: list[str], **given: Any) -> list[str]:
        """Of `stages` those that have steps and a sampler; UsageError if another one is `given` them by name."""
        stepped = [name for name in stages if self.stages[name].stepped]
        for what, values in given.items():
            for name in values if isinstance(values, Mapping) else ():
                if name in stages and name not in stepped:
                    num = self.stages[name].num_evaluations(self.configs[name], Sampling())
                    codes = self.stages[name].makes == "embeddings"
                    draws = f"draws {num} codes one by one" if codes else f"draws in {num} evaluation{'s' * (num > 1)}"
                    raise UsageError(f"{what} of {name}: this {name} {draws} and has none")
        return stepped

    def _check_steps(self, name: str, value: Any) -> int | str:
        steps = check_steps(f"steps of {name}", value)
        with explain(f"steps of {name}", UsageError):
            self.stages[name].num_evaluations(self.configs[name], Sampling(steps=steps))
        return steps

    def _check(self, name: str, sampling: Sampling) -> None:
        with explain(f"steps of {name}", UsageError):
            self.stages[name].check(self.configs[name], sampling)

    def num_evaluations(self, name: str, sampling: Sampling) -> int:
        """Steps of one picture, all candidates of it."""
        repeats: int = self.settings.get("candidates", {}).get(name, 1)
        return self.stages[name].num_evaluations(self.configs[name], sampling) * repeats
