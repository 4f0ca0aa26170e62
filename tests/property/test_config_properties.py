"""Laws of the config language on generated data."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from model_factory.config import (
    canonical_bytes,
    digest,
    parse_config,
    parse_wire,
    resolve_file,
    resolve_mapping,
    wire_bytes,
)
from model_factory.config.resolve.merge import apply_directives, merge
from model_factory.config.resolve.references import EnvReference, split_references
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.nodes import MapNode, Place
from model_factory.config.syntax.plain_data import from_plain, to_plain
from model_factory.config.syntax.yaml_tree import parse_yaml
from model_factory.errors import ConfigError
from property.amount import EXAMPLES

quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# Hypothesis also tries words from the code; the words of the language have their own strategy below.
KEYS = TEXT.filter(lambda text: not text.startswith("_")) | st.sampled_from(["$float", "$$float", "float"])
SCALARS = st.none() | st.booleans() | st.integers(-(2**127), 2**127) | st.floats() | TEXT
PLAIN = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)
MAPPINGS = st.dictionaries(KEYS, PLAIN, max_size=4)
# Each key has a mapping in all of the configs, or in none.
ALIKE: Any = st.deferred(
    lambda: st.fixed_dictionaries({}, optional={"a": SCALARS, "b": st.lists(SCALARS), "m": ALIKE, "n": ALIKE})
)

# Words of the language, so that generated documents reach past the first check.
WORDS = st.one_of(
    st.sampled_from(["_type_", "_args_", "_kwargs_", "_template_", "_merge_", "_value_", "key", "append", "keyed"]),
    st.sampled_from(["name", "call", "args", "kwargs", "out", "nodes", "order", "inputs", "outputs", "return"]),
    st.sampled_from(["x", "y", "a", "module:a", "op:add", "$x", "$y", "$$x", "$"]),
    st.sampled_from(
        ["${a}", "${env:V}", "${env:int:V,3}", "${params.a}", "${params}", "${", "${model.graph.inputs[0]}"]
    ),
)
VALUES = st.recursive(
    SCALARS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | KEYS, inner, max_size=4),
    max_leaves=20,
)
GRAPHS = st.fixed_dictionaries(
    {"inputs": st.just(["x"]) | VALUES, "outputs": st.just(["y"]) | VALUES},
    optional={
        "modules": st.just({"a": {"_type_": "t"}}) | st.dictionaries(WORDS, VALUES, max_size=3) | VALUES,
        "nodes": st.just([{"name": "y", "call": "module:a"}])
        | st.lists(
            st.dictionaries(st.sampled_from(["name", "call", "args", "kwargs", "out"]), VALUES, max_size=5), max_size=3
        )
        | VALUES,
        "order": VALUES,
        "steps": VALUES,
        "return": st.sampled_from(["single", "tuple", "dict"]) | VALUES,
    },
)
SEQUENTIALS = st.fixed_dictionaries(
    {
        "layers": st.lists(
            st.fixed_dictionaries({"_type_": st.just("t")}, optional={"a": VALUES, "_kwargs_": VALUES}), max_size=3
        )
    },
    optional={"inputs": VALUES, "outputs": VALUES, "return": VALUES},
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "schema_version": st.just(1),
        "model": st.fixed_dictionaries({"graph": GRAPHS}) | st.fixed_dictionaries({"sequential": SEQUENTIALS}),
    },
    optional={
        "params": st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3),
        "templates": st.dictionaries(st.sampled_from("abxy"), VALUES, max_size=3),
        "settings": VALUES | st.just({"strict": False}),
        "signature": VALUES | st.just({"x": {"shape": [1]}}),
        "notes": VALUES,
    },
)


def shuffled(value: Any, draw: Any) -> Any:
    """Return the value with the keys of every mapping in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw(st.permutations(list(value)))}
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


def same(one: Any, other: Any) -> bool:
    """Equal in value, type and key order, NaN included."""
    return repr(one) == repr(other)


def tree(value: dict[str, Any]) -> MapNode:
    node = from_plain(value, Place(file="<config>"))
    assert isinstance(node, MapNode)
    return node


def merged(below: dict[str, Any], above: dict[str, Any]) -> MapNode:
    return merge(Cursor(tree(below)), Cursor(tree(above)))


@quick
@given(PLAIN, st.data())
def test_canonical_bytes_do_not_depend_on_the_order_of_keys(value: Any, data: Any) -> None:
    other = shuffled(value, data.draw)
    assert canonical_bytes(other) == canonical_bytes(value)
    assert digest(other) == digest(value)


@quick
@given(PLAIN, PLAIN)
def test_different_values_have_different_bytes(one: Any, other: Any) -> None:
    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: ordered(value[key]) for key in sorted(value)}
        return [ordered(item) for item in value] if isinstance(value, list) else value

    assert (canonical_bytes(one) == canonical_bytes(other)) == same(ordered(one), ordered(other))


