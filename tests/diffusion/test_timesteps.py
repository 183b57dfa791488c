"""Which timesteps are trained, and how often."""

import pytest
import torch
from golden_tools import check, load_case
from torch import Tensor

from t2i.core.seed import Streams
from t2i.diffusion.timesteps import LossSecondMoment, draw_steps, shifted

STEPS = torch.arange(1000)


def test_no_shift_changes_nothing() -> None:
    assert torch.equal(shifted(STEPS, 1000), STEPS)
    assert torch.equal(shifted(torch.arange(4), 4, 1.0), torch.arange(4))


@pytest.mark.parametrize("shift", [0.2, 0.5, 3.0, 20.0])
def test_a_shift_keeps_order_and_range(shift: float) -> None:
    out = shifted(STEPS, 1000, shift)
    assert (out.diff() >= 0).all()
    assert out.min() >= 0
    assert out.max() < 1000
    assert out.shape == STEPS.shape
    assert out.dtype == torch.int64


@pytest.mark.parametrize(("shift", "share"), [(3.0, 0.5), (9.0, 0.75), (1 / 3, 0.1)])
def test_share_of_the_noisiest_quarter_follows_the_closed_form(shift: float, share: float) -> None:
    """t > 3/4 where u > 3/4 / (shift − (shift − 1)·3/4)."""
    noisy = (shifted(STEPS, 1000, shift) >= 750).float().mean().item()
    assert noisy == pytest.approx(share, abs=0.002)


def test_opposite_shifts_undo_each_other() -> None:
    there_and_back = shifted(shifted(STEPS, 1000, 2.0), 1000, 0.5)
    assert (there_and_back - STEPS).abs().max() <= 2


def published() -> LossSecondMoment:
    """Four steps, twelve updates with losses (1 + k, 2, 0.5, 0.1 k)."""
    memory = LossSecondMoment(4)
    for k in range(12):
        memory.remember(torch.arange(4), torch.tensor([1.0 + k, 2.0, 0.5, 0.1 * k]))
    return memory


def test_probabilities_of_the_released_sampler() -> None:
    memory = published()
    check(
        load_case("openai_process.json", "P-losses")["outputs"]["second_moment_weights"],
        memory.probabilities(),
        "probabilities",
    )
    assert sorted(memory.history[0].tolist()) == list(range(3, 13))
    assert memory.probabilities().sum().item() == pytest.approx(1)


def test_all_steps_are_alike_until_each_has_ten_losses() -> None:
    memory = LossSecondMoment(4)
    for k in range(10):
        assert memory.probabilities().tolist() == [0.25] * 4
        memory.remember(torch.arange(4 if k < 9 else 3), torch.arange(1.0, 5 if k < 9 else 4))
    memory.remember(torch.tensor([0, 1, 2]), torch.full((3,), 100.0))
    assert memory.probabilities().tolist() == [0.25] * 4
    torch.testing.assert_close(memory.weigh(torch.tensor([3]), torch.tensor([4.0])), torch.tensor([4.0]))
    assert memory.probabilities()[0] > 0.25


def test_one_update_of_a_batch_is_as_good_as_one_of_every_sample() -> None:
    """Also where one step comes more often than its history is long."""
    draw = torch.Generator().manual_seed(0)
    memory, one_by_one = LossSecondMoment(3, length=4), LossSecondMoment(3, length=4)
    expected: list[list[float]] = [[], [], []]
    for size in (1, 5, 40, 0, 7):
        step, loss = torch.randint(3, (size,), generator=draw), torch.rand(size, generator=draw)
        memory.remember(step, loss)
        for s, value in zip(step, loss, strict=True):
            one_by_one.remember(s[None], value[None])
            expected[int(s)].append(value.item())
        assert torch.equal(memory.history, one_by_one.history)
        assert memory.seen.tolist() == [len(row) for row in expected]
    for row, values in zip(memory.history, expected, strict=True):
        assert sorted(row.tolist()) == sorted(values[-4:])


def test_draws_follow_the_probabilities_one_number_for_a_sample() -> None:
    memory = published()
    u = (torch.arange(10_000) + 0.5) / 10_000
    counts = torch.bincount(memory.draw(u), minlength=4)
    torch.testing.assert_close(counts / 10_000, memory.probabilities(), atol=2e-4, rtol=0)
    assert memory.draw(torch.tensor([0.0, 1 - 2**-24])).tolist() == [0, 3]
    together = draw_steps(Streams([5, 6, 7]), 4, "cpu", memory=memory)
    alone = [draw_steps(Streams([seed]), 4, "cpu", memory=memory).item() for seed in (5, 6, 7)]
    assert together.tolist() == alone
    assert torch.equal(together, memory.draw(Streams([5, 6, 7]).uniform()))
    assert torch.equal(draw_steps(Streams([5, 6, 7]), 100, "cpu"), Streams([5, 6, 7]).integers(100))


def test_the_weight_undoes_the_choice_and_losses_are_remembered_without_it() -> None:
    memory = published()
    p, step = memory.probabilities(), torch.arange(4)
    loss = torch.tensor([3.0, 1.0, 4.0, 1.5], requires_grad=True)
    weighed = memory.weigh(step, loss)
    torch.testing.assert_close((p * weighed).sum(), loss.mean())
    (gradient,) = torch.autograd.grad(weighed.sum(), loss)
    torch.testing.assert_close(gradient, 1 / (4 * p))
    assert all(loss[i].item() in memory.history[i] for i in range(4))
    assert not memory.history.requires_grad


def test_a_memory_is_restored_by_its_buffers() -> None:
    memory, restored = published(), LossSecondMoment(4)
    restored.load_state_dict(memory.state_dict())
    for m in (memory, restored):
        m.remember(torch.tensor([2, 2]), torch.tensor([9.0, 7.0]))
    assert torch.equal(memory.probabilities(), restored.probabilities())


def test_what_costs_a_lot_is_drawn_a_lot() -> None:
    """A loss that is 9 times as large is drawn 9 times as often, and the variance of the weighed loss falls."""
    memory, size = LossSecondMoment(2, uniform=0.0), torch.tensor([9.0, 1.0])

    def spread(u: Tensor) -> float:
        step = memory.draw(u)
        return memory.weigh(step, size[step]).std().item()

    u = torch.rand(200, generator=torch.Generator().manual_seed(1))
    assert spread(u) == pytest.approx(4, abs=0.1)
    assert spread(u) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(memory.probabilities(), torch.tensor([0.9, 0.1]))
