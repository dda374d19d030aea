"""Makes this process as poor as one on Windows, then runs the command: `python tests/windows.py train ...`.

Modules and functions of POSIX are gone; a file that is open or mapped can be neither renamed, nor replaced, nor removed; a folder
cannot be opened. The C is that of this machine.
"""

import contextlib
import mmap
import os
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Any

import filelock
import torch  # noqa: F401  # it and what it imports are as they are; what comes after is ours

import lstmlm.machine

MODULES = "fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog", "posix", "readline"
GONE: dict[Any, tuple[str, ...]] = {
    os: (
        *("sched_getaffinity", "register_at_fork", "fork", "geteuid", "getuid", "getegid", "getgid", "sysconf", "sysconf_names"),
        *(
            "O_NONBLOCK",
            "O_NOFOLLOW",
            "O_NOCTTY",
            "O_DIRECTORY",
            "pread",
            "statvfs",
            "uname",
            "fchmod",
            "chown",
            "killpg",
            "wait4",
        ),
    ),
    signal: ("SIGHUP", "SIGALRM", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "pause", "alarm", "setitimer", "pthread_sigmask"),
    mmap: ("MAP_PRIVATE", "MAP_NORESERVE", "MADV_DONTNEED", "PROT_READ", "PROT_WRITE"),
}


def held(path: Any) -> bool:
    """Return whether this process has a file open or mapped."""
    place = os.path.realpath(path)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        if any(line.rstrip().endswith(place) for line in maps):
            return True
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # of the one that read the listing
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return place in found


def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a call that takes paths so that it refuses those that are held."""

    def guarded(*paths: Any, **how: Any) -> Any:
        for path in paths:
            if isinstance(path, str | os.PathLike) and os.path.isfile(path) and held(path):
                raise PermissionError(
                    13, "The process cannot access the file because it is being used by another process", str(path)
                )
        return call(*paths, **how)

    return guarded


def no_folders(call: Callable[..., int]) -> Callable[..., int]:
    """Wrap `os.open` so that it opens no folder."""

    def guarded(path: Any, *arguments: Any, **how: Any) -> int:
        if os.path.isdir(path) and "dir_fd" not in how:
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, *arguments, **how)

    return guarded


def become() -> None:
    """Take everything away."""
    lstmlm.machine.WINDOWS = True
    filelock.FileLock = filelock.SoftFileLock  # the other one is made for the system at hand
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # what an import then finds is that there is none
    room = shutil.disk_usage("/")
    shutil.disk_usage = lambda path: room  # Windows has a way of its own to ask, and the one here is about to go
    for module, names in GONE.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, refusing(getattr(os, name)))
    os.open = no_folders(os.open)


if __name__ == "__main__":
    become()
    from lstmlm.kernels import build

    build.NOT_ON_WINDOWS = ()
    build.COMPILERS = ("cc", "gcc", "clang")
    from lstmlm.cli import main

    main()
