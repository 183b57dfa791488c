"""The Inception v3 of TensorFlow, 2015-12-05: the network of the FID and of the Inception Score as papers print them.

Built by torch-fidelity (`pip install t2i[eval]`), with weights from a file of the user's: torch-fidelity's
`weights-inception-2015-12-05-6726825d.pth`, which pytorch-fid calls `pt_inception-2015-12-05-6726825d.pth`.
"""

import io
from pathlib import Path

import torch
from torch import Tensor

from t2i.core.errors import DataError, UsageError, shown
from t2i.io.foreign import is_program, read_foreign
from t2i.measures.extractors.base import Features, Network, check_finite, check_state, digest, untouched

NAME = "TF-Inception"
"""The only extractor whose Fréchet distance is called FID."""
_FILE = "pt_inception-2015-12-05-6726825d.pth"


class _Plain:
    """Pictures as they are: the network resizes them itself."""

    def __str__(self) -> str:
        return "TF-1 bilinear, without half pixels or antialiasing, to 299×299"

    def __call__(self, images: Tensor) -> Tensor:
        return images


def open_inception(path: Path, device: torch.device | str) -> Network:
    """TF-Inception from a file: 2048 features before the last layer, 1008 logits without its bias.

    Raises UsageError without torch-fidelity, DataError for a file that holds other weights.
    """
    if is_program(path):
        raise DataError(f"{path}: a program (TorchScript), and code from a file is never run: take {_FILE}")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UsageError(f"TF-Inception needs torch-fidelity: pip install 't2i[eval]' ({shown(error)})") from None
    state = check_state(read_foreign(path), path)
    check_finite(state, str(path))
    safe = io.BytesIO()  # torch-fidelity unpickles whatever it is given: it is given what was read without running it
    torch.save(state, safe)
    safe.seek(0)
    try:
        with untouched():
            network = FeatureExtractorInceptionV3(NAME, ["2048", "logits_unbiased"], safe)
    except RuntimeError as error:  # keys that lack or are too many, shapes
        said = shown(" ".join(str(error).split()).partition(": ")[2], 150)
        raise DataError(f"{path}: no weights of {NAME} (2015-12-05): {said}") from None
    look = lambda x: Features(*network(x))  # noqa: E731
    return Network(NAME, network, look, _Plain(), sha256=digest([path]), device=device, where=str(path))
