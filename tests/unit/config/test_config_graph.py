"""``graph``: inputs, modules, nodes and steps, names and results."""

from typing import Any

import pytest

from model_factory.config import ModelConfig, resolve_mapping
from model_factory.errors import ConfigError
from model_factory.program.ir import ModuleCall, OpCall, Ref, step_text

GRAPH = ("model", "graph")
CALL_A = {"name": "y", "call": "module:a", "args": ["$x"]}


def config(**body: Any) -> dict[str, Any]:
    graph = {"inputs": ["x"], "modules": {"a": {"_type_": "nn.ReLU"}}, "nodes": [CALL_A], "outputs": ["y"]} | body
    return {"schema_version": 1, "model": {"graph": {key: value for key, value in graph.items() if value is not ...}}}


def graph(**body: Any) -> ModelConfig:
    return resolve_mapping(config(**body), {}).model


def refused(**body: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        graph(**body)
    return caught.value


def test_nodes_as_a_list() -> None:
    nodes = [
        {"name": "n0", "call": "module:a", "args": ["$x", 2], "kwargs": {"k": {"deep": ["$x", "$$x", "$$", "a$x"]}}},
        {"name": "n1", "call": "module:a", "kwargs": {"v": "$n0"}, "out": ["p", "q"]},
        {"name": "n2", "call": "op:nn.functional.relu", "out": {"hidden": "r", "last state": "s"}},
        {"name": "x1", "call": "op:add", "args": [["$p", "$q"], {"a": "$s"}], "out": "t"},
    ]
    model = graph(nodes=nodes, outputs=["$t"])
    assert model.steps == (
        ModuleCall(path="a", args=(Ref("x"), 2), kwargs={"k": {"deep": [Ref("x"), "$x", "$", "a$x"]}}, out="n0"),
        ModuleCall(path="a", kwargs={"v": Ref("n0")}, out=("p", "q")),
        OpCall(name="nn.functional.relu", out={"hidden": "r", "last state": "s"}),
        OpCall(name="add", args=([Ref("p"), Ref("q")], {"a": Ref("s")}), out="t"),
    )
    assert model.step_paths == tuple((*GRAPH, "nodes", i) for i in range(4))
    assert model.outputs == Ref("t")


def test_nodes_as_a_mapping_run_in_the_given_order() -> None:
    nodes = {"late": {"call": "module:a", "args": ["$early"]}, "early": {"call": "module:a", "args": ["$x"]}}
    model = graph(nodes=nodes, order=["early", "late"], outputs=["late"])
    assert [step.out for step in model.steps] == ["early", "late"]
    assert model.step_paths == ((*GRAPH, "nodes", "early"), (*GRAPH, "nodes", "late"))


def test_steps() -> None:
    model = graph(nodes=..., steps=[{"call": "module:a", "args": ["$x"], "out": "y"}])
    assert model.steps == (ModuleCall(path="a", args=(Ref("x"),), out="y"),)
    assert model.step_paths == ((*GRAPH, "steps", 0),)


def test_modules_keep_their_order_and_may_be_called_twice() -> None:
    modules = {name: {"_type_": "nn.ReLU"} for name in ("z", "a", "m")}
    nodes = [{"name": f"v{i}", "call": "module:z", "args": ["$x"]} for i in range(2)]
    model = graph(modules=modules, nodes=nodes, outputs=["v0", "v1"])
    assert list(model.modules) == ["z", "a", "m"]
    assert [step_text(step) for step in model.steps] == ["module:z", "module:z"]
    assert model.module_paths["m"] == (*GRAPH, "modules", "m")


def test_a_graph_of_ops_needs_no_modules_and_an_output_may_be_an_input() -> None:
    model = graph(modules=..., nodes=[{"name": "y", "call": "op:identity", "args": ["$x"]}], outputs=["x", "y"])
    assert (model.modules, model.outputs) == ({}, (Ref("x"), Ref("y")))


def test_a_module_a_node_and_a_value_may_share_a_name() -> None:
    assert graph(nodes=[{"name": "a", "call": "module:a", "args": ["$x"]}], outputs=["a"]).outputs == Ref("a")


@pytest.mark.parametrize(
    ("outputs", "form", "result"),
    [
        (["$y"], None, Ref("y")),
        (["y"], None, Ref("y")),
        (["y", "$x"], None, (Ref("y"), Ref("x"))),
        ({"k": "$y", "l": "x"}, None, {"k": Ref("y"), "l": Ref("x")}),
        (["y"], "single", Ref("y")),
        (["y"], "tuple", (Ref("y"),)),
        (["y", "y"], "tuple", (Ref("y"), Ref("y"))),
        (["y", "x"], "dict", {"y": Ref("y"), "x": Ref("x")}),
        ({"k": "$y"}, "dict", {"k": Ref("y")}),
    ],
)
def test_results(outputs: Any, form: str | None, result: Any) -> None:
    model = graph(outputs=outputs, **({"return": form} if form else {}))
    assert model.outputs == result
    assert type(model.outputs) is type(result)
    if isinstance(result, dict):
        assert list(model.outputs) == list(result)


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ({"outputs": ["y", "x"], "return": "single"}, ("outputs",), "takes one output, found 2"),
        ({"outputs": {"k": "y"}, "return": "single"}, ("return",), "outputs given as a mapping are a dict"),
        ({"outputs": {"k": "y"}, "return": "tuple"}, ("return",), "outputs given as a mapping are a dict"),
        ({"outputs": ["y", "y"], "return": "dict"}, ("outputs",), "the same output twice"),
        ({"return": "tupel"}, ("return",), "did you mean 'tuple'?"),
        ({"return": None}, ("return",), "must be a non-empty string"),
        ({"outputs": ...}, ("outputs",), "is required"),
        ({"outputs": []}, ("outputs",), "must be a non-empty list of values"),
        ({"outputs": {}}, ("outputs",), "found an empty mapping"),
        ({"outputs": "y"}, ("outputs",), "must be a non-empty list of values"),
        ({"outputs": ["z"]}, ("outputs", 0), "Unknown value '$z'"),
        ({"outputs": [["y"]]}, ("outputs", 0), "must be a non-empty string"),
        ({"outputs": {"k": "$why"}}, ("outputs", "k"), "Unknown value '$why'"),
        ({"outputs": ["$$y"]}, ("outputs", 0), "is not a value"),
    ],
)
def test_wrong_results(body: dict[str, Any], path: tuple[str | int, ...], words: str) -> None:
    error = refused(**body)
    assert error.path == (*GRAPH, *path)
    assert words in error.reason


