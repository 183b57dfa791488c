"""Names that users choose from, without what they stand for: a wrong one is answered before torch is imported."""

from t2i.core.errors import UsageError, did_you_mean, quoted

DTYPES = ("float32", "bfloat16", "float16")
"""What networks calculate in."""
STORED = (*DTYPES, "int8")
"""What weights are stored as; see `t2i.io.int8` for the last."""
SAMPLERS = ("ddpm", "ddim", "dpm_solver_pp_2m")
"""The table of `t2i.diffusion.samplers`."""


def dtype_name(dtype: object, *, stored: bool = False) -> str:
    """What a name or a torch.dtype is called, or auto: of what networks calculate in, or weights are stored as."""
    choices, what = (STORED, " of weights") if stored else (("auto", *DTYPES), "")
    is_one = isinstance(dtype, str) or type(dtype).__module__ == "torch"
    name = str(dtype).removeprefix("torch.") if is_one else quoted(dtype)
    if name not in choices:
        raise UsageError(f"unknown dtype {quoted(name)}{what}; use {', '.join(choices)}{did_you_mean(name, choices)}")
    return name


def sampler_name(what: str, name: object) -> str:
    """The name of a sampler; `what` it is called in the error."""
    if not isinstance(name, str) or name not in SAMPLERS:
        choices = f"; known are {', '.join(SAMPLERS)}{did_you_mean(name, SAMPLERS)}"
        raise UsageError(f"{what}: unknown {quoted(name)}{choices}")
    return name
