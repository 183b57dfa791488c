"""The noised classifier: the reference's numbers, strict conversion, a gradient that climbs, two classes told apart."""

import math
from functools import partial

import pytest
import torch
from conftest import small_classifier
from golden_tools import check, fill_state_dict, load_case, make_input
from manifests import manifests, shapes, state
from torch import Tensor

from t2i.core.types import Batch, Prediction
from t2i.diffusion.guidance import score_guided
from t2i.diffusion.prediction import x_0_from_eps
from t2i.diffusion.process import Process
from t2i.nn.encoder import EncoderConfig
from t2i.nn.half import half_trunk
from t2i.stages.classifier.convert import convert
from t2i.stages.classifier.model import Classifier, ClassifierConfig
from t2i.stages.classifier.presets import PRESETS
from t2i.stages.classifier.task import ClassifierTask

FILE = "openai_nets.json"
ENCODER = EncoderConfig(channels=32, multipliers=(1, 2, 2), num_blocks=1, attention=(2, 4), head_channels=32)


def published(config: ClassifierConfig, weights: dict[str, Tensor]) -> Classifier:
    model = Classifier(config).eval()
    model.load_state_dict(convert(weights, config))
    return model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_adm_classifier_and_its_gradient(layout: torch.memory_format) -> None:
    case = load_case(FILE, "T3")
    x, t, y = (make_input(case["inputs"][name]) for name in "xty")
    model = published(
        ClassifierConfig(encoder=ENCODER, num_classes=1000, image_size=32), fill_state_dict(case["weights"][0]["keys"])
    )
    model, x = model.to(memory_format=layout), x.contiguous(memory_format=layout)
    with torch.inference_mode():  # where samplers may run
        check(case["outputs"]["logits"], model(x, t))
        gradient = model.log_probability_gradient(x, t.clone(), y.clone())
    check(case["outputs"]["grad_log_p_y"], gradient, "gradient")
    assert {p.grad for p in model.parameters()} == {None}


@pytest.mark.slow
@torch.no_grad()
def test_adm_64_classifier_at_full_size() -> None:
    case = load_case(FILE, "F-adm64-classifier")
    weights = fill_state_dict(shapes(case["weights"][0]["manifest"]))
    x, t = (make_input(case["inputs"][name]) for name in "xt")
    check(case["outputs"]["logits"], published(PRESETS["adm-64-classifier"], weights)(x, t))


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_published_key_lists_fit_strictly(size: int) -> None:
    name, config = f"adm/{size}x{size}_classifier", PRESETS[f"adm-{size}-classifier"]
    with torch.device("meta"):
        model = Classifier(config)
    model.load_state_dict(convert(state(shapes(name)), config), assign=True)
    assert sum(p.numel() for p in model.parameters()) == manifests()[name]["n_params"]
    assert (config.diffusion.schedule == "cosine") == (size == 64)


def test_what_does_not_fit_is_named() -> None:
    keys, config = shapes("adm/64x64_classifier"), PRESETS["adm-64-classifier"]
    key = "out.2.qkv_proj.bias"
    without = {k: s for k, s in keys.items() if k != key}
    for bad, message in (
        (without, f"it lacks '{key}'"),
        (without | {"out.2.qkv.bias": (1536,)}, f"it lacks '{key}'; has the unknown 'out.2.qkv.bias'"),
        (keys | {"label_emb.weight": (1000, 512)}, "it has the unknown 'label_emb.weight'"),
        (keys | {key: (512, 3)}, f"it has '{key}' of shape (512, 3), expected (1536,)"),
    ):
        with pytest.raises(ValueError, match="does not fit the config") as error:
            convert(state(bad), config)
        assert str(error.value) == f"the checkpoint does not fit the config: {message}"


def test_trunk_and_pool_have_rows_in_another_order() -> None:
    config = ClassifierConfig(encoder=ENCODER, num_classes=1000, image_size=32)
    weights = fill_state_dict(load_case(FILE, "T3")["weights"][0]["keys"])
    out = convert(weights, config)
    trunk, pool = weights["middle_block.1.qkv.bias"], weights["out.2.qkv_proj.bias"]
    assert torch.equal(out["pool.qkv.bias"], pool)
    by_head = trunk.view(2, 3, 32)  # heads, parts, rows
    assert torch.equal(out["encoder.mid.attention.attention.qkv.bias"], by_head.transpose(0, 1).flatten())


def test_the_gradient_is_the_slope_of_the_log_probability() -> None:
    model = small_classifier()
    torch.manual_seed(0)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([3, 900]), torch.tensor([4, 0])
    g = model.log_probability_gradient(x, t, y)
    direction = g / g.square().sum((1, 2, 3), keepdim=True).sqrt()
    with torch.no_grad():
        up, down = (model.log_probability(x + h * direction, t, y) for h in (0.05, -0.05))
    torch.testing.assert_close((up - down) / 0.1, g.flatten(1).norm(dim=1), rtol=1e-2, atol=0)
    torch.testing.assert_close(g[:1], model.log_probability_gradient(x[:1], t[:1], y[:1]), rtol=1e-3, atol=1e-6)