@pytest.mark.parametrize(
    ("body", "path", "words"),
    [
        ({"inputs": ...}, (), "'inputs' is required"),
        ({"inputs": []}, ("inputs",), "must be a non-empty list of names"),
        ({"inputs": ["x", "x"]}, ("inputs", 1), "collision: 'x' is already an input"),
        ({"inputs": ["x", "a b"]}, ("inputs", 1), "is not a name"),
        ({"inputs": ["x\n"]}, ("inputs", 0), "is not a name"),
        ({"inputs": ["é"]}, ("inputs", 0), "names match ^[A-Za-z_][A-Za-z0-9_]*$"),
        ({"modules": []}, ("modules",), "must be a mapping"),
        ({"modules": {"a.b": {"_type_": "x"}}}, ("modules", "a.b"), "is not a name"),
        ({"modules": {"": {"_type_": "x"}}}, ("modules", ""), "is not a name"),
        ({"node": []}, ("node",), "did you mean 'nodes'?"),
        ({"nodes": ...}, (), "either 'nodes' or 'steps', found neither"),
        ({"steps": []}, (), "either 'nodes' or 'steps', found both"),
        ({"nodes": "x"}, ("nodes",), "must be a list of nodes"),
        ({"order": ["y"]}, ("order",), "goes with nodes in mapping form"),
        ({"nodes": {"y": CALL_A}}, ("nodes",), "nodes mapping form requires 'order'"),
        ({"nodes": {"y": {"call": "module:a"}}, "order": "y"}, ("order",), "must be a list of node names"),
        ({"nodes": {"y": {"call": "module:a"}}, "order": []}, ("order",), "every node once; missing: 'y'"),
        ({"nodes": {"y": {"call": "module:a"}}, "order": ["y", "y"]}, ("order", 1), "lists the node 'y' twice"),
        ({"nodes": {"yes": {"call": "module:a"}}, "order": ["yess"]}, ("order", 0), "did you mean 'yes'?"),
        ({"nodes": {"1": {"call": "module:a"}}, "order": ["1"]}, ("nodes", "1"), "is not a name"),
        ({"nodes": {"y": {"name": "y", "call": "x"}}, "order": ["y"]}, ("nodes", "y", "name"), "Unknown key 'name'"),
        ({"nodes": [5]}, ("nodes", 0), "must be a mapping"),
        ({"nodes": [{"call": "module:a"}]}, ("nodes", 0), "'name' is required"),
        ({"nodes": [{"name": "1", "call": "module:a"}]}, ("nodes", 0, "name"), "is not a name"),
        ({"nodes": [{"name": "y"}]}, ("nodes", 0), "'call' is required"),
        ({"nodes": [CALL_A | {"kwarg": {}}]}, ("nodes", 0, "kwarg"), "did you mean 'kwargs'?"),
        ({"nodes": [CALL_A, CALL_A | {"out": "z"}]}, ("nodes", 1, "name"), "collision: a node 'y' is given twice"),
        ({"nodes": ..., "steps": [{"call": "module:a"}]}, ("steps", 0), "'out' is required"),
        ({"nodes": ..., "steps": [{"call": "module:a", "out": "y", "name": "n"}]}, ("steps", 0, "name"), "Unknown key"),
        ({"nodes": ..., "steps": {}}, ("steps",), "must be a list of steps"),
    ],
)
def test_wrong_structure(body: dict[str, Any], path: tuple[str | int, ...], words: str) -> None:
    error = refused(**body)
    assert error.path == (*GRAPH, *path)
    assert words in error.reason


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("module:ab", "Unknown module 'ab'"),
        ("a", "must be 'module:NAME' or 'op:NAME', found 'a'"),
        ("modul:a", "did you mean 'module:a'?"),
        ("module:", "must be 'module:NAME'"),
        ("op:", "must be 'module:NAME'"),
        ("attr:a", "must be 'module:NAME'"),
        (5, "must be a non-empty string"),
        (None, "must be a non-empty string"),
    ],
)
def test_wrong_calls(call: Any, words: str) -> None:
    error = refused(nodes=[{"name": "y", "call": call}])
    assert error.path == (*GRAPH, "nodes", 0, "call")
    assert words in error.reason


