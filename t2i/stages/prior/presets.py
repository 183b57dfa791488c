"""Published sizes of priors, by name, with the facts that no weight file shows."""

from t2i.stages.prior.model import PriorConfig


def _of(clip_dim: int, clamp: float) -> PriorConfig:
    """The prior of unCLIP as Karlo built it: 1.02 B parameters, on embeddings as CLIP gives them, of any length."""
    return PriorConfig(
        clip_dim=clip_dim,
        text_width=clip_dim,
        context=77,
        width=2048,
        layers=20,
        heads=32,
        clamp=clamp,
        unit_norm=False,
    )


PRESETS: dict[str, PriorConfig] = {
    "karlo-prior": _of(768, clamp=10.0),  # CLIP ViT-L/14
    "karlo-diffusers-prior": _of(768, clamp=5.0),  # the same weights; their scheduler's file says 5
    "kandinsky-2.1-prior": _of(768, clamp=10.0),
    "kandinsky-2.2-prior": _of(1280, clamp=10.0),  # OpenCLIP ViT-bigG/14
}
