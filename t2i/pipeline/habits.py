"""Words of other libraries, and ours for the same. Nothing heavy is imported: the command line asks too."""

from collections.abc import Iterable

from t2i.core.errors import UsageError, did_you_mean, quoted

_STOP = "stop_after=STAGE, as every stage draws one size"
_OFFLOAD = "offload=True, in from_pretrained or to"
_SPARE = "max_batch=N, or max_tile=N for upsamplers"

ARGUMENTS = {
    "num_inference_steps": "steps=N",
    "num_steps": "steps=N",
    "timesteps": 'steps=N, or a spacing such as "ddim50"',
    "guidance_scale": "guidance=S",
    "cfg_scale": "guidance=S",
    "prior_guidance_scale": 'guidance={"prior": S}',
    "decoder_guidance_scale": 'guidance={"decoder": S}',
    "prior_num_inference_steps": 'steps={"prior": N}',
    "decoder_num_inference_steps": 'steps={"decoder": N}',
    "super_res_num_inference_steps": 'steps={"up256": N}',
    "generator": "seed=N, or a list with one for each picture",
    "height": _STOP,
    "width": _STOP,
    "eta": "variations(image, eta=…), as other calls draw by the sampler's own",
    "scheduler": "sampler=NAME",
    "negative": "negative_prompt=TEXT",
    "negative_prompts": "negative_prompt=TEXT, or a list of them",
    "num_images": "num_images_per_prompt=N",
    "num_samples": "num_images_per_prompt=N",
    "batch_size": "max_batch=N",
    "callback_on_step_end": "callback=FUNCTION",
    "output_type": "none: a call gives PIL pictures, in output.images",
    "return_dict": "none: a call gives an Output, with images, seeds and embeddings",
    "strength": "edit(image, prompt, strength=…)",
    "image": "inpaint(image, mask, prompt), edit(image, prompt) or variations(image)",
    "mask_image": "inpaint(image, mask, prompt)",
}
"""Arguments of a call, and ours."""

OPENING = {
    "torch_dtype": "dtype=NAME",
    "device_map": "device=NAME",
    "scheduler": "sampler=NAME, in the call",
    "enable_model_cpu_offload": "offload=True",
    "cache_dir": "the environment variable T2I_CACHE",
    "local_files_only": "the environment variable HF_HUB_OFFLINE=1",
    "use_safetensors": "none: nothing else is read",
    "variant": "none: all weights are opened as they are stored",
    "safety_checker": "none: no model has one",
}
"""Arguments that open a model, and ours."""

ATTRIBUTES = {
    "enable_model_cpu_offload": _OFFLOAD,
    "enable_sequential_cpu_offload": _OFFLOAD,
    "enable_attention_slicing": _SPARE,
    "enable_vae_slicing": _SPARE,
    "enable_vae_tiling": "max_tile=N",
    "enable_xformers_memory_efficient_attention": "none: attention is memory-efficient as it is",
    "set_progress_bar_config": "progress=False, in a call",
    "from_single_file": "t2i convert FILE --out FOLDER, and assemble or load_stage",
    "from_pipe": "DALLE2(pipe.parts)",
    "scheduler": "sampler=NAME in a call, and settings['sampler']",
    "components": "parts",
    "config": "settings, and parts[…].config of every stage",
    "unet": "parts['decoder']",
    "text_encoder": "parts['clip'], of chains that have one",
    "tokenizer": "readers, of chains that read sentences",
    "cuda": "to('cuda')",
    "cpu": "to('cpu')",
    "half": "to(dtype='float16')",
    "generate": "a call, pipe(…)",
}
"""Attributes of a pipeline, and ours."""

OPTIONS = {
    "num_inference_steps": "--steps",
    "num_steps": "--steps",
    "guidance_scale": "--guidance",
    "cfg_scale": "--guidance",
    "scale": "--guidance",
    "height": "--stop-after, as every stage draws one size",
    "width": "--stop-after, as every stage draws one size",
    "size": "--stop-after, as every stage draws one size",
    "n": "--num",
    "n_samples": "--num",
    "num_images": "--num",
    "num_images_per_prompt": "--num",
    "prompt": 'the sentence itself: t2i generate "a red cube"',
    "negative_prompt": "--negative",
    "generator": "--seed",
    "scheduler": "--sampler",
    "torch_dtype": "--dtype",
    "precision": "--dtype",
    "output": "--out",
    "outdir": "--out",
    "ckpt": "--model",
    "init_img": "--image",
    "cpu_offload": "--offload",
}
"""Options of a command, and ours."""


def check_names(
    given: Iterable[str], takes: Iterable[str], habits: dict[str, str] = ARGUMENTS, beside: Iterable[str] = ()
) -> None:
    """UsageError for an argument that is none of what a call `takes`, with our word for it, or the nearest of those
    and of others that some calls take `beside` them."""
    takes = list(takes)
    for name in given:
        if name not in takes:
            near = [*takes, *(other for other in beside if other != name)]
            hint = f"; here it is {habits[name]}" if name in habits else did_you_mean(name, near)
            raise UsageError(f"unknown argument {quoted(name)}{hint}")
