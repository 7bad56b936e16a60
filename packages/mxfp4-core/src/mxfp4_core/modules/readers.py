"""Which weights of a model its own code reads, beside calling the modules that hold them.

T5 asks ``self.wo.weight.dtype``, Mamba multiplies with ``self.dt_proj.weight``, and SigLIP begins the weights of an
attention where it begins the attention, not the linear. Our modules serve all that; other loaders of quantised folders
have linears without a weight, and such a model fails with them while it is loaded, or in its first call. So a folder of
it is written for ours where nothing else is asked for. The source of the classes is read: that finds what may be read,
and finds nothing where there is no source.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

_ANY = re.compile(r"\w\.[^\s=(),]+\.weight\b")

_MAKING = frozenset(
    {"__init__", "_init_weights", "init_weights", "reset_parameters", "tie_weights", "post_init"}
)
"""Methods that make a module, or never run: what they read is there."""


def weight_readers(model: nn.Module) -> dict[str, str]:
    """Return the modules whose ``weight`` is read by the code of a module around them, each with the class that does.

    Args:
        model: in memory or on the meta device, its own modules or ours in their places.
    """
    kinds: dict[str, Any] = {path: type(module) for path, module in model.named_modules()}
    begun = {rule for kind in kinds.values() for rule in _of_class(kind).begun}
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        kind = kinds[path]
        names = {each.__name__ for each in kind.__mro__}
        wanted = {*_of_class(kind).read, *(below for owners, below in begun if owners & names)}
        if not wanted:
            continue
        pattern = re.compile("|".join(sorted(wanted)))
        for inner, _ in module.named_modules():
            if inner and pattern.fullmatch(inner):
                found.setdefault(f"{path}.{inner}".lstrip("."), kind.__name__)
    return found


@dataclass(frozen=True)
class _Reads:
    """What the code of a class reads.

    Attributes:
        read: weights below itself, as patterns of paths.
        begun: weights below modules of other classes: names of these, and patterns of paths.
    """

    read: frozenset[str] = frozenset()
    begun: frozenset[tuple[frozenset[str], str]] = frozenset()


@functools.cache
def _of_class(kind: type) -> _Reads:
    """Return what a class reads, with those that it is derived from."""
    found = [
        _of_source(each.__module__).get(each.__qualname__, _Reads())
        for each in kind.__mro__
        if each.__module__.partition(".")[0] not in ("torch", "builtins", "abc", "typing", "mxfp4_core")
    ]
    read, begun = (each.read for each in found), (each.begun for each in found)
    return _Reads(frozenset().union(*read), frozenset().union(*begun))


@functools.cache
def _of_source(module: str) -> dict[str, _Reads]:
    """Return what each class of a module of Python reads."""
    try:
        source = inspect.getsource(sys.modules[module])
        if not _ANY.search(source):
            return {}
        tree = ast.parse(source)
    except (KeyError, OSError, TypeError, SyntaxError):  # made at run time, or shipped without a source
        return {}
    found: dict[str, _Reads] = {}
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        methods = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
        read = {each for method in methods if method.name not in _MAKING for each in _paths(method, "self")}
        begun = {each for method in methods if method.name == "_init_weights" for each in _begun(method)}
        found[kind.name] = _Reads(frozenset(read), frozenset(begun))
    return found


def _begun(method: ast.FunctionDef) -> Iterator[tuple[frozenset[str], str]]:
    """Yield what ``_init_weights(self, module)`` reads below a module, with the classes that it asks for before."""
    given = [each.arg for each in method.args.args if each.arg != "self"]
    for branch in ast.walk(method):
        if isinstance(branch, ast.If):
            owners = frozenset(_names(branch.test))
            for name, statement in ((name, each) for name in given[:1] for each in branch.body):
                yield from ((owners, path) for path in _paths(statement, name))


def _names(test: ast.expr) -> Iterator[str]:
    for node in ast.walk(test):
        if isinstance(node, (ast.Name, ast.Attribute)):
            yield node.id if isinstance(node, ast.Name) else node.attr


def _paths(node: ast.AST, root: str) -> Iterator[str]:
    for inner in ast.walk(node):
        if (
            not isinstance(inner, ast.Attribute)
            or inner.attr != "weight"
            or not isinstance(inner.ctx, ast.Load)
        ):
            continue
        if path := _path(inner.value, root):
            yield path


def _path(node: ast.expr, root: str) -> str:
    """Return the pattern of an expression such as ``self.blocks[0].fc2``; empty where it begins with something else."""
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id == root:
            return re.escape(node.attr)
        before = _path(node.value, root)
        return before and rf"{before}\.{re.escape(node.attr)}"
    if isinstance(node, ast.Subscript):
        before = _path(node.value, root)
        return before and rf"{before}\.[^.]+"
    return ""


__all__ = ["weight_readers"]
