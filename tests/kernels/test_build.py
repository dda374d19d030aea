import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lstmlm.kernels import build
from lstmlm.kernels.build import Unavailable


@pytest.fixture(name="cache")
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the cache at a folder that does not exist yet, with a source that compiles in no time."""
    sources = tmp_path / "sources"
    sources.mkdir()
    exported = '__attribute__((visibility("default")))'  # hidden otherwise, by the flags
    (sources / "native.c").write_text(f'#include "answer.h"\n{exported} int answer(void) {{ return ANSWER; }}\n')
    (sources / "answer.h").write_text("#define ANSWER 42\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "ENTRIES", ("answer",))
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    build.notes()
    try:
        next(build.compilers())
    except Unavailable as reason:
        pytest.skip(str(reason))
    return tmp_path / "cache"


def kept(cache: Path) -> list[Path]:
    """Return everything in the cache folder, hidden files too."""
    return sorted(cache.iterdir())


def count_compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows with each compilation from now on."""
    seen: list[Path] = []
    compile_now = build._compile

    def counted(compiler: list[str], folder: Path) -> Path:
        seen.append(folder)
        return compile_now(compiler, folder)

    monkeypatch.setattr(build, "_compile", counted)
    return seen


def test_compiles_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call compiles and leaves one file, the second loads that file."""
    compilations = count_compilations(monkeypatch)

    answers = [build.library().answer() for _ in range(2)]

    assert answers == [42, 42]
    assert len(compilations) == 1
    assert len(kept(cache)) == 1


def test_every_ingredient_has_its_own_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of a source, of a header, of the compiler that is asked for, of the CPU or of the flags is compiled anew."""
    build.library()
    (build.SOURCES / "answer.h").write_text("#define ANSWER 43\n")
    assert build.library().answer() == 43
    assert len(kept(cache)) == 2

    monkeypatch.setattr(build, "cpu", lambda: "another")
    build.library()
    assert len(kept(cache)) == 3

    monkeypatch.setenv("CC", " ".join(next(build.compilers())))
    build.library()
    assert len(kept(cache)) == 4

    monkeypatch.setattr(build, "FOR_THIS_CPU", ((),))
    build.library()
    assert len(kept(cache)) == 5


