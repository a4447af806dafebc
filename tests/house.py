"""What the house's tests read of the source: modules, what each imports of ours, and what each defines. Nothing is imported."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("store", "salad", "workbench")


def module_name(path: Path) -> str:
    """`salad/speech/__init__.py` → `salad.speech`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the packages, by name, with its file and its syntax tree."""
    paths = [ROOT / "launch_gpu.py", *(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))]
    return {module_name(path): (path, ast.parse(path.read_text())) for path in paths}


def imports(name: str) -> Iterator[tuple[str, str | None, int]]:
    """(module, the name taken from it or None, line) of every import of ours in a module, those inside functions too."""
    path, tree = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            if base in modules():
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    yield (whole, None, node.lineno) if whole in modules() else (base, alias.name, node.lineno)


def circles() -> list[list[str]]:
    """Sets of modules that import each other, directly or around (Tarjan's strongly connected components). A package's
    own `__init__`, when it imports what stands in the package, is no circle with what names the package."""
    arrows = {name: {other for other, _, _ in imports(name) if other != name} for name in modules()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    results: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in arrows[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = []
            while not part or part[-1] != name:
                part.append(stack.pop())
            if len(part) > 1:
                results.append(sorted(part))

    for name in arrows:
        if name not in index:
            visit(name)
    return results


def private_uses() -> list[str]:
    """Every private name (`_x`) that a module takes from another module of ours, as file:line."""
    results = []
    for name, (path, tree) in modules().items():
        where = path.relative_to(ROOT)
        known = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    known[alias.asname or alias.name.split(".")[0]] = alias.name
        ours = {alias.rpartition(".")[2] for other, alias_name, _ in imports(name) if alias_name is None for alias in [other]}
        for other, taken, line in imports(name):
            if taken and taken.startswith("_") and not taken.startswith("__"):
                results.append(f"{where}:{line}: {taken} of {other}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours & known.keys():
                if node.attr.startswith("_") and not node.attr.startswith("__"):
                    results.append(f"{where}:{node.lineno}: {node.value.id}.{node.attr}")
    return results


def classes() -> dict[str, list[str]]:
    """The modules that define a class of each name."""
    result = defaultdict(list)
    for name, (_, tree) in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                result[node.name].append(name)
    return result
