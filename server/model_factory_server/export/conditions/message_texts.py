"""Texts of sizes and tensors in messages: such a text decides nothing, and shows no value.

``torch._assert(height == 224, f"the height is {height}")`` makes its message before the check. The text of a size
counts as a decision by the size, unless the source code shows that the text is only a message of a check, a warning or
a log. A function of the forward's own may pass a message on to a check.
"""

from __future__ import annotations

import ast
import builtins
import functools
import linecache
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from model_factory_server.export.conditions.dtype_reads import frame_of_forward
from model_factory_server.export.torch_private import CHECKS

_POSITIONS: Mapping[Any, int] = {warnings.warn: 0, **CHECKS}
"""Functions of Python and torch that take a message, with the position of the message."""

_KEYWORDS = ("message", "msg")
_MAKES_TEXT = frozenset({"str", "repr", "format"})
_ASKS_KIND = frozenset({"callable", "isinstance"})

_Place = tuple[int, int]  # line and column
_Argument = tuple[_Place, _Place, tuple[str, ...], "int | str"]
_LookUp = Callable[[str], Any]


def is_in_message(frame: FrameType) -> bool:
    """Whether the running instruction of a frame makes only a part of a message.

    Example:
        >>> is_in_message(sys._getframe())
        False
    """
    start, end = _running(frame)

    def look_up(name: str) -> Any:
        tables: tuple[Mapping[str, Any], ...] = (frame.f_locals, frame.f_globals, vars(builtins))
        return next((table[name] for table in tables if name in table), None)

    return any(
        first <= start and end <= last and _takes_message(_found(path, look_up), position)
        for first, last, path, position in _text_arguments(frame.f_code.co_filename)
    )


def is_forward_in_message() -> bool:
    """Whether the running code of a forward makes only a part of a message; see :func:`is_in_message`."""
    frame = frame_of_forward(sys._getframe())  # noqa: SLF001  there is no other way
    return frame is not None and is_in_message(frame)


def _running(frame: FrameType) -> tuple[_Place, _Place]:
    """Start and end of the running instruction in the source; an impossible place if Python does not know."""
    line, end_line, column, end_column = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if line is None or end_line is None or column is None or end_column is None:
        return (0, 0), (sys.maxsize, 0)
    return (line, column), (end_line, end_column)


@functools.lru_cache(maxsize=64)
def _text_arguments(filename: str) -> list[_Argument]:
    """Start and end of each argument that only makes a text; the name of the called function, and the position."""
    return [
        ((item.lineno, item.col_offset), (item.end_lineno or 0, item.end_col_offset or 0), path, position)
        for call in ast.walk(_tree(filename))
        if isinstance(call, ast.Call) and (path := _dotted(call.func))
        for position, item in _arguments(call)
        if _is_text(item)
    ]


@functools.lru_cache(maxsize=64)
def _tree(filename: str) -> ast.AST:
    try:
        return ast.parse("".join(linecache.getlines(filename)))
    except SyntaxError:
        return ast.Module([], [])


def _arguments(call: ast.Call) -> Iterator[tuple[int | str, ast.expr]]:
    if not any(isinstance(item, ast.Starred) for item in call.args):
        yield from enumerate(call.args)
    yield from ((keyword.arg or "", keyword.value) for keyword in call.keywords)


def _is_text(item: ast.expr) -> bool:
    """Whether an expression makes a text of values, and uses no text of a value for anything else."""
    match item:
        case ast.Lambda(body=body):  # ``torch._check(condition, lambda: f"{sizes}")``
            return _is_text(body)
        case ast.JoinedStr(values=values):
            parts: list[ast.expr] = [value.value for value in values if isinstance(value, ast.FormattedValue)]
        case ast.BinOp(left=ast.Constant(value=str()), op=ast.Mod(), right=right):
            parts = [right]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return all(_is_text(side) or _is_constant_text(side) for side in (left, right))
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str()), attr="format"), args=args, keywords=keywords):
            parts = [*args, *(keyword.value for keyword in keywords)]
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[value]):
            parts = [value]
        case _:
            return False
    return not any(_makes_text(node) for part in parts for node in ast.walk(part))


