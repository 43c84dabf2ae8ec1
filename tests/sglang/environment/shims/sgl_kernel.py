"""In the place of SGLang's kernels for CPUs, of which the package index has no build.

SGLang 0.5.23 imports some names from here whatever it does; they serve speculative decoding only. All else it
computes in torch where ``torch.ops.sgl_kernel`` has no operators, as here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def missing(*arguments: object, **options: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name}: this environment has none of SGLang's kernels")

    return missing