@quick
@given(PLAIN)
def test_the_wire_form_reads_back_exactly(value: Any) -> None:
    data = wire_bytes({"model": value})
    read = to_plain(parse_wire(data))
    assert same(read, {"model": value})
    assert wire_bytes(read) == data


@quick
@given(PLAIN)
def test_a_tree_of_plain_data_gives_back_a_deep_copy(value: Any) -> None:
    assert same(to_plain(from_plain(value, Place(file="f"))), value)


@quick
@given(DOCUMENTS, st.dictionaries(st.sampled_from("VW"), st.text(max_size=5)))
def test_resolving_raises_nothing_but_config_errors(document: dict[str, Any], env: dict[str, str]) -> None:
    try:
        resolved = resolve_mapping(document, env)
    except ConfigError:
        return
    served = parse_config(resolved.wire)
    assert served.wire == resolved.wire
    assert served.digest == resolved.digest
    assert served.order_digest == resolved.order_digest
    assert list(served.model.modules) == list(resolved.model.modules)


@quick
@given(DOCUMENTS)
def test_a_server_raises_nothing_but_config_errors(document: dict[str, Any]) -> None:
    try:
        parse_config(wire_bytes(document))
    except ConfigError:
        return


@quick
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_from_the_wire_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_config(data)


@quick
@given(st.text("ab:-[]{},&*!|>'\"#%@ \n\t\\?<~01$=.", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        root = parse_yaml(text, "c.yaml")
    except ConfigError:
        return
    assert all(isinstance(key, str) for key in root.entries)


@quick
@given(st.binary(max_size=40))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        resolve_file(path, {})


@quick
@given(st.text('${}envjsoit:,.[]0"\\ ', max_size=30))
def test_the_pieces_of_a_string_hold_all_its_literal_text(text: str) -> None:
    try:
        pieces = split_references(text)
    except ValueError:
        assert "${" in text
        return
    if "${" not in text:
        assert "".join(str(piece) for piece in pieces) == text
    assert all(piece != "" for piece in pieces)


@quick
@given(
    st.text(" \t\n", max_size=3),
    st.sampled_from(["", "json:"]),
    st.text(st.characters(exclude_characters='}${"', exclude_categories=["Cs"]), max_size=8),
)
def test_a_default_ends_before_the_brace_without_trailing_space(space: str, cast: str, default: str) -> None:
    (piece,) = split_references(f"${{{space}env:{cast}V,{default}}}")
    assert isinstance(piece, EnvReference)
    assert (piece.variable, piece.default) == ("V", default.rstrip())


@quick
@given(
    st.none() | PLAIN,
    st.lists(PLAIN, max_size=3),
    st.sampled_from(["replace", "append", "prepend"]),
)
def test_a_list_directive_acts_on_a_list_or_null_alone(below: Any, items: list[Any], mode: str) -> None:
    def act() -> Any:
        directive = {"_merge_": mode, "_value_": items}
        return to_plain(merged({"v": below}, {"v": directive}))["v"]

    if below is not None and not isinstance(below, list):
        with pytest.raises(ConfigError, match="a list directive needs a list or null below"):
            act()
        return
    base = below or []
    assert same(act(), {"replace": items, "append": base + items, "prepend": items + base}[mode])


@quick
@given(ALIKE, ALIKE, ALIKE)
def test_merging_mappings_of_a_kind_is_associative(one: Any, two: Any, three: Any) -> None:
    """Other merges are not associative: a scalar in the middle removes the values below, not the values above."""
    left = merge(Cursor(merged(one, two)), Cursor(tree(three)))
    right = merge(Cursor(tree(one)), Cursor(merged(two, three)))
    assert canonical_bytes(to_plain(left)) == canonical_bytes(to_plain(right))


@quick
@given(MAPPINGS)
def test_merging_with_nothing_changes_nothing(value: Any) -> None:
    assert same(to_plain(merged(value, {})), value)
    assert same(to_plain(merged({}, value)), value)
    assert same(to_plain(merged(value, value)), value)
    assert same(to_plain(apply_directives(tree(value))), value)


@quick
@given(PLAIN.filter(lambda value: "${" not in repr(value)))
def test_a_reference_is_a_copy(value: Any) -> None:
    assume(not re.search(r"[0-9]{10}", repr(value)))  # integers of a model are bounded
    document = {"schema_version": 1, "v": value, "model": {"sequential": {"layers": [{"_type_": "t", "a": ["${v}"]}]}}}
    document["settings"] = {"strict": False}
    resolved = resolve_mapping(document, {})
    assert same(resolved.model.modules["layer0"]["a"], [value])
