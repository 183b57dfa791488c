"""From a file in `configs/` to a running training: the stage, its task, its data and the loop, put together."""

import logging
from contextlib import closing
from functools import partial
from itertools import islice
from math import lcm
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, create_model, model_validator
from torch import Tensor

from t2i.core.assets import asset
from t2i.core.config import AtHome, Config, load, parse
from t2i.core.errors import UsageError, did_you_mean, explain
from t2i.data.loader import DataConfig, Loader, class_names
from t2i.data.shapes import WORDS
from t2i.io.files import output_folder
from t2i.stages.classifier.model import ClassifierConfig
from t2i.stages.clip.model import ClipEncoder
from t2i.stages.decoder.model import DecoderConfig
from t2i.stages.noised_clip.model import NoisedClipConfig
from t2i.stages.registry import Stage, load_stage, save_stage, stage
from t2i.stages.upsampler.model import UpsamplerConfig
from t2i.text.tokenizers import TokenizerConfig
from t2i.train.checkpoint import find, load_model
from t2i.train.loop import Result, fit
from t2i.train.optim import OptimConfig
from t2i.train.settings import TrainConfig

log = logging.getLogger(__name__)

CONTRASTIVE = ("clip", "noised_clip")


class Run(Config):
    """A training run, as a YAML file says it.

    Attributes:
        stage: a name in `registry.STAGES`, such as decoder.
        preset: name of a published network, whose `model` this is but for what is given there.
        clip: folder of the frozen CLIP that the stage learns from, if it does; a path, or one under `weights/`.
        init: folder of a trained stage to start from, instead of random weights; see `fitted`.
        save_dtype: of the exported weights.
    """

    stage: str
    preset: str | None = None
    clip: Annotated[str, AtHome] | None = None
    init: Annotated[str, AtHome] | None = None
    save_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    model: Config
    task: Config
    data: DataConfig = DataConfig()
    train: TrainConfig
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: dict[str, Any]) -> dict[str, Any]:
        """`model` over its preset."""
        if (name := data.get("preset")) is None:
            return data
        known = stage(data["stage"]).presets
        if name not in known:
            raise ValueError(
                f"unknown preset {name!r}; {data['stage']}s are {', '.join(known)}{did_you_mean(name, known)}"
            )
        preset = known[name].model_dump(mode="json", exclude_unset=True)  # what it leaves open may follow from a CLIP
        return data | {"model": _over(preset, data.get("model") or {})}


def load_run(path: str | Path, overrides: list[str]) -> Run:
    """Read and check a config file; unknown keys and wrong values raise UsageError with the full key."""

    class Head(Config):
        model_config = ConfigDict(extra="ignore")
        stage: str

    spec = stage(load(find_config(path), [o for o in overrides if o.startswith("stage=")], Head).stage)
    fields: dict[str, Any] = {
        "model": (spec.config_class, ...),
        "task": (spec.options_class, spec.options_class()),
    }
    return load(find_config(path), overrides, create_model("Run", __base__=Run, **fields))


