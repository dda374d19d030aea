"""The C sources beside this file -> a shared object for this very machine, compiled once and kept in the user's cache.

`library` is the entry point, for `native` and `contexts`; `cached`, which compiles nothing, for `generate`.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lstmlm.machine import WINDOWS, cache_folder

SOURCES = Path(__file__).parent
COMPILERS: tuple[str, ...] = ("clang",) if WINDOWS else ("cc", "gcc", "clang")
"""On Windows gcc aligns no stack for registers of 32 bytes (its bug 54412): what it compiles would crash."""

SUFFIX = ".dll" if WINDOWS else ".so"
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-w", "-Wno-psabi")
NOT_ON_WINDOWS: tuple[str, ...] = ("-fPIC", "-pthread", "-lm")
"""All code there can be moved, threads are the system's, and mathematics are no library of their own."""

FOR_THIS_CPU: tuple[tuple[str, ...], ...] = (("-march=native",), ("-mcpu=native",), ())
"""Tried in this order: what a compiler calls the machine it runs on differs, and the last always works."""

ENTRIES = ("lstmlm_forward", "lstmlm_generator_new", "lstmlm_contexts_new")
"""One function of each source that is compiled on all systems: what lacks them was made by no compiler of these."""

SECONDS = 120
"""A compiler that takes longer is stopped."""

LEAST_FREE = 16_000_000
"""Bytes that are free where it is compiled: objects, the compiler's own files and the result take some 3 MB."""


class Unavailable(Exception):  # caught and told as a note, most often not an error
    """The native kernel cannot run here; the message is the reason, without a full stop."""


def library() -> ctypes.CDLL:
    """Load the shared object, from a cache if it is there and whole, else compiled now.

    The file's name holds a hash of all that went into it (sources, flags, CPU, $CC) and one of its content, and
    it comes into being by a rename: a truncated or altered file is not loaded but made anew, and processes that compile
    at the same time do not disturb each other. Where it is there, no compiler is needed. Where the cache cannot be written, it
    lives in a folder of this user's beside other temporary files, and where that cannot be written either, in the one that it was
    compiled in, removed as soon as it is loaded. So it does where anybody else could have written the file: what is loaded is
    executed.

    Raises:
        Unavailable: There is no compiler, or none of them can compile the sources.
    """
    if (found := cached()) is not None:
        return found
    reason = ""
    with _workplace() as folder:
        made = _made(folder)
        for number, kept in enumerate(_folders()):
            try:
                kept.mkdir(mode=0o700 if number else 0o777, parents=True, exist_ok=True)
                if not _is_ours(kept):
                    raise Unavailable(f"{kept} can be written by others")
                opened = _open(_placed(made, kept))
            except (OSError, Unavailable) as error:  # read-only, full, not executable: then elsewhere, and this is told
                reason = reason or (error.strerror if isinstance(error, OSError) else "") or str(error)
                continue
            if number:
                _said.append(f"the compiled kernel is kept in {kept}: the cache folder does not take it ({reason})")
            return opened
        opened = _open(made)
    _said.append(f"the kernel was compiled for this command alone: no folder takes it ({reason}). Set LSTMLM_CACHE to another.")
    return opened


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    """Give a folder to compile in: beside other temporary files, or, where those take none or are nearly full, in the cache.

    Raises:
        Unavailable: None can be made.
    """
    reason = "no folder is left"
    with contextlib.ExitStack() as stack:
        for number, place in enumerate([None, *_folders()]):
            try:
                if place is not None:
                    place.mkdir(mode=0o700 if number > 1 else 0o777, parents=True, exist_ok=True)
                    if not _is_ours(place):
                        continue
                made = tempfile.TemporaryDirectory(prefix="lstmlm-", dir=place, ignore_cleanup_errors=WINDOWS)  # it is loaded
                folder = stack.enter_context(made)
                if shutil.disk_usage(folder).free >= LEAST_FREE:
                    break
                reason = "No space left on device"
            except OSError as error:
                reason = error.strerror or str(error)
        else:
            raise Unavailable(f"the compiled kernel cannot be written: {reason}")
        yield Path(folder)


def _made(folder: Path) -> Path:
    """Compile into a folder with the first compiler that can.

    Raises:
        Unavailable: There is none; with what the first one says.
    """
    reasons = []
    for compiler in compilers():
        try:
            return _compile(compiler, folder)
        except Unavailable as error:
            reasons.append(error)
    raise reasons[0]


