"""The noised CLIP: the reference's numbers, strict conversion of its two files, a gradient that climbs, matching."""

import pytest
import torch
from conftest import small_noised_clip
from golden_tools import check, fill_state_dict, load_case, make_input
from manifests import manifests, shapes, state
from torch import Tensor

from t2i.core.types import Batch
from t2i.stages.noised_clip.convert import convert
from t2i.stages.noised_clip.model import NoisedClip, NoisedClipConfig, TowerConfig
from t2i.stages.noised_clip.presets import PRESETS
from t2i.stages.noised_clip.task import NoisedClipTask
from t2i.text.tokenizers import TokenizerConfig

FILE = "openai_nets.json"
FILES = ("glide/clip_image_enc", "glide/clip_text_enc")
TOWER = TowerConfig(width=32, layers=2, heads=2)
CONFIG = NoisedClipConfig(
    embed_dim=32,
    image_size=32,
    vision=TOWER,
    text=TOWER,
    tokenizer=TokenizerConfig(kind="clip", context=77),
    table_size=65536,
)


def published(config: NoisedClipConfig, files: list[dict[str, Tensor]]) -> NoisedClip:
    model = NoisedClip(config).eval()
    model.load_state_dict(convert(files, config))
    return model


@torch.no_grad()
def test_both_encoders() -> None:
    cases = [load_case(FILE, name) for name in ("T10i", "T10t")]
    model = published(CONFIG, [fill_state_dict(case["weights"][0]["keys"]) for case in cases])
    x, t, tokens, length = (make_input(rule) for case in cases for rule in case["inputs"].values())
    check(cases[0]["outputs"]["output"], model.image(x.clamp(-1, 1), t))
    mask = torch.arange(77) < length[:, None]
    check(cases[1]["outputs"]["output"], model.text(tokens, mask))
    check(cases[1]["outputs"]["output"], model.text(tokens[:, :8], mask[:, :8]), "without the padding that all have")
    ours, our_mask = model.tokenizer(["an oil painting of a corgi", "a corgi in a field"])
    assert torch.equal(ours, tokens)
    assert torch.equal(our_mask, mask)


@pytest.mark.slow
def test_glide_clip_at_full_size() -> None:
    case = load_case(FILE, "F-noised-clip")
    model = published(PRESETS["glide-clip"], [fill_state_dict(shapes(w["manifest"])) for w in case["weights"]])
    x, t, tokens, length = (make_input(rule) for rule in case["inputs"].values())
    with torch.no_grad():
        z_t = model.encode_text(tokens, torch.arange(77) < length[:, None])
        check(case["outputs"]["text_embeddings"], z_t, "text")
        check(case["outputs"]["image_embeddings"], model.encode_image(x, t), "image")
        gradient = 3.0 * model.similarity_gradient(x, t, z_t[:1].expand(2, -1))
    check(case["outputs"]["guidance_gradient"], gradient, "gradient")


@pytest.mark.parametrize("order", [1, -1])
def test_published_key_lists_fit_strictly(order: int) -> None:
    with torch.device("meta"):
        model = NoisedClip(PRESETS["glide-clip"])
    files = [state(shapes(name)) for name in FILES][::order]
    model.load_state_dict(convert(files, model.config), assign=True)
    counts = [sum(p.numel() for p in tower.parameters()) for tower in (model.image, model.text)]
    assert counts == [manifests()[name]["n_params"] for name in FILES] == [86_443_776, 71_679_488]
    assert sum(p.numel() for p in model.parameters()) == sum(counts)


def test_what_does_not_fit_is_named() -> None:
    image, text = (shapes(name) for name in FILES)
    key = "blocks.block_11.f_attn.f_q.b"
    without = {k: s for k, s in image.items() if k != key}
    other = {k: s for k, s in text.items() if k != key}
    renamed = "blocks.block_11.f_attn.f_k.b"
    for files, message in (
        ((without, text), f"it lacks 'image.{key}'"),
        ((image, other | {renamed: (512,)}), f"it lacks 'text.{key}'; has the unknown 'text.{renamed}'"),
        ((image | {"logit_scale": ()}, text), "it has the unknown 'image.logit_scale'"),
        ((image, text | {key: (768,)}), f"it has 'text.{key}' of shape (768,), expected (512,)"),
    ):
        with pytest.raises(ValueError, match="does not fit the config") as error:
            convert([state(keys) for keys in files], PRESETS["glide-clip"])
        assert str(error.value) == f"the checkpoint does not fit the config: {message}"
    with pytest.raises(ValueError, match=r"lacks 'text\.blocks\.input\.w_voc'"):
        convert([state(image)], PRESETS["glide-clip"])
    with pytest.raises(ValueError, match=r"lacks both 'blocks\.input\.w_t' and 'blocks\.input\.w_voc'"):
        convert([state(image), state(shapes("glide/base"))], PRESETS["glide-clip"])


