"""A folder of 200 odd pictures trains all five stages of DALL-E 2's chain; the first lines say what is used."""

import logging
import re
from pathlib import Path

import odd_folder
import pytest

from t2i.run import train

TEXT = "text={width: 32, layers: 1, heads: 2}"
FEW = ["model.unet.channels=32", "task.sampling.steps=2"]
SMALL = {
    "clip": ["model.tokenizer={kind: clip, context: 77}", f"model.{TEXT}", "model.vision.width=16"],
    "prior": ["clip=CLIP", "model.width=32", "model.layers=1", "model.heads=2", "task.num_draws=1"],
    "decoder": ["clip=CLIP", "model.unet.context_dim=32", f"model.ports.{TEXT}", *FEW],
    "up256": FEW,
    "up1024": FEW,
}


def run(root: Path, stage: str) -> None:
    """Two steps of a stage on the folder."""
    few = ["train.steps=2", "train.batch_size=2", "train.num_samples=2", "train.val_batches=1", "train.device=cpu"]
    data = [f"data.source={root / 'pictures'}", "data.captions={}", "data.num_things={}", "data.num_workers=0"]
    changes = [change.replace("CLIP", str(root / "clip")) for change in SMALL[stage]]
    assert train(f"configs/shapes/{stage}.yaml", [f"train.out={root / stage}", *few, *data, *changes]).step == 2


@pytest.mark.slow  # a minute
def test_a_folder_of_odd_pictures_trains_all_stages_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd_folder.make(tmp_path / "pictures")
    for stage in SMALL:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(tmp_path, stage)
        here = f"{tmp_path / 'pictures'}: "
        first, split, *more = [text.removeprefix(here) for text in caplog.messages if text.startswith(here)]
        assert first == (
            "200 pictures from 1 folder, 198 with captions; left out: 1 hidden or of the system (such as .thumbnails), "
            "1 linked to nothing (such as gone.jpg), 1 .md (such as notes.md), 1 .heic (such as phone.heic), "
            "1 neither file nor folder (such as pipe.jpg), 1 .txt beside no picture (such as lonely.txt)"
        )
        assert re.fullmatch(r"19\d to train on, \d held out", split)
        assert re.fullmatch(r"4 of 19\d pictures that were looked at cannot be read \(such as broken\)", more[0])
        if stage in ("clip", "prior", "decoder"):  # the others learn from windows of what is there
            assert "are not square: cropped to their centre squares; data.crop_policy=pad keeps all of them" in more[1]
        assert (tmp_path / stage / "model.safetensors").is_file()
        if stage == "prior":  # which measures some hundred embeddings first
            told = [re.match(r"skipped sample ([\w-]+): ([^(]+) \(", text) for text in caplog.messages]
            bad = {found[2]: found[1] for found in told if found}
            assert bad.keys() == {"caption is not UTF-8", "no caption", "too narrow", "unreadable picture"}
            assert any("train data: 512 samples used, skipped unreadable picture: " in text for text in caplog.messages)
