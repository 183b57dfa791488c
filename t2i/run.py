"""From a file in `configs/` to a running training: the stage, its task, its data and the loop, put together."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, create_model
from torch import Tensor, nn

from t2i.core.assets import bundled_configs, find_config
from t2i.core.config import AtHome, Config, agreed, load, over, parse
from t2i.core.errors import UsageError, did_you_mean, explain, named, quoted
from t2i.core.progress import Alive, to_stderr
from t2i.core.types import Batch, Task
from t2i.data.config import DataConfig
from t2i.data.loader import Loader, loaders_explained
from t2i.data.source import Needs
from t2i.io.files import output_folder, read_json
from t2i.measures.judge import PairsJudge
from t2i.stages.follow import same_neighbour
from t2i.stages.registry import check_ours, load_stage, new_model, save_stage, stage, stage_of
from t2i.stages.stage import Neighbours, Stage
from t2i.train.checkpoint import find
from t2i.train.held_out import check_prompts
from t2i.train.loop import Result, fit
from t2i.train.optim import OptimConfig
from t2i.train.settings import TrainConfig
from t2i.train.snapshot import Earlier
from t2i.train.start import take_what_fits
from t2i.train.tracking import check_trackers

log = logging.getLogger(__name__)


class Run(Config):
    """A training run, as a YAML file says it.

    Attributes:
        stage: a name in `registry.STAGES`, such as decoder.
        preset: name of a published network, whose `model` this is but for what is given there.
        needs: folders of the frozen stages that it learns from, by the names in its task's `needs`, such as
            `{clip: runs/clip}`; paths, or ones under `weights/`. `clip: FOLDER` is short for that one.
        init: folder of a trained stage to start from, instead of random weights: what fits is taken (`Stage.start`).
        init_missing: whether parts of the model that `init` has nothing for start anew with a warning, or are an error.
        save_dtype: of the exported weights; int8, with scales, is half of bfloat16 (see `t2i.io.int8`).
    """

    stage: str
    preset: str | None = None
    needs: dict[str, Annotated[str, AtHome]] = Field({})
    init: Annotated[str, AtHome] | None = None
    init_missing: Literal["warn", "error"] = "warn"
    save_dtype: Literal["float32", "bfloat16", "float16", "int8"] = "bfloat16"
    model: Config
    task: Config
    data: DataConfig = DataConfig()
    train: TrainConfig
    optim: OptimConfig = OptimConfig()

    @classmethod
    def migrate(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`clip` among the needs, and `model` over its preset."""
        data = needs_section(data)
        if isinstance(needs := data.get("needs"), dict):
            data["needs"] = {name: folder for name, folder in needs.items() if folder is not None}
        spec = stage(str(data.get("stage")))
        if isinstance(data.get("model"), dict):
            data["model"] = spec.older(data["model"], _names(data))
        if (name := data.get("preset")) is None or not isinstance(data.get("model"), dict | None):
            return data
        choices = spec.presets
        if name not in choices:
            hint = did_you_mean(name, choices)
            raise ValueError(f"unknown preset {quoted(name)}; {data['stage']}s are {', '.join(choices)}{hint}")
        preset = choices[name].model_dump(mode="json", exclude_unset=True)  # what it leaves open may follow from a CLIP
        given = spec.config.migrate(data.get("model") or {})
        return data | {"model": over(preset, given)}


def needs_section(data: dict[str, Any]) -> dict[str, Any]:
    """A run's data with `clip`, the short form, among its `needs`; ValueError where those name another one."""
    needs = data.get("needs")
    if "clip" not in data or not isinstance(needs, dict | None):
        return data
    rest = {key: value for key, value in data.items() if key != "clip"}
    return rest | {"needs": agreed({"clip": data["clip"]}, needs, "needs")}


def _names(data: dict[str, Any]) -> list[str]:
    """The neighbours that a run's data name."""
    needs = data.get("needs")
    return [name for name, folder in needs.items() if folder is not None] if isinstance(needs, dict) else []


def load_run(path: str | Path, overrides: list[str]) -> Run:
    """Read and check a config file; unknown keys and wrong values raise UsageError with the full key."""

    class Head(Config):
        model_config = ConfigDict(extra="ignore")
        stage: str

    spec = stage(load(find_config(path), [o for o in overrides if o.startswith("stage=")], Head).stage)
    fields: dict[str, Any] = {
        "model": (spec.config, ...),
        "task": (spec.options, spec.options()),
    }
    with_clip = any(o.startswith(("clip=", "needs.clip=")) and not o.endswith(("=", "=null")) for o in overrides)

    def today(data: dict[str, Any]) -> dict[str, Any]:
        data = needs_section(data)
        if not isinstance(model := data.get("model"), dict):
            return data
        needs = ["clip"] if "stage" in data and (with_clip or "clip" in _names(data)) else []
        return data | {"model": spec.config.migrate(spec.older(model, needs))}

    return load(find_config(path), overrides, create_model("Run", __base__=Run, **fields), today)


