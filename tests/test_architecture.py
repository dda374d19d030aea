"""The house rules as code: who may import whom, and who alone may say certain words."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lstmlm"

# room -> the rooms it may import, at module level or later. `lstmlm` is the package's own __init__; a folder is one room.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "units": set(),
    "cell": set(),
    "memory": set(),
    "devices": {"errors"},
    "settings": {"errors"},
    "settings_yaml": {"errors", "settings"},
    "schema": {"errors", "settings"},
    "config": {"errors", "schema", "settings", "settings_yaml"},
    "tokenizer": {"errors"},
    "sources": {"errors"},
    "digest": set(),
    "decoding": {"digest", "errors", "sources"},
    "ids": set(),
    "cache": {"digest", "errors", "ids"},
    "packing": {"errors", "ids", "tokenizer"},
    "corpus": {"cache", "config", "decoding", "errors", "ids", "packing", "sources", "tokenizer"},
    "streams": {"ids"},
    "dropout": set(),
    "kernels": {"dropout", "errors"},
    "graph": {"kernels"},
    "lstm": {"cell", "kernels"},
    "model": {"config", "dropout", "errors", "kernels", "lstm"},
    "ensemble": {"config", "kernels", "lstm", "model"},
    "wavefront": {"kernels"},
    "backprop": {"cell", "dropout", "ensemble", "kernels", "lstm", "model", "wavefront"},
    "optim": {"config", "kernels"},
    "step": {"backprop", "cell", "dropout", "ensemble", "graph", "lstm", "optim"},
    "members": {"backprop", "cell", "config", "dropout", "ensemble", "kernels", "lstm", "model", "optim", "step"},
    "evaluate": {"cell", "ensemble", "lstm", "model", "units"},
    "sampler": {"cell", "ensemble", "graph", "kernels", "lstm", "model"},
    "dynamic": {"ensemble", "evaluate", "lstm", "model", "sampler"},
    "baselines": set(),
    "gates": {"cell", "ensemble", "lstm", "model"},
    "ragged": {"cell", "lstm", "model"},
    "marks": {"cell", "gates", "lstm", "model", "ragged", "units"},
    "lines": {"ensemble", "evaluate", "lstm", "model", "tokenizer", "units"},
    "features": {"errors"},
    "reach": {"cell", "lstm", "marks", "model", "ragged"},
    "fill": {"ensemble", "errors", "evaluate", "ragged", "units"},
    "recipe": {"config", "units"},
    "disk": {"errors"},
    "header": {"errors"},
    "checkpoint": {"disk", "errors", "header"},
    "runs": {"checkpoint", "disk", "errors", "header"},
    "times": {"disk", "errors", "header"},
    "progress": {"errors"},
    "distributed": {"checkpoint", "errors"},
    "trainer": {
        *("cell", "checkpoint", "config", "corpus", "distributed", "errors", "evaluate", "graph"),
        *("kernels", "lstm", "members", "model", "optim", "progress", "recipe", "sampler", "streams", "times"),
    },
    "api": {
        *("checkpoint", "config", "devices", "ensemble", "errors", "evaluate", "header", "kernels", "model", "runs"),
        *("sampler", "tokenizer"),
    },
    "console": {"errors"},
    "drawings": {"errors"},
    "pictures": {"errors", "units"},
    "gate_pictures": {"drawings", "errors"},
    "gate_page": {"errors", "gate_pictures"},
    "board": {"errors", "progress", "units"},
    "live": {"console", "errors", "progress", "units"},
    "lstmlm": {"api"},
    "cli": {
        *("api", "baselines", "board", "checkpoint", "config", "console", "corpus", "decoding", "devices", "disk"),
        *("distributed", "drawings", "dynamic", "ensemble", "errors", "evaluate", "features", "fill"),
        *("gate_page", "gate_pictures"),
        *("gates", "header", "pictures"),
        *("kernels", "lines", "live", "lstmlm", "marks", "memory", "model", "progress", "reach", "recipe", "runs", "sampler"),
        *("settings", "sources", "times", "tokenizer", "trainer", "units"),
    },
    "__main__": {"cli"},
}

# No torch when these are imported: `lstmlm --help` and every refusal are instant.
TORCH_FREE = {
    *("errors", "units", "memory", "devices", "settings", "settings_yaml", "schema", "config", "tokenizer", "sources"),
    *("decoding", "ids", "digest", "cache", "packing", "corpus", "streams", "recipe", "disk", "header", "checkpoint"),
    *("runs", "times"),
    *("progress", "console", "distributed", "drawings", "pictures", "board", "live", "lstmlm", "cli", "__main__"),
}

# word imported -> the only rooms that know it
OWNERS: dict[str, set[str]] = {
    "yaml": {"config", "settings", "settings_yaml", "schema"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli", "console", "live"},
    "torch.distributed": {"distributed"},
    "torch.optim": {"kernels"},
    "torch.utils.tensorboard": {"board"},
    "safetensors": {"checkpoint", "header"},
    "ctypes": {"kernels", "memory"},
    "triton": {"kernels"},
    "subprocess": {"kernels"},
    "signal": {"cli"},
}

FORBIDDEN_IMPORTS = {"pickle", "marshal", "shelve", "dill", "joblib", "numpy", "urllib", "http", "requests"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.save", "torch.hub.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.safe_load", "nn.LSTM", "torch.nn.LSTM"),
}


def room_of(path: Path) -> str:
    """Return the room of a file: its folder's below the package, or its own name."""
    first = path.relative_to(PACKAGE).parts[0]
    return "lstmlm" if first == "__init__.py" else first.removesuffix(".py")


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


