"""The architecture as code: which package may import which, and which alone may use certain libraries."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lstmlm"

# package -> the packages that it may import, at module level or later; the last row is the bottom. `lstmlm` is `__init__` itself.
ALLOWED: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {
        "lstmlm",
        "api",
        "display",
        "export",
        "analysis",
        "training",
        "evaluation",
        "data",
        "model",
        "storage",
        "config",
        "kernels",
        "errors",
        "machine",
        "units",
    },
    "lstmlm": {"api_train", "api", "training"},
    "api_train": {"api", "arguments", "training", "data", "storage", "config", "errors", "machine"},
    "api": {"arguments", "analysis", "evaluation", "data", "model", "storage", "config", "kernels", "errors", "machine", "units"},
    "arguments": {"config", "errors"},
    "display": {"training", "errors", "units"},
    "export": {"model", "storage", "errors"},
    "analysis": {"evaluation", "model", "errors", "units"},
    "training": {"evaluation", "data", "model", "storage", "config", "kernels", "errors", "machine", "units"},
    "evaluation": {"data", "model", "kernels", "errors", "units"},
    "data": {"model", "storage", "config", "errors", "units"},
    "model": {"config", "kernels", "errors"},
    "storage": {"errors", "machine"},
    "config": {"errors", "units"},
    "kernels": {"errors", "machine"},
    "errors": set(),
    "machine": set(),
    "units": set(),
}

# No torch when these are imported: `lstmlm --help` and every refusal are instant.
TORCH_FREE = (
    *("__main__", "api", "api_train", "arguments", "cli", "config", "data", "display", "errors", "lstmlm", "machine"),
    *("storage", "units"),
    *("evaluation/cloze", "evaluation/per_line", "evaluation/reader", "evaluation/reading", "evaluation/sampler"),
    *("evaluation/sampling", "evaluation/scoring", "evaluation/text_sampler", "model/devices", "model/weights"),
    *("kernels/__init__", "kernels/buffers", "kernels/build", "kernels/generate", "kernels/pace"),
    *("training/clock_log", "training/distributed", "training/events", "training/malloc"),
    *("training/resuming", "training/run_folder", "training/run_setup"),
)

LOADER = "export/loader"  # travels with an exported model, for whoever has torch and safetensors: it is no part of this program

# word imported -> the only packages or modules that know it
OWNERS: dict[str, tuple[str, ...]] = {
    "yaml": ("config",),
    "typer": ("cli",),
    "click": ("cli",),
    "rich": ("cli", "display"),
    "torch.distributed": ("training/distributed",),
    "torch.optim": ("kernels",),
    "torch.utils.tensorboard": ("display/tensorboard",),
    "safetensors": ("storage", LOADER),
    "onnx": ("export/to_onnx",),
    "filelock": ("storage",),
    "ctypes": ("kernels", "training/malloc"),
    "triton": ("kernels",),
    "subprocess": ("kernels",),
    "signal": ("cli",),
}

FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "joblib", "numpy", "urllib", "http", "requests"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "torch.hub.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.safe_load", "nn.LSTM", "torch.nn.LSTM"),
}


def package_of(path: Path) -> str:
    """Return the package of a file: its folder's name, or its own at the top."""
    first = path.relative_to(PACKAGE).parts[0]
    return "lstmlm" if first == "__init__.py" else first.removesuffix(".py")


def within(path: Path, places: tuple[str, ...]) -> bool:
    """Say whether a file is one of these modules or lies in one of these packages."""
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return package_of(path) in places or name in places


MODULES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in MODULES]
each_module = pytest.mark.parametrize("path", MODULES, ids=NAMES)