def _over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, key by key at every depth."""
    merged = {
        k: _over(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in changes.items()
    }
    return base | merged


def find_config(path: str | Path) -> Path:
    """A config file by path, or by its name under the bundled `configs/`; UsageError if it is neither."""
    path = Path(path)
    bundled = asset("configs", *path.parts[1:] if path.parts[:1] == ("configs",) else path.parts)
    if not path.exists() and not bundled.is_file():
        known = {other.name for folder in (path.parent, bundled.parent) for other in folder.glob("*.yaml")}
        hint = did_you_mean(path.name, sorted(known), f"{path.parent}/" if path.parent.name else "")
        raise UsageError(f"cannot read config {path}: no such file{hint}")
    return bundled if not path.exists() else path


def train(path: str | Path, overrides: list[str]) -> Result:
    """Train the stage that a config file describes. See `t2i.train.loop.fit` for what is left in `train.out`."""
    run = load_run(path, overrides)
    spec = stage(run.stage)
    with output_folder(run.train.out):
        return _train(str(path), run, spec)


def _train(path: str, run: Run, spec: Stage) -> Result:
    torch.manual_seed(run.train.seed)
    encoder = load_clip(run.clip) if run.clip else None
    config = complete(run, spec, encoder)
    if run.stage in CONTRASTIVE and run.train.batch_size == run.train.accumulate:
        raise UsageError(
            "CLIP tells a picture's caption from the others of its micro-batch: train.batch_size is too small"
        )
    if run.stage in CONTRASTIVE and run.train.accumulate > 1:
        log.warning(
            "train.accumulate=%d: CLIP tells a picture's caption only from others of its micro-batch, so this is not "
            "training on batches of %d",
            run.train.accumulate,
            run.train.batch_size,
        )
    with explain(path, UsageError):
        model = spec.model_class(config)
        task: Any = spec.task_class(model, encoder, run.task)
    check_pictures(run, model, encoder)
    fresh = find(run.train.out / "checkpoints", run.train.resume) is None
    other_clip = False
    if run.init and fresh:
        start: Any = load_stage(run.init, expect=run.stage)
        load_model(model, fitted(start.state_dict(), model), Path(run.init))
        marks = (getattr(c, "clip_mark", ()) for c in (start.config, config))
        other_clip = encoder is not None and len(set(marks)) > 1
        if other_clip:
            log.warning("init=%s learned from another CLIP than %s", run.init, run.clip)
    num_classes = getattr(config, "num_classes", None)
    loader = partial(Loader, run.data, captioned="caption" in task.keys, num_classes=num_classes)
    if hasattr(task, "prepare") and fresh:
        with closing(iter(loader(seed=run.train.seed, batch_size=64))) as batches:
            task.prepare(islice(batches, max(1, run.task.measured_on // 64)), anew=other_clip)  # type: ignore[attr-defined]
    dtype = getattr(torch, run.save_dtype)

    def export(folder: Path, state: dict[str, Tensor]) -> None:
        save_stage(folder, run.stage, model, state, dtype)

    resolved = run.model_dump(mode="json") | {"model": config.model_dump(mode="json")}
    return fit(task, loader, run.train, run.optim, export=export, resolved=resolved)


def fitted(start: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """Weights to start from, and what `model` has beyond them and that starts as nothing: channels of a masked picture
    after those of x_t (GLIDE, section 3.2), and `Fine` blocks, anew where those of `start` are others; without the port
    for CLIP if `model` has none, but with what the null embedding adds to the vector."""
    wanted, unet = model.state_dict(), getattr(getattr(model, "config", None), "unet", None)
    fine, before = ({key: w[key] for key in w if key.startswith("unet.fine.")} for w in (wanted, start))
    anew = fine and {key: len(fine[key]) for key in fine} != {key: len(before[key]) for key in before}
    out = {key: start[key] for key in start if key not in before} | fine if anew else dict(start)
    if "clip_null" in out and "clip_null" not in wanted and "text_vector.bias" in out:
        weight, bias = (out[f"clip_vector.{name}"].float() for name in ("weight", "bias"))
        out["text_vector.bias"] = out["text_vector.bias"] + weight @ out["clip_null"].float() + bias
    out = {key: value for key, value in out.items() if key in wanted or not key.startswith("clip_")}
    for key, pixels in (("unet.conv_in.weight", "patch_size"), ("unet.fine.conv_in.weight", "fine_patch")):
        missing = wanted[key].shape[1] - out[key].shape[1] if key in wanted and key in out else 0
        if missing > 0 and unet is not None:
            seen = unet.in_channels * getattr(unet, pixels) ** 2  # channels of x_t
            nothing = out[key].new_zeros(out[key].shape[0], missing, *out[key].shape[2:])
            out[key] = torch.cat([out[key][:, :seen], nothing, out[key][:, seen:]], dim=1)
    return out


def load_clip(path: str) -> ClipEncoder:
    """The frozen CLIP that a stage learns from."""
    encoder = load_stage(path, expect="clip").requires_grad_(False)
    assert isinstance(encoder, ClipEncoder)
    return encoder


def complete(run: Run, spec: Stage, encoder: ClipEncoder | None) -> Config:
    """The stage's config with everything filled in that follows from the frozen CLIP or from the shapes vocabulary.

    A decoder whose `clip_dim` is null by name has no port for CLIP. Raises UsageError for a missing CLIP, for one that
    the stage has no use for, and for values that are not those of the CLIP.
    """
    data = run.model.model_dump()
    reads_clip = "clip_dim" in data and not ("clip_dim" in run.model.model_fields_set and data["clip_dim"] is None)
    if reads_clip and encoder is None:
        instead = ", or model.clip_dim=null for one without" if run.stage == "decoder" else ""
        article = "an" if run.stage.startswith("a") else "a"
        raise UsageError(f"{article} {run.stage} learns from a trained CLIP: name its folder, clip=FOLDER{instead}")
    given: TokenizerConfig = getattr(run.model, "tokenizer", None) or TokenizerConfig()
    if encoder is not None:
        if not reads_clip and (run.stage != "decoder" or data["text"] is None):
            raise UsageError(f"clip={run.clip}: this {run.stage} learns nothing from a CLIP; leave it away")
        tokenizer = encoder.config.tokenizer
        of_clip: dict[str, Any] = {}
        if reads_clip:
            of_clip |= {"clip_dim": encoder.dim, "clip_mark": encoder.mark()}
        if "text_width" in data:
            of_clip |= {"text_width": encoder.text_width, "context": tokenizer.context}
        _agree("model.tokenizer.", given.model_dump(), given.model_fields_set, tokenizer.model_dump(), run.clip)
        _agree("model.", data, run.model.model_fields_set, of_clip, run.clip)
        data |= of_clip
    else:
        tokenizer = given
    if data.get("num_classes") is not None:
        data |= classes(run)
    if tokenizer.kind == "words" and not tokenizer.words:
        tokenizer = tokenizer.model_copy(update={"words": tuple(WORDS)})
    if "tokenizer" in data and (data.get("text") is not None):
        data["tokenizer"] = tokenizer.model_dump()
        if "vocab_size" in data["text"]:
            follows = {"vocab_size": tokenizer.vocab_size, "context": tokenizer.context}
            given_text = run.model.text.model_fields_set  # type: ignore[attr-defined]
            _agree("model.text.", data["text"], given_text, follows, "the tokenizer")
            data["text"] |= follows
    return parse(data, spec.config_class, source="model")


def classes(run: Run) -> dict[str, Any]:
    """What follows for a network over classes from the data: their names. UsageError if they are not as many."""
    names, num = class_names(run.data), run.model.num_classes  # type: ignore[attr-defined]
    if names and len(names) != num:
        raise UsageError(f"model.num_classes={num}, but {run.data.source} has {len(names)} classes")
    return {"class_names": names} if hasattr(run.model, "class_names") else {}


def _agree(prefix: str, data: dict[str, Any], given: set[str], follows: dict[str, Any], where: object) -> None:
    """UsageError for a key that was given another value than the one that follows from elsewhere."""
    for key, value in follows.items():
        if key in given and data[key] != value:
            raise UsageError(f"{prefix}{key}={data[key]} is {value} in {where}; leave it away")


def check_pictures(run: Run, model: Any, encoder: ClipEncoder | None) -> None:
    """Refuse sides of pictures that a stage would train on without complaint, or trip over, and not be what it says."""
    data, config = run.data, model.config
    key, side = ("data.size", data.size) if data.crop is None else ("data.crop", data.crop)
    if isinstance(config, DecoderConfig | ClassifierConfig | NoisedClipConfig) and side != config.image_size:
        raise UsageError(f"{key}={side} must equal model.image_size={config.image_size}")
    if isinstance(model, ClipEncoder):
        if config.architecture is None and side != model.image_size:
            raise UsageError(f"{key}={side} must equal model.vision.image_size={model.image_size}")
        if side < model.image_size:
            raise UsageError(
                f"{key}={side} is smaller than the {model.image_size} pixels that {config.architecture} sees"
            )
    elif encoder is not None and side < encoder.image_size:
        log.warning(
            "%s=%d: CLIP sees %d pixels, so pictures are enlarged for it; train prior and decoder on equal sizes",
            key,
            side,
            encoder.image_size,
        )
    if run.stage == "reader" and side != data.size:
        raise UsageError(f"data.crop={side}: a reader learns the places of things in whole pictures; leave it away")
    if isinstance(config, UpsamplerConfig):
        if side % (step := lcm(config.magnification, config.unet.factor)):
            raise UsageError(f"{key}={side} must be a multiple of {step}, or the network cannot fold it")
        drawn = any(source.src == "shapes" for source in data.sources)  # files may hold crops already
        if drawn and data.size != config.image_size:
            raise UsageError(f"data.size={data.size} must equal model.image_size={config.image_size}")
        blur = run.task.degradation  # type: ignore[attr-defined]
        small = side // config.magnification
        if blur.blur and blur.kernel // 2 >= small:
            raise UsageError(f"task.degradation.kernel={blur.kernel} is too wide for small pictures of {small} pixels")
