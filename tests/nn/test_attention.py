"""Attention: both ways of computing it agree with the definition, and masks hide what they should."""

import pytest
import torch
from torch import Tensor

from t2i.nn.attention import MATMUL_MAX_KEYS, Attention, ImageAttention, attend


def reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    scores = torch.einsum("bnld,bnkd->bnlk", q.double(), k.double()) / q.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.einsum("bnlk,bnkd->bnld", scores.softmax(-1), v.double()).to(q.dtype)


def draw(length: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(2, 3, length, 8).to(dtype),
        torch.randn(2, 3, keys, 8).to(dtype),
        torch.randn(2, 3, keys, 8).to(dtype),
    )


@pytest.mark.parametrize(
    ("dtype", "keys", "tolerance"),
    [
        (torch.float32, 9, 1e-5),
        (torch.float32, MATMUL_MAX_KEYS + 3, 1e-5),
        (torch.bfloat16, 9, 2e-2),
        (torch.bfloat16, MATMUL_MAX_KEYS + 3, 2e-2),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_attend(dtype: torch.dtype, keys: int, tolerance: float, masked: bool, causal: bool) -> None:
    prefix = 4
    q, k, v = draw(keys - prefix, keys, dtype)
    mask = torch.ones(2, keys, dtype=torch.bool)
    if masked:
        mask[0, 1:3] = False
    allowed = mask[:, None, None, :].expand(2, 1, keys - prefix, keys)
    if causal:
        allowed = allowed & (torch.arange(keys) <= torch.arange(keys - prefix)[:, None] + prefix)
    got = attend(q, k, v, mask if masked else None, causal=causal)
    assert got.dtype == dtype
    torch.testing.assert_close(got, reference(q, k, v, allowed), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_without_any_key_stay_finite(dtype: torch.dtype) -> None:
    q, k, v = draw(4, 4, dtype)
    assert attend(q, k, v, torch.zeros(2, 4, dtype=torch.bool)).isfinite().all()


def test_hidden_context_does_not_matter_and_comes_before_the_tokens() -> None:
    torch.manual_seed(0)
    layer, x, text = Attention(16, 2, context_dim=6), torch.randn(2, 5, 16), torch.randn(2, 3, 6)
    mask = torch.tensor([[True, True, False], [True, True, False]])
    other = torch.cat([text[:, :2], torch.randn(2, 1, 6)], 1)
    hidden = layer(x, layer.project(text), mask)
    torch.testing.assert_close(hidden, layer(x, layer.project(other), mask))
    torch.testing.assert_close(hidden, layer(x, layer.project(text[:, :2])))
    assert not torch.allclose(hidden, layer(x, layer.project(text)))


def test_image_attention_starts_as_identity_in_both_layouts() -> None:
    torch.manual_seed(0)
    layer = ImageAttention(32, 2, None, norm_groups=8, norm_eps=1e-5)
    x = torch.randn(2, 32, 3, 5)
    torch.testing.assert_close(layer(x), x)
    torch.nn.init.normal_(layer.attention.proj.weight)
    torch.testing.assert_close(layer(x), layer(x.contiguous(memory_format=torch.channels_last)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [False, True])
def test_image_attention_knows_its_place_only_if_told(positions: bool) -> None:
    torch.manual_seed(0)
    layer = ImageAttention(32, 2, 6, norm_groups=8, norm_eps=1e-5, positions=positions)
    torch.nn.init.normal_(layer.attention.proj.weight)
    context = layer.attention.project(torch.randn(1, 3, 6))
    out = layer(torch.ones(1, 32, 4, 4), context)  # every pixel the same
    assert torch.allclose(out, out[:, :, :1, :1].expand_as(out), atol=1e-5) is not positions


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_a_bias_of_keys_alone_changes_nothing(causal: bool) -> None:
    torch.manual_seed(0)
    with_bias, without, x = Attention(16, 2), Attention(16, 2, key_bias=False), torch.randn(2, 5, 16)
    q, k, v = torch.randn(3, 16)
    with_bias.qkv.bias.copy_(torch.cat([q, k, v]))
    without.load_state_dict(
        {key: value for key, value in with_bias.state_dict().items() if key != "qkv.bias"}
        | {"qv_bias": torch.cat([q, v])}
    )
    torch.testing.assert_close(without(x, causal=causal), with_bias(x, causal=causal), atol=1e-6, rtol=1e-5)
    keys, values = without.extend(x)[1]
    torch.testing.assert_close(keys, with_bias.extend(x)[1][0] - k.view(2, 1, 8), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(values, with_bias.extend(x)[1][1])


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="10 cannot be split into 3"):
        Attention(10, 3)
