"""`t2i eval bpd`: which pictures, what the decoder is told of them, and what comes out."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import given, small_clip, small_decoder
from PIL import Image
from small import MASKED, classes, decoder, laion_decoder, of

from t2i.cli.main import main
from t2i.core.errors import DataError, UsageError
from t2i.core.seed import Streams
from t2i.data.config import DataConfig
from t2i.data.loader import Loader
from t2i.diffusion.config import Diffusion
from t2i.diffusion.likelihood import Bits, bits_per_dim
from t2i.diffusion.prediction import Target
from t2i.diffusion.process import Process
from t2i.diffusion.sampling import Sampling
from t2i.evals.batches import pictures
from t2i.evals.bpd import _decoder_task, bpd, measure, summary, table
from t2i.nn.ports import PortsConfig
from t2i.nn.unet import UNetConfig
from t2i.pipelines.dalle2 import DALLE2
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.task import DecoderOptions, DecoderTask
from t2i.stages.registry import save_stage


@pytest.fixture(scope="module")
def model(pipe: DALLE2, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return str(folder)


def plain(ports: PortsConfig = PortsConfig(), target: Target = "eps") -> Decoder:
    """A decoder without CLIP and without text."""
    torch.manual_seed(0)
    unet = UNetConfig(channels=32, multipliers=(1,), num_blocks=1, attention=(), mid_attention=False)
    diffusion = Diffusion(num_steps=30, target=target)
    return Decoder(DecoderConfig(unet=unet, diffusion=diffusion, ports=ports, image_size=8)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five grey pictures, each of which would be held out by chance."""
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        Image.new("RGB", (8, 8), (50 * i, 50 * i, 50 * i)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def test_the_total_and_its_parts_are_printed_and_written(model: str, tmp_path: Path) -> None:
    report = bpd(model, num=3, batch=2, steps=6, device="cpu")
    report.save(tmp_path / "bits.json")
    text, result = report.text, json.loads((tmp_path / "bits.json").read_text())
    assert result["held_out"]
    assert result["pictures"] == len(result["each"]) == 3
    assert result["timesteps"] == [0, 200, 400, 599, 799, 999]
    assert [q["timesteps"] for q in result["quarters"]] == [[0, 200], [400, 599], [799, 799], [999, 999]]
    assert sum(q["vb"] for q in result["quarters"]) + result["prior"] == pytest.approx(result["bits_per_dim"], rel=1e-5)
    each = torch.tensor(result["each"])
    assert result["bits_per_dim"] == pytest.approx(each.mean().item())
    assert result["standard_error"] == pytest.approx(each.std().item() / 3**0.5)
    lines = text.splitlines()
    assert lines[0].startswith(f"bits per dimension{result['bits_per_dim']:>12.4f} ± {result['standard_error']:.4f}")
    assert lines[0].endswith("3 held-out pictures of shapes")
    assert [line.split()[0] for line in lines[1:]] == ["prior"] + 4 * ["timesteps"]


def test_a_picture_costs_the_same_in_every_batch(model: str) -> None:
    alone, together = (bpd(model, num=3, batch=b, steps=2, device="cpu").facts["each"] for b in (1, 3))
    assert alone == pytest.approx(together, rel=1e-3)


def test_the_decoder_is_told_captions_and_embeddings(pipe: DALLE2) -> None:
    decoder, clip = small_decoder(), pipe.parts["clip"]
    task = DecoderTask(decoder, DecoderOptions(sampling=Sampling(steps=1)), clip=clip)  # type: ignore[arg-type]
    loader = Loader(DataConfig(size=32, num_workers=0), seed=0, batch_size=2, split="val")
    (batch,) = pictures(loader, 2, torch.device("cpu"))
    process = task.process.respace(3)
    bits = measure(task, process, [batch])
    with torch.no_grad():
        tokens, mask = task.tokenizer(batch["caption"])  # type: ignore[misc]
        condition = decoder.condition(given(tokens, mask, clip.encode_image(batch["image"])))  # type: ignore[operator]
        streams = Streams(batch["seed"], "bits")
        expected = bits_per_dim(decoder, condition, process, task.diffusion.parametrisation(), batch["image"], streams)
    torch.testing.assert_close(bits.total, expected.total)
    other = measure(task, process, [batch | {"caption": ["", ""]}])
    assert not torch.allclose(other.total, bits.total)


def test_a_decoder_alone_and_every_picture_of_a_folder_once(tmp_path: Path, folder: Path) -> None:
    """All of a folder that is too small to hold anything out; a whole process if no steps are named."""
    save_stage(tmp_path / "decoder", "decoder", plain(target="x0"))
    text, result = bpd(str(tmp_path / "decoder"), data=str(folder), num=50, batch=2, device="cpu")
    assert text.splitlines()[0].endswith(f"5 pictures of {folder}")
    assert not result["held_out"]
    assert len(set(result["each"])) == 5
    assert result["timesteps"] == list(range(30))
    # It has learned nothing and says x_0 = 0 everywhere.
    colours = torch.arange(5) * 50 / 127.5 - 1
    assert result["x_0_mse"] == pytest.approx([colours.square().mean().item()] * 30, rel=1e-4)


def test_labels_are_told_or_missed(tmp_path: Path, folder: Path) -> None:
    decoder = plain(classes(3))
    task = DecoderTask(decoder, DecoderOptions(sampling=Sampling(steps=1)))
    images = torch.zeros(2, 3, 8, 8)
    batch = {"image": images, "caption": ["", ""], "label": torch.tensor([0, 2]), "seed": [1, 2]}
    assert measure(task, task.process.respace(2), [batch]).total.shape == (2,)
    save_stage(tmp_path / "decoder", "decoder", decoder)
    with pytest.raises(UsageError, match=r"the task needs \['label'\], the data has \['caption', 'image'"):
        bpd(str(tmp_path / "decoder"), data=str(folder), num=1, device="cpu")


def test_a_network_of_classes_is_shown_one_thing_unless_asked_for_more(tmp_path: Path) -> None:
    """Also by the command line, where weights that are not given are an empty mapping."""
    save_stage(tmp_path / "decoder", "decoder", plain(classes(60)))
    measured = partial(bpd, str(tmp_path / "decoder"), num=4, steps=2, device="cpu")
    none, one, two = (measured(num_things=weights).facts["each"] for weights in ({}, {1: 1.0}, {2: 1.0}))
    assert none == one
    assert none != two


def test_classes_of_the_data_must_be_those_of_the_model(tmp_path: Path) -> None:
    named = plain(classes(2, ("cat", "dog")))
    save_stage(tmp_path / "decoder", "decoder", named)
    for name in ("cat", "fox", "dog"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "animals" / name / "0.png")
    with pytest.raises(
        UsageError, match=r"knows other classes than .*animals: cat, dog \(2\), not cat, dog, fox \(3\)"
    ):
        bpd(str(tmp_path / "decoder"), data=str(tmp_path / "animals"), num=1, device="cpu")


def test_a_network_that_inpaints_is_shown_nothing_of_what_it_is_measured_on(tmp_path: Path) -> None:
    save_stage(tmp_path / "decoder", "decoder", decoder(unet=of(image_channels=4), ports=MASKED))
    task, _ = _decoder_task(str(tmp_path / "decoder"), "cpu")
    batch = {"image": torch.rand(4, 3, 16, 16), "caption": [""] * 4, "seed": [1, 2, 3, 4]}
    assert (task.condition(batch).image == 0).all()


def test_one_picture_has_no_standard_error() -> None:
    process = Process.from_schedule("cosine").respace(2)
    row = torch.tensor([[1.0, 2.0]])
    result = summary(Bits(torch.tensor([3.5]), torch.tensor([0.5]), row, row, row), process)
    assert result["standard_error"] is None
    assert [q["timesteps"] for q in result["quarters"]] == [[0, 0], [999, 999]]
    assert table(result, "pictures of x").splitlines()[0].split() == [
        "bits", "per", "dimension", "3.5000", "1", "pictures", "of", "x",
    ]  # fmt: skip


def test_what_cannot_be_measured_is_said_in_one_line(pipe: DALLE2, model: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this decoder reads embeddings of a CLIP; name the model that holds both"):
        bpd(f"{model}/decoder", device="cpu")
    with pytest.raises(DataError, match="holds stage prior, expected decoder"):
        bpd(f"{model}/prior", device="cpu")
    short = tmp_path / "short"
    DALLE2({name: pipe.parts[name] for name in ("clip", "prior")}, {}).save_pretrained(short)
    with pytest.raises(UsageError, match="no decoder among clip, prior, and only that knows"):
        bpd(str(short), device="cpu")
    foreign = tmp_path / "foreign"
    DALLE2({"clip": small_clip(embed_dim=32), "decoder": laion_decoder()}).save_pretrained(foreign)
    with pytest.raises(UsageError, match="bits are counted of a decoder, not of a laion_decoder"):
        bpd(str(foreign), device="cpu")
    with pytest.raises(UsageError, match="asks for 2000 steps"):
        bpd(model, steps=2000, device="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        bpd(model, data=str(tmp_path / "empty"), steps=2, device="cpu")


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, model: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chosen = ["--model", model, "--num", "1", "--steps", "2", "--out", str(tmp_path / "bits.json"), "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["t2i", "eval", "bpd", *chosen, "--whole"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "1 pictures of shapes" in capsys.readouterr().out
    assert not json.loads((tmp_path / "bits.json").read_text())["held_out"]


def test_a_model_with_two_decoders_is_judged_by_the_one_that_draws(tmp_path: Path) -> None:
    from small import glide

    pipe = glide()
    pipe.save_pretrained(tmp_path / "glide")
    save_stage(tmp_path / "alone", "decoder", pipe.parts["decoder"])
    both, alone = (bpd(str(tmp_path / n), num=2, steps=3, device="cpu").facts["each"] for n in ("glide", "alone"))
    assert both == pytest.approx(alone, rel=1e-4)
