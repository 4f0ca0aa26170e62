"""``outputs`` and ``return``: the result of the forward.

======== ================ ===========================================
outputs  return           result
======== ================ ===========================================
list     left out         the value if there is only one, else a tuple
list     single           the value; several are an error
list     tuple            a tuple, also of one value
list     dict             a dict with the names of the values as keys
mapping  left out, dict   a dict
mapping  single, tuple    an error
======== ================ ===========================================
"""

from __future__ import annotations

from model_factory.config.schema.value_names import ValueNames
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode
from model_factory.program.ir import Argument, Ref

RETURNS = ("single", "tuple", "dict")
"""The values of ``return``."""


def read_result(model: Cursor, values: ValueNames, default: Ref | None = None) -> Argument:
    """Return the result of a ``graph`` or ``sequential``; ``default`` is the only output if no outputs are given.

    Raises ConfigError.
    """
    form_at = model.get("return")
    form = None if form_at is None else form_at.one_of(RETURNS)
    outputs = model.get("outputs")
    if outputs is not None and isinstance(outputs.node, MapNode):
        if form_at is not None and form != "dict":
            raise form_at.error(f"outputs given as a mapping are a dict; {form!r} needs a list")
        return _dict_result(outputs, values)
    at = outputs or model.gap("outputs")
    if outputs is not None:
        items = outputs.items("values or a mapping {key: value}", empty=False)
        refs = [_output(item, values) for item in items]
    elif default is not None:
        refs = [default]
    else:
        raise at.error("missing; a list of values or a mapping {key: value} is required")
    if form == "dict":
        named = {ref.name: ref for ref in refs}
        if len(named) < len(refs):
            raise at.error("a dict cannot hold the same output twice")
        return named
    if form == "single" and len(refs) > 1:
        raise at.error(f"'return: single' takes one output, found {len(refs)}")
    return refs[0] if form == "single" or (form is None and len(refs) == 1) else tuple(refs)


def _dict_result(outputs: Cursor, values: ValueNames) -> dict[str, Ref]:
    entries = outputs.entries()
    if not entries:
        raise outputs.error("must be a non-empty list of values or {key: value}, found an empty mapping")
    return {key: _output(item, values) for key, item in entries.items()}


def _output(at: Cursor, values: ValueNames) -> Ref:
    return values.ref(at.text().removeprefix("$"), at)
