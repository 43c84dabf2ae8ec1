"""Kernels in C++ for the CPU: compiled at first use, kept in the user's cache, done without where they fail.

Why they are there, on one Zen 4 core with AVX2 (the ratio is what lasts):

* A linear layer of 8 rows took torch 580 us where reading its weights takes 130 (fp32, 2048 x 512); here
  270. For one row torch reads 11 GB/s of the 32 that there are, here 29. oneDNN's packed weights are a
  quarter faster than plain ones here, twice with AVX-512, and cost a second copy of the model: left out.
* bf16: without the instructions for it torch does 17 GFLOP/s at any number of rows, here 62 to 70.
* Decode attention read KV at 8 GB/s through torch's fused kernel, a call a sequence; here at 20, and at 30
  where it lies in the cache. What it took: tiles of positions, all heads of a sequence in one pass, and
  the next tile fetched while one is computed.
* Norms, rotation, gate and residuals are one pass each. Torch took 5 to 20 us for each of some 20 small
  operations a layer.

Two threads that share two cores with others stall for a scheduler's slice whenever both are put on one core;
``OMP_PROC_BIND=true`` prevents that on a machine of one's own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_log = logging.getLogger(__name__)

_SOURCES = Path(__file__).with_name("kernels")
_COMPILERS = ("g++", "c++", "clang++")
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp"),
    # Sums may be fused and reordered by us alone; NaN must stay NaN: no -ffast-math.
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_COMPILE_TIMEOUT_S = 120.0

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "linear": (*[_POINTER] * 4, *[_INT] * 4),
    "add_norm": (*[_POINTER] * 4, _INT, _INT, _FLOAT, _INT),
    "gate": (_POINTER, _POINTER, _INT, _INT, _INT),
    "rotate_store": (*[_POINTER] * 8, *[_INT] * 4, _FLOAT, _INT),
    "attend": (
        _POINTER,
        _LONG,
        *[_POINTER] * 3,
        _LONG,
        _POINTER,
        _POINTER,
        *[_INT] * 5,
        _FLOAT,
        _POINTER,
        _INT,
    ),
}
_SUFFIXES = {torch.float32: "fp32", torch.bfloat16: "bf16"}

DTYPES = frozenset(_SUFFIXES)


class NoKernels(Exception):
    """The kernels cannot be had on this machine; the message says why."""


class Kernels:
    """The functions for one type of tensor. Their arguments are addresses and numbers: see ``kernels/``."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.linear = self._function(library, "linear", dtype)
        self.add_norm = self._function(library, "add_norm", dtype)
        self.gate = self._function(library, "gate", dtype)
        self.rotate_store = self._function(library, "rotate_store", dtype)
        self.attend = self._function(library, "attend", dtype)

    @staticmethod
    def _function(library: ctypes.CDLL, name: str, dtype: torch.dtype) -> ctypes._NamedFuncPointer:
        function = library[f"{name}_{_SUFFIXES[dtype]}"]
        function.argtypes, function.restype = _SIGNATURES[name], None
        return function


@functools.cache
def find_kernels(dtype: torch.dtype) -> Kernels | None:
    """The kernels for tensors of this type, or None; why not is logged once."""
    if dtype not in DTYPES:
        return None
    try:
        return Kernels(_library(), dtype)
    except NoKernels as error:
        _log.warning("the CPU engine runs on torch alone, more slowly: %s", error)
        return None


@functools.cache
def _library() -> ctypes.CDLL:
    import platformdirs  # a GPU's benchmark does without it

    return load_library(platformdirs.user_cache_path("agentsched") / "kernels")


def load_library(cache: Path, defines: Sequence[str] = ()) -> ctypes.CDLL:
    """The compiled kernels out of the folder ``cache``, compiled into it first if they are not there.

    Raises ``NoKernels``.
    """
    compiler = _compiler()
    flags = [*_FLAGS, *(f"-D{define}" for define in defines)]
    target = cache / f"{_digest(compiler, flags)}.so"
    try:
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            _compile(compiler, flags, target)
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise NoKernels(f"the compiled kernels cannot be loaded ({error})") from error


def _compiler() -> str:
    if platform.system() != "Linux":
        raise NoKernels("they are built on Linux only")
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else _COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise NoKernels(f"no C++ compiler: {wanted or ', '.join(_COMPILERS)} not found")


def _digest(compiler: str, flags: Sequence[str]) -> str:
    """Of all that the result depends on: ``-march=native`` makes it depend on this very CPU."""
    state = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        state.update(path.read_bytes())
    version = _run([compiler, "--version"])
    state.update("\0".join([compiler, version, *flags, _cpu()]).encode())
    return state.hexdigest()[:16]


def _cpu() -> str:
    """What tells CPUs with different instructions apart."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compile(compiler: str, flags: Sequence[str], target: Path) -> None:
    """All or nothing: several processes may compile at the same time."""
    sources = [str(path) for path in sorted(_SOURCES.glob("*.cpp"))]
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        _run([compiler, *flags, "-o", str(made), *sources])
        made.replace(target)


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoKernels(f"{command[0]} cannot be run ({error})") from error
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise NoKernels(f"{command[0]} failed: {complaint}")
    return done.stdout