@pytest.mark.parametrize("damage", ["truncated", "empty", "altered", "folder", "unreadable"])
def test_damaged_file_is_made_anew(cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happened to the cached file, it is not loaded, and the kernel works."""
    build.library()
    (path,) = kept(cache)
    content = path.read_bytes()
    path.unlink()  # a new file: this process has the old one mapped
    if damage == "folder":
        path.mkdir()
    elif damage == "unreadable":
        path.symlink_to(cache / "nowhere")
    else:
        middle = len(content) // 2
        altered = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"truncated": content[:middle], "empty": b"", "altered": altered}[damage])
    compilations = count_compilations(monkeypatch)

    assert build.library().answer() == 42
    assert compilations


@pytest.mark.parametrize("content", ["another library", "no library"])
def test_what_is_no_kernel_is_made_anew(cache: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the right name and digest that cannot be used as the kernel counts as none, and compiling goes on."""
    build.library()
    (first,) = kept(cache)
    other = build.SOURCES / "other.so"
    if content == "another library":
        (build.SOURCES / "other.c").write_text("int other;\n")
        source = str(build.SOURCES / "other.c")
        subprocess.run([*next(build.compilers()), "-shared", "-fPIC", source, "-o", str(other)], check=True)
        (build.SOURCES / "other.c").unlink()
    else:
        other.write_bytes(b"text")
    key, digest = first.stem.split("-")[1], build._content_digest(other)
    first.unlink()
    planted = cache / f"native-{key}-{digest}.so"
    planted.write_bytes(other.read_bytes())
    assert build.cached() is None
    compilations = count_compilations(monkeypatch)

    assert [build.library().answer() for _ in range(2)] == [42, 42]
    assert len(compilations) == 1


def test_a_compiler_of_something_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a compiler makes without the functions of the sources is refused with a reason, and not kept in use."""
    monkeypatch.setattr(build, "ENTRIES", ("answer", "question"))

    with pytest.raises(Unavailable, match="question"):
        build.library()


def test_read_only_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that cannot be written costs one compilation, not one a command, and is said once."""
    cache.write_text("a file where the folder should be: not even root can write below it")
    compilations = count_compilations(monkeypatch)

    assert build.library().answer() == 42
    said = build.notes()
    assert [build.library().answer() for _ in range(2)] == [42, 42]

    assert len(compilations) == 1
    (folder,) = (cache.parent / "temporary").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert said.startswith(f"the compiled kernel is kept in {folder}")
    assert build.notes() == ""


def test_no_folder_takes_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be kept, each command compiles for itself, leaves nothing, and says why."""
    cache.write_text("no folder")
    temporary = cache.parent / "temporary"
    (temporary / f"lstmlm-{os.geteuid()}").write_text("no folder")

    assert build.library().answer() == 42

    assert "for this command alone" in build.notes()
    assert len(list(temporary.iterdir())) == 1


def test_what_is_kept_needs_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What one machine compiled serves another with the same cache and CPU that has no compiler."""
    build.library()
    monkeypatch.setenv("PATH", str(tmp_path))

    assert build.library().answer() == 42
    assert kept(cache)


@pytest.mark.skipif(os.name != "posix", reason="the programs are shell scripts")
@pytest.mark.parametrize("tools", [True, False])
def test_a_placeholder_of_macos_is_not_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tools: bool) -> None:
    """/usr/bin/cc there opens a dialog where Apple's tools are missing: only xcode-select is asked whether they are."""
    for name, does in (("xcode-select", f"exit {0 if tools else 2}"), ("cc", "exit 0")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("os.path.dirname", lambda path: "/usr/bin")

    assert build._opens_a_dialog(str(tmp_path / "cc")) is not tools


@pytest.mark.skipif(os.name != "posix", reason="the program is a shell script")
def test_the_compiler_of_a_package_comes_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing is on PATH and the package ziglang is there, its compiler is taken; where something is, it is not."""
    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__main__.py").write_text("import sys; sys.exit(sys.argv[1:] != ['cc', '--version'])")
    (tmp_path / "ziglang" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert next(build.compilers()) == [sys.executable, "-m", "ziglang", "cc"]
    (tmp_path / "gcc").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "gcc").chmod(0o755)
    assert next(build.compilers()) == [str(tmp_path / "gcc")]


def test_what_windows_compiles(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There the package ziglang comes first and gcc never; flags of POSIX are left out, and what is loaded is not replaced."""
    asked: list[list[str]] = []

    def compile_as_windows(command: list[str], **how: object) -> "subprocess.CompletedProcess[str]":
        asked.append(command)
        if "-o" in command:
            Path(command[command.index("-o") + 1]).write_bytes(b"whole")
        return subprocess.CompletedProcess(command, 0, "", "")

    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(build, "WINDOWS", True)
    monkeypatch.setattr(build, "SUFFIX", ".dll")
    monkeypatch.setattr(build, "COMPILERS", ("clang",))
    monkeypatch.setattr(subprocess, "run", compile_as_windows)
    monkeypatch.setattr(build, "_open", lambda path: path)
    monkeypatch.setattr(build, "cached", lambda: None)

    first = build.library()
    monkeypatch.setattr("os.replace", lambda source, target: pytest.fail("another process may have loaded it"))

    assert build.library() == first
    assert str(first).endswith(".dll")
    assert [path.name for path in kept(cache)] == [Path(str(first)).name]
    for one in asked[1:3]:  # compiling, linking
        assert one[:4] == [sys.executable, "-m", "ziglang", "cc"]
        assert "-shared" in one
        assert not {"-fPIC", "-pthread", "-lm"} & set(one)


def test_full_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up at the last moment costs a compilation, and the half-made file goes."""

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)

    assert build.library().answer() == 42
    assert kept(cache) == []


def test_cache_that_nothing_can_be_run_from(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a file system without execution costs a compilation each time, the second time too."""
    load = ctypes.CDLL

    def guarded(name: str) -> ctypes.CDLL:
        if Path(name).parent == cache:
            raise OSError(f"{name}: failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(ctypes, "CDLL", guarded)

    assert [build.library().answer() for _ in range(2)] == [42, 42]
    assert len(kept(cache)) == 1


def test_cache_in_the_working_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that is the working folder itself is compiled into once, and found the second time."""
    cache.mkdir()
    monkeypatch.chdir(cache)
    monkeypatch.setenv("LSTMLM_CACHE", ".")
    compilations = count_compilations(monkeypatch)

    assert [build.library().answer() for _ in range(2)] == [42, 42]
    assert len(compilations) == 1


def test_cache_with_an_impossible_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the system does not take costs a compilation."""
    monkeypatch.setenv("LSTMLM_CACHE", "x" * 5000)

    assert build.library().answer() == 42


def test_nowhere_to_write(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither cache nor temporary folder the reason says so."""
    cache.write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(cache / "missing"))

    with pytest.raises(Unavailable, match="cannot be written"):
        build.library()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a compiler on PATH the reason says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LSTMLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)

    with pytest.raises(Unavailable, match="no C compiler"):
        build.library()


def test_broken_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler that does not even give its version is passed over for the next one."""
    script = tmp_path / "broken"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(script))

    assert build.library().answer() == 42


def test_compiler_of_two_words(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`CC="ccache gcc"`: the first word alone answers to --version too, but does not compile."""
    script = tmp_path / "wrapper"
    script.write_text('#!/bin/sh\ncase "$1" in --version) echo wrapper;; -*) exit 1;; *) exec "$@";; esac\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    compiler = next(build.compilers())
    monkeypatch.setenv("CC", f"{script} {compiler[0]}")

    assert build.library().answer() == 42


def test_failed_build(cache: Path) -> None:
    """A source that does not compile gives the compiler's first error as the reason, and leaves nothing behind."""
    (build.SOURCES / "native.c").write_text("#error this machine is too old\n")

    with pytest.raises(Unavailable, match="this machine is too old"):
        build.library()
    assert not cache.exists()
    assert not list((cache.parent / "temporary").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="the program is a shell script")
def test_a_compiler_that_cannot_compile_it(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that answers and fails is asked once, wherever the result is kept, and the next one compiles."""
    script, asked = tmp_path / "old", tmp_path / "asked"
    script.write_text(f'#!/bin/sh\ncase "$1" in --version) echo old;; *) echo >> "{asked}"; exit 1;; esac\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setattr(build, "FOR_THIS_CPU", ((),))
    cache.write_text("no folder")

    assert build.library().answer() == 42
    assert asked.read_text() == "\n"


def test_it_is_compiled_where_there_is_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no folder for temporary files the cache is compiled in; where all are nearly full, the reason says so."""
    compilations = count_compilations(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(cache.parent / "missing"))
    assert build.library().answer() == 42
    assert compilations[0].parent == cache

    (build.SOURCES / "answer.h").write_text("#define ANSWER 45\n")
    monkeypatch.setattr(build, "LEAST_FREE", 1 << 62)
    with pytest.raises(Unavailable, match="cannot be written: No space left"):
        build.library()
    assert len(kept(cache)) == 1


def test_compiler_without_native_flags(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that refuses to name the CPU still compiles the plain source."""
    monkeypatch.setattr(build, "FOR_THIS_CPU", (("-march=of-no-machine",), ()))

    assert build.library().answer() == 42


def test_slow_compiler_is_stopped(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler that hangs does not hang the program."""
    script = tmp_path / "slow"
    script.write_text('#!/bin/sh\ncase "$1" in --version) echo slow;; *) exec sleep 60;; esac\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(build, "compilers", lambda: [[str(script)]])
    monkeypatch.setattr(build, "SECONDS", 0.3)

    with pytest.raises(Unavailable, match="took longer"):
        build.library()


def test_processes_compiling_at_once(cache: Path) -> None:
    """Four processes that meet an empty cache all get a working kernel, and no temporary file stays."""
    program = (
        "import sys; from importlib.util import module_from_spec, spec_from_file_location; from pathlib import Path\n"
        "spec = spec_from_file_location('build', sys.argv[1]); build = module_from_spec(spec)\n"  # without torch
        "spec.loader.exec_module(build); build.SOURCES, build.ENTRIES = Path(sys.argv[2]), ('answer',)\n"
        "assert build.library().answer() == 42"
    )
    command = [sys.executable, "-c", program, build.__file__, str(build.SOURCES)]
    processes = [subprocess.Popen(command, env={**os.environ, "LSTMLM_CACHE": str(cache)}) for _ in range(4)]

    assert [process.wait(60) for process in processes] == [0] * 4
    assert all(path.name.startswith("native-") for path in kept(cache))


@pytest.mark.slow
def test_the_kernel_itself_compiles_without_a_warning(tmp_path: Path) -> None:
    """The sources are clean under the compiler's usual warnings, for this CPU and for none in particular."""
    try:
        compiler = next(build.compilers())
    except Unavailable as reason:
        pytest.skip(str(reason))
    for machine in build.FOR_THIS_CPU[0], ():
        flags = [flag for flag in build.FLAGS if flag != "-w"] + ["-O1", "-Wall", "-Wextra", *machine]
        command = [*compiler, *flags, str(build.SOURCES / "native.c"), "-o", str(tmp_path / "native.so"), "-lm"]
        run = subprocess.run(command, capture_output=True, text=True)

        assert run.stderr == ""


def test_an_examination_is_remembered(cache: Path) -> None:
    """What a shared object has passed is known to the next process, for this object and this examination only."""
    library = build.library()
    assert not build.passed(library, "one")

    assert build.passed(library, "one", now=True)

    assert build.passed(build.library(), "one")
    assert not build.passed(library, "two")
    (build.SOURCES / "answer.h").write_text("#define ANSWER 44\n")
    assert not build.passed(build.library(), "one")
    assert cache.is_dir()


def test_an_examination_of_what_is_not_kept_is_forgotten(cache: Path) -> None:
    """Where no folder can be written nothing is left behind, and the next process examines again."""
    cache.write_text("a file where the folder should be")
    (cache.parent / "temporary" / f"lstmlm-{os.geteuid()}").write_text("another")

    assert not build.passed(build.library(), "one", now=True)


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
@pytest.mark.parametrize(
    ("folder", "file"), [(0o777, 0o755), (0o1777, 0o757), (0o755, 0o757), (0o755, "link"), (0o755, "FIFO"), (0o755, "zeros")]
)
def test_what_others_could_have_written_is_not_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, folder: int, file: int | str
) -> None:
    """A kernel that others can write or replace, or that is no plain file, is compiled privately, and never waited for."""
    build.library()
    (path,) = kept(cache)
    compilations = count_compilations(monkeypatch)
    cache.chmod(folder)
    if isinstance(file, int):
        path.chmod(file)
    else:
        elsewhere = cache.parent / "elsewhere.so"
        path.rename(elsewhere)
        if file == "FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to(elsewhere if file == "link" else "/dev/zero")

    assert build.library().answer() == 42
    assert len(compilations) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given", ["file", "folder"])
def test_a_kernel_of_another_user_is_not_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """Planted by another user in a folder that all may write to, a kernel is not executed."""
    build.library()
    (path,) = kept(cache)
    cache.chmod(0o1777)
    compilations = count_compilations(monkeypatch)
    os.chown(path if given == "file" else cache, 65534, 65534)

    assert build.library().answer() == 42
    assert len(compilations) == 1


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
@pytest.mark.parametrize(("folder", "umask"), [(0o1777, 0o022), (0o700, 0o022), (0o775, 0o002)])
def test_an_own_kernel_in_a_shared_folder_is_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, folder: int, umask: int
) -> None:
    """In a folder like /tmp, and with a umask that lets the user's own group write, what was compiled is found again."""
    monkeypatch.setattr(build, "_is_own_group", lambda group: True)
    before = os.umask(umask)
    try:
        cache.mkdir()
        cache.chmod(folder)
        build.library()
        compilations = count_compilations(monkeypatch)

        assert build.library().answer() == 42
        assert not compilations
    finally:
        os.umask(before)
