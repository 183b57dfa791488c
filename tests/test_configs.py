"""Every file in configs/ can be run: it says its own command, builds what it names, and a step of it trains."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import given
from small import Codec

from t2i.core.assets import asset
from t2i.core.errors import UsageError
from t2i.data.encode import Scenes, encode
from t2i.run import complete, load_run, train
from t2i.stages.ar_prior.model import ArPrior
from t2i.stages.clip.model import ClipConfig
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.decoder.policy import start as fitted
from t2i.stages.registry import load_stage, stage

CONFIGS = sorted(asset("configs").rglob("*.yaml"))
QUICK = [
    "train.steps=1",
    "train.batch_size=2",
    "train.num_samples=2",
    "train.val_every=0",
    "data.num_workers=0",
    "save_dtype=float32",
]


def name_of(path: Path) -> str:
    return path.relative_to(asset("configs")).with_suffix("").as_posix()


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_config_says_its_own_command(path: Path) -> None:
    comment = path.read_text().split("stage:")[0]
    assert re.search(rf"t2i train configs/{name_of(path)}\.yaml\b", comment)
    assert f"train.out={load_run(path, []).train.out}" in comment or "train.out=" not in comment


@pytest.mark.parametrize("path", [p for p in CONFIGS if "\npreset:" in p.read_text()], ids=name_of)
def test_paper_configs_are_the_published_networks(path: Path) -> None:
    run = load_run(path, [])
    spec = stage(run.stage)
    assert run.preset is not None
    with torch.device("meta"):
        ours, theirs = spec.model(run.model), spec.model(spec.presets[run.preset])
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    side = run.data.size if run.stage == "upsampler" else run.data.crop or run.data.size  # upsamplers learn from crops
    assert side == run.model.image_size  # type: ignore[attr-defined]


DALLE2 = {  # parameters; batch, steps, learning rate, beta 2, epsilon, weight decay, EMA of table 3
    "clip": (986_523_137, 32768, 635_000, 3e-4, 0.98, 1e-6, 0.2, 0.999),  # of its size and rate alone the paper speaks
    "ar-prior": (2_178_495_360, 4096, 1_000_000, 1.6e-4, 0.91, 1e-10, 4e-2, 0.999),
    "prior": (1_225_925_632, 4096, 600_000, 1.1e-4, 0.96, 1e-6, 6e-2, 0.9999),
    "decoder": (3_563_696_646, 2048, 800_000, 1.2e-4, 0.999, 1e-8, 0, 0.9999),
    "up256": (729_710_726, 1024, 1_000_000, 1.2e-4, 0.999, 1e-8, 0, 0.9999),
    "up1024": (282_064_326, 512, 1_000_000, 1e-4, 0.999, 1e-8, 0, 0.9999),
}


@pytest.mark.parametrize("name", DALLE2)
def test_dalle2_is_table_3(name: str) -> None:
    run = load_run(f"configs/dalle2/{name}.yaml", [])
    with torch.device("meta"):
        model = stage(run.stage).model(run.model)
    o, t = run.optim, run.train
    found = (t.batch_size, t.steps, o.lr, o.betas[1], o.eps, o.weight_decay, t.ema[0])
    assert (sum(p.numel() for p in model.parameters()), *found) == DALLE2[name]
    assert o.betas[0] == 0.9
    if isinstance(model, ArPrior):  # its two transformers, which are all that the table speaks of
        parts = (model.text_encoder, model.transformer)
        assert [sum(p.numel() for p in part.parameters()) for part in parts] == [1_208_598_528, 797_961_216]
    if name == "decoder":  # the U-Net with its ports for CLIP, and the text transformer without its table of words
        text = model.ports["text"].encoder
        words, ends = text.tokens.weight.numel(), text.positions.numel() + text.padding.numel()
        assert sum(p.numel() for p in text.transformer.parameters()) == 1_208_598_528
        assert sum(p.numel() for p in model.parameters()) - words - ends == pytest.approx(3.46e9, rel=1e-3)
        assert model.config.unet.dropout == 0.1


@pytest.mark.parametrize(("name", "count", "over_states"), [("base", 253.8e6, 32.2e6), ("large", 663.8e6, 56.1e6)])
def test_generators_of_dalle3_are_of_three_stages_over_kl_f8(name: str, count: float, over_states: float) -> None:
    run = load_run(f"configs/dalle3/generator-{name}.yaml", [])
    text, codec = (
        SimpleNamespace(width=4096, fingerprint=lambda: (0.5,), tokenizer=SimpleNamespace(context=128)),
        SimpleNamespace(channels=4, factor=8, fingerprint=lambda: (0.25,)),
    )
    config: Any = complete(run, stage("decoder"), {"text": text, "autoencoder": codec})
    assert (len(config.unet.multipliers), config.unet.scale_shift, config.image_size) == (3, True, 32)
    assert (run.train.steps, run.train.batch_size) == (500_000, 2048)
    assert (config.diffusion.space, config.latents.channels, config.latents.factor) == ("latents", 4, 8)
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(count, rel=1e-3)
    assert sum(p.numel() for p in model.ports.parameters()) == pytest.approx(over_states, rel=2e-3)


def test_t5_and_the_generator_of_the_shapes_world_train(tmp_path: Path) -> None:
    """As their headers say: T5, then what it and an autoencoder say is kept, then the decoder, from another one."""
    t5, cache, out = (str(tmp_path / name) for name in ("t5", "cache", "out"))
    train("configs/shapes/t5.yaml", [*QUICK, f"train.out={t5}"])
    text: Any = load_stage(t5, expect="t5")
    assert 1.4e6 < sum(p.numel() for p in text.parameters()) < 1.6e6
    codec = Codec()
    codec.factor = 8
    encode(cache, Scenes(256, 3), codec, text)
    given = ["needs.text=null", "needs.autoencoder=null", f"data.source={cache}", "data.val_fraction=0"]
    train("configs/shapes/dalle3.yaml", [*QUICK, *given, f"train.out={out}", "init=weights/shapes/decoder"])
    config: Any = load_stage(out, expect="decoder").config
    assert (config.latents.factor, config.ports.states.width) == (8, text.width)


@pytest.mark.parametrize("name", ["ar-prior", "prior", "decoder"])
def test_what_learns_from_the_clip_of_dalle2_fits_it(name: str) -> None:
    run, clip = load_run(f"configs/dalle2/{name}.yaml", []), load_run("configs/dalle2/clip.yaml", []).model
    assert isinstance(clip, ClipConfig)
    encoder: Any = SimpleNamespace(
        config=clip, dim=clip.embed_dim, text_width=clip.text.width, fingerprint=lambda: (0.5,)
    )
    spec = stage(run.stage)
    config: Any = complete(run, spec, {"clip": encoder})
    facts = spec.clip_facts(config)
    assert (facts.dim, facts.fingerprint) == (1024, (0.5,))
    context = config.ports.text.context if name == "decoder" else facts.context
    assert context == clip.tokenizer.context == 256


def test_a_preset_is_changed_key_by_key(tmp_path: Path) -> None:
    run = load_run("configs/adm/imagenet64.yaml", ["model.unet.dropout=0.3", "model.num_classes=7"])
    config = run.model
    assert isinstance(config, DecoderConfig)
    assert (config.unet.dropout, config.unet.channels, config.ports.classes.num) == (0.3, 192, 7)
    with pytest.raises(UsageError, match=r"unknown preset 'adm-65'; .*, did you mean 'adm-64'"):
        load_run("configs/adm/imagenet64.yaml", ["preset=adm-65"])


@pytest.mark.parametrize(
    "name",
    [
        "ddpm",
        "iddpm",
        "adm",
        "adm-classifier",
        "glide",
        "glide-inpaint",
        "glide-upsampler",
        "noised-clip",
        "ar-prior",
        "autoencoder",
    ],
)
def test_a_step_of_every_family_trains(tmp_path: Path, name: str) -> None:
    more = ["init=null"] if name == "glide-inpaint" else []
    more += ["data.size=256"] if name == "glide-upsampler" else []
    more += ["model.unet.channels=32"] if name in ("glide", "glide-inpaint") else []  # or saving takes longest
    more += ["task.sampling.steps=2"] if name in ("ddpm", "iddpm", "adm") or name.startswith("glide") else []
    train(f"configs/shapes/{name}.yaml", [f"train.out={tmp_path}", *QUICK, *more])
    model = load_stage(tmp_path)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if name in ("adm", "adm-classifier"):
        assert (model.config.ports.classes.names if name == "adm" else model.config.class_names)[:2] == (
            "red cube",
            "orange cube",
        )
    grids = list((tmp_path / "samples").glob("step-*.png"))
    assert len(grids) == (0 if name in ("adm-classifier", "noised-clip") else 2)


def test_a_step_against_bsr_trains(tmp_path: Path) -> None:
    """As the header of up1024.yaml says it."""
    path = asset("configs") / "shapes" / "up1024.yaml"
    found = re.search(r"up1024\.yaml '(task\.degradation=\{kind: bsr_light\})'", path.read_text())
    assert found is not None
    train(path, [f"train.out={tmp_path}", *QUICK, found[1], "data.crop=64", "train.sample_every=0"])
    assert all(torch.isfinite(p).all() for p in load_stage(tmp_path).parameters())


def test_inpainting_starts_as_the_network_that_it_is_tuned_from(tmp_path: Path) -> None:
    """Channels of the masked picture start at zero, so the first prediction is the same whatever is known."""
    small = [*QUICK, "train.sample_every=0", "optim.lr=1e-30", "optim.warmup=0", "model.unet.channels=32"]
    train("configs/shapes/glide.yaml", [f"train.out={tmp_path / 'glide'}", *small])
    more = [f"init={tmp_path / 'glide'}", f"train.out={tmp_path / 'inpaint'}"]
    train("configs/shapes/glide-inpaint.yaml", [*small, *more])
    base, tuned = (load_stage(tmp_path / name) for name in ("glide", "inpaint"))
    assert isinstance(base, Decoder)
    assert isinstance(tuned, Decoder)
    for parameter in base.unet.fine.parameters():  # type: ignore[union-attr]
        parameter.data.add_(0.01)
    tuned.load_state_dict(fitted(base.state_dict(), tuned))
    x, t, known = (
        torch.randn(2, 3, 64, 64),
        torch.tensor([10, 500]),
        (torch.rand(2, 3, 64, 64), torch.ones(2, 1, 64, 64)),
    )
    tokens = torch.randint(4, 20, (2, 64))
    with torch.no_grad():
        a, b = base(x, t, base.condition(given(tokens))), tuned(x, t, tuned.condition(given(tokens, known=known)))
    torch.testing.assert_close(a, b)


def test_a_fine_block_may_be_added_to_what_was_trained_without() -> None:
    small = {"channels": 32, "multipliers": [1], "num_blocks": 1, "attention": [], "mid_attention": False}
    fines = [{}, {"fine_channels": 16}, {"fine_channels": 16, "fine_blocks": 2}]
    plain, one, two = (
        Decoder(DecoderConfig.model_validate({"unet": small | {"patch_size": 2} | fine, "image_size": 16}))
        for fine in fines
    )
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    start = {key: torch.randn_like(value) for key, value in plain.state_dict().items()}
    plain.load_state_dict(start)
    one.load_state_dict(fitted(start, one))
    torch.testing.assert_close(plain(x, t), one(x, t))
    for parameter in one.unet.fine.parameters():  # type: ignore[union-attr]
        parameter.data.add_(0.1)
    assert not torch.allclose(plain(x, t), one(x, t))
    two.load_state_dict(fitted(one.state_dict(), two))  # other fine blocks start as nothing again
    torch.testing.assert_close(plain(x, t), two(x, t))
    with pytest.raises(RuntimeError, match="fine"):
        plain.load_state_dict(fitted(one.state_dict(), plain))


def test_glide_may_start_from_a_decoder_with_a_port_for_clip() -> None:
    """With the vector that the null embedding gave it."""
    unet = {
        "channels": 32,
        "multipliers": [1],
        "num_blocks": 1,
        "attention": [],
        "head_channels": 32,
        "context_dim": 32,
    }
    text = {"width": 32, "layers": 1, "heads": 1}
    dalle, glide = (
        Decoder(DecoderConfig.model_validate({"unet": unet, "text": text, "image_size": 16, "clip_dim": dim}))
        for dim in (8, None)
    )
    dalle.ports["clip_image"].nothing.data.normal_()
    glide.load_state_dict(fitted(dalle.state_dict(), glide))
    for key, value in glide.state_dict().items():
        if key != "ports.text.vector.bias":
            torch.testing.assert_close(value, dalle.state_dict()[key])
    tokens = torch.randint(0, 20, (2, glide.config.ports.text.context))  # type: ignore[union-attr]
    with torch.no_grad():
        before, after = (model.condition(given(tokens)) for model in (dalle, glide))
    torch.testing.assert_close(after.vector, before.vector)
