"""What `t2i info` says of a config, a stage and a model, and how the arithmetic of a picture is counted."""

from pathlib import Path

import pytest
import torch
from conftest import small_clip, small_decoder, small_prior, small_upsampler
from small import classes, classifier, dalle3, decoder, of, upsampler

from t2i.cli.describe import describe
from t2i.core.errors import UsageError
from t2i.diffusion.sampling import Sampling
from t2i.evals.flops import Cost, cost
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.prior.model import Prior, PriorConfig
from t2i.stages.registry import save_stage, stage

PLAIN = of(image_channels=3, attention=(), mid_attention=False)


def test_a_prior_costs_its_matrix_products() -> None:
    width, dim, words, context, layers = 64, 16, 32, 12, 3
    prior = Prior(PriorConfig(clip_dim=dim, text_width=words, context=context, width=width, layers=layers, heads=2))
    found = cost(prior)
    assert found is not None

    def blocks(tokens: int, keys: int) -> int:
        """qkv, proj and MLP have 12 · width² weights; queries meet keys, and values are summed."""
        return layers * (2 * tokens * 12 * width**2 + 2 * 2 * tokens * keys * width)

    ends = 2 * (2 * width**2 + dim * width + width * dim)  # time, noised embedding, answer
    assert found.step == blocks(3, context + 1 + 3) + ends
    read = 2 * context * words * width + 2 * dim * width
    assert found.once == blocks(context + 1, context + 1) + read


def test_a_convolution_costs_its_pixels() -> None:
    """Twice the side, four times the FLOPs but for those of the time embedding."""
    small, large = (cost(upsampler(low_size=s // 2, image_size=s, unet=PLAIN)) for s in (16, 32))
    assert small is not None
    assert large is not None
    fixed = 4 * small.step - large.step  # three times what does not grow
    assert 0 < fixed < 0.05 * small.step
    assert small.once == 0


def test_every_port_is_read() -> None:
    for model in (small_decoder(), decoder(ports=classes()), decoder(), small_prior(), small_clip()):
        found = cost(model)
        assert found is not None
        assert found.step > 0
    reads, plain_one = cost(small_decoder()), cost(decoder())
    assert reads is not None
    assert plain_one is not None
    assert reads.once > 0 == plain_one.once
    assert cost(classifier()) is None


def test_guidance_doubles_and_candidates_sample_again() -> None:
    assert Cost(5, 100).of(Sampling(10), 10) == 1005
    assert Cost(5, 100).of(Sampling(10, guidance=2.0), 10) == 2010
    spaced = Sampling("10,10,3,2,2")
    steps = stage("decoder").num_evaluations(decoder().config, spaced)
    assert Cost(5, 100).of(spaced, steps, passes=2) == 5 + 2 * 27 * 100


def test_a_config_is_described_without_its_weights(tmp_path: Path) -> None:
    text = describe("configs/dalle2/up1024.yaml")
    assert "Upsampler, 282.06 M parameters, 538.0 MiB in bfloat16, 19.8 TFLOPs per evaluation" in text
    assert text.endswith("298 TFLOPs per picture of 15 steps")
    text = describe("configs/shapes/decoder.yaml")  # what its CLIP says of it is filled in
    assert text.startswith("configs/shapes/decoder.yaml: Decoder, ")
    assert "per picture of 25 guided steps" in text
    assert "Classifier, " in describe("configs/adm/classifier64.yaml")  # of pictures that are not here
    with pytest.raises(UsageError, match=r"cannot read config no\.yaml"):
        describe("no.yaml")
    (tmp_path / "wrong.yaml").write_text("stage: prior\nmodel: {widht: 3}\ntrain: {steps: 1, batch_size: 1, out: x}\n")
    with pytest.raises(UsageError, match=r"did you mean 'model\.width'"):
        describe(str(tmp_path / "wrong.yaml"))


def test_stages_and_models_say_what_they_cost(pipe: DALLE2, tmp_path: Path) -> None:
    save_stage(tmp_path / "up", "upsampler", small_upsampler(8, 32), dtype=torch.bfloat16)
    assert describe(str(tmp_path / "up")).endswith("FLOPs per evaluation")
    save_stage(tmp_path / "classifier", "classifier", classifier())
    assert describe(str(tmp_path / "classifier")).endswith("MiB")
    pipe.save_pretrained(tmp_path / "model")
    lines = describe(str(tmp_path / "model")).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["clip", "prior", "decoder", "up256", "up1024"]
    assert "FLOPs" not in lines[1], "CLIP is not what draws"
    assert all(line.endswith("FLOPs") for line in lines[2:6])
    assert lines[6].endswith("FLOPs per picture")


@pytest.mark.parametrize(("without", "whole"), [((), 4 + 3), (("consistency",), 4 + 2)])
def test_of_two_decoders_the_one_that_draws_is_counted(
    without: tuple[str, ...], whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two guided steps, then what makes pixels of latents, whichever it is."""
    millions = {"LatentDecoder": 1, "Autoencoder": 2, "ConsistencyDecoder": 3}
    monkeypatch.setattr("t2i.evals.flops.cost", lambda part: Cost(0, millions.get(type(part).__name__, 1) * 10**6))
    dalle3(*without).save_pretrained(tmp_path / "model")
    lines = describe(str(tmp_path / "model")).splitlines()
    assert lines[-1] == f"  {whole} MFLOPs per picture"
