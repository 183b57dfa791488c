"""The U-Net: ports, sizes, numerics off the default path, and what it refuses. Its numbers are tested by goldens."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from t2i.core.types import Condition
from t2i.nn.unet import UNet, UNetConfig

BASE = UNetConfig(channels=32, multipliers=(1, 2), num_blocks=1, attention=(2,), head_channels=32)
CONV = UNetConfig(channels=32, multipliers=(1, 2), num_blocks=1, attention=(), mid_attention=False)


def build(config: UNetConfig) -> UNet:
    """A network in which no weight is zero, so that every branch shows."""
    torch.manual_seed(0)
    model = UNet(config).eval()
    for name, p in model.named_parameters():
        gain = float(p.ndim == 1 and name.endswith("weight"))  # of a norm
        torch.nn.init.normal_(p, gain, p[0].numel() ** -0.5 if p.ndim > 1 else 0.1)
    return model


def call(model: UNet, condition: Condition | None = None, size: int = 16) -> Tensor:
    torch.manual_seed(1)
    return model(torch.randn(2, 3, size, size), torch.tensor([10, 500]), condition)


def text(dim: int = 16) -> Condition:
    torch.manual_seed(2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return Condition(vector=torch.randn(2, 128), sequence=torch.randn(2, 3, dim), mask=mask)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"patch_size": 4, "fine_channels": 16}, {"patch_size": 4, "fine_channels": 16, "fine_patch": 2}]
)
def test_a_new_network_predicts_zero(changes: dict[str, int]) -> None:
    assert (call(UNet(BASE.model_copy(update=changes))) == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_keep_the_size_and_the_orientation(patch_size: int) -> None:
    model = build(BASE.model_copy(update={"patch_size": patch_size}))
    assert call(model).shape == (2, 6, 16, 16)
    x = torch.randn(1, 3, 16, 32)
    assert model(x, torch.tensor([3])).shape == (1, 6, 16, 32)


@torch.no_grad()
def test_fine_channels_add_to_the_folded_network_and_see_single_pixels() -> None:
    config = CONV.model_copy(update={"patch_size": 4, "fine_channels": 16})
    model, folded = build(config), build(config.model_copy(update={"fine_channels": 0}))
    fine = {k: v for k, v in model.state_dict().items() if k.startswith("fine.")}
    model.load_state_dict(folded.state_dict() | fine)
    x, t = torch.nn.functional.pad(torch.randn(1, 3, 16, 16), (8, 8, 8, 8)), torch.tensor([3])
    assert not torch.allclose(model(x, t), folded(x, t), atol=1e-3)
    for module in (model.fine.unfold, model.conv_out):  # without what cells say, one pixel to the right is just that
        for p in module.parameters():
            p.zero_()
    moved = model(x.roll(1, dims=3), t).roll(-1, dims=3)
    torch.testing.assert_close(moved[..., 8:-8, 8:-8], model(x, t)[..., 8:-8, 8:-8], atol=1e-5, rtol=0)
    for p in model.fine.conv_out.parameters():
        p.zero_()
    assert (model(x, t) == 0).all()


class Pointwise(torch.nn.Module):
    """A norm that lets no pixel see another."""

    def forward(self, x: torch.Tensor, *modulation: torch.Tensor, silu: bool = False) -> torch.Tensor:
        return torch.nn.functional.silu(x)


@torch.no_grad()
def test_fine_blocks_follow_each_other_on_their_own_grid() -> None:
    """A change of one pixel reaches as far as the convolutions of all blocks together, in cells of `fine_patch`."""
    config = CONV.model_copy(update={"patch_size": 4, "fine_channels": 16, "fine_blocks": 2, "fine_patch": 2})
    model = build(config)
    for module in (model.fine.unfold, model.conv_out):  # the trunk is silent
        for p in module.parameters():
            p.zero_()
    x, t = torch.zeros(1, 3, 48, 48), torch.tensor([3])
    for block in (model.fine.block, *model.fine.more):
        block.norm1, block.norm2 = Pointwise(), Pointwise()
    model.fine.norm_out = Pointwise()
    dot = x.clone()
    dot[..., 24, 24] = 1
    moved = (model(dot, t) - model(x, t)).abs().sum((0, 1)).nonzero()
    cells = 1 + 2 * 2 + 1  # the first convolution, two in each of two blocks, and the last
    assert (moved // 2 - 12).abs().max() == cells


@torch.no_grad()
def test_every_port_changes_the_output() -> None:
    model = build(BASE.model_copy(update={"context_dim": 16, "image_channels": 3}))
    condition = replace(text(), image=torch.randn(2, 3, 16, 16))
    plain = call(model, condition)
    for change in ({"vector": None}, {"sequence": -condition.sequence}, {"mask": None}, {"image": -condition.image}):
        assert not torch.allclose(plain, call(model, replace(condition, **change)), atol=1e-3), change


@torch.no_grad()
def test_projecting_before_changes_nothing_and_masked_tokens_do_not_matter() -> None:
    model = build(BASE.model_copy(update={"context_dim": 16}))
    condition = text()
    projected = model.project(condition)
    assert len(projected.context) == len(list(model.attentions())) == 4
    torch.testing.assert_close(call(model, condition), call(model, projected))
    sequence = condition.sequence.clone()
    sequence[0, 2] = 9.0
    torch.testing.assert_close(call(model, replace(condition, sequence=sequence)), call(model, condition))


@torch.no_grad()
def test_guided_batch_equals_two_passes() -> None:
    model = build(BASE.model_copy(update={"context_dim": 16}))
    a = model.project(text())
    b = model.project(replace(text(), vector=torch.zeros(2, 128)))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10, 500])
    both = model(torch.cat([x, x]), t.repeat(2), Condition.cat([a, b]))
    torch.testing.assert_close(both, torch.cat([model(x, t, a), model(x, t, b)]), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_convolutional_network_takes_any_size_and_shifts_with_its_input() -> None:
    model = build(CONV)
    # Group norms see the whole picture, so a periodic one is used: further from the border than the network sees (34
    # pixels), a shift by the period changes nothing.
    x = torch.randn(1, 3, 8, 8).repeat(1, 1, 12, 12)
    t = torch.tensor([3])
    out = model(x, t)
    assert out.shape == (1, 6, 96, 96)
    torch.testing.assert_close(out[..., 40:48, 40:48], out[..., 48:56, 48:56], atol=1e-4, rtol=1e-4)


def test_attention_positions_reach_every_attention_layer_if_asked_for() -> None:
    assert all(layer.positions is None for layer in build(BASE).attentions())
    layers = list(build(BASE.model_copy(update={"attention_positions": True})).attentions())
    assert len(layers) == 4  # one going down, one in the middle, two going up
    assert all(layer.positions is not None for layer in layers)


@pytest.mark.parametrize("resample", ["block", "conv"])
@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("down_padding", ["symmetric", "right_bottom"])
@pytest.mark.parametrize("folding", [{}, {"patch_size": 2, "fine_channels": 8}])
def test_variants_run_and_train(
    resample: str, scale_shift: bool, down_padding: str, folding: dict[str, int]
) -> None:  # fmt: skip
    changes = {"resample": resample, "scale_shift": scale_shift, "down_padding": down_padding, **folding}
    model = build(BASE.model_copy(update=changes))
    out = call(model)
    assert out.shape == (2, 6, 16, 16)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_strided_convolution_pads_right_and_bottom_only() -> None:
    a, b = (
        build(BASE.model_copy(update={"resample": "conv", "down_padding": p})) for p in ("symmetric", "right_bottom")
    )
    x = torch.randn(1, 32, 8, 8)
    down, want = b.down[0].resample, torch.nn.functional.pad(x, (0, 1, 0, 1))
    got = down(x, torch.zeros(1, 128))
    torch.testing.assert_close(got, torch.nn.functional.conv2d(want, down.conv.weight, down.conv.bias, stride=2))
    assert got.shape == a.down[0].resample(x, torch.zeros(1, 128)).shape


def test_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for checkpointing in (False, True):
        update = {"context_dim": 16, "dropout": 0.5, "checkpointing": checkpointing}
        model = build(BASE.model_copy(update=update)).train()
        torch.manual_seed(1)
        call(model, text()).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


@torch.no_grad()
def test_bfloat16_gives_nearly_the_same_in_float32() -> None:
    model = build(BASE.model_copy(update={"context_dim": 16}))
    want = call(model, text())
    with torch.autocast("cpu", torch.bfloat16):
        auto = call(model, text())
    cast = call(model.bfloat16(), text())
    for got in (auto, cast):
        assert got.dtype == torch.float32
        assert (got - want).norm() / want.norm() < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_channels": None}, "give one of num_heads and head_channels"),
        ({"num_heads": 2}, "give one of num_heads and head_channels"),
        ({"attention": (8,)}, r"factors \[8\].*\[1, 2\]"),
        ({"multipliers": ()}, "at least 1 item"),
        ({"multipliers": (1, -1)}, "greater than 0"),
        ({"multipliers": (1, 0.001)}, r"widths \[0\] are not positive multiples of norm_groups=32"),
        ({"channels": 40}, r"widths \[40, 80\].*32"),
        ({"attention": (), "mid_attention": False, "context_dim": 8}, "context_dim=8 needs attention"),
        ({"fine_channels": 16}, "fine_channels=16 needs pixels folded less.*patch_size=1 and fine_patch=1"),
        ({"fine_channels": 16, "patch_size": 4, "fine_patch": 3}, "patch_size=4 and fine_patch=3"),
        ({"fine_channels": 7, "patch_size": 2, "channels": 64}, "fine_channels=7 is not a multiple of 2"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig.model_validate(BASE.model_dump() | changes)


@torch.no_grad()
def test_bad_inputs_are_refused() -> None:
    model = build(BASE.model_copy(update={"context_dim": 16}))
    t, x = torch.tensor([1, 2]), torch.randn(2, 3, 16, 16)
    projected = model.project(text())
    cases: list[tuple[Tensor, Condition, str]] = [
        (x[:, :2], text(), "2 channels, the network takes 3"),
        (x[..., :15], text(), r"multiples of 2, got \(16, 15\)"),
        (x, replace(text(), image=x), "3 channels, the network takes 0"),
        (x, replace(text(), vector=torch.zeros(2, 7)), "width 7, expected 128"),
        (x, Condition(), "expected a sequence of width 16, got none"),
        (x, text(8), "expected a sequence of width 16, got 8"),
        (x, replace(projected, context=projected.context[:2]), "for 2 layers, the network has 4"),
    ]
    for bad, condition, message in cases:
        with pytest.raises(ValueError, match=message):
            model(bad, t, condition)
    with pytest.raises(ValueError, match="attends to none"):
        build(BASE)(x, t, text())
