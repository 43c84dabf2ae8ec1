"""What is mounted: the cgroup hierarchies, and where in each of them the caller is; and the rest.

Reads ``/proc/self/mountinfo`` and ``/proc/self/cgroup`` (proc(5), cgroups(7)). The text goes in as
arguments, so that machines other than this one can be tested.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_OCTAL = re.compile(r"\\([0-7]{3})")


class Hierarchies(NamedTuple):
    """The caller's own folder in each hierarchy that is mounted and visible."""

    v2: str | None
    v1: dict[str, str]


class Mount(NamedTuple):
    """One line of mountinfo. ``root``: which folder of its file system shows at ``point``; ``options``: those
    of the file system, which for a v1 hierarchy are its controllers."""

    root: str
    point: str
    kind: str
    is_writable: bool
    options: frozenset[str]

    @property
    def is_cgroup(self) -> bool:
        return self.kind in ("cgroup", "cgroup2")


_KERNEL_PLACES = ("/proc", "/sys", "/dev")


def mounts(mountinfo: str) -> list[Mount]:
    """All mounts, in the order in which they were made."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, *rest) = before.split(), after.split() or [""]
        if len(fields) < 6:
            continue
        root, point = (_OCTAL.sub(lambda m: chr(int(m[1], 8)), field) for field in fields[3:5])
        options = frozenset(rest[-1].split(",")) if rest else frozenset[str]()
        is_writable = "rw" in fields[5].split(",") and "ro" not in options
        found.append(Mount(root, point, kind, is_writable, options))
    return found


def _own_folder(mount: Mount, path: str) -> str | None:
    """The folder of cgroup ``path`` under the mount; None if the mount does not show it.

    A container may see a mount whose root is its own cgroup, or paths with ``..`` of another
    cgroup namespace.
    """
    if ".." in path.split("/"):
        return None
    root = "" if mount.root == "/" else mount.root
    if root.startswith("/.."):
        return None
    if path != root and not path.startswith(root + "/"):
        return None
    return os.path.normpath(mount.point + path[len(root) :])


def find(mountinfo: str, own: str) -> Hierarchies:
    """The caller's folders, from the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    hierarchies = [mount for mount in mounts(mountinfo) if mount.is_cgroup]
    v2: str | None = None
    v1: dict[str, str] = {}
    for line in own.splitlines():
        number, controllers, path = line.split(":", 2)
        names = {name for name in controllers.split(",") if name}
        for mount in hierarchies:
            is_v2 = mount.kind == "cgroup2"
            if is_v2 != (number == "0" and not names) or not (is_v2 or names <= mount.options):
                continue
            folder = _own_folder(mount, path)
            if folder is None:
                continue
            if is_v2:
                v2 = v2 or folder
            else:
                for name in names:
                    v1.setdefault(name, folder)
    return Hierarchies(v2, v1)


def mount_points() -> list[str]:
    """Where this machine's cgroup hierarchies are mounted."""
    return sorted({mount.point for mount in _mounted() if mount.is_cgroup})


def disk_mounts() -> list[Mount]:
    """What is mounted below the root, but for what the kernel tells and devices; parents before children."""
    found = {mount.point: mount for mount in _mounted() if not mount.is_cgroup}
    return [
        found[point]
        for point in sorted(found)
        if point != "/" and not any(f"{point}/".startswith(f"{place}/") for place in _KERNEL_PLACES)
    ]


def _mounted() -> list[Mount]:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            return mounts(file.read())
    except FileNotFoundError:
        return []


def here() -> Hierarchies:
    """The caller's folders on this machine; none at all where there is no /proc."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mountinfo = file.read()
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            own = file.read()
    except FileNotFoundError:
        return Hierarchies(None, {})
    return find(mountinfo, own)
