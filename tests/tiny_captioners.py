"""Captioners of transformers with random weights and a vocabulary of a few words, as folders; nothing is fetched."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<image>", "red", "blue", "cube", "ball", "on", "a", "the"]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SIZES | {"image_size": 16, "patch_size": 8}
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} "
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}[SEP] {% endif %}"
)


def tokenizer(folder: Path, kind: Any = PreTrainedTokenizerFast) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.add_special_tokens(["<image>"])
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if kind is BertTokenizerFast:
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        return BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, mask_token="[MASK]", **names)
    return kind(tokenizer_object=core, eos_token="[SEP]", bos_token="[CLS]", **names)


def _saved(folder: Path, model: Any, *parts: Any) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def blip(folder: Path) -> Path:
    torch.manual_seed(0)
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3, "vocab_size": len(WORDS)}
    text = SIZES | ids | {"encoder_hidden_size": 16, "max_position_embeddings": 32}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    processor = BlipProcessor(
        BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer(folder, BertTokenizerFast)
    )
    return _saved(folder, BlipForConditionalGeneration(config), processor)


def git(folder: Path) -> Path:
    torch.manual_seed(1)
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(WORDS)}
    config = GitConfig(vision_config=VISION, max_position_embeddings=64, **SIZES, **ids)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return _saved(folder, GitForCausalLM(config), GitProcessor(images, tokenizer(folder, BertTokenizerFast)))


def encoder_decoder(folder: Path) -> Path:
    torch.manual_seed(2)
    text = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **SIZES)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), text)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    model = VisionEncoderDecoderModel(config)
    model.generation_config.decoder_start_token_id, model.generation_config.eos_token_id = 2, 3
    model.generation_config.pad_token_id = 0
    images = ViTImageProcessor(size={"height": 16, "width": 16})
    return _saved(folder, model, images, tokenizer(folder, BertTokenizerFast))


def chat(folder: Path, template: str | None = TEMPLATE) -> Path:
    torch.manual_seed(3)
    vision = CLIPVisionConfig(projection_dim=16, **(VISION | {"num_hidden_layers": 2}))
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(WORDS)}
    text = LlamaConfig(num_key_value_heads=2, max_position_embeddings=256, **SIZES, **ids)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=WORDS.index("<image>"))
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images,
        tokenizer(folder),
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    return _saved(folder, LlavaForConditionalGeneration(config), processor)


ALL = {"blip": blip, "git": git, "encoder_decoder": encoder_decoder, "chat": chat}