@torch.no_grad()
def test_embeddings_have_unit_norm_and_depend_on_the_timestep_but_not_on_the_batch() -> None:
    model = small_noised_clip()
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0, 999])
    z = model.encode_image(x, t)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model.encode_image(x[1:], t[1:]), z[1:])
    assert (model.encode_image(x, t.flip(0)) - z).abs().max() > 1e-3
    together = model.encode_text(*model.tokenize(["a red cube", "a blue sphere and a green cube"]))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model.encode_text(*model.tokenize(["a red cube"])), together[:1])


@torch.no_grad()
def test_half_precision_gives_nearly_the_same_in_float32() -> None:
    model = small_noised_clip()
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0, 999])
    words = model.tokenize(["a red cube", "a blue sphere"])
    want = model.encode_image(x, t), model.encode_text(*words)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode_image(x, t), model.encode_text(*words)
    half = model.to(torch.bfloat16)
    for got in (mixed, (half.encode_image(x, t), half.encode_text(*words))):
        for ours, exact in zip(got, want, strict=True):
            assert ours.dtype == torch.float32
            assert (ours * exact).sum(dim=1).min() > 0.999


def test_the_gradient_is_the_slope_of_the_similarity() -> None:
    model = small_noised_clip()
    torch.manual_seed(0)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    with torch.inference_mode():
        z = model.encode_text(*model.tokenize(["a red cube", "a blue sphere"]))
        g = model.similarity_gradient(x, t, z)
        direction = g / g.flatten(1).norm(dim=1)[:, None, None, None]
        up, down = (20 * (model.encode_image(x + h * direction, t) * z).sum(1) for h in (0.02, -0.02))
    torch.testing.assert_close((up - down) / 0.04, g.flatten(1).norm(dim=1), rtol=1e-2, atol=0)
    assert {p.grad for p in model.parameters()} == {None}


CAPTIONS = ("a red cube", "a green cube", "a blue cube")


def coloured(count: int, seed: int = 0) -> Batch:
    """Pictures in which one channel is brighter than the others, and captions that name it."""
    which = [i % 3 for i in range(count)]
    image = torch.full((count, 3, 32, 32), -0.5)
    image[torch.arange(count), which] = 0.5
    return {"image": image, "caption": [CAPTIONS[i] for i in which], "seed": [1000 * seed + i for i in range(count)]}


def test_a_few_steps_match_colours_and_their_names() -> None:
    model = small_noised_clip().train()
    task = NoisedClipTask(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(1, 41):
        loss = task.loss(coloured(12, step))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = task.metrics(coloured(60, 99))
    assert found["retrieval_clean"] > 0.95
    assert found["retrieval_noisy"] > 0.4  # a third by chance
    z = model.encode_text(*model.tokenize(CAPTIONS)).detach()
    x, t = torch.zeros(3, 3, 32, 32), torch.full((3,), 100)
    drift = model.similarity_gradient(x, t, z).mean((2, 3))  # (3, 3) by caption and channel
    assert drift.argmax(dim=1).tolist() == [0, 1, 2]  # towards the colour that the caption names


def test_bad_input_is_refused() -> None:
    model = small_noised_clip()
    with pytest.raises(ValueError, match=r"x_t has shape \(3, 64, 64\), the network reads \(3, 32, 32\)"):
        model.encode_image(torch.zeros(1, 3, 64, 64), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"timesteps must be integers 0…999, got torch.float32"):
        model.encode_image(torch.zeros(1, 3, 32, 32), torch.tensor([0.25]))
    tokens = torch.zeros(1, 13, dtype=torch.long)
    with pytest.raises(ValueError, match="at most 12 tokens"):
        model.encode_text(tokens, tokens == 0)
    with pytest.raises(ValueError, match=r"mask \(1, 13\), expected equal shapes"):
        model.encode_text(tokens[:, :5], tokens == 0)
    with pytest.raises(ValueError, match="image_size=30 is not a multiple of patch_size=4"):
        NoisedClipConfig(image_size=30)
    with pytest.raises(ValueError, match="table_size=9 is less than the 49408 tokens"):
        NoisedClipConfig(tokenizer=TokenizerConfig(kind="clip", context=77), table_size=9)
    with pytest.raises(ValueError, match="width=32 is not a multiple of heads=3"):
        TowerConfig(width=32, heads=3)