def _placed(made: Path, kept: Path) -> Path:
    """Copy a shared object to where it is kept, all at once, under a name that says what is in it."""
    digest = _content_digest(made)
    target = kept / f"native-{_key()}-{digest}{SUFFIX}"
    # Windows replaces nothing that another process has loaded; elsewhere what is there may be a FIFO.
    if not WINDOWS or _content_digest(target) != digest:
        with tempfile.TemporaryDirectory(prefix=".native-", dir=kept) as folder:
            os.replace(shutil.copy(made, folder), target)
    return target


def cached() -> ctypes.CDLL | None:
    """Load the shared object if a cache holds it whole, as `library` would, and compile nothing."""
    for kept in _folders():
        with contextlib.suppress(OSError):
            if (found := _find(kept, _key())) is not None:
                return found
    return None


def notes() -> str:
    """Return what is to be said about where the shared object is kept, once."""
    said = " ".join(_said)
    _said.clear()
    return said


_said: list[str] = []


def _folders() -> list[Path]:
    """Return where the shared object may be kept, the best place first."""
    kept = cache_folder()
    folders = [] if kept is None else [kept]
    if hasattr(os, "geteuid"):
        with contextlib.suppress(OSError):  # no folder for temporary files
            folders.append(Path(tempfile.gettempdir()) / f"lstmlm-{os.geteuid()}")
    return folders


def _key() -> str:
    """Return the hash of all that goes into the shared object; of the compiler only what the user says, for it may be gone."""
    wanted = os.environ.get("CC", "")
    return _digest(_source_bytes(), repr((FLAGS, FOR_THIS_CPU, wanted)).encode(), cpu().encode())


def _find(kept: Path, key: str) -> ctypes.CDLL | None:
    """Load the shared object of a key from the cache, if it is there and whole."""
    for path in sorted(kept.glob(f"native-{key}-*{SUFFIX}")):
        if _is_ours(path) and path.stem.rpartition("-")[2] == _content_digest(path):
            with contextlib.suppress(Unavailable):  # whole, and yet no kernel: made anew
                return _open(path)
    return None


def passed(shared: ctypes.CDLL, examination: str, *, now: bool = False) -> bool:
    """Return whether a shared object has passed an examination, in this process or an earlier one.

    An empty file beside it says so. Where none can be kept, it is examined each time.

    Args:
        shared: As `library` gave it.
        examination: Its name.
        now: It has, just now.
    """
    path = Path(f"{shared._name}.{examination}.passed")
    with contextlib.suppress(OSError):
        if now and os.path.exists(shared._name):
            path.touch()
        return path.exists()
    return False


def ever_passed(shared: ctypes.CDLL, beginning: str) -> bool:
    """Return whether a shared object has passed an examination whose name begins so, whichever torch it was compared with."""
    path = Path(shared._name)
    return any(path.parent.glob(f"{path.name}.{beginning}*.passed"))


