"""Where bcc finds kernel headers to compile against: the machine's own, or a stand-in that is enough for us.

bcc compiles C on the machine that it runs on and wants a kernel's source tree for that. Cloud and micro-VM
kernels come without. The programs here read nothing but the arguments of tracepoints, whose layouts bcc
takes from tracefs, and no structure of the kernel. So a small tree (``stub``) and the headers of the C
library (linux-libc-dev) serve; nothing in it depends on the version of the kernel.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from pathlib import Path

from agentsched.cgroups.contract import HostRefused

VARIABLE = "BCC_KERNEL_SOURCE"
_LIBC = Path("/usr/include")
_STUB = Path(__file__).parent / "stub"


def own() -> str | None:
    """The headers that the machine has, in words; None if it has none."""
    if os.environ.get(VARIABLE):
        return f"{VARIABLE}={os.environ[VARIABLE]}"
    build = f"/lib/modules/{platform.release()}/build"
    for place in (build, "/sys/kernel/kheaders.tar.xz"):
        if os.path.exists(place):
            return place
    return None


def found() -> str:
    """What bcc will compile against, in words. Raises ``HostRefused`` if there is nothing."""
    return own() or f"none for this kernel; the stand-in, with {_asm().parent}"


def _asm() -> Path:
    """The C library's own half of the stand-in. Raises ``HostRefused``."""
    if platform.machine() != "x86_64":
        raise HostRefused(
            f"no kernel headers, and the stand-in for them is for x86_64, not {platform.machine()}"
        )
    asm = _LIBC / (sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu") / "asm"
    if not asm.is_dir():
        asm = _LIBC / "asm"
    if not (_LIBC / "linux" / "bpf_common.h").exists() or not asm.is_dir():
        raise HostRefused("no kernel headers, and no linux-libc-dev: apt-get install linux-libc-dev")
    return asm


def stand_in(folder: Path) -> None:
    """Make the stand-in tree in a folder. Raises ``HostRefused`` where its parts are missing."""
    asm = _asm()
    shutil.copytree(_STUB, folder, dirs_exist_ok=True)
    uapi = folder / "include" / "uapi" / "linux"
    for header in (_LIBC / "linux").iterdir():
        if not (uapi / header.name).exists():
            (uapi / header.name).symlink_to(header)
    (folder / "include" / "linux" / "version.h").symlink_to(_LIBC / "linux" / "version.h")
    (folder / "include" / "asm-generic").symlink_to(_LIBC / "asm-generic")
    for missing in ("include/generated/uapi", "arch/x86/include/generated/uapi", "arch/x86/include/uapi"):
        (folder / missing).mkdir(parents=True)
    (folder / "arch" / "x86" / "include" / "uapi" / "asm").symlink_to(asm)
