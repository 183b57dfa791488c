"""The port for frozen states: as they are, or read by a transformer that learns with the network."""

from typing import Any

import pytest
import torch

from t2i.core.types import Condition, TextFeatures
from t2i.nn.ports import Given, Ports, PortsConfig, StatesConfig

LENGTHS = torch.tensor([[5], [3]])


def ports(layers: int = 0, **changes: Any) -> Ports:
    torch.manual_seed(0)
    config = StatesConfig(width=12, dim=12, layers=layers, heads=2, **changes)
    made = PortsConfig(states=config).build(vector_dim=20, context_dim=16)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made.eval()


def features(seed: int = 1) -> TextFeatures:
    generator = torch.Generator().manual_seed(seed)
    return TextFeatures(
        torch.randn(2, 12, generator=generator), torch.randn(2, 5, 12, generator=generator), torch.arange(5) < LENGTHS
    )


@torch.no_grad()
def read(made: Ports, states: TextFeatures | None, dropped: torch.Tensor | None = None) -> Condition:
    gone = {} if dropped is None else {"states": dropped}
    return made.read(Given(2, states=states, dropped=gone), (8, 8), torch.device("cpu"))


def test_without_layers_the_port_has_the_weights_and_numbers_of_before() -> None:
    made = ports()
    names = {"null_pooled", "null_state", "vector.weight", "vector.bias", "states.0.weight", "states.0.bias"}
    assert {*made.state_dict()} == {f"states.{name}" for name in names | {"states.1.weight", "states.1.bias"}}
    state, text = made.state_dict(), features()
    x = text.sequence @ state["states.states.0.weight"].T + state["states.states.0.bias"]
    x = torch.nn.functional.layer_norm(x, (16,), state["states.states.1.weight"], state["states.states.1.bias"])
    out = read(made, text)
    torch.testing.assert_close(out.sequence, x)
    torch.testing.assert_close(out.vector, text.pooled @ state["states.vector.weight"].T + state["states.vector.bias"])
    assert PortsConfig.model_validate({"states": {"width": 12, "dim": 12}}).states == StatesConfig(width=12, dim=12)


@pytest.mark.parametrize("layers", [0, 2])
def test_a_dropped_sentence_is_one_that_is_not_there(layers: int) -> None:
    made, text = ports(layers), features()
    half = read(made, text, torch.tensor([True, False]))
    full, none = read(made, text), read(made, None)
    torch.testing.assert_close(half.vector[0], none.vector[0])
    torch.testing.assert_close(half.vector[1], full.vector[1])
    torch.testing.assert_close(half.sequence[0, :1], none.sequence[0])
    assert half.mask.tolist() == [[True] + [False] * 4, [True] * 3 + [False] * 2]
    assert (none.vector[0] - full.vector[0]).abs().max() > 0.1


@pytest.mark.parametrize("layers", [0, 2])
def test_what_the_mask_hides_changes_nothing_that_is_seen(layers: int) -> None:
    made, text = ports(layers), features()
    other = text._replace(sequence=torch.where(text.mask[..., None], text.sequence, 7.0))
    before, after = read(made, text), read(made, other)
    torch.testing.assert_close(before.vector, after.vector)
    torch.testing.assert_close(before.sequence[text.mask], after.sequence[text.mask])


def test_the_transformer_lets_words_hear_each_other() -> None:
    for layers, heard in ((0, False), (1, True)):
        made, text = ports(layers), features()
        changed = text.sequence.clone()
        changed[:, 2] += 1
        before, after = read(made, text), read(made, text._replace(sequence=changed))
        assert ((before.sequence[:, 0] - after.sequence[:, 0]).abs().max() > 1e-4) == heard
        assert ((before.vector - after.vector).abs().max() > 1e-4) == heard  # the vector is made of its output


def test_positions_say_which_word_stands_where() -> None:
    """Without them, sentences of the same states in another order are one and the same: no colour has its thing."""
    for positions, told in ((0, False), (5, True)):
        made, text = ports(1, positions=positions), features()
        swapped = text._replace(sequence=text.sequence[:, [2, 1, 0, 3, 4]])
        before, after = read(made, text), read(made, swapped)
        assert ((before.vector - after.vector).abs().max() > 1e-3) == told
        assert ((before.sequence[:, 1] - after.sequence[:, 1]).abs().max() > 1e-3) == told


def test_positions_are_of_sentences_that_are_short_enough_and_of_a_transformer() -> None:
    with pytest.raises(ValueError, match=r"states of 5 tokens, but ports\.states\.positions=4"):
        read(ports(1, positions=4), features())
    with pytest.raises(ValueError, match="positions=4 are of a transformer over the states"):
        StatesConfig(positions=4)


@pytest.mark.parametrize("positions", [0, 8])
def test_every_weight_learns(positions: int) -> None:
    made = ports(2, positions=positions)
    out = made.read(
        Given(2, states=features(), dropped={"states": torch.tensor([True, False])}), (8, 8), torch.device("cpu")
    )
    (out.vector.square().sum() + out.sequence.square().sum()).backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_states_of_another_width_are_one_line() -> None:
    wide = features()._replace(sequence=torch.zeros(2, 5, 13))
    for layers in (0, 1):
        with pytest.raises(ValueError, match="states of width 13, expected 12"):
            read(ports(layers), wide)
    with pytest.raises(ValueError, match="width 16 cannot be split into 3 heads"):
        PortsConfig(states=StatesConfig(width=12, dim=12, layers=1, heads=3)).build(20, 16)
