"""``outputs`` and ``return`` -> the one result of a program.

======== ================ =========================================
outputs  return           result
======== ================ =========================================
list     left out         the value if there is one, else a tuple
list     single           the value; several are an error
list     tuple            a tuple, also of one
list     dict             a dict whose keys are the values' names
mapping  left out, dict   a dict
mapping  single, tuple    an error
======== ================ =========================================
"""

from __future__ import annotations

from model_factory.config.schema.values import Values
from model_factory.config.syntax.expect import require_list, require_one_of, require_text
from model_factory.config.syntax.nodes import ConfigPath, MapNode, Node, error_at
from model_factory.program.ir import Argument, Ref

_FORMS = ("single", "tuple", "dict")


def read_result(model: MapNode, path: ConfigPath, values: Values, default: Ref | None = None) -> Argument:
    """Return the result of a ``graph`` or ``sequential``; ``default`` is the one output when none are given.

    Raises ConfigError.
    """
    form_path = (*path, "return")
    form_node = model.entries.get("return")
    form = None if form_node is None else require_one_of(form_node, form_path, _FORMS)
    outputs = model.entries.get("outputs")
    if isinstance(outputs, MapNode):
        if form_node is not None and form != "dict":
            raise error_at(form_node, form_path, f"outputs given as a mapping are a dict; {form!r} needs a list")
        return _dict_result(outputs, (*path, "outputs"), values)
    refs = [default] if outputs is None and default else _listed_refs(model, outputs, (*path, "outputs"), values)
    if form == "dict":
        named = {ref.name: ref for ref in refs}
        if len(named) < len(refs):
            raise error_at(outputs or model, (*path, "outputs"), "a dict cannot hold the same output twice")
        return named
    if form == "single" and len(refs) > 1:
        raise error_at(outputs or model, (*path, "outputs"), f"'return: single' takes one output, found {len(refs)}")
    return refs[0] if form == "single" or (form is None and len(refs) == 1) else tuple(refs)


def _dict_result(outputs: MapNode, path: ConfigPath, values: Values) -> dict[str, Ref]:
    if not outputs.entries:
        raise error_at(outputs, path, "must be a non-empty list of values or {key: value}, found an empty mapping")
    return {key: _output(node, (*path, key), values) for key, node in outputs.entries.items()}


def _listed_refs(model: MapNode, outputs: Node | None, path: ConfigPath, values: Values) -> list[Ref]:
    if outputs is None:
        raise error_at(model, path, "missing; a list of values or a mapping {key: value} is required")
    items = require_list(outputs, path, "values or a mapping {key: value}", empty=False).items
    return [_output(node, (*path, index), values) for index, node in enumerate(items)]


def _output(node: Node, path: ConfigPath, values: Values) -> Ref:
    return values.ref(require_text(node, path).removeprefix("$"), node, path)
