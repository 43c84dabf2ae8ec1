"""Finds and removes what dead runtimes left behind: normally nothing, unless their watchdog was
killed as well."""

from __future__ import annotations

import os
from typing import NamedTuple

from agentsched.cgroups import hierarchy, marked, names, tree
from agentsched.cgroups.contract import HostRefused
from agentsched.cgroups.leaf import remove_empty


class Instance(NamedTuple):
    """A runtime instance that has folders or marked processes. ``alive`` is None if it belongs to
    another pid namespace, so that this process cannot tell."""

    name: str
    alive: bool | None
    folders: tuple[str, ...]
    pids: tuple[int, ...]


def find() -> list[Instance]:
    """All instances on this machine that this process can see, in all cgroup hierarchies."""
    folders: dict[str, list[str]] = {}
    for mount in hierarchy.mount_points():
        for path in tree.folders(mount):
            parent, name = os.path.split(path)
            if os.path.basename(parent) == names.PARENT and names.is_instance(name):
                folders.setdefault(name, []).append(path)
    pids: dict[str, list[int]] = {}
    for pid, marks in marked.everyone():
        for mark in filter(None, marks.split(";")):
            name = mark.partition("/")[0]
            if names.is_instance(name):
                pids.setdefault(name, []).append(pid)
    found = []
    for name in sorted(folders.keys() | pids.keys()):
        inside = {pid for folder in folders.get(name, []) for pid in tree.pids(folder)}
        everyone = tuple(sorted(inside | set(pids.get(name, []))))
        found.append(Instance(name, names.is_alive(name), tuple(folders.get(name, [])), everyone))
    return found


def remove(instance: Instance, patience_s: float = 5.0) -> None:
    """Thaw, kill and remove all of a dead instance. Raises ``HostRefused`` with what is left, and
    ``ValueError`` if the instance is not dead."""
    if names.is_alive(instance.name) is not False:
        raise ValueError(f"instance {instance.name} is not known to be dead")
    try:
        left = tree.remove(list(instance.folders), patience_s)
        left += [f"process {pid}" for pid in marked.kill(f"{instance.name}/", patience_s)]
    except OSError as error:
        raise HostRefused(f"cannot remove {error.filename}: {error.strerror}") from error
    for folder in instance.folders:
        remove_empty(os.path.dirname(folder))
    if left:
        raise HostRefused(f"could not remove {', '.join(left)}")