def test_an_unknown_module_suggests_the_closest() -> None:
    assert refused(modules={"encoder": {"_type_": "e"}}, nodes=[{"name": "y", "call": "module:encodr"}]).reason == (
        "Unknown module 'encodr'; did you mean 'encoder'?"
    )


@pytest.mark.parametrize(
    ("step", "path", "words"),
    [
        ({"args": "$x"}, ("args",), "must be a list of arguments"),
        ({"args": None}, ("args",), "must be a list of arguments"),
        ({"kwargs": ["$x"]}, ("kwargs",), "must be a mapping"),
        (
            {"args": ["$later"]},
            ("args", 0),
            "Forward reference: '$later' is made only later, at model.graph.nodes[1].out",
        ),
        ({"args": ["$y"]}, ("args", 0), "Forward reference: '$y'"),
        ({"kwargs": {"k": [{"d": "$later"}]}}, ("kwargs", "k", 0, "d"), "Forward reference"),
        ({"args": ["$z"]}, ("args", 0), "Unknown value '$z'"),
        ({"args": ["$latr"]}, ("args", 0), "did you mean 'later'?"),
        ({"args": ["$"]}, ("args", 0), "is not a value"),
        ({"args": ["$a-b"]}, ("args", 0), "is not a value"),
        ({"args": ["$x.y"]}, ("args", 0), "'$$x' is the string '$x'"),
        ({"out": "x"}, ("out",), "collision: 'x' is already an input, named at model.graph.inputs[0]"),
        ({"out": ["p", "p"]}, ("out", 1), "collision: 'p' is already a value, named at model.graph.nodes[0].out[0]"),
        ({"out": "later"}, None, "collision: 'later' is already a value, named at model.graph.nodes[0].out"),
        ({"out": {"k": "x"}}, ("out", "k"), "collision"),
        ({"out": "$y"}, ("out",), "'$y' is not a name"),
        ({"out": []}, ("out",), "must be a name, a list of names or {returned key: name}, found an empty list"),
        ({"out": {}}, ("out",), "must be a name, a list of names"),
        ({"out": [["p"]]}, ("out", 0), "must be a non-empty string"),
        ({"out": {"k": None}}, ("out", "k"), "found null"),
        ({"out": None}, ("out",), "must be a non-empty string, found null"),
    ],
)
def test_wrong_steps(step: dict[str, Any], path: tuple[str | int, ...] | None, words: str) -> None:
    nodes = [{"name": "y", "call": "module:a", **step}, {"name": "n", "call": "module:a", "out": "later"}]
    error = refused(nodes=nodes)
    assert words in error.reason
    assert error.path == ((*GRAPH, "nodes", 1, "out") if path is None else (*GRAPH, "nodes", 0, *path))


def test_a_node_name_collides_with_an_input() -> None:
    error = refused(nodes=[{"name": "x", "call": "module:a"}])
    assert (error.path, "collision" in error.reason) == ((*GRAPH, "nodes", 0, "name"), True)