def compilers() -> Iterator[list[str]]:
    """Yield the command of each compiler that answers: $CC before all others, that of the package `ziglang` after them.

    On Windows the package comes before them, for it brings what a program is linked with.
    $CC may be several words, such as `ccache gcc`.

    Raises:
        Unavailable: None does.
    """
    wanted = os.environ.get("CC", "").split()
    zig = [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else []
    others = [[name] for name in COMPILERS]
    seen: list[list[str]] = []
    for words in (wanted, *([zig, *others] if WINDOWS else [*others, zig])):
        path = shutil.which(words[0]) if words else None
        if path is None or (words is not zig and _opens_a_dialog(path)):
            continue
        program = [os.path.realpath(path), *words[1:]]
        if program in seen:  # most often `cc` is `gcc`
            continue
        command = [path, *words[1:]]
        try:
            subprocess.run([*command, "--version"], capture_output=True, timeout=SECONDS, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        seen.append(program)
        yield command
    if not seen:
        names = ", ".join(COMPILERS)
        raise Unavailable(f"no C compiler: none of {names} is on PATH; pip install 'lstmlm[compiler]' brings one")


def _opens_a_dialog(path: str) -> bool:
    """Whether a compiler is macOS's placeholder, which asks for Apple's tools to be installed when it is called without them."""
    if platform.system() != "Darwin" or os.path.dirname(path) != "/usr/bin":
        return False
    try:
        return subprocess.run(["xcode-select", "-p"], capture_output=True, timeout=SECONDS).returncode != 0
    except (OSError, subprocess.SubprocessError):
        return True


def cpu() -> str:
    """Return what distinguishes this CPU from others as far as compiled code is concerned."""
    lines = [platform.system(), platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as listing:
            first = listing.read().split("\n\n", 1)[0]  # one processor stands for all
        lines += [x for x in first.splitlines() if x.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        pass
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            lines.append(subprocess.run(command, capture_output=True, timeout=SECONDS, text=True).stdout)
    return "\n".join(lines)


def _compile(compiler: list[str], folder: Path) -> Path:
    """Compile into the folder, all sources at once, and return the shared object's path."""
    from concurrent.futures import ThreadPoolExecutor

    made = folder / f"native{SUFFIX}"
    sources, complaint = sorted(SOURCES.glob("*.c")), ""
    objects = [str(folder / f"{source.stem}.o") for source in sources]
    # The compiler's own temporary files go where the result goes: it was found to have space.
    names = "TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"
    environment = {**os.environ, **dict.fromkeys(names, str(folder))}
    run = partial(subprocess.run, capture_output=True, timeout=SECONDS, text=True, errors="replace", env=environment)
    for machine in FOR_THIS_CPU:
        flags, mathematics = (
            [x for x in words if not (WINDOWS and x in NOT_ON_WINDOWS)] for words in ((*compiler, *FLAGS, *machine), ["-lm"])
        )
        each = [[*flags, "-c", str(source), "-o", to] for source, to in zip(sources, objects, strict=True)]
        try:
            with ThreadPoolExecutor() as at_once:
                runs = list(at_once.map(run, each))
            if not any(one.returncode for one in runs):
                runs = [run([*flags, *objects, "-o", str(made), *mathematics])]
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{compiler[0]} took longer than {SECONDS} s") from None
        status = max(abs(one.returncode) for one in runs)
        if status == 0 and made.is_file():
            return made
        errors = [line for one in runs for line in one.stderr.splitlines() if "error" in line]
        complaint = complaint or (errors or [f"exit status {status}"])[0]
    raise Unavailable(f"{compiler[0]} could not compile the kernel: {complaint.strip()}")


def _is_ours(path: Path) -> bool:
    """Whether a regular file or a folder is this user's or root's, and nobody else can change or replace it."""
    if WINDOWS:
        return True  # there a user's cache folder is private, and modes say nothing
    try:
        status = os.lstat(path)
        folder = os.stat(path if stat.S_ISDIR(status.st_mode) else path.parent)
    except OSError:
        return False
    plain = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and not _others_write(status))
    keeps = not _others_write(folder) or folder.st_mode & stat.S_ISVTX  # where only the owner of a file can replace it
    return plain and bool(keeps) and {status.st_uid, folder.st_uid} <= {0, os.geteuid()}


def _others_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & (stat.S_IWOTH | (0 if _is_own_group(status.st_gid) else stat.S_IWGRP)))


def _is_own_group(group: int) -> bool:
    """Whether a group is root's, or has this user's name and no other member, as most systems make one for each user."""
    import grp
    import pwd

    try:
        me, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return group == 0
    return group == 0 or (found.gr_name == me and not set(found.gr_mem) - {me})


def _open(path: Path) -> ctypes.CDLL:
    """Load a shared object; `CDLL` lets other Python threads run during its calls."""
    try:
        shared = ctypes.CDLL(str(path.absolute()))  # a name without a slash would be looked for elsewhere
        for name in ENTRIES:
            getattr(shared, name)
    except (OSError, AttributeError) as error:
        raise Unavailable(f"the compiled kernel cannot be loaded: {error}") from None
    return shared


def _source_bytes() -> bytes:
    """Return all sources, the names among them."""
    files = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))
    return b"\0".join(path.name.encode() + b"\0" + path.read_bytes() for path in files)


def _content_digest(path: Path) -> str:
    """Return a file's digest, or nothing that a name could hold if it cannot be read."""
    try:
        return _digest(path.read_bytes())
    except OSError:
        return "?"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0\0".join(parts)).hexdigest()[:24]
