"""Transformers: causality, key masks, prefixes, padding rows."""

import pytest
import torch

from t2i.nn.transformer import TextConfig, TextTransformer, Transformer, TransformerConfig


def transformer(causal: bool) -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(width=32, layers=3, heads=4, causal=causal)).eval()


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_causal_tokens_do_not_see_later_ones(causal: bool) -> None:
    model, x = transformer(causal), torch.randn(2, 7, 32)
    changed = torch.cat([x[:, :5], torch.randn(2, 2, 32)], 1)
    assert torch.allclose(model(x)[:, :5], model(changed)[:, :5], atol=1e-6) == causal


@torch.no_grad()
def test_masked_tokens_are_not_attended_to() -> None:
    model, x = transformer(False), torch.randn(2, 7, 32)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 3] = False
    changed = x.clone()
    changed[:, 3] = 5.0
    keep = mask[0]
    torch.testing.assert_close(model(x, mask)[:, keep], model(changed, mask)[:, keep])
    assert not torch.allclose(model(x)[:, keep], model(changed)[:, keep], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("prefix", [4, 6, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_a_prefix_read_before_gives_the_same_as_the_whole_sequence(prefix: int, masked: bool) -> None:
    model, x = transformer(True), torch.randn(2, 9, 32)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 1:3] = mask[1, 2:4] = not masked
    whole = model(x, mask if masked else None)[:, prefix:]
    context = model.prefix(x[:, :prefix], mask[:, :prefix] if masked else None)
    rest = model(x[:, prefix:], mask[:, :prefix] if masked else None, context)
    torch.testing.assert_close(rest, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_context_grows_token_by_token() -> None:
    model, x = transformer(True), torch.randn(2, 9, 32)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 1:3] = False
    whole, context = model(x, mask), model.prefix(x[:, :4], mask[:, :4])
    for i in range(4, 9):
        out, context = model.extend(x[:, i : i + 1], mask[:, :i], context)
        torch.testing.assert_close(out, whole[:, i : i + 1], atol=1e-5, rtol=1e-5)
    assert [k.shape for k, _ in context] == [(2, 4, 9, 8)] * 3


@torch.no_grad()
def test_padding_rows_replace_tokens_and_are_attended_to() -> None:
    torch.manual_seed(0)
    model = TextTransformer(TextConfig(width=32, layers=2, heads=4, vocab_size=11, context=6)).eval()
    tokens = torch.randint(0, 11, (2, 6))
    mask = torch.arange(6) < torch.tensor([[2], [4]])
    out = model(tokens, mask)
    assert out.shape == (2, 6, 32)
    torch.testing.assert_close(out, model(torch.where(mask, tokens, 0), mask))
    model.padding[5] += torch.randn(32)  # not a constant, which the norms would remove
    assert not torch.allclose(out[:, 0], model(tokens, mask)[:, 0], atol=1e-5)
    with pytest.raises(ValueError, match="got 5 tokens, the encoder takes 6"):
        model(tokens[:, :5], mask[:, :5])


@pytest.mark.slow  # half a minute
def test_the_order_of_words_is_learned_from_few_sentences() -> None:
    """Which shape has the colour that is asked for, in `a red cube to the left of a green ball`: the words alone, in
    whatever order, tell it half of the time."""
    torch.manual_seed(0)
    width, batch = 128, 128
    text = TextTransformer(TextConfig(width=width, layers=3, heads=4, vocab_size=18, context=16, attend_padding=False))
    asks, looks = torch.nn.Embedding(10, width), torch.nn.MultiheadAttention(width, 4, batch_first=True)
    says = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, 6))
    model = torch.nn.ModuleList([text, asks, looks, says])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    mask = (torch.arange(16) < 6).expand(batch, -1)
    hits = []
    for _ in range(90):
        colours, shapes = torch.rand(batch, 10).argsort(1)[:, :2], torch.rand(batch, 6).argsort(1)[:, :2]
        said = [colours[:, 0], 10 + shapes[:, 0], torch.full((batch,), 16), torch.full((batch,), 17)]
        words = torch.nn.functional.pad(torch.stack([*said, colours[:, 1], 10 + shapes[:, 1]], 1), (0, 10))
        rows, which = torch.arange(batch), torch.randint(2, (batch,))
        features, query = text(words, mask), asks(colours[rows, which])[:, None]
        found = looks(query, features, features, key_padding_mask=~mask)[0] + query
        logits, target = says(found[:, 0]), shapes[rows, which]
        hits.append((logits.argmax(1) == target).float().mean().item())
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
    assert sum(hits[-10:]) / 10 > 0.95