def rooms(names: Iterator[str], own: str) -> set[str]:
    """Return the rooms behind imported names, other than one's own."""
    found = set()
    for name in names:
        first, _, rest = name.partition(".")
        if first == "lstmlm":
            second = rest.partition(".")[0]
            known = (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").is_file()
            found.add(second if second and known else "lstmlm")
    return found - {own}


def says(name: str, word: str) -> bool:
    """Say whether an imported name is the word or lies below it."""
    return f"{name}.".startswith(f"{word}.")


@each_module
def test_a_room_imports_only_what_its_table_allows(path: Path) -> None:
    """Every import between rooms, wherever it stands, is in the table; a room that is not in the table is not known."""
    room = room_of(path)

    assert room in ALLOWED, f"{room}: give it a row in ALLOWED"
    assert rooms(imported(ast.walk(tree(path)), path), room) <= ALLOWED[room]


def test_the_table_has_no_circle_and_no_ghosts() -> None:
    """The river runs one way, and the table names only rooms that exist."""
    order = list(TopologicalSorter(ALLOWED).static_order())

    assert set(order) == set(ALLOWED) == {room_of(path) for path in MODULES}
    assert set(ALLOWED) >= TORCH_FREE


def test_the_table_allows_no_more_than_is_used() -> None:
    """An import that nobody makes any more leaves the table, so that making it again is a decision."""
    used: dict[str, set[str]] = {room: set() for room in ALLOWED}
    for path in MODULES:
        used[room_of(path)] |= rooms(imported(ast.walk(tree(path)), path), room_of(path))

    unused = {room: sorted(ALLOWED[room] - used[room]) for room in ALLOWED if ALLOWED[room] - used[room]}

    assert unused == {}


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in TORCH_FREE], ids=lambda p: room_of(p))
def test_rooms_without_torch(path: Path) -> None:
    """What starts fast imports neither torch nor a room that does, before one of its functions is called."""
    names = list(imported(runs_on_import(tree(path)), path))

    assert [name for name in names if says(name, "torch")] == []
    assert rooms(iter(names), room_of(path)) <= TORCH_FREE


@each_module
def test_words_have_one_owner(path: Path) -> None:
    """A library that only some rooms may know is imported by no other."""
    names = list(imported(ast.walk(tree(path)), path))

    trespasses = [
        (name, word) for name in names for word, owners in OWNERS.items() if says(name, word) and room_of(path) not in owners
    ]

    assert trespasses == []


@each_module
def test_nothing_unpickles_evaluates_or_fetches(path: Path) -> None:
    """No pickle, no torch.load, no eval or exec, no unsafe YAML, no network, and no nn.LSTM anywhere in the package."""
    names = [name for name in imported(ast.walk(tree(path)), path) if name.partition(".")[0] in FORBIDDEN_IMPORTS]
    calls = [ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]

    assert names == []
    assert [call for call in calls if call in FORBIDDEN_CALLS] == []


@each_module
def test_only_the_doors_print(path: Path) -> None:
    """A room reports to who called it; only the command line and the console write to the terminal or end the process."""
    if room_of(path) in ("cli", "console", "live", "__main__"):
        return
    calls = [ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]

    ends = [call for call in calls if call in ("print", "exit", "sys.exit", "os._exit", "sys.stdout.write")]

    assert ends == []


@each_module
def test_only_the_sampler_knows_temperature(path: Path) -> None:
    """Temperature is named by the sampler, and by those that hand it a user's wish: nowhere else."""
    if room_of(path) in ("sampler", "api", "cli", "trainer"):
        return
    words = {
        word
        for node in ast.walk(tree(path))
        for word in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "arg", None))
        if isinstance(word, str)
    }

    assert not {word for word in words if "temperature" in word}


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
    """Every room says what it holds, and every public class, function and method what it does."""
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
    """No module is called utils, helpers, common or misc: what has no room yet gets one."""
    assert {path.stem for path in MODULES} & {"util", "utils", "helpers", "common", "misc"} == set()
