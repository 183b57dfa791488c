"""DALL-E 3's chain on tiny networks with random weights."""

from pathlib import Path

import pytest
import small
import torch
from small import dalle3 as chain
from small import dalle3_parts as parts

from t2i.core.errors import DataError, UsageError
from t2i.pipeline.base import Pipeline
from t2i.pipeline.loading import kind_of
from t2i.pipelines.dalle3 import DALLE3
from t2i.stages.consistency_decoder.presets import KL_F8


def test_a_sentence_becomes_latents_and_then_pixels() -> None:
    pipe, seen = chain(), []
    out = pipe("a red cube", num_images_per_prompt=2, seed=3, progress=False,
               callback=lambda p: seen.append((p.stage, p.preview()[0].size)))  # fmt: skip
    assert [image.size for image in out] == [(64, 64), (64, 64)]
    assert seen == [("decoder", (64, 64))] * 2 + [("consistency", (64, 64))] * 2
    assert list(out.timings) == ["decoder", "consistency"]
    again = pipe("a red cube", seed=4, progress=False)
    assert (torch.tensor(list(again[0].getdata())) - torch.tensor(list(out[1].getdata()))).abs().max() <= 1


def test_the_autoencoder_makes_pixels_where_it_is_asked_or_alone() -> None:
    pipe, plain = chain(), chain("consistency")
    asked = pipe("a red cube", seed=3, progress=False, stop_after="autoencoder")
    alone = plain("a red cube", seed=3, progress=False)
    latents = pipe("a red cube", seed=3, progress=False, stop_after="decoder")
    assert asked[0].tobytes() == alone[0].tobytes() == latents[0].tobytes()
    assert asked[0].tobytes() != pipe("a red cube", seed=3, progress=False)[0].tobytes()
    assert asked.recipe["arguments"]["stop_after"] == "autoencoder"


def test_what_is_not_read_of_a_prompt_is_told() -> None:
    with pytest.warns(UserWarning, match="read|know") as told:
        out = chain()("a purple cube " + "and a red cube " * 9, seed=3, progress=False)
    assert [str(w.message).split(":")[0] for w in told] == [
        "the model does not know",
        "only the first 10 tokens are read of",
    ]
    assert out.truncated == [True]


def test_pixels_of_latents_are_made_one_by_one_and_keep_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, seen = chain("consistency"), []
    codec = pipe.parts["autoencoder"]
    decode = codec.decode_latents
    monkeypatch.setattr(codec, "decode_latents", lambda z: seen.append(decode(z)) or seen[-1])
    out = pipe("a red cube", num_images_per_prompt=3, seed=3, progress=False, stop_after="decoder")
    assert len(out.images) == 3
    assert [(len(x), x.requires_grad) for x in seen] == [(1, False)] * 3


def test_what_is_said_and_guidance_change_the_picture() -> None:
    pipe = chain()
    drawn = {
        pipe(words, seed=3, progress=False, guidance=scale, negative_prompt=negative)[0].tobytes()
        for words, scale, negative in (
            ("a red cube", 1.0, None), ("a cube", 1.0, None), ("a red cube", 4.0, None), ("a red cube", 4.0, "a cube"),
        )
    }  # fmt: skip
    assert len(drawn) == 4


def test_a_prompt_is_written_out_by_the_models_own_rewriter() -> None:
    out = chain()("blue", seed=3, progress=False, upsample_prompt="lm")
    assert out.recipe["asked"] == ["blue"]
    assert out.prompts != ["blue"]
    again = chain("rewriter")(out.prompts, seed=3, progress=False)
    assert again[0].tobytes() == out[0].tobytes()


def test_it_is_saved_opened_and_described(tmp_path: Path) -> None:
    pipe = chain()
    pipe.to("cpu")  # convolutions lie in memory as in an opened one, which moves the last bit on some machines
    pipe.save_pretrained(tmp_path / "model")
    again = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert isinstance(again, DALLE3)
    assert (
        again("a red cube", seed=1, progress=False)[0].tobytes()
        == pipe("a red cube", seed=1, progress=False)[0].tobytes()
    )
    assert "8 × 8 latents" in repr(again)
    with pytest.raises(UsageError, match="unknown stage 'up256'"):
        again("a red cube", stop_after="up256")
    with pytest.raises(UsageError, match="unknown stage 'text'; stages are decoder, autoencoder, consistency"):
        again("a red cube", stop_after="text")
    with pytest.raises(UsageError, match="upsample_prompt='': known are identity"):
        again("a red cube", upsample_prompt="")


def test_parts_that_were_not_trained_together_are_refused() -> None:
    other = small.autoencoder()
    with torch.no_grad():
        other.encoder.conv_in.weight.mul_(-3)
    with pytest.raises(DataError, match="decoder was trained with another autoencoder"):
        chain(autoencoder=other)
    with pytest.raises(DataError, match="decoder draws pixels"):
        chain(decoder=small.decoder())
    with pytest.raises(DataError, match="decoder reads states of width 16, text gives 32"):
        chain(text=small.t5(width=32))
    for without in (("autoencoder",), ("autoencoder", "consistency")):
        with pytest.raises(UsageError, match="lacks autoencoder"):
            chain(*without)
    codec = parts()["autoencoder"]
    known = {"channels": codec.channels, "factor": codec.factor, "fingerprint": codec.fingerprint()}
    with pytest.raises(DataError, match=r"decoder reads 4 tokens \(ports.states.positions\), text gives 12"):
        chain(decoder=small.latent_decoder(latents=known, positions=4))


def test_a_decoder_without_a_fingerprint_knows_its_autoencoder_by_its_scale() -> None:
    """Such as OpenAI's, which is of Stable Diffusion's latents."""
    published = {"channels": KL_F8.channels, "factor": KL_F8.factor, "scaling": KL_F8.scaling}
    with pytest.raises(DataError, match="consistency is for an autoencoder with latents times"):
        chain(consistency=small.consistency_decoder(latents=published, image_size=64))
    given = parts()
    given["autoencoder"].scale.fill_(0.18215)
    mark = {"channels": 4, "factor": 8, "fingerprint": given["autoencoder"].fingerprint()}
    decoder = small.latent_decoder(latents=mark)
    for latents in (published, {"channels": 4, "factor": 8}):
        consistency = small.consistency_decoder(latents=latents, image_size=64)
        DALLE3(given | {"decoder": decoder, "consistency": consistency}, {"steps": {"decoder": 2}})


@pytest.mark.parametrize(
    ("stages", "kind"),
    [
        (("text", "decoder", "autoencoder"), "dalle3"),
        (("clip", "prior", "decoder"), "dalle2"),
        (("decoder", "classifier"), "adm"),
        (("text", "up256"), "dalle2"),
    ],
)
def test_a_chain_is_known_by_its_stages(stages: tuple[str, ...], kind: str) -> None:
    assert kind_of(stages) == kind
    with pytest.raises(UsageError, match=r"decoder, upsampler may be of ddpm or .*: say --kind"):
        kind_of(("decoder", "upsampler"))
