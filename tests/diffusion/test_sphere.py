"""Walks on the sphere in closed form: equal, opposite and unequal ends, text directions, principal components."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_tools import check, load_case, make_input
from torch import Tensor

from t2i.diffusion.sphere import PrincipalComponents, slerp, text_direction


def unit(*seeds: int, dim: int = 16) -> Tensor:
    return torch.stack(
        [F.normalize(torch.randn(dim, generator=torch.Generator().manual_seed(s)), dim=0) for s in seeds]
    )


def degrees(angle: float) -> Tensor:
    return torch.tensor([[math.cos(math.radians(angle)), math.sin(math.radians(angle))]])


@pytest.mark.parametrize("theta", [0.0, 0.25, 0.5, 1.0])
def test_angles_grow_evenly(theta: float) -> None:
    torch.testing.assert_close(slerp(degrees(20), degrees(140), theta), degrees(20 + 120 * theta))
    nearly = 20 + 1e-4 * theta
    torch.testing.assert_close(slerp(degrees(20), degrees(20 + 1e-4), theta), degrees(nearly), atol=1e-7, rtol=0)


def test_ends_are_exact_and_between_them_is_the_textbook_formula() -> None:
    a, b = unit(1, 2, 3), unit(4, 5, 6)
    theta = torch.tensor([0.0, 0.3, 1.0])
    out = slerp(a, b, theta)
    torch.testing.assert_close(out[0], a[0], atol=1e-7, rtol=0)
    torch.testing.assert_close(out[2], b[2], atol=1e-7, rtol=0)
    omega = torch.acos((a[1] * b[1]).sum())
    expected = (torch.sin(0.7 * omega) * a[1] + torch.sin(0.3 * omega) * b[1]) / torch.sin(omega)
    torch.testing.assert_close(out[1], expected)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))


def test_rows_of_a_batch_do_not_mix() -> None:
    a, b, theta = unit(1, 2), unit(3, 4), torch.tensor([0.2, 0.9])
    assert torch.equal(slerp(a, b, theta)[1:], slerp(a[1:], b[1:], theta[1:]))
    swapped = slerp(b, a, 1 - theta)
    torch.testing.assert_close(slerp(a, b, theta), swapped)


def test_equal_and_opposite_ends() -> None:
    a = torch.cat([unit(1), torch.eye(16)[:1]])
    torch.testing.assert_close(slerp(a, a, 0.4), a)
    middle = slerp(a, -a, 0.5)
    torch.testing.assert_close((middle * a).sum(dim=1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(middle.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(slerp(a, -a, 1.0), -a)
    a = F.normalize(a.double(), dim=1)
    nearly = F.normalize(-a + 1e-5 * unit(7, 8), dim=1)
    middle = slerp(a, nearly, 0.25)
    torch.testing.assert_close((middle * a).sum(dim=1), torch.full((2,), 0.5**0.5).double(), atol=1e-4, rtol=0)


def test_closed_forms() -> None:
    case = load_case("unclip_math.json", "dev-slerp-textdiff")
    i, outputs = {name: make_input(rule).double() for name, rule in case["inputs"].items()}, case["outputs"]

    def walk(a: Tensor, b: Tensor, thetas: str = "thetas") -> Tensor:
        return torch.stack([slerp(a, b, theta) for theta in case["config"][thetas]], dim=1)

    a, b = i["z_i1"], i["z_i2"]
    check(outputs["slerp_raw"], walk(a, b), "slerp_raw")
    check(outputs["slerp_unit"], walk(F.normalize(a, dim=1), F.normalize(b, dim=1)), "slerp_unit")
    check(outputs["slerp_noise"], walk(i["x_T1"], i["x_T2"]), "slerp_noise")
    check(outputs["slerp_near_parallel"], walk(a, a * (1 + 3e-5 * b)), "slerp_near_parallel")
    check(outputs["slerp_parallel"], walk(a, 2 * a), "slerp_parallel")
    z_d = text_direction(i["z_t"], i["z_t0"])
    check(outputs["z_d"], z_d, "z_d")
    check(outputs["text_diff"], walk(F.normalize(a, dim=1), z_d, "text_diff_thetas"), "text_diff")


def test_what_has_no_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="length 0"):
        slerp(unit(1), torch.zeros(1, 16), 0.5)
    with pytest.raises(ValueError, match=r"\(1, 16\) and \(2, 16\)"):
        slerp(unit(1), unit(1, 2), 0.5)


def test_text_direction() -> None:
    before, after = degrees(0), degrees(90)
    torch.testing.assert_close(text_direction(after, before), degrees(135))
    torch.testing.assert_close(text_direction(3 * after, before), degrees(135))
    with pytest.raises(ValueError, match="the same place"):
        text_direction(before, before)


def plane() -> Tensor:
    """200 points that spread by 3 along one axis, by 1 along another and not at all elsewhere."""
    spread = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0])
    return 5 + F.pad(spread, (0, 4)).roll(2, dims=1)


def test_components_are_orthonormal_and_the_widest_comes_first() -> None:
    axes = PrincipalComponents.of(plane()).axes
    torch.testing.assert_close(axes[:2] @ axes[:2].T, torch.eye(2, dtype=torch.float64))
    assert axes[0].abs().argmax() == 2
    assert axes[1].abs().argmax() == 3
    assert PrincipalComponents.of(plane()[:3]).axes.shape == (2, 6)


def test_keeping_components_keeps_lengths_and_all_of_them_change_nothing() -> None:
    z = plane()
    found = PrincipalComponents.of(z)
    assert torch.allclose(found.keep(z, 2), z, atol=1e-4)
    one, none = found.keep(z, 1), found.keep(z, 0)
    torch.testing.assert_close(one.norm(dim=1), z.norm(dim=1))
    directions = F.normalize(none, dim=1)
    torch.testing.assert_close(directions, F.normalize(found.mean[None], dim=1).float().expand(200, -1))
    errors = [(F.normalize(found.keep(z, k), dim=1) - F.normalize(z, dim=1)).square().sum().item() for k in (0, 1, 2)]
    assert errors[0] > errors[1] > errors[2]


def test_components_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"\(1, 6\)"):
        PrincipalComponents.of(plane()[:1])
    with pytest.raises(ValueError, match="keep 3 of 2"):
        PrincipalComponents.of(plane()[:3]).keep(plane(), 3)
