"""The published prior of LAION, with what no weight file shows."""

from t2i.stages.dalle2_pytorch.prior.model import LaionPriorConfig

PRESETS: dict[str, LaionPriorConfig] = {
    "laion-prior": LaionPriorConfig(era="C"),  # prior/latest.pth and best.pth of laion/DALLE2-PyTorch: 101.8 M
}
"""Published sizes by name."""
