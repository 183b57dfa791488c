"""A config costs nothing before it is checked: sizes are bounded, and networks are compared before they are built."""

import json
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import annotated_types
import pytest
import torch
from conftest import small_clip, small_prior, small_upsampler
from pydantic import BaseModel
from safetensors.torch import load_file, save_file
from small import UNET, of

from t2i.core.config import Config
from t2i.core.errors import DataError, OutOfMemoryError, UsageError
from t2i.stages import registry
from t2i.stages.classifier.model import ClassifierConfig
from t2i.stages.clip.model import ClipConfig, VisionConfig
from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoderConfig
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.registry import STAGES, load_stage, new_model, save_stage, stage


def configs(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A config and all that stand in its fields."""
    yield kind
    for field in kind.model_fields.values():
        for inside in leaves(field.annotation, ()):
            if isinstance(inside[0], type) and issubclass(inside[0], BaseModel):
                yield from configs(inside[0])


def leaves(annotation: Any, metadata: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The plain types in an annotation, with the bounds of each."""
    if get_origin(annotation) is Annotated:
        yield from leaves(get_args(annotation)[0], metadata + flat(annotation.__metadata__))
    elif get_origin(annotation) in (Union, types.UnionType):
        for inside in get_args(annotation):
            yield from leaves(inside, metadata)
    elif get_origin(annotation) is tuple:
        for inside in get_args(annotation):
            yield from leaves(inside, ())
    else:
        yield annotation, metadata


def flat(metadata: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part for info in metadata for part in (getattr(info, "metadata", None) or [info]))


@pytest.mark.parametrize("name", STAGES)
def test_every_size_has_an_upper_bound_and_every_number_is_finite(name: str) -> None:
    unbounded = []
    for kind in configs(stage(name).config):
        assert issubclass(kind, Config)
        assert kind.model_config["allow_inf_nan"] is False
        for field_name, field in kind.model_fields.items():
            for plain, bounds in leaves(field.annotation, flat(tuple(field.metadata))):
                highest = any(isinstance(bound, annotated_types.Le | annotated_types.Lt) for bound in bounds)
                if plain is int and not highest:
                    unbounded.append(f"{kind.__name__}.{field_name}")
    assert unbounded == []


def test_published_networks_are_far_below_the_bounds() -> None:
    """Four times every size of every preset is still allowed, one at a time."""
    for config in (p for name in STAGES for p in stage(name).presets.values()):
        for kind, values in sized(config):
            for key, value in values.items():
                bounds = flat(tuple(type(kind).model_fields[key].metadata))
                highest = [bound.le for bound in bounds if isinstance(bound, annotated_types.Le)]
                assert all(4 * value <= most for most in highest), (type(kind).__name__, key, value)


def sized(config: BaseModel) -> Iterator[tuple[BaseModel, dict[str, int]]]:
    values = dict(config)
    sizes = {k: v for k, v in values.items() if type(v) is int and k != "time_denominator_shift"}
    yield config, sizes
    for value in values.values():
        if isinstance(value, BaseModel):
            yield from sized(value)


def changed(folder: Path, *keys: str, to: object) -> None:
    """Set a value of the `model` in a folder's config."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    inside = config["model"]
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = to
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("unet", "channels"), 4096, "weights do not fit config.json: the folder has another shape of"),
        (("unet", "channels"), 10**9, "unet.channels: input should be less than or equal to 8192, got 1000000000"),
        (("unet", "num_blocks"), 10**6, "unet.num_blocks: input should be less than or equal to 64, got 1000000"),
        (("unet", "multipliers"), [1e308], "unet.multipliers.0: input should be less than or equal to 64"),
        (("unet", "multipliers"), [1] * 1000, "unet.multipliers: tuple should have at most 16 items"),
        (("diffusion", "num_steps"), 10**9, "num_steps: input should be less than or equal to 100000"),
    ],
)
def test_a_config_that_is_too_large_costs_nothing(
    keys: tuple[str, ...], value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_stage(tmp_path, "upsampler", small_upsampler(8, 32))
    changed(tmp_path, *keys, to=value)
    monkeypatch.setattr(registry, "load_folder", None)  # no tensor is read
    monkeypatch.setattr(registry, "machine_memory", lambda: 2**60)
    start = time.perf_counter()
    with pytest.raises(DataError, match=message) as caught:
        load_stage(tmp_path)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 5  # 6 GB took 80 s


def test_a_network_over_the_memory_of_the_machine_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = small_prior()
    save_stage(tmp_path, "prior", prior)
    monkeypatch.setattr(registry, "machine_memory", lambda: 10**4)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)
    for load in (lambda: load_stage(tmp_path), lambda: new_model(stage("prior"), prior.config, "x.yaml")):
        with pytest.raises(OutOfMemoryError, match=r"a prior of [\d,]+ weights takes 0.0 GB, this machine has 0.0"):
            load()
    monkeypatch.undo()
    huge = PriorConfig(width=2**16, heads=2, layers=256)
    with pytest.raises(OutOfMemoryError, match=r"of 13,203,\S+ weights takes 52812\S+ GB"):
        new_model(stage("prior"), huge, "x.yaml")


def test_memory_that_runs_out_while_building_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prior = small_prior()
    save_stage(tmp_path, "prior", prior)
    built = Prior.__init__

    def init(self: Prior, config: PriorConfig) -> None:
        if torch.get_default_device().type == "meta":
            return built(self, config)
        raise MemoryError

    monkeypatch.setattr(Prior, "__init__", init)
    for load in (lambda: load_stage(tmp_path), lambda: new_model(stage("prior"), prior.config, "x.yaml")):
        with pytest.raises(OutOfMemoryError, match="needs more memory than there is"):
            load()

    def wrong(self: Prior, config: PriorConfig) -> None:
        raise TypeError("an integer is required")

    monkeypatch.setattr(Prior, "__init__", wrong)
    with pytest.raises(DataError, match=r"config.json does not fit this version of t2i: an integer is required"):
        load_stage(tmp_path)
    with pytest.raises(UsageError, match=r"x.yaml: an integer is required"):
        new_model(stage("prior"), prior.config, "x.yaml")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Decoder(DecoderConfig(unet=of(context_dim=32))), "unet.context_dim=32, but no port gives tokens"),
        (lambda: VisionConfig(image_size=8, patch_size=16), "image_size=8 is smaller than patch_size=16"),
        (lambda: VisionConfig(image_size=16, layers=(1, 1, 1, 1)), "smaller than the 32 pixels that a ResNet folds"),
        (lambda: VisionConfig(width=32, head_width=64), "32 channels cannot be split into heads of head_width=64"),
        (lambda: of_heads(num_heads=5, head_channels=None), "64 channels of a level cannot be split .* num_heads=5"),
        (lambda: of_heads(head_channels=128), "64 channels of a level cannot be split .* head_channels=128"),
        (lambda: LaionDecoderConfig(era="D", attention=(9,)), r"attention at levels \[9\], but there are 4"),
        (lambda: ClipConfig(text={"width": 32, "heads": 3}), "width=32 is not a multiple of heads=3"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def of_heads(**changes: Any) -> Any:
    return type(UNET).model_validate(of(**changes).model_dump())


def test_whole_numbers_where_floats_belong_are_refused(tmp_path: Path) -> None:
    save_stage(tmp_path, "upsampler", small_upsampler(8, 32))
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    save_file(state | {"unet.conv_in.weight": state["unet.conv_in.weight"].to(torch.int8)}, path)
    with pytest.raises(DataError, match=r"'unet.conv_in.weight' is int8, expected float32"):
        load_stage(tmp_path)
    save_stage(tmp_path, "upsampler", small_upsampler(8, 32), dtype="int8")
    load_stage(tmp_path)


def test_a_user_that_asks_for_too_much_is_told_the_key() -> None:
    with pytest.raises(ValueError, match="less than or equal to 8192"):
        Decoder(DecoderConfig.model_validate({"unet": {"channels": 10**6, "head_channels": 32}}))
    with pytest.raises(ValueError, match="less than or equal to 10000000"):
        ClassifierConfig.model_validate({"encoder": {"head_channels": 32}, "num_classes": 10**8})
    assert small_clip().config  # and what is small is not