def train(path: str | Path, overrides: list[str]) -> Result:
    """Train the stage that a config file describes. See `t2i.train.loop.fit` for what is left in `train.out`."""
    began = time.perf_counter()
    to_stderr()
    run = load_run(path, overrides)
    check_trackers(run.train.trackers)
    check_ours(run.train.out)
    with output_folder(run.train.out):
        return _train(str(path), run, stage(run.stage), began)


def _train(path: str, run: Run, spec: Stage, began: float) -> Result:
    with Alive("preparing"):
        task, loader, config = build(path, run, spec)

    def export(folder: Path, state: dict[str, Tensor]) -> None:
        save_stage(folder, run.stage, task.model, state, run.save_dtype)

    def migrated(config: dict[str, Any]) -> dict[str, Any]:
        try:
            return parse(config, type(run)).model_dump(mode="json")
        except ValueError:  # of a version that is too old to be compared with
            return config

    earlier = Earlier(spec.renamed, migrated)
    resolved = run.model_dump(mode="json") | {"model": config.model_dump(mode="json")}
    return fit(
        task, loader, run.train, run.optim, export=export, resolved=resolved, earlier=earlier, began=began,
        judge=judge_of(run, spec, task),
    )  # fmt: skip


def judge_of(run: Run, spec: Stage, task: Task) -> PairsJudge | None:
    """What measures drawn pictures, if `train.eval` asks for it; UsageError for a stage that draws none."""
    if run.train.eval is None:
        return None
    if spec.makes != "pictures" or len(task.groups) < 2 or type(task).sample is Task.sample:
        raise UsageError(f"train.eval: a {run.stage} draws no pictures to measure; leave it out")
    if "image" not in task.keys:
        raise UsageError("train.eval: this run sees no pictures, only what was made of them; leave it out")
    return PairsJudge(run.train.eval.metrics, run.train.eval.extractor, run.train.device)


def build(path: str, run: Run, spec: Stage) -> tuple[Any, Any, Config]:
    """The task of a run, ready for its first step, what makes its loaders, and the whole config of its model.

    Raises UsageError for a run that does not fit together.
    """
    torch.manual_seed(run.train.seed)
    neighbours = load_neighbours(run, spec)
    config = complete(run, spec, neighbours)
    if spec.contrastive(run.task):
        check_contrast(run.train)
    model: Any = new_model(spec, config, path)
    with explain(path, UsageError):
        task: Any = spec.task(model, run.task, **neighbours)  # type: ignore[call-arg]
    spec.fits(model, run.data, run.task, neighbours)
    check_prompts(task, run.train.prompts)
    warn_enlarged(run.data, neighbours)
    loader = partial(Loader, run.data, needs=Needs(task.keys, count_classes(config), count_channels(config)))
    saved = find(run.train.out / "checkpoints", run.train.resume, whole=False)
    before = read_json(saved / "state.json")["config"] if saved is not None else {}
    if (held := before.get("stage", run.stage)) != run.stage:
        raise UsageError(f"{saved} is of a run of stage {held}, and this is {run.stage}: choose another train.out")
    if saved is None:
        others = start_from(run.init, run, spec, model) if run.init is not None else False
        with loaders_explained():
            task.prepare(_batches(loader, run.train.seed), anew=others)
    else:
        check_neighbours(saved, before, config, run)
        if run.init not in (None, before.get("init")):
            log.warning(
                "init=%s is not read: the run continues from %s; another train.out starts anew", run.init, saved
            )
    return task, Loader.announced(loader), config


def load_neighbours(run: Run, spec: Stage) -> dict[str, nn.Module]:
    """The frozen stages that a stage learns from, by name.

    Raises UsageError for a name that its task does not know, and for a stage that cannot do what is needed.
    """
    found = {}
    for name, folder in run.needs.items():
        if name not in spec.task.needs:
            choices = spec.task.needs
            knows = f"; it learns from {', '.join(choices)}{did_you_mean(name, choices)}" if choices else ""
            raise UsageError(f"{name}={folder}: this {run.stage} learns nothing from {name}{knows}; leave it out")
        with named(f"{name}={folder}"):
            found[name] = load_stage(folder).requires_grad_(False)
        if not isinstance(found[name], kind := spec.task.needs[name]):
            held = stage_of(found[name]).name
            raise UsageError(f"{name}={folder} holds stage {held}, which is no {kind.__name__} for a {run.stage}")
    return found


def complete(run: Run, spec: Stage, neighbours: Neighbours) -> Config:
    """The stage's config with everything filled in that follows from its neighbours, its words or its data; see
    `Stage.complete`."""
    filled = spec.complete(run.model, neighbours, run.data)
    return parse(filled.model_dump(), spec.config, source="model")


def warn_enlarged(data: DataConfig, neighbours: Neighbours) -> None:
    """A warning for each neighbour that looks at larger pictures than the data has."""
    for name, neighbour in neighbours.items():
        if data.side < (side := getattr(neighbour, "image_size", None) or 0):
            enlarged = "so pictures are enlarged for it; train all that learns from it on equal sizes"
            log.warning("%s=%d: %s sees %d pixels, %s", data.side_key, data.side, name, side, enlarged)