def _is_constant_text(item: ast.expr) -> bool:
    return isinstance(item, ast.Constant) and isinstance(item.value, str)


def _makes_text(node: ast.AST) -> bool:
    match node:
        case ast.JoinedStr() | ast.BinOp(left=ast.Constant(value=str()), op=ast.Mod()):
            return True
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name in _MAKES_TEXT
    return False


def _dotted(node: ast.expr) -> tuple[str, ...]:
    """The parts of a dotted name; empty for another expression."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return (*owner, node.attr)
    return ()


def _found(path: tuple[str, ...], look_up: _LookUp) -> Any:
    """The object of a dotted name; ``None`` if an owner is neither a module nor a logger."""
    found = look_up(path[0])
    for name in path[1:]:
        if not isinstance(found, ModuleType | logging.Logger):
            return None
        found = getattr(found, name, None)
    return found


def _takes_message(function: Any, position: int | str) -> bool:
    """Whether a function uses its argument at ``position`` as a message only."""
    if isinstance(getattr(function, "__self__", None), logging.Logger):
        return True
    if isinstance(function, FunctionType | type(warnings.warn)) and function in _POSITIONS:
        return position == _POSITIONS[function] or position in _KEYWORDS
    if isinstance(function, FunctionType):
        return _passes_on(function.__code__, position, function)
    return False


def _passes_on(code: CodeType, position: int | str, function: FunctionType) -> bool:
    """Whether a function passes an argument on as a message, and uses the argument for nothing else."""
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    name = (
        position if isinstance(position, str) else dict(enumerate(code.co_varnames[: code.co_argcount])).get(position)
    )
    definition = next(
        (
            node
            for node in ast.walk(_tree(code.co_filename))
            if isinstance(node, ast.FunctionDef)
            and node.name == code.co_name
            and code.co_firstlineno in {node.lineno, *(item.lineno for item in node.decorator_list)}
        ),
        None,
    )
    if definition is None or name not in names:
        return False

    def look_up(wanted: str) -> Any:
        found = function.__globals__.get(wanted, vars(builtins).get(wanted))
        return sys.modules.get(wanted) if found is None else found  # the function itself may import the module

    return _is_passed_on(definition, {name}, look_up)


def _is_passed_on(definition: ast.FunctionDef, names: set[str], look_up: _LookUp) -> bool:
    """Whether the ``names`` of a message are used as a message only; names of copies and of functions count, too."""
    parents = {child: node for node in ast.walk(definition) for child in ast.iter_child_nodes(node)}
    uses = [node for node in parents if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    grown = set(names)
    for use in uses:
        parent = parents[use]
        if use.id not in names:
            continue
        if isinstance(parent, ast.Assign):
            if not all(isinstance(target, ast.Name) for target in parent.targets):
                return False
            grown |= {target.id for target in parent.targets if isinstance(target, ast.Name)}
        elif isinstance(parent, ast.Return):
            owner: ast.AST = parent
            while not isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                owner = parents[owner]
            if not isinstance(owner, ast.FunctionDef) or owner is definition:
                return False
            grown.add(owner.name)
        elif not _is_message_use(use, parent, parents.get(parent), look_up):
            return False
    return grown == names or _is_passed_on(definition, grown, look_up)


def _is_message_use(use: ast.Name, parent: ast.AST, above: ast.AST | None, look_up: _LookUp) -> bool:
    if not isinstance(parent, ast.Call):
        return False
    path = _dotted(parent.func)
    if isinstance(above, ast.Raise) or (len(path) == 1 and path[0] in _ASKS_KIND):
        return True
    position = next((at for at, item in _arguments(parent) if item is use), "")
    function = _found(path, look_up) if path else None
    return isinstance(function, FunctionType) and function in _POSITIONS and position == _POSITIONS[function]