@cache
def tree(path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def runs_on_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what is executed when the file is imported: neither function bodies nor what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from runs_on_import(child)


def imported(nodes: Iterator[ast.AST], path: Path) -> Iterator[str]:
    """Yield the full name of everything that is imported."""
    package = ["lstmlm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def packages(names: Iterator[str], own: str) -> set[str]:
    """Return the packages behind imported names, other than one's own."""
    return {package_of(path) for path in files(names)} - {own}


def files(names: Iterator[str]) -> Iterator[Path]:
    """Yield the file behind each imported name of this project."""
    for name in names:
        first, *rest = name.split(".")
        if first == "lstmlm":
            for length in range(len(rest), -1, -1):
                base = PACKAGE.joinpath(*rest[:length])
                if length and base.with_suffix(".py").is_file():
                    yield base.with_suffix(".py")
                    break
                if (base / "__init__.py").is_file():
                    yield base / "__init__.py"
                    break


def says(name: str, word: str) -> bool:
    """Say whether an imported name is the word or lies below it."""
    return f"{name}.".startswith(f"{word}.")


@each_module
def test_a_package_imports_only_what_its_row_allows(path: Path) -> None:
    """Every import between packages, wherever it stands, is in the table; a package without a row is not known."""
    package = package_of(path)

    assert package in ALLOWED, f"{package}: give it a row in ALLOWED"
    assert packages(imported(ast.walk(tree(path)), path), package) <= ALLOWED[package]


def test_imports_run_downwards() -> None:
    """No package imports one that stands above it in the table, and the table names only packages that exist."""
    rows = list(ALLOWED)

    assert set(rows) == {package_of(path) for path in MODULES}
    assert [(row, name) for row, names in ALLOWED.items() for name in names if rows.index(name) <= rows.index(row)] == []


def test_the_table_allows_no_more_than_is_used() -> None:
    """An import that nobody makes any more leaves the table, so that making it again is a decision."""
    used: dict[str, set[str]] = {package: set() for package in ALLOWED}
    for path in MODULES:
        used[package_of(path)] |= packages(imported(ast.walk(tree(path)), path), package_of(path))

    unused = {package: sorted(ALLOWED[package] - used[package]) for package in ALLOWED if ALLOWED[package] - used[package]}

    assert unused == {}


def test_modules_import_in_no_circle() -> None:
    """Between modules too no import comes back to where it began; only a package's `__init__` and the commands are left out."""
    graph = {
        path: {found for found in files(imported(ast.walk(tree(path)), path)) if found != path and found.name != "__init__.py"}
        for path in MODULES
        if package_of(path) != "cli"
    }

    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


@pytest.mark.parametrize("path", [p for p in MODULES if within(p, TORCH_FREE)], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_without_torch(path: Path) -> None:
    """What starts fast imports neither torch nor a module that does, before one of its functions is called."""
    names = list(imported(runs_on_import(tree(path)), path))

    assert [name for name in names if says(name, "torch")] == []
    assert [str(found) for found in files(iter(names)) if not within(found, TORCH_FREE)] == []


@pytest.mark.parametrize(
    "name", sorted({p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()} - {"kernels", "cli"})
)
def test_packages_are_folders_and_no_more(name: str) -> None:
    """A package's `__init__` is its docstring alone: importing one module brings none of its neighbours."""
    assert len(tree(PACKAGE / name / "__init__.py").body) == 1


@each_module
def test_libraries_have_one_owner(path: Path) -> None:
    """A library that only some packages may know is imported by no other."""
    names = list(imported(ast.walk(tree(path)), path))

    trespasses = [
        (name, word) for name in names for word, owners in OWNERS.items() if says(name, word) and not within(path, owners)
    ]

    assert trespasses == []


@each_module
def test_nothing_unpickles_evaluates_or_fetches(path: Path) -> None:
    """No pickle, no torch.load, no eval or exec, no unsafe YAML, no network, and no nn.LSTM anywhere in the package."""
    names = [name for name in imported(ast.walk(tree(path)), path) if name.partition(".")[0] in FORBIDDEN_IMPORTS]
    calls = [ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]

    assert names == []
    assert [call for call in calls if call in FORBIDDEN_CALLS] == (["nn.LSTM"] if within(path, (LOADER,)) else [])


@each_module
def test_only_the_command_line_prints(path: Path) -> None:
    """A module reports to who called it; only the command line and the console write to the terminal or end the process."""
    if within(path, ("cli", "display/console", "display/progress_view", "__main__", LOADER)):
        return
    calls = [ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]

    ends = [call for call in calls if call in ("print", "exit", "sys.exit", "os._exit", "sys.stdout.write")]

    assert ends == []


@each_module
def test_only_the_sampler_knows_temperature(path: Path) -> None:
    """Temperature is named by the sampler, and by those that hand it what a user asked for: nowhere else."""
    if within(
        path,
        ("evaluation/sampler", "evaluation/sampling", "evaluation/torch_sampler", "api", "cli", "training/validation", LOADER),
    ):
        return
    words = {
        word
        for node in ast.walk(tree(path))
        for word in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None))
        if isinstance(word, str)
    }

    assert not {word for word in words if "temperature" in word}


@each_module
def test_what_is_read_is_called_a_text(path: Path) -> None:
    """A message about a file that is read, learnt or scored begins with `text`, whichever command and module say it."""
    strings = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]

    assert [string for string in strings if string.startswith(("corpus ", "corpus:"))] == []


def undocumented(node: ast.AST, where: str) -> Iterator[str]:
    """Yield the public classes, functions and methods that have no docstring."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        if ast.get_docstring(child) is None:
            yield f"{where}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{where}.{child.name}")


@each_module
def test_public_names_say_what_they_are(path: Path) -> None:
    """Every module says what it holds, and every public class, function and method what it does."""
    assert ast.get_docstring(tree(path)), "the module has no docstring"
    assert list(undocumented(tree(path), path.stem)) == []


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parent.rglob("test_*.py")), ids=lambda p: str(p.relative_to(Path(__file__).parent))
)
def test_tests_state_their_promise(path: Path) -> None:
    """Every test has a docstring, and its first line is a sentence or the beginning of one."""
    tests = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]

    assert tests
    assert [test.name for test in tests if not (ast.get_docstring(test) or "").strip()] == []


def test_there_is_no_drawer_for_everything() -> None:
    """No module is called utils, helpers, common or misc: what has no place yet gets one."""
    assert {path.stem for path in MODULES} & {"util", "utils", "helpers", "common", "misc"} == set()
