"""The published decoder of LAION, with what no weight file shows."""

from t2i.stages.dalle2_pytorch.decoder.model import LaionDecoderConfig

PRESETS: dict[str, LaionDecoderConfig] = {
    "laion-decoder": LaionDecoderConfig(era="C"),  # decoder/v1.0.2/latest.pth of laion/DALLE2-PyTorch: 982.6 M
}
"""Published sizes by name."""
