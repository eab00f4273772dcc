"""House rules that a test can hold: which folder imports what, no print, no bare except, sizes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "steelyard"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("src", "tests", "benchmarks", "claims", "tools")
LONGEST = 300  # lines: a file past it is two ideas

# folder: what no import in it may name, at module level or inside a function
HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib", "pymoo")
OUTSIDE = tuple(f"steelyard.{part}" for part in ("runs", "hf", "cli", "report", "bench"))
FORBIDDEN = {
    "plans": (*HEAVY, *OUTSIDE, "steelyard.rows", "steelyard.filters", "steelyard.weightings"),
    "rows": OUTSIDE,
    "rules": (*OUTSIDE, "steelyard.rows", "steelyard.weightings", "steelyard.filters"),
    "checks": OUTSIDE,
    "weightings": OUTSIDE,
    "filters": OUTSIDE,
    "steps": OUTSIDE,
    "surgery": OUTSIDE,
    "objectives": OUTSIDE,
    "data": ("torch", "transformers", *OUTSIDE),
    "report": ("torch",),
}
LAZY = ("torch", "transformers", "peft", "datasets", "matplotlib", "dp_accounting", "PIL", "pymoo")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def package_of(path: Path) -> list[str]:
    """The package in which relative imports of the file are resolved."""
    return ["steelyard", *path.relative_to(PACKAGE).parent.parts]


def imports(node: ast.AST, package: list[str]) -> Iterator[str]:
    """Dotted names that the code under `node` imports, modules and what is taken from them."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            base = package[: len(package) - part.level + 1] if part.level else []
            module = ".".join([*base, *([part.module] if part.module else [])])
            yield from (f"{module}.{alias.name}" for alias in part.names)


def at_import_time(module: ast.Module) -> ast.Module:
    """What runs when the module is imported: no function bodies, no `if TYPE_CHECKING`."""

    class Outer(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if guarded else self.generic_visit(node)

    return Outer().visit(module)


def within(name: str, forbidden: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in forbidden)


def found(code: str, forbidden: tuple[str, ...], package: str = "steelyard.rows") -> list[str]:
    return [n for n in imports(ast.parse(code), package.split(".")) if within(n, forbidden)]


def test_the_search_for_imports_finds_them():
    assert found("import torch.nn as nn", ("torch",))
    assert found("def f():\n    from torch import nn", ("torch",))
    assert found("from steelyard import runs", OUTSIDE)
    assert found("from ..runs.ledger import Ledger", OUTSIDE)
    assert found("from .. import cli", OUTSIDE)
    assert not found("import torchvision", ("torch",))
    assert not found("from .groups import bounds", OUTSIDE)
    lazy = at_import_time(ast.parse("if TYPE_CHECKING:\n    import a\ndef f():\n    import b"))
    assert not list(imports(lazy, []))


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_arrows_go_one_way(folder):
    for path in sorted((PACKAGE / folder).glob("*.py")):
        wrong = [n for n in imports(tree(path), package_of(path)) if within(n, FORBIDDEN[folder])]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_heavy_modules_are_imported_where_they_are_used():
    light = [*PACKAGE.glob("plans/*.py"), *PACKAGE.glob("data/*.py")]
    light += [PACKAGE / name for name in ("__init__.py", "cli.py", "terminal.py", "runs/ledger.py")]
    for path in light:
        heavy = [
            n for n in imports(at_import_time(tree(path)), package_of(path)) if within(n, LAZY)
        ]
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy} when it is imported"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_habits(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.name != "cli.py":
            assert node.func.id != "print", f"line {node.lineno}: print"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: bare except"


def test_no_file_is_two_ideas():
    sizes = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(sizes) > 50
    long = {name: lines for name, lines in sizes.items() if lines > LONGEST}
    assert not long, f"more than {LONGEST} lines: {long}"
