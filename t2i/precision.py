"""Whether a machine is fast at bfloat16."""

import torch


def fast_bfloat16(device: torch.device) -> bool:
    """True for GPUs with bfloat16 units and for CPUs with AVX-512 BF16 or AMX instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return bool((check and check()) or (tiles and tiles()))
    return False