def check_contrast(train: TrainConfig) -> None:
    """UsageError where a picture has no caption to be told apart from, a warning where it has fewer than it seems."""
    if train.batch_size == train.accumulate:
        raise UsageError(
            "a contrastive loss tells a picture's caption from the others of its micro-batch: train.batch_size is too "
            "small"
        )
    if train.accumulate > 1:
        log.warning(
            "train.accumulate=%d: a contrastive loss tells a picture's caption only from others of its micro-batch, so "
            "this is not training on batches of %d",
            train.accumulate,
            train.batch_size,
        )


def start_from(folder: str, run: Run, spec: Stage, model: Any) -> bool:
    """Give a model what fits of the weights of an earlier stage; True if that learned from another CLIP.

    Raises UsageError where nothing fits, or less than the whole model and `init_missing` is `error`.
    """
    with named(f"init={folder}"):
        before: Any = load_stage(folder)
    if (held := stage_of(before).name) != run.stage:
        raise UsageError(f"init={folder} is a {held}{made_by(before)}; this config makes a {run.stage}")
    state = before.state_dict()
    start = take_what_fits(model, spec.start(state, model), state)
    message = f"init={folder}: {start if start.taken else 'nothing of it fits'}"
    if 2 * len(start.taken) < start.num_tensors or (start.anew and run.init_missing == "error"):
        message += f"; it is a {held}{made_by(before)}, this config makes another one"
    if not start.taken or (start.anew and run.init_missing == "error"):
        raise UsageError(message)
    log.log(logging.WARNING if start.anew or start.unused else logging.INFO, message)
    ours, theirs = (spec.clip_facts(config).fingerprint for config in (model.config, before.config))
    others = "clip" in run.needs and not (same_neighbour(ours, theirs) and len(ours) == len(theirs))
    if others:
        log.warning("init=%s learned from another CLIP than %s, and learns on with this one", folder, run.needs["clip"])
    for name, given in other_neighbours(before.config, model.config, run):
        log.warning("init=%s learned from another %s than that of %s, and learns on with this", folder, name, given)
    return others


def check_neighbours(saved: Path, before: Mapping[str, Any], config: Config, run: Run) -> None:
    """UsageError for a neighbour that is another one than that of the run that goes on from `saved`."""
    try:
        earlier = parse(before["model"], type(config))
    except (KeyError, ValueError):  # of a version that is too old to be compared with
        return
    for name, given in other_neighbours(earlier, config, run):
        raise UsageError(f"{saved} learned from another {name} than that of {given}: choose another train.out")


def other_neighbours(before: Config, now: Config, run: Run) -> Iterator[tuple[str, str]]:
    """Names of the neighbours of two configs that are known and different, and what is given of them now."""
    earlier = fingerprints(before)
    for name, mark in fingerprints(now).items():
        if len(mark) and len(earlier.get(name, ())) and not same_neighbour(mark, earlier[name]):
            yield name, run.needs.get(name) or str(run.data.source)


def fingerprints(config: Any) -> dict[str, tuple[float, ...]]:
    """Of the frozen neighbours that a latent decoder learned from, by their names in `needs`."""
    latents, states = getattr(config, "latents", None), getattr(getattr(config, "ports", None), "states", None)
    found = {"autoencoder": latents, "text": states}
    return {name: section.fingerprint for name, section in found.items() if section is not None}


def made_by(model: Any) -> str:
    """` of configs/shapes/decoder.yaml`, the bundled config that makes the network of a stage; nothing where none
    does."""
    held, name = model.config.model_dump(mode="json"), stage_of(model).name
    for path in bundled_configs():
        with suppress(UsageError):
            run = load_run(path, [])
            if name == run.stage and over(held, run.model.model_dump(mode="json", exclude_unset=True)) == held:
                return f" of {path}"
    return ""


def count_classes(config: Any) -> int | None:
    """How many labels a network knows, None if it knows none."""
    if (ports := getattr(config, "ports", None)) is not None:
        return ports.classes.num if ports.classes is not None else None
    return getattr(config, "num_classes", None)


def count_channels(config: Any) -> int:
    """Of the pictures that a network learns from: 3, or 1 where its U-Net or encoder has one; latents are of 3."""
    if getattr(config, "latents", None) is not None:
        return 3
    part = "encoder" if hasattr(config, "encoder") else "unet"
    channels: int = getattr(getattr(config, part, None), "in_channels", 3)
    if channels not in (1, 3):
        raise UsageError(f"model.{part}.in_channels={channels}: pictures have 3 channels, or 1 where they are grey")
    return channels


def _batches(loader: Any, seed: int) -> Iterator[Batch]:
    """Batches of 64; nothing is opened before the first is asked for."""
    with closing(iter(loader(seed=seed, batch_size=64))) as batches:
        yield from batches
