"""What a stage was made from: its part of the spec, the code of its own modules, and its inputs' data versions."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def code_version(*modules: str) -> str:
    """Hash of the syntax of `modules`; comments and layout do not count.

    A package stands for all files in it; a name that ends in .py is the path of a file.
    """
    digest = hashlib.sha256()
    for name in sorted(modules):
        digest.update(_syntax(Path(name)) if name.endswith(".py") else _of_module(name))
    return digest.hexdigest()[:16]


@cache
def _of_module(name: str) -> bytes:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    origin = Path(spec.origin)
    files = sorted(origin.parent.rglob("*.py")) if spec.submodule_search_locations else [origin]
    return b"".join(map(_syntax, files))


def _syntax(file: Path) -> bytes:
    source = file.read_bytes()
    try:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            _drop_docstring(node)
        return ast.dump(tree).encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A user's file may be anything. It is refused when it is asked for, not where all systems are looked at.
        return source


def _drop_docstring(node: ast.AST) -> None:
    body = getattr(node, "body", None)
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not body:
        return
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = body[1:]


def fingerprint(config: Any, code: str, inputs: dict[str, str]) -> str:
    """One hash over configuration (JSON-able), code version and inputs (name -> data version)."""
    text = json.dumps([config, code, inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
