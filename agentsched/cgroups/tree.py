"""Operations on cgroup folders: read, write, thaw, kill, remove. Only the standard library, since
the watchdog uses this too.

A folder may vanish at any moment, because its processes ended or because another party (watchdog,
``cleanup``, an outer sandbox) removed it: then there is nothing left to do, which is no error.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator

_GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH)


def read(path: str) -> str:
    """The text of a control file. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16).decode()
    finally:
        os.close(fd)


def write(path: str, text: str) -> None:
    """Write a control file in one piece. Raises ``OSError``."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_if_there(path: str, text: str) -> bool:
    """The same; False if the folder is gone."""
    try:
        write(path, text)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    return True


def read_if_there(path: str) -> str:
    """The text, or nothing if the folder is gone."""
    try:
        return read(path)
    except OSError as error:
        if error.errno in _GONE:
            return ""
        raise


def keyed(text: str, key: str) -> int:
    """The number after ``key`` in a flat keyed file such as cpu.stat; 0 if it is not there."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def folders(root: str) -> Iterator[str]:
    """All folders under ``root`` and itself, children before parents."""
    try:
        with os.scandir(root) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    for child in children:
        yield from folders(child)
    yield root


def pids(root: str) -> list[int]:
    """Processes in ``root`` and below; 0 stands for one of another pid namespace and is left out."""
    found = [
        int(word) for folder in folders(root) for word in read_if_there(f"{folder}/cgroup.procs").split()
    ]
    return sorted({pid for pid in found if pid > 0})


def enter(files: list[str], pid: int) -> bool:
    """Move a process into the folders of these cgroup.procs; False if it, or they, are gone. What it makes
    meanwhile may stay behind. Raises ``OSError``."""
    return all(write_if_there(path, str(pid)) for path in files)


def thaw(root: str) -> None:
    """Thaw every v2 folder under ``root``."""
    for folder in folders(root):
        write_if_there(f"{folder}/cgroup.freeze", "0")


def kill(root: str) -> None:
    """SIGKILL everything under ``root``; atomic where the kernel has cgroup.kill (5.14)."""
    if os.path.exists(f"{root}/cgroup.kill"):
        write_if_there(f"{root}/cgroup.kill", "1")
        return
    for pid in pids(root):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _remove_once(root: str) -> bool:
    try:
        os.rmdir(root)  # as a rule there is nothing below it: looking first would cost more than this
        return True
    except OSError as error:
        if error.errno in _GONE:
            return True
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
    done = True
    for folder in folders(root):
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, *_GONE):
                raise
            done = done and error.errno in _GONE
    return done


def remove(roots: list[str], patience_s: float) -> list[str]:
    """Thaw, kill and remove whole trees, again and again until ``patience_s`` is over: a process may
    enter or fork at any moment, and a dying one keeps its folder for some milliseconds.

    Returns the roots that are still there.
    """
    deadline = time.monotonic() + patience_s
    pause = 0.0002
    left = [root for root in roots if not _remove_once(root)]
    while left and time.monotonic() < deadline:
        for root in left:
            kill(root)
            thaw(root)
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        left = [root for root in left if not _remove_once(root)]
    return left
