"""The project's own sources, and what each of them imports, uses and does at import.

Everything is read from the syntax tree; nothing is imported. Imports count wherever they are: at
the top, inside a function, under ``TYPE_CHECKING``. ``imports_at_load`` gives those that run when a
module is loaded.
"""

import ast
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from checkout import ROOT

Sources = Mapping[str, str]
"""Path from the root, with forward slashes → text."""
Rule = Callable[[Sources], list[str]]
"""A pure function from sources to complaints."""

PRODUCT = ("capture", "analysis", "cluster", "ontogeny")
FOLDERS = (*PRODUCT, "benchmarks", "tests")


def project() -> dict[str, str]:
    """Every Python file of ours, by its path from the root with forward slashes."""
    files = (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}


def of_product(sources: Sources) -> Sources:
    return {path: text for path, text in sources.items() if path.split("/")[0] in PRODUCT}


def module_name(path: str) -> str:
    """capture/store.py → capture.store, capture/__init__.py → capture."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def absolute(node: ast.ImportFrom, path: str) -> str:
    """The module that a ``from … import`` names, its leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = PurePosixPath(path).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


@functools.cache
def imports(path: str, text: str) -> frozenset[str]:
    """All that is imported, dotted; ``from a import b`` counts as a.b, for b may be a module."""
    return imported(path, ast.walk(ast.parse(text)))


def imports_at_load(path: str, text: str) -> frozenset[str]:
    """What is imported when the module is loaded: not inside functions or ``TYPE_CHECKING``."""
    return imported(path, at_import(ast.parse(text)))


def imported(path: str, nodes: Iterable[ast.AST]) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes:
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                found |= {f"{absolute(node, path)}.{alias.name}" for alias in node.names}
            case ast.Call(
                func=ast.Attribute(attr=function) | ast.Name(id=function),
                args=[ast.Constant(value=str(name)), *_],
            ) if function in ("import_module", "__import__"):
                found.add(name)
    return frozenset(found)


def origins(tree: ast.Module) -> dict[str, str]:
    """Local name → what it was imported as: ``import numpy as np`` gives np → numpy."""
    names = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {a.asname: a.name for a in node.names if a.asname}
            case ast.ImportFrom(module=str(module)):
                names |= {a.asname or a.name: f"{module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    """``torch.load`` for that expression, whatever torch is called here; "" if it is no name."""
    match node:
        case ast.Name():
            return names.get(node.id, node.id)
        case ast.Attribute():
            parent = dotted(node.value, names)
            return parent and f"{parent}.{node.attr}"
    return ""


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported, but for type checkers."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.stmt():
                yield child
        yield from at_import(child)


def owner(name: str, modules: Mapping[str, str]) -> str:
    """Our module that defines an imported name: capture.store.Store → capture.store."""
    parts = name.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((module for module in candidates if module in modules), "")
