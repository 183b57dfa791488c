"""Pictures through latents and back: what is lost is known where the loss is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small import autoencoder, consistency_decoder
from torch import Tensor

from t2i.core.errors import UsageError
from t2i.data import shapes
from t2i.data.scenes import VAL_SCENES
from t2i.evals.latents import MEASURES, Score, latents
from t2i.stages.registry import save_stage


class Lighter(torch.nn.Module):
    """Its pictures come back a little lighter."""

    factor, channels = 8, 3

    def __init__(self, loss: float) -> None:
        super().__init__()
        self.loss = loss

    def encode_latents(self, image: Tensor) -> Tensor:
        return image

    def decode_latents(self, latents: Tensor) -> Tensor:
        return latents + self.loss


def patterned(seeds: range) -> int:
    scenes = [shapes.scene_from_seed(s | VAL_SCENES) for s in seeds]
    return sum(thing.pattern in ("checkered", "striped") for scene in scenes for thing in scene.things)


def measured(monkeypatch: pytest.MonkeyPatch, loss: float, **given: Any) -> dict[str, Any]:
    monkeypatch.setattr("t2i.evals.latents.load_stage", lambda *_, **__: Lighter(loss))
    return latents("lighter", device="cpu", **given).facts


def test_nothing_lost_is_a_hundred_decibels_and_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, 0.0, num=12)["scores"]["autoencoder"]
    assert found["psnr"] == {"mean": 100, "half": 0, "num": 12}
    assert found["psnr of patterns"]["mean"] == 100
    assert found["distance of patterns"]["mean"] == 0
    assert 0.5 * patterned(range(12)) <= found["psnr of patterns"]["num"] <= patterned(range(12)), (
        "small ones are left out"
    )


def test_a_tenth_lost_everywhere_is_twenty_six_decibels_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 log₁₀(2² / 0.1²) = 26.02, a little more where white cannot become whiter."""
    many = measured(monkeypatch, 0.1, num=11, seed=3)
    psnr, _, apart = (many["values"]["autoencoder"][measure] for measure in MEASURES)
    assert all(26.02 <= value < 28 for value in psnr)
    assert min(apart) > 0
    monkeypatch.setattr("t2i.evals.latents._BATCH", 4)
    assert measured(monkeypatch, 0.1, num=11, seed=3)["values"]["autoencoder"]["psnr"] == pytest.approx(psnr)


def test_patterns_are_cut_out_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss outside of all boxes costs the picture and no pattern."""

    def frame(self: Lighter, latents: Tensor) -> Tensor:
        latents = latents.clone()
        latents[:, :, 0] = -1
        return latents

    monkeypatch.setattr(Lighter, "decode_latents", frame)
    found = measured(monkeypatch, 0.0, num=12)["scores"]["autoencoder"]
    assert found["psnr"]["mean"] < 30
    assert found["psnr of patterns"]["mean"] == 100


def test_both_decoders_are_compared_on_the_same_latents(tmp_path: Path) -> None:
    codec = autoencoder()
    latent = {"channels": codec.channels, "factor": codec.factor, "fingerprint": codec.fingerprint()}
    save_stage(tmp_path / "ae", "autoencoder", codec)
    save_stage(tmp_path / "cd", "consistency_decoder", consistency_decoder(latents=latent))
    report = latents(str(tmp_path / "ae"), str(tmp_path / "cd"), num=2, size=64, device="cpu")
    assert set(report.facts["values"]) == {"autoencoder", "consistency decoder"}
    assert [line.split("  ")[0] for line in report.text.splitlines()[1:3]] == ["autoencoder", "consistency decoder"]
    report.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["scores"]["autoencoder"]["psnr"]["num"] == 2
    with pytest.raises(UsageError, match="size=65 must be a multiple of"):
        latents(str(tmp_path / "ae"), size=65, device="cpu")
    save_stage(tmp_path / "other", "consistency_decoder", consistency_decoder())
    with pytest.raises(UsageError, match="is not the one that this was made with"):
        latents(str(tmp_path / "ae"), str(tmp_path / "other"), num=1, size=64, device="cpu")


def test_nothing_measured_is_not_a_number() -> None:
    assert Score.of([]).num == 0
    assert str(Score.of([])) == "none"
    assert str(Score.of([2.5])) == "2.5"
    assert Score.of([1.0, 3.0]).mean == 2
    assert Score.of([1.0, 3.0]).half == pytest.approx(1.96)
