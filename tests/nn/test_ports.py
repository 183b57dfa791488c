"""What decoder and upsampler make of captions, embeddings, labels and small pictures."""

import pytest
import torch
from conftest import given

from t2i.nn.transformer import TextConfig
from t2i.nn.unet import UNetConfig
from t2i.stages.decoder.model import Decoder, DecoderConfig
from t2i.stages.upsampler.model import Upsampler, UpsamplerConfig

TEXT = TextConfig(width=16, layers=1, heads=2, vocab_size=20, context=5)
UNET = UNetConfig(channels=32, multipliers=(1, 2), num_blocks=1, attention=(2,), head_channels=32, context_dim=16)
CONV = UNetConfig(image_channels=3, channels=32, multipliers=(1, 2), num_blocks=1, attention=(), mid_attention=False)


def decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    return Decoder(DecoderConfig.model_validate({"unet": UNET, "text": TEXT, "clip_dim": 8} | changes)).eval()


def user_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(0, 20, (2, 5)), torch.arange(5) < torch.tensor([[3], [4]]), torch.randn(2, 8)


@torch.no_grad()
def test_decoder_joins_text_and_clip() -> None:
    model = decoder()
    condition = model.condition(given(*user_inputs()))
    assert condition.vector.shape == (2, 128)
    assert condition.sequence.shape == (2, 4 + 5, 16)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 999])
    assert model(x, t, condition).shape == (2, 6, 8, 8)


@pytest.mark.parametrize("attended", [True, False])
@torch.no_grad()
def test_padding_is_looked_at_only_if_asked(attended: bool) -> None:
    model = decoder(text=TEXT.model_copy(update={"attend_padding": attended}))
    tokens, mask, embedding = user_inputs()
    for p in model.parameters():  # zeroed last layers would hide everything
        p.add_(0.05 * torch.randn_like(p))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 999])
    before = model(x, t, model.condition(given(tokens, mask, embedding)))
    silent = model(x, t, model.condition(given(tokens, mask, embedding, text_keep=torch.tensor([False, True]))))
    assert (silent - before)[0].abs().max() > 1e-4
    torch.testing.assert_close(silent[1], before[1])
    model.ports.text.encoder.padding[3:] += torch.randn(2, 16)  # where both sentences are over, or one of them
    after = model(x, t, model.condition(given(tokens, mask, embedding)))
    assert ((after - before).abs().max() > 1e-4) == attended


