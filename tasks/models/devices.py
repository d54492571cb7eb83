"""Torch's devices and the precisions that they can be trusted with."""

from contextlib import nullcontext
from typing import Any

import torch

from tasks.domain.errors import SpecError

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def refuse_device(device: str, precision: str) -> None:
    """Raise SpecError where torch cannot use the device, or not with this precision."""
    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise SpecError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); use cpu") from error
    if precision not in ("fp32", *_HALF):
        raise SpecError(f"precision {precision!r} is not known; expected fp32, fp16 or bf16")
    if precision in _HALF and kind != "cuda":
        raise SpecError(
            f"precision {precision} needs a CUDA device; on {device}, half precision gives wrong numbers; use fp32"
        )


def autocast(precision: str) -> Any:
    """A context of half precision where it is safe, around weights that stay fp32; of nothing for fp32."""
    dtype = _HALF.get(precision)
    return nullcontext() if dtype is None else torch.autocast("cuda", dtype=dtype)
