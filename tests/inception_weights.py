"""Random weights of TF-Inception as a file, which torch-fidelity and we read alike."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch


def lively(network: torch.nn.Module) -> None:
    """Random weights through which the signal neither dies nor explodes."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)


def inception_file(path: Path) -> Path:
    """Write a file; skips the test that asks for it without torch-fidelity."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.manual_seed(8)

    class Bare(fidelity.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, given: Any, *args: Any, **more: Any) -> Any:
            pass  # keeps its random weights

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    network = Bare("bare", ["2048"], empty)
    lively(network)
    torch.save(network.state_dict(), path)
    return path