@torch.no_grad()
def test_padding_that_is_not_looked_at_may_be_left_away() -> None:
    model = decoder(text=TEXT.model_copy(update={"attend_padding": False}))
    tokens, mask, embedding = user_inputs()
    longest = int(mask.sum(dim=1).max())
    assert longest < tokens.shape[1]
    for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 999])
    whole = model(x, t, model.condition(given(tokens, mask, embedding)))
    torch.testing.assert_close(
        model(x, t, model.condition(given(tokens[:, :longest], mask[:, :longest], embedding))),
        whole,
        atol=1e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_dropping_both_conditions_gives_the_null_condition() -> None:
    model = decoder()
    torch.nn.init.normal_(model.ports.clip_image.nothing)
    tokens, mask, embedding = user_inputs()
    keep = torch.tensor([False, True])
    dropped = model.condition(given(tokens, mask, embedding, text_keep=keep, clip_keep=keep))
    full, null = model.condition(given(tokens, mask, embedding)), model.null_condition(2)
    for name in ("vector", "sequence"):
        got, kept, none = (getattr(c, name) for c in (dropped, full, null))
        torch.testing.assert_close(got[0], none[0])
        torch.testing.assert_close(got[1], kept[1])
        assert not torch.allclose(kept[0], none[0], atol=1e-3)


@torch.no_grad()
def test_conditions_are_dropped_independently() -> None:
    model = decoder()
    tokens, mask, embedding = user_inputs()
    without = torch.zeros(2, dtype=torch.bool)
    text_only = model.condition(given(tokens, mask, embedding, clip_keep=without))
    torch.testing.assert_close(text_only.sequence, model.condition(given(tokens, mask)).sequence)
    clip_only = model.condition(given(tokens, mask, embedding, text_keep=without))
    torch.testing.assert_close(clip_only.sequence, model.condition(given(image_embedding=embedding)).sequence)
    assert not torch.allclose(text_only.sequence, clip_only.sequence, atol=1e-3)


def test_null_embedding_starts_at_zero_and_learns() -> None:
    model = decoder(text=None)
    assert (model.ports.clip_image.nothing == 0).all()
    model.null_condition(2).sequence.sum().backward()
    assert model.ports.clip_image.nothing.grad.abs().sum() > 0


@torch.no_grad()
def test_clip_scale_multiplies_embeddings_but_not_the_null_embedding() -> None:
    plain, scaled = decoder(text=None), decoder(text=None, clip_scale=3.0)
    scaled.load_state_dict(plain.state_dict())
    embedding = user_inputs()[2]
    want = plain.condition(given(image_embedding=3 * embedding))
    torch.testing.assert_close(scaled.condition(given(image_embedding=embedding)).sequence, want.sequence)
    torch.testing.assert_close(scaled.null_condition(2).sequence, plain.null_condition(2).sequence)


@torch.no_grad()
def test_decoder_refuses_what_it_has_no_port_for() -> None:
    tokens, mask, embedding = user_inputs()
    free = UNET.model_copy(update={"context_dim": None})
    plain = decoder(unet=free, text=None, clip_dim=None)
    assert plain.condition(given(num=1)).vector is None
    with pytest.raises(ValueError, match="no port for text; its ports: none"):
        plain.condition(given(tokens, mask))
    with pytest.raises(ValueError, match="no port for clip_image; its ports: none"):
        plain.condition(given(image_embedding=embedding))
    with pytest.raises(ValueError, match="width 7, expected 8"):
        decoder().condition(given(tokens, mask, embedding[:, :7]))
    nothing, null = decoder().condition(given(num=2)), decoder().null_condition(2)
    torch.testing.assert_close(nothing.sequence, null.sequence)
    classes = decoder(unet=free, text=None, clip_dim=None, num_classes=10)
    with pytest.raises(ValueError, match="labels missing: this network is over 10 classes"):
        classes.condition(given(num=1))
    with pytest.raises(ValueError, match="10 classes has no unconditional branch"):
        classes.null_condition(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variance": "fixed_small"}, "needs unet.out_channels=3, got 6"),
        ({"text": TEXT.model_copy(update={"width": 32})}, "unet.context_dim=16 must equal ports.text.width=32"),
        (
            {"unet": UNET.model_copy(update={"context_dim": None}), "text": None},
            "ports.clip_image needs a unet.context_dim for its tokens, got None",
        ),
    ],
)
def test_decoder_configs_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(**changes)


@torch.no_grad()
def test_upsampler_works_on_crops_and_whole_pictures() -> None:
    torch.manual_seed(0)
    model = Upsampler(UpsamplerConfig(unet=CONV, low_size=8, image_size=32)).eval()
    for h, w in ((2, 2), (8, 8), (4, 6)):
        low_res = torch.randn(2, 3, h, w)
        condition = model.condition(low_res)
        assert condition.image.shape == (2, 3, 4 * h, 4 * w)
        x = torch.randn(2, 3, 4 * h, 4 * w)
        assert model(x, torch.tensor([0, 999]), condition).shape == (2, 6, 4 * h, 4 * w)


@torch.no_grad()
def test_upsampler_enlarges_a_slope_without_shifting_it() -> None:
    model = Upsampler(UpsamplerConfig(unet=CONV, low_size=8, image_size=16))
    centres = (torch.arange(8) + 0.5) / 8
    large = model.enlarge(centres.expand(1, 3, 8, 8))
    want = ((torch.arange(16) + 0.5) / 16).expand(1, 3, 16, 16)
    torch.testing.assert_close(large[..., 1:-1], want[..., 1:-1])


def test_upsampler_configs_and_inputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size=30 is not a multiple of low_size=8"):
        UpsamplerConfig(unet=CONV, low_size=8, image_size=30)
    with pytest.raises(ValueError, match="image_channels"):
        UpsamplerConfig(unet=CONV.model_copy(update={"image_channels": 0}))
    with pytest.raises(ValueError, match="no port for text"):
        Upsampler(UpsamplerConfig(unet=CONV)).condition(
            torch.randn(1, 3, 8, 8), given(torch.zeros(1, 5, dtype=torch.long))
        )
