"""Random streams belong to samples: not to their place in a batch, not to the order of stages."""

import torch

from t2i.core.seed import Streams, mix


def test_a_sample_draws_the_same_alone_or_in_any_company() -> None:
    together = Streams([3, 8, 5], "decoder")
    alone = Streams([8], "decoder")
    for name, arguments in (("normal", (2, 3)), ("uniform", (4,)), ("integers", (1000, 2))):
        a, b = getattr(together, name)(*arguments), getattr(alone, name)(*arguments)
        assert torch.equal(a[1:2], b), name


def test_stages_and_seeds_are_unrelated() -> None:
    x = [Streams([s], stage).normal(4000)[0] for s in (1, 2) for stage in ("prior", "decoder")]
    correlation = torch.corrcoef(torch.stack(x)) - torch.eye(4)
    assert correlation.abs().max() < 0.06


def test_draws_have_the_right_distribution() -> None:
    streams = Streams(range(64))
    normal, uniform, whole = streams.normal(500), streams.uniform(500), streams.integers(7, 500)
    assert abs(normal.mean().item()) < 0.02
    assert abs(normal.std().item() - 1) < 0.02
    assert abs(uniform.mean().item() - 0.5) < 0.01
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert sorted(whole.unique().tolist()) == list(range(7))


def test_mix_is_stable_and_separates_its_parts() -> None:
    assert mix(1, "a") == mix(1, "a")
    assert mix(1, "a") == 8915294002830711430
    assert len({mix(1, 23), mix(12, 3), mix("1", 23, ""), mix(123)}) == 4
    assert all(0 <= mix(i) < 2**63 for i in range(100))
