"""The layout holds: imports go one way, heavy packages stay out of module tops, one reader of the environment.

Sizes are not failures but warnings of shape: a file over 400 lines or a function over 60 is printed to be looked at.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sixfold"

# A module imports from its own room and from rooms on lines above; rooms on one line do not import each other.
LAYERS = [
    {"errors"},
    {"types", "config"},
    {"metrics"},
    {"store", "weights", "cache", "safety", "audit", "integrity"},
    {"models"},
    {"compile"},
    {"runtime"},
    {"engine"},
    {"multimodal", "compress", "edge", "server", "evaluation"},
    {"gateway", "bench", "advisor"},
    {"cluster"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
HEAVY = {"torch", "transformers", "ray", "kubernetes", "redis", "boto3", "scipy", "matplotlib"}
HTTP_ONLY = {"gateway", "bench", "advisor", "cluster"}  # they ask servers, ours or others, and know no engine
NATIVE_USERS = {"runtime", "engine", "evaluation"}
LONG_FILE, LONG_FUNCTION = 400, 60

FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every absolute module name imported anywhere in a file; ``from sixfold import x`` gives ``sixfold.x``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "sixfold":
                yield from (f"sixfold.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in LEVEL, f"{room} is no known room: add it to LAYERS and docs/architecture.md"
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "sixfold" or len(parts) == 1:
            continue
        if parts[1] == "_native":
            assert room in NATIVE_USERS, f"{room} imports the native module"
        elif room in HTTP_ONLY:
            assert parts[1] not in ("engine", "server"), f"{room} imports {parts[1]}: it should ask over HTTP"
        if parts[1] != room and parts[1] in LEVEL:
            assert LEVEL[parts[1]] < LEVEL[room], f"{room} imports {parts[1]}, which is not above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_heavy_package_at_module_top(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not HEAVY & {name.split(".")[0] for name in imported(ast.Module([node], []))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_config_reads_the_environment(path: Path) -> None:
    if room_of(path) == "config":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in ("environ", "getenv", "environb"), f"line {node.lineno} reads the environment"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a module without a docstring"


def test_public_names_resolve() -> None:
    import sixfold

    for name in sixfold.__all__:
        assert getattr(sixfold, name) is not None
    with pytest.raises(AttributeError):
        _ = sixfold.no_such_name


def test_shape_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what has grown; never fails, since a size is a place to look and not a verdict."""
    with capsys.disabled():
        for path in FILES:
            text = path.read_text()
            if text.count("\n") > LONG_FILE:
                print(f"\nlong file: {path.relative_to(ROOT)}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or 0) - node.lineno
                    if length > LONG_FUNCTION:
                        print(f"\nlong function: {path.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
