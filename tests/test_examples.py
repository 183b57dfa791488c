"""Every example runs, in miniature, and stays readable in length."""

import json
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from forked import run_script
from manifests import shapes
from PIL import Image

from t2i.data import shapes as shapes_world
from t2i.pipeline.base import Pipeline
from t2i.stages.registry import save_stage, stage_of

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: object, cwd: Path) -> str:
    script = next(path for path in EXAMPLES if path.name.startswith(name))
    code, out, err = run_script(script, arguments, cwd)
    assert code == 0, err[-2000:]
    return out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_short_and_say_what_they_do(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert text.count("\n") < 150


def test_00_diffusion_in_100_lines(tmp_path: Path) -> None:
    assert (ROOT / "examples" / "00_diffusion_in_100_lines.py").read_text().count("\n") <= 100
    run("00", "--steps", 30, "--out", tmp_path / "toy.png", cwd=tmp_path)
    picture = Image.open(tmp_path / "toy.png")
    assert picture.size == (768, 192)
    assert picture.convert("L").getextrema() == (0, 255)


def test_01_generate(tmp_path: Path) -> None:
    out = run("01", "a red cube", "--num", 1, "--stop-after", "decoder", "--out", tmp_path, cwd=tmp_path)
    assert "repeated exactly: True" in out
    assert (tmp_path / "picture.png").is_file()


def saved(pipe: Pipeline, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_03_guidance_dial(tmp_path: Path) -> None:
    """Two ways of two small models that know a cube; what they draw means nothing."""
    models = [
        "--glide",
        saved(small.glide(), tmp_path / "glide"),
        "--adm",
        saved(small.adm(classifier=small.classifier()), tmp_path / "adm"),
    ]
    out = run("03", "a red cube", "--num", 2, "--steps", 2, *models, "--out", tmp_path / "dial", cwd=tmp_path)
    assert [line.split()[0] for line in out.splitlines()] == ["classifier-free"] * 5 + ["CLIP"] * 5 + ["classifier"] * 5
    facts = json.loads((tmp_path / "dial.json").read_text())
    assert all(row["right"] in (0, 0.5, 1) and 0 <= row["diversity"] <= 2 for row in facts["rows"])
    assert Image.open(tmp_path / "dial.png").size == (5 * 66 - 2, 3 * 66 - 2)
    assert (tmp_path / "dial-plot.png").is_file()


def test_04_inpaint(tmp_path: Path) -> None:
    model = saved(small.glide("upsampler", "inpaint_upsampler"), tmp_path / "glide")
    out = run("04", "--model", model, "--steps", 2, "--prompt", "a red cube", "--out", tmp_path / "out", cwd=tmp_path)
    assert "trained: the largest change outside of the mask is 0 of 255" in out
    assert "replaced: the largest change outside of the mask is 0 of 255" in out
    assert Image.open(tmp_path / "out" / "row.png").height >= 16


@pytest.mark.slow
def test_06_learned_variance(tmp_path: Path) -> None:
    less = ["train.batch_size=2", "data.num_workers=0", "train.sample_every=0", "model.unet.num_blocks=1"]
    out = run("06", "--steps", 1, "--num", 2, "--spacing", 4, "--out", tmp_path / "out", "--set", *less, cwd=tmp_path)
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == ["linear", "linear", "cosine", "cosine"]
    facts = json.loads((tmp_path / "out" / "table.json").read_text())
    assert len(facts["runs"]["cosine, learned"]["vb"]) == 4
    assert (tmp_path / "out" / "terms.png").is_file()


def test_05_variations_interpolation_textdiff(tmp_path: Path) -> None:
    small = ["--steps", 2, "--num", 2, "--num-pictures", 8, "--out", tmp_path / "a"]
    out = run("05", *small, cwd=tmp_path)
    ways = ["reconstruct", "variations", "interpolate", "interpolate-fixed", "interpolate-text", "text-diff", "probe"]
    assert [Path(line.split()[0]).stem for line in out.splitlines()] == ways
    assert Image.open(tmp_path / "a" / "variations.png").size == (3 * 66 - 2, 64)
    assert Image.open(tmp_path / "a" / "interpolate.gif").n_frames == 2


@pytest.mark.slow
def test_08_measure_manipulations(tmp_path: Path) -> None:
    out = run("08", "--num", 2, "--num-variations", 1, "--steps", 2, "--main-steps", 2, cwd=tmp_path)
    assert out.count("dB") == 7
    assert out.count(" of 2 (") == 12


@pytest.mark.slow
def test_07_load_published_checkpoint(tmp_path: Path) -> None:
    """Weights with the real keys and shapes of DDPM's CIFAR-10 network, and with values that mean nothing."""
    assert "openai/glide" in run("07", cwd=tmp_path)
    weights = {key: 0.02 * torch.randn(shape) for key, shape in shapes("ddpm/cifar10 (pesser)").items()}
    torch.save(weights, tmp_path / "model-790000.ckpt")
    out = run("07", tmp_path / "model-790000.ckpt", "--num", 2, "--steps", 2, "--out", tmp_path / "out", cwd=tmp_path)
    assert "a decoder, ddpm-cifar10, 35.7 M parameters" in out
    assert Image.open(tmp_path / "out" / "picture-1.png").size == (32, 32)


@pytest.mark.slow
def test_11_how_fast(tmp_path: Path) -> None:
    lines = run("11", "--num", 1, cwd=tmp_path).splitlines()
    assert [" ".join(line.split()[:4]) for line in lines[1:4]] == [f"picture of {s} px" for s in (64, 256, 1024)]
    assert "GB" in lines[4]
    assert len(lines) == 7


def test_12_recaption_and_train(tmp_path: Path) -> None:
    """Tiny networks with random weights; what they write and draw means nothing."""
    parts = {"text": small.t5(), "autoencoder": small.autoencoder()}
    with torch.no_grad():
        codec: Any = parts["autoencoder"]
        codec.measure(codec.posterior(shapes_world.batch(range(8), 32)["image"]).mean)
    parts |= {f"captioner-{kind}": small.captioner() for kind in ("short", "descriptive")}
    for name, part in parts.items():
        save_stage(tmp_path / "model" / name, stage_of(part).name, part)
    few = ["--model", tmp_path / "model", "--count", 24, "--size", 32, "--steps", 1, "--num", 3, "--seeds", 2]
    less = ["model.unet.channels=32", "model.unet.multipliers=[1,1]", "model.unet.attention=[2]"]
    less += [
        "model.unet.patch_size=1",
        "model.unet.fine_channels=0",
        "model.unet.context_dim=32",
        "model.ports.states.layers=1",
    ]
    less += ["train.batch_size=4", "train.sample_every=0", "data.num_workers=0", "data.val_fraction=0.2"]
    arms = ["--arms", "100 % alt", "95 % descriptive"]
    args = [*few, "--out", tmp_path / "out", "--set", *less]
    out = run("12", *args, *arms, cwd=tmp_path)
    assert out.count("asked in alt: clip ") == out.count("asked in descriptive: clip ") == 2
    arms = ["--arms", "95 % short", "100 % alt"]
    assert run("12", *args, *arms, cwd=tmp_path).count("asked in alt: clip ") == 1, "the other is there already"
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert list(table["arms"]) == ["100 % alt", "95 % descriptive", "95 % short"]
    assert all(row[kind].keys() == {"clip", "things", "scenes"} for row in table["arms"].values() for kind in row)
    with pytest.raises(AssertionError, match="is of other settings"):
        run("12", *args, "train.max_grad_norm=2", *arms, cwd=tmp_path)
    assert (tmp_path / "out" / "plot.png").is_file()
    assert (tmp_path / "out" / "pictures" / "00000.captions.parquet").is_file()


def test_10_typographic_attack(tmp_path: Path) -> None:
    out = run("10", "--words", "CUBE", "--num", 1, "--steps", 2, "--out", tmp_path / "attack.png", cwd=tmp_path)
    shares = [[float(x.rstrip("%")) for x in line.split()[-2:]] for line in out.splitlines()[1:4]]
    assert all(abs(sum(column) - 100) < 0.1 for column in zip(*shares, strict=True))
    assert shares[0][0] > 90, "without a word it is the green sphere that it is"
    assert Image.open(tmp_path / "attack.png").size == (130, 130)


SMALL = ["train.steps=1", "train.batch_size=2", "train.num_samples=2", "data.num_workers=0", "train.val_every=0"]


@pytest.mark.slow  # the README's own commands are tested with the others
def test_02_train_each_stage(tmp_path: Path) -> None:
    """All but the last, which the README's commands train as well, and whose picture takes half a minute."""
    stages = "clip,prior,decoder,up256"
    out = run("02", "--out", tmp_path / "mine", "--minutes", 1, "--stages", stages, *SMALL, cwd=tmp_path)
    assert out.count("1 steps, 2 pictures, done") == 4
    assert (tmp_path / "mine" / "cube.png").is_file()
    assert (tmp_path / "mine" / "pipeline" / "model_index.json").is_file()


def test_02_knows_every_word_of_your_own_captions_and_trains_one_stage_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        Image.new("RGB", (70, 64), (100 * i, 50, 0)).save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text("my aunt's teapot")
    out = tmp_path / "mine"
    run("02", "--out", out, "--data", tmp_path / "photos", "--minutes", 1, "--stages", "clip", *SMALL, cwd=tmp_path)
    assert json.loads((out / "clip" / "config.json").read_text())["model"]["tokenizer"]["kind"] == "clip"
    assert not (out / "pipeline").exists(), "a chain needs a prior and a decoder"


@pytest.mark.slow
def test_09_what_the_prior_adds(tmp_path: Path) -> None:
    """Two prompts; what the bundled model does with them is measured elsewhere."""
    out = run("09", "--every", 60, "--out", tmp_path / "prior", cwd=tmp_path)
    rows = json.loads((tmp_path / "prior.json").read_text())["rows"]
    ways = ["caption alone", "text embedding", "AR prior", "diffusion prior", "a render's embedding", "renders"]
    assert list(rows) == ways
    assert all(way in out for way in ways)
    assert rows["renders"]["right"] > 0.6
    assert all(row["frechet"] > 0 and row["diversity"] > 0 for row in rows.values())
    assert Image.open(tmp_path / "prior.png").width > 0


@pytest.mark.slow
def test_14_how_threads_wait(tmp_path: Path) -> None:
    model = saved(small.glide(), tmp_path / "glide")
    out = run("14", "--num", 1, "--busy", 0, "--model", model, cwd=tmp_path)
    assert out.count(" s   (") == 6
