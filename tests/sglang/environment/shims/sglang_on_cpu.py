"""Makes SGLang importable beside a CPU build of torch; run by ``sglang_on_cpu.pth`` at each start of Python.

* The wheel of torchvision is a CUDA build whose operators cannot be loaded here, and its import fails where
  it describes them. SGLang needs it to be importable only: the two operators are declared just before that.
* Triton is not installed (900 MB that nothing uses here). SGLang has a stand-in for it, meant for macOS: that
  part of its ``_platform_stubs.py`` is run.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


class _Torchvision:
    """Finds the module that describes torchvision's operators, and declares them first."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision._meta_registrations":
            return None
        sys.meta_path.remove(self)
        import torch

        for operator in ("nms", "qnms"):
            try:
                getattr(torch.ops.torchvision, operator)
            except (AttributeError, RuntimeError):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                torch.library.define(f"torchvision::{operator}", schema)
        return importlib.machinery.PathFinder.find_spec(name, path)


def _stub_triton() -> None:
    stubs = (Path(folder) / "sglang" / "_platform_stubs.py" for folder in sys.path)
    source = next((path for path in stubs if path.exists()), None)
    if source is None or importlib.util.find_spec("triton") is not None:
        return
    begin, end = "        sys.meta_path.insert(0, _TritonFinder())\n", "    mps = torch.mps"
    text = source.read_text(encoding="utf-8")
    definitions = text.split("def install_platform_stubs")[0]
    body = begin + text.split(begin)[1].split(end)[0]
    module = ModuleType("sglang_triton_stub")
    module.__file__ = str(source)
    sys.modules[module.__name__] = module
    exec(compile(f"{definitions}\nif True:\n    if True:\n{body}", str(source), "exec"), module.__dict__)


sys.meta_path.insert(0, _Torchvision())
_stub_triton()
