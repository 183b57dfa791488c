"""From weights of others to a stage folder: read without running anything, recognise, rename, save.

A file is recognised by its keys and shapes. What those cannot show (attention order, heads, schedule, time scaling)
comes from the recognised network; for a file of another size it must be given.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from t2i.convert.choice import Which, choose
from t2i.convert.custom import ASKED, is_flat, of_dalle2_pytorch, read_dalle2_pytorch, read_shapes
from t2i.convert.diffusers import layout_of
from t2i.convert.folder import weight_files
from t2i.convert.program import read_known
from t2i.core.devices import stored_as
from t2i.core.errors import DataError, UsageError, did_you_mean, explain, quoted
from t2i.core.paths import path_of
from t2i.io.files import output_folder, read_json
from t2i.io.foreign import is_program, read_foreign
from t2i.io.lock import sole_writer
from t2i.keymaps.flat import Layout, Shape, misfit, modules
from t2i.nn.half import half_trunk
from t2i.stages.noised_clip.convert import join, tower_of
from t2i.stages.prior.convert import STATISTICS, lacks_statistics
from t2i.stages.registry import STAGES, check_ours, load_stage, save_stage, stage, stage_in

log = logging.getLogger(__name__)

SHARD = 2**32  # bytes; converted weights stay on this machine
_NEAR = 12  # so many keys or shapes may differ from those of a known network, and it is still named in the error


class Converted(NamedTuple):
    """What a file turned out to be."""

    stage: str
    name: str
    parameters: int


def convert_files(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    network: str | None = None,
    given: Sequence[str] = (),
    dtype: str | torch.dtype | None = None,
    weights: Which | None = None,
) -> Converted:
    """Write a stage folder from published weights of DDPM, IDDPM, ADM, GLIDE, unCLIP or of KL autoencoders; or a stage
    of ours in another `dtype`.

    Args:
        paths: a `.pt`, `.ckpt`, `.bin` or `.safetensors` file or a folder of diffusers or transformers; two where a
            network lies in two: a noised CLIP, Karlo's prior and its statistics, or folders of unCLIP's pipeline.
        out: the folder to write.
        network: its name, if it must be a certain one; None recognises it.
        given: `key=value`, what the weights of an unpublished network do not show (see `t2i.convert.custom.Facts`); it
            has no name, so `network` is not given as well.
        dtype: of the written weights; None keeps those of the file. Of U-Nets only what the references keep in half
            precision has it, see `half_trunk`, and the rest is float32; int8 is the same for all, see `t2i.io.int8`.
        weights: "ema" or "raw", where a file holds averaged weights and those that were trained; None takes averaged
            ones where there are any. What was chosen is logged.

    Raises:
        UsageError: something about an unknown network is not given, or `out` cannot be written, or holds what is read.
        DataError: a file is damaged, holds more than tensors, or does not fit; nothing is written then.
    """
    dtype = None if dtype is None else stored_as(dtype)
    folder = path_of(out, "a folder").resolve()
    for path in paths:
        if path_of(path).resolve() in (folder, folder / "model.safetensors"):
            raise UsageError(f"{path} would be replaced by what is made of it: write to another folder than {out}")
    check_ours(folder)
    if dtype is not None and len(paths) == 1 and (name := stage_in(path_of(paths[0]))) in STAGES:
        if network is not None or given or weights is not None:
            raise UsageError(f"{paths[0]} is a stage of t2i already ({name}): dtype is all that can be another one")
        model: Any = load_stage(paths[0])
        with output_folder(out) as folder, sole_writer(folder):
            save_stage(out, name, model, dtype=dtype, max_shard_size=SHARD)
        return Converted(name, f"as {paths[0]}", sum(p.numel() for p in model.parameters()))
    layout, converted = converted_weights(paths, network=network, given=given, weights=weights)
    with output_folder(out) as folder, sole_writer(folder):
        with torch.device("meta"):
            model = layout.model(layout.config)
        if dtype not in (None, torch.int8) and stage(layout.stage).halved:
            stored = half_trunk(model, dtype).state_dict()
            converted = {key: value.to(stored[key].dtype) for key, value in converted.items()}
            dtype = None
        save_stage(out, layout.stage, model, converted, dtype, max_shard_size=SHARD)
    return Converted(layout.stage, layout.name, sum(value.numel() for value in converted.values()))


def converted_weights(
    paths: Sequence[str | Path],
    *,
    network: str | None = None,
    given: Sequence[str] = (),
    weights: Which | None = None,
) -> tuple[Layout, dict[str, Tensor]]:
    """What network published files are, and its weights by our keys; arguments and errors of `convert_files`."""
    if network is not None and given:
        raise UsageError(f"network {quoted(network)} is known; what is given (--set) is for unpublished networks alone")
    if weights not in (None, *get_args(Which)):
        raise UsageError(f"weights must be {' or '.join(get_args(Which))}, got {quoted(weights)}")
    folders = [path_of(path) for path in paths]
    layout = layout_of(folders) if network is None and not given else None
    fit = _fit([layout] if layout else _candidates(network), bool(given))
    states, versions = zip(*(_weights_and_version(path, weights, fit) for path in folders), strict=True)
    state = _joined(states, folders)
    where, shapes = " + ".join(map(str, paths)), {key: tuple(value.shape) for key, value in state.items()}
    if layout is None and network is None and of_dalle2_pytorch(shapes):
        layout = read_dalle2_pytorch(shapes, given, where, versions[0])
    elif layout is None:
        layout = read_shapes(shapes, given, where) if given else recognise(shapes, where, network)
        for path in folders:
            _check_diffusers(path, layout.config)
    with explain(where, DataError):
        converted = layout.convert(state)
    _check_numbers(layout.read(state), where)
    return layout, converted


@cache
def layouts() -> tuple[Layout, ...]:
    """Every published network in every dialect."""
    return tuple(layout for name in STAGES for layout in stage(name).layouts())


def recognise(shapes: Mapping[str, Shape], where: str, name: str | None = None) -> Layout:
    """The published network whose keys and shapes these are.

    Args:
        shapes: by key.
        where: the file, for errors.
        name: if given, no other network is considered.

    Raises:
        DataError: there is none; the message says how the nearest one differs, or what to give instead.
        UsageError: no network has that name, or none is given and priors or autoencoders of several have these keys.
    """
    candidates = _candidates(name)
    apart = [len(modules(layout.read(shapes)) ^ layout.keys) for layout in candidates]  # cheap: no network is built
    near = [layout for layout, count in zip(candidates, apart, strict=True) if count <= min(apart) + 1]
    misfits = [(layout, misfit(layout.shapes, layout.read(shapes))) for layout in near]
    best, problems = min(misfits, key=lambda pair: len(pair[1]))
    if not problems:
        fitting = [x for x, wrong in misfits if not wrong and x.stage in ("prior", "autoencoder")]
        alike = [x.name for x in fitting if (x.config, x.constants) != (best.config, best.constants)]
        if alike:  # they differ in how far x_0 is clamped, or in the scale of latents
            raise UsageError(
                f"{where}: its keys are those of {' and '.join([best.name, *alike])}; give its name (--network)"
            )
        return best
    if name is None and len(problems) > _NEAR:
        raise DataError(
            f"{where}: the weights of no published network; of another flat U-Net give (with --set) {ASKED}"
        )
    own = name is None and is_flat(shapes) and all("of shape" in problem for problem in problems)
    hint = f"; if it is a U-Net of your own, give (with --set) {ASKED}" if own else ""
    raise DataError(f"{where}: almost {best.name}, but it {'; '.join(problems[:6])}{hint}")


def read_weights(path: str | Path, weights: Which | None = None) -> dict[str, Tensor]:
    """The tensors of a file or of a folder of diffusers or transformers, averaged ones where `weights` does not say
    otherwise; nothing in a file is ever executed.

    Raises DataError for what is missing, truncated, foreign or holds more than tensors.
    """
    return _weights_and_version(path_of(path), weights, _fit(layouts(), False))[0]


def _candidates(name: str | None) -> list[Layout]:
    """The published networks of a name, in every dialect, or all; UsageError if there is none of that name."""
    found = [layout for layout in layouts() if name in (None, layout.name)]
    if not found:
        names = sorted({layout.name for layout in layouts()})
        raise UsageError(f"unknown network {quoted(name)}; known: {', '.join(names)}{did_you_mean(name, names)}")
    return found


def _fit(known: Sequence[Layout], given: bool) -> Callable[[Collection[str]], tuple[bool, int, bool]]:
    """How well names are known: as those of DALLE2-pytorch, or of a flat U-Net about which facts are `given`; else by
    how many of them a published network has."""

    def fit(keys: Collection[str]) -> tuple[bool, int, bool]:
        names, flat = modules(keys), is_flat(dict.fromkeys(keys, ()))
        own = of_dalle2_pytorch(dict.fromkeys(keys, ())) or (given and flat)
        return own, max(len(names & layout.keys) for layout in known), flat

    return fit


def _weights_and_version(
    path: Path, which: Which | None, fit: Callable[[Collection[str]], Any]
) -> tuple[dict[str, Tensor], str]:
    """As `read_weights`, and the version of the library that wrote the file, if it says so."""
    if path.is_dir():
        parts = [read_foreign(file) for file in weight_files(path)]
        data: Any = {key: value for part in parts for key, value in part.items()} if len(parts) > 1 else parts[0]
    else:
        data = read_known(path) if is_program(path) else read_foreign(path)
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(data, tuple) and len(data) == 2:  # statistics of CLIP's embeddings: mean and standard deviation
        data = dict(zip(STATISTICS, data, strict=True))
    try:
        state, told = choose(data, which, fit)
    except (DataError, UsageError) as error:
        raise type(error)(f"{path}: {error}") from None
    odd = next((key for key, value in state.items() if value.layout != torch.strided or value.is_meta), None)
    if odd is not None:
        raise DataError(f"{path}: {odd!r} is sparse, or has no numbers")
    for sentence in told:
        log.info("%s: %s", path, sentence)
    return state, version if isinstance(version, str) else ""


def _check_numbers(state: Mapping[str, Tensor], where: str) -> None:
    """DataError for weights that are whole numbers or of 8 bits, NaN or infinite."""
    for key, value in state.items():
        if not value.is_floating_point() or value.itemsize < 2:
            kind = str(value.dtype).removeprefix("torch.")
            raise DataError(f"{where}: {key!r} is {kind}, expected floating numbers of 16 bits and more")
        if wrong := value.numel() - int(value.isfinite().sum()):
            raise DataError(f"{where}: {wrong} of the {value.numel()} numbers of {key!r} are NaN or infinite")


def _joined(states: Sequence[dict[str, Tensor]], paths: Sequence[Path]) -> dict[str, Tensor]:
    """One state dict of one file, or of two that make one network. Where both name their tensors alike, the encoders of
    a noised CLIP are told apart by what is in them, and others by the names of their folders, put before the keys."""
    where, towers = " + ".join(map(str, paths)), [tower_of(state) for state in states]
    if any(towers):
        if sorted(map(str, towers)) != ["image", "text"]:
            raise DataError(f"{where}: expected one file, or both encoders of a noised CLIP")
        return join(states)
    if len(states) > 1 and any(first.keys() & second.keys() for first, second in pairwise(states)):
        states = [{f"{path.name}.{key}": x for key, x in s.items()} for path, s in zip(paths, states, strict=True)]
    joined = {key: value for state in states for key, value in state.items()}
    if len(joined) < sum(map(len, states)):
        raise DataError(f"{where}: the same names twice; expected one file, or both encoders of a noised CLIP")
    if lacks_statistics(joined):
        raise DataError(
            f"{where}: a prior without the statistics of CLIP's embeddings; give the file of them as well, which was "
            "published beside it (ViT-L-14_stats.th)"
        )
    return joined


def _check_diffusers(path: Path, config: Any) -> None:
    """Refuse a diffusers folder whose config says other things than the recognised network's."""
    if not path.is_dir() or not (path / "config.json").is_file():
        return
    theirs, unet = read_json(path / "config.json"), getattr(config, "unet", None)
    if not isinstance(theirs, dict):
        raise DataError(f"{path / 'config.json'}: not the config of a network, as its weights are")
    if theirs.get("_class_name") == "ConsistencyDecoderVAE":  # whose facts have other names
        layout_of([path])
        return
    if unet is None:
        return
    facts = {
        "norm_eps": unet.norm_eps,
        "norm_num_groups": unet.norm_groups,
        "flip_sin_to_cos": unet.time_order == "cos_sin",
        "freq_shift": unet.time_denominator_shift,
        "downsample_padding": 0 if unet.down_padding == "right_bottom" else 1,
        "attention_head_dim": unet.head_channels if unet.mid_attention else theirs.get("attention_head_dim"),
        "center_input_sample": False,
        "act_fn": "silu",
        "sample_size": config.image_size,
    }
    schedule = {
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[config.diffusion.schedule],
        "num_train_timesteps": config.diffusion.num_steps,
        "prediction_type": {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[config.diffusion.target],
    }
    files = {path / "config.json": facts}
    for scheduler in (path / "scheduler_config.json", path.parent / "scheduler" / "scheduler_config.json"):
        files |= {scheduler: schedule} if scheduler.is_file() else {}
    for file, expected in files.items():
        found = read_json(file)
        for key, value in expected.items():
            if found.get(key, value) != value:
                raise DataError(f"{file}: {key}={found[key]!r}, but the network takes {value!r}")