def test_it_steers_a_sampler() -> None:
    model, process = small_classifier(), Process.from_schedule("cosine").respace(10)
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([4, 0])
    nothing = torch.zeros(())

    def denoise(x_t: Tensor, step: int) -> Prediction:
        return Prediction(x_0_from_eps(process, x_t, 0 * x_t, step), 0 * x_t, nothing)

    gradient = partial(model.log_probability_gradient, labels=y)
    with torch.no_grad():
        eps = score_guided(denoise, gradient, 3.0, process, "ddim")(x, 5).eps
    g = model.log_probability_gradient(x, process.time(5, x), y)
    want = -3.0 * process.at("sqrt_one_minus_alpha_bar", 5, x) * g  # Dhariwal & Nichol 2021, algorithm 2
    torch.testing.assert_close(eps, want, atol=1e-5, rtol=1e-3)


def test_the_head_is_float32_and_a_half_precision_trunk_is_near() -> None:
    model = small_classifier()
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    with torch.no_grad():
        whole = model(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, t)
        half = model.to(torch.bfloat16)(x, t)
    assert {whole.dtype, mixed.dtype, half.dtype} == {torch.float32}
    for logits in (mixed, half):
        torch.testing.assert_close(logits, whole, atol=0.05, rtol=0.05)
    assert model.log_probability_gradient(x, t, torch.tensor([1, 2])).dtype == torch.float32


def test_with_half_a_trunk_the_gradient_is_nearly_the_same() -> None:
    torch.manual_seed(0)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([3, 900]), torch.tensor([4, 0])
    want = small_classifier().log_probability_gradient(x, t, y)
    got = half_trunk(small_classifier()).log_probability_gradient(x, t, y)
    assert got.dtype == torch.float32
    assert 0 < (got - want).norm() / want.norm() < 1e-2


def flat(count: int, seed: int = 0, size: int = 16) -> Batch:
    """Pictures of one grey with faint noise, dark for label 0 and light for label 1."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (count,), generator=generator)
    image = (label - 0.5)[:, None, None, None] + 0.1 * torch.randn(count, 3, size, size, generator=generator)
    return {"image": image, "label": label, "seed": [1000 * seed + i for i in range(count)]}


def tiny() -> Classifier:
    torch.manual_seed(0)
    encoder = EncoderConfig(channels=32, multipliers=(1, 1), num_blocks=1, attention=(), head_channels=16)
    return Classifier(ClassifierConfig(encoder=encoder, num_classes=2, image_size=16))


def test_a_few_steps_tell_dark_from_light() -> None:
    task = ClassifierTask(tiny())
    optimizer = torch.optim.Adam(task.model.parameters(), lr=3e-3)
    for step in range(1, 26):
        loss = task.loss(flat(16, step))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = task.metrics(flat(64, 99))
    assert found["accuracy_clean"] > 0.95
    assert 0.5 < found["accuracy_noisy"] <= found["accuracy_clean"]
    x, t, y = flat(2)["image"], torch.tensor([100, 100]), torch.tensor([0, 1])
    drift = task.model.log_probability_gradient(x, t, y).mean((1, 2, 3))
    assert drift[0] < 0 < drift[1]  # darker for label 0


def test_losses_are_cross_entropies_that_belong_to_samples() -> None:
    task = ClassifierTask(small_classifier())
    batch = flat(4, size=32)
    whole = task.loss(batch)
    half = {key: value[2:] for key, value in batch.items()}
    torch.testing.assert_close(task.loss(half)["loss"], whole["loss"][2:], rtol=1e-4, atol=1e-5)
    torch.nn.init.zeros_(task.model.pool.proj.weight)
    torch.nn.init.zeros_(task.model.pool.proj.bias)
    torch.testing.assert_close(task.loss(batch)["loss"], torch.full((4,), math.log(5)))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (torch.tensor([0, 5]), r"labels 0…5 are not all in 0…4"),
        (torch.tensor([-100, 1]), r"labels -100…1 are not all in 0…4"),
        (torch.tensor([0, 1, 2]), r"expected 2 labels, int64, got \(3,\)"),
        (torch.tensor([0.0, 1.0]), r"expected 2 labels, int64, got \(2,\) of torch.float32"),
    ],
)
def test_labels_that_are_none_are_refused(label: Tensor, message: str) -> None:
    model = small_classifier()
    x, t = torch.zeros(2, 3, 32, 32), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=message):
        model.log_probability_gradient(x, t, label)
    with pytest.raises(ValueError, match=message):
        ClassifierTask(model).loss({"image": x, "label": label, "seed": [0, 1]})


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x_t has \(64, 64\) pixels, the classifier reads \(32, 32\)"):
        small_classifier()(torch.zeros(1, 3, 64, 64), torch.tensor([0]))
    with pytest.raises(ValueError, match="image_size=34 is not a multiple of the encoder's 4"):
        ClassifierConfig(encoder=ENCODER, image_size=34)
    with pytest.raises(ValueError, match=r"told nothing beside x_t and t: encoder\.image_channels=3"):
        ClassifierConfig(encoder=ENCODER.model_copy(update={"image_channels": 3}))
    with pytest.raises(ValueError, match="64 channels of a level cannot be split into heads by num_heads=3"):
        ClassifierConfig(encoder=ENCODER.model_copy(update={"num_heads": 3, "head_channels": None}))
