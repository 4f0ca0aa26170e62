"""Values of a call stay with the trainer: a call to record has names, kinds, dtypes and sizes, unless shared."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_factory import CallSignatureError, ModelFactoryError, RemoteModelFactory, ServerError
from model_factory.client import connection as remote_connection
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import Programs, encode_descriptor, encode_programs
from model_factory.descriptor.weights import write_weights
from model_factory.program.call_signature import call_signature
from model_factory.program.ir import Dim, Guard, ModuleCall, OpCall, Program, Ref, Size
from model_factory.program.recorded_program import RecordedProgram
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.v1 import program_pb2
from model_factory_server import PolicyConstructorModelFactory
from support.compare import assert_same
from support.folders import TEST_PLUGINS
from support.hostile_server import HostileServer
from support.plugin_server import running_with_plugin
from support.server import ServerProcess

MakeRemote = Callable[..., RemoteModelFactory]
REMEDY = r"Remedy: RemoteModelFactory\(share_values=True\) or MODEL_FACTORY_SHARE_VALUES=1"


def config(block: str, *inputs: str, **arguments: Any) -> dict[str, Any]:
    steps = [{"call": "module:block", "args": [f"${name}" for name in inputs], "out": "y"}]
    modules = {"block": {"_type_": f"valued.{block}", **arguments}}
    graph = {"inputs": list(inputs), "modules": modules, "steps": steps, "outputs": ["y"]}
    return {"config": {"schema_version": 1, "model": {"graph": graph}}}


@pytest.fixture(scope="module")
def valued(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with blocks that depend on values."""
    with running_with_plugin(tmp_path_factory.mktemp("valued") / "store", "valued") as process:
        yield process


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[program_pb2.RecordProgramRequest]:
    """Every request to record that leaves this process."""
    requests: list[program_pb2.RecordProgramRequest] = []
    stub = remote_connection.Connection.stub.fget

    class Noting:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def RecordProgram(self, request: Any, **options: Any) -> Any:  # noqa: N802
            requests.append(request)
            return self._real.RecordProgram(request, **options)

    monkeypatch.setattr(remote_connection.Connection, "stub", property(lambda self: Noting(stub(self))))
    return requests


@pytest.fixture
def pair(
    valued: ServerProcess, make_remote: MakeRemote, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[nn.Module, nn.Module]]:
    """Build a block from the server and in this process."""
    monkeypatch.syspath_prepend(TEST_PLUGINS)

    def make(model_cfg: dict[str, Any], **options: Any) -> tuple[nn.Module, nn.Module]:
        remote = make_remote(valued.address, **options).build(model_cfg)
        return remote, PolicyConstructorModelFactory(seed=7, plugins=["valued"]).build(model_cfg)

    return make


def tokens(flip: bool = True) -> dict[str, Any]:
    return {
        "ids": torch.tensor([[70123, 70456], [70123, 70300]]),
        "mask": torch.tensor([[True, True], [True, True]]),
        "batch": {"task": "secret-text", "count": 70789, "weight": 0.70321, "goal": None},
        "reverse": flip,
    }


SECRETS = (
    b"70123",
    b"70456",
    b"secret-text",
    b"70789",
    b"0.70321",
    b"range",
    b"outcomes",
    b"reads",
    b"const",
    b"true]",
)


def test_a_recorded_call_has_names_kinds_dtypes_and_sizes_only(
    pair: Callable[..., tuple[nn.Module, nn.Module]], sent: list[program_pb2.RecordProgramRequest]
) -> None:
    remote, local = pair(config("Tokens", "ids", "mask", "batch", "reverse"))
    for flip in (True, False):
        assert_same(remote(**tokens(flip)), local(**tokens(flip)))
    (request,) = sent
    assert not [secret for secret in SECRETS if secret in request.call_json.replace(b'{"const":null}', b"")]
    assert json.loads(request.call_json) == {
        "call_signature": [
            ["ids", {"tensor": [2, "int64", []]}],
            ["mask", {"tensor": [2, "bool", []]}],
            [
                "batch",
                {
                    "dict": [
                        ["task", {"any": "str"}],
                        ["count", {"any": "int"}],
                        ["weight", {"any": "float"}],
                        ["goal", {"const": None}],
                    ]
                },
            ],
            ["reverse", {"any": "bool"}],
        ],
        "tensors": [{"dtype": "int64", "shape": [2, 2]}, {"dtype": "bool", "shape": [2, 2]}],
        "without_values": True,
    }


@pytest.mark.parametrize("gain", [0.5, 0.25])
def test_a_text_that_the_forward_reads_needs_permission(
    gain: float, pair: Callable[..., tuple[nn.Module, nn.Module]], sent: list[program_pb2.RecordProgramRequest]
) -> None:
    x = torch.randn(2, 3)
    remote, local = pair(config("Modes", "x", "mode", "gain"))
    with pytest.raises(CallSignatureError, match=rf"the server needs the value of 'mode'.*{REMEDY}"):
        remote(x, "secret-mode", gain)
    assert not any(b"secret" in request.SerializeToString() for request in sent)
    remote, _ = pair(config("Modes", "x", "mode", "gain"), share_values=True)
    assert_same(remote(x, "secret-mode", gain), local(x, "secret-mode", gain))


def test_a_refusal_of_the_servers_own_choice_names_the_remedy(
    pair: Callable[..., tuple[nn.Module, nn.Module]],
) -> None:
    x = torch.randn(2, 3)
    remote, local = pair(config("Chosen", "x", "mode"))
    with pytest.raises(CallSignatureError, match=r"no such mode.*were the server's choice.*share_values=True"):
        remote(x, "double")
    remote, _ = pair(config("Chosen", "x", "mode"), share_values=True)
    assert_same(remote(x, "double"), local(x, "double"))


def test_attributes_that_a_trainer_sets_need_permission(
    pair: Callable[..., tuple[nn.Module, nn.Module]], sent: list[program_pb2.RecordProgramRequest]
) -> None:
    x = torch.ones(2, 3)
    remote, _ = pair(config("Dropped", "x"))
    remote(x)
    remote.graph_modules["block"].drop.p = 0.703
    count = len(sent)
    with pytest.raises(CallSignatureError, match=rf"the server needs the attribute 'drop\.p'.*{REMEDY}"):
        remote(x)
    assert len(sent) == count, "the request itself would tell that the attribute differs"


def test_branches_are_recorded_without_a_request_for_an_outcome(
    pair: Callable[..., tuple[nn.Module, nn.Module]], sent: list[program_pb2.RecordProgramRequest]
) -> None:
    remote, local = pair(config("Signs", "x"))
    for sign in (1, -1, 1):
        x = torch.rand(2, 3) * sign
        assert_same(remote(x), local(x))
    assert len(sent) == 1
    assert b"outcomes" not in sent[0].call_json


def test_a_count_of_values_needs_permission(
    pair: Callable[..., tuple[nn.Module, nn.Module]], sent: list[program_pb2.RecordProgramRequest]
) -> None:
    remote, local = pair(config("Signs", "x", counts=True))
    x = torch.ones(7, 3)
    with pytest.raises(CallSignatureError, match=rf"the server needs the outcome of a decision.*{REMEDY}"):
        remote(x)
    assert [b"outcomes" in request.call_json for request in sent] == [False]
    remote, _ = pair(config("Signs", "x", counts=True), share_values=True)
    assert_same(remote(x), local(x))


def test_integers_that_the_forward_refuses_are_replaced_by_others(
    pair: Callable[..., tuple[nn.Module, nn.Module]],
) -> None:
    remote, local = pair(config("Lengths", "x", "lengths"))
    x, lengths = torch.randn(4, 5, 3), torch.tensor([5, 2, 1, 4])
    assert_same(remote(x, lengths), local(x, lengths))


def test_the_variable_gives_permission_and_the_argument_decides(
    monkeypatch: pytest.MonkeyPatch, pair: Callable[..., tuple[nn.Module, nn.Module]]
) -> None:
    monkeypatch.setenv("MODEL_FACTORY_SHARE_VALUES", "yes")
    x = torch.randn(2, 3)
    remote, local = pair(config("Modes", "x", "mode"))
    assert_same(remote(x, "secret-mode"), local(x, "secret-mode"))
    remote, _ = pair(config("Modes", "x", "mode"), share_values=False, cache_dir=None)
    with pytest.raises(CallSignatureError, match=REMEDY):
        remote(x, "another")
    monkeypatch.setenv("MODEL_FACTORY_SHARE_VALUES", "perhaps")
    with pytest.raises(ModelFactoryError, match="MODEL_FACTORY_SHARE_VALUES is true/false"):
        RemoteModelFactory("127.0.0.1:1")


class Curious(HostileServer):
    """Serves programs that end in a decision by the trainer's values, and notes every call."""

    def __init__(self, model: nn.Module, recorded: Programs) -> None:
        weights = io.BytesIO()
        state = {name: item.detach() for name, item in model.state_dict().items() if not nn.parameter.is_lazy(item)}
        write_weights(weights, state)
        super().__init__(encode_descriptor(describe(model)), weights.getvalue(), encode_programs(recorded), {})
        self.learnt: list[Any] = []

    def RecordProgram(self, request: Any, context: Any) -> program_pb2.RecordProgramResponse:  # noqa: N802
        self.learnt.append(json.loads(request.call_json))
        return super().RecordProgram(request, context)


class Plain(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


SECRET = 70123.0


def program_reading(value: OpCall, **conditions: Any) -> RecordedProgram:
    signature, _ = call_signature({"x": torch.zeros(3)})
    steps = (value, Guard(value=Ref("v"), outcome=-1))
    return RecordedProgram(
        call_signature=signature, program=Program(inputs=("x",), steps=steps, result=Ref("x")), **conditions
    )


@pytest.fixture
def curious() -> Iterator[Callable[..., Curious]]:
    started: list[Curious] = []

    def start(*arguments: Any) -> Curious:
        started.append(Curious(*arguments))
        return started[-1]

    yield start
    for server in started:
        server.close()


def test_a_hostile_server_reads_no_number_by_a_decision(
    curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    server = curious(Plain(), (("", program_reading(OpCall(name="torch.Tensor.max", args=(Ref("x"),), out="v"))),))
    model = make_remote(server.address).build(config("Signs", "x"))
    with pytest.raises(CallSignatureError):
        model(torch.tensor([1.0, SECRET, 2.0]))
    assert server.learnt == []


def test_a_hostile_server_reads_no_attribute_of_the_trainer(
    curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    reads = (("", "api_key", ""),)
    reading = program_reading(OpCall(name="torch.Tensor.max", args=(Ref("x"),), out="v"), reads=reads)
    server = curious(Plain(), (("", reading),))
    model = make_remote(server.address).build(config("Signs", "x"))
    model.api_key = "secret"
    with pytest.raises(CallSignatureError):
        model(torch.ones(3))
    assert "secret" not in json.dumps(server.learnt)
    assert server.learnt == []


class Inner(nn.Module):
    """A block called by another block."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Outer(nn.Module):
    """A block whose hostile program calls the inner blocks."""

    portable_methods = ("encode",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(Inner()), nn.Sequential(Inner())

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.forward(x)


def op(name: str, *args: Any, out: str) -> OpCall:
    return OpCall(name=name, args=args, out=out)


X, POSITIVE = Ref("x"), op("torch.Tensor.gt", Ref("x"), 0.5, out="mask")
CALL_FIRST = ModuleCall(path="first", args=(Ref("y"),), out="z")
COUNTED: dict[str, tuple[Any, ...]] = {
    "rows chosen by a mask": (
        POSITIVE,
        op("torch.Tensor.any", Ref("mask"), 1, out="rows"),
        op("torch.Tensor.__getitem__", X, Ref("rows"), out="y"),
        CALL_FIRST,
    ),
    "positions": (
        POSITIVE,
        op("torch.Tensor.nonzero", Ref("mask"), out="where"),
        op("torch.Tensor.float", Ref("where"), out="y"),
        CALL_FIRST,
    ),
    "a size from a tensor": (
        POSITIVE,
        op("torch.Tensor.sum", Ref("mask"), out="count"),
        op("torch.Tensor.narrow", X, 0, 0, Ref("count"), out="y"),
        CALL_FIRST,
    ),
}


def recorded_as(steps: tuple[Any, ...], result: str, method: str = "forward", **constants: Any) -> RecordedProgram:
    signature, _ = call_signature({"x": torch.zeros(4, 3)} | constants)
    program = Program(inputs=("x",), steps=steps, result=Ref(result))
    return RecordedProgram(call_signature=signature, program=program, method=method)


def inner_call(model: nn.Module, x: Tensor, method: str = "forward") -> None:
    with pytest.raises(CallSignatureError, match=r"sizes or a choice of blocks that follow from values"):
        getattr(model, method)(x)


@pytest.mark.parametrize("method", ["forward", "encode"])
@pytest.mark.parametrize("how", COUNTED)
def test_a_hostile_server_reads_no_count_by_the_size_of_an_inner_call(
    how: str, method: str, curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    server = curious(Outer(), (("", recorded_as(COUNTED[how], "z", method)),))
    model = make_remote(server.address).build(config("Signs", "x"))
    inner_call(model, torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]), method)
    assert server.learnt == []


@pytest.mark.parametrize("how", COUNTED)
def test_a_hostile_server_reads_no_count_inside_a_graph(
    how: str, curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    """The forward of the model is called directly, without a module call."""
    steps = (ModuleCall(path="graph_modules.outer", args=(X,), out="y"),)
    graph = GraphModel(Program(inputs=("x",), steps=steps, result=Ref("y")), {"outer": Outer()})
    server = curious(graph, (("graph_modules.outer", recorded_as(COUNTED[how], "z")),))
    model = make_remote(server.address).build(config("Signs", "x"))
    assert isinstance(model, GraphModel)
    inner_call(model, torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    assert server.learnt == []


def test_a_hostile_server_reads_no_decision_by_the_path_of_an_inner_call(
    curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    head = (op("torch.Tensor.max", X, out="v"), op("torch.Tensor.gt", Ref("v"), 0.5, out="c"))
    branches = [
        (*head, Guard(value=Ref("c"), outcome=outcome), ModuleCall(path=path, args=(X,), out="z"))
        for outcome, path in ((True, "first"), (False, "second"))
    ]
    server = curious(Outer(), tuple(("", recorded_as(branch, "z")) for branch in branches))
    model = make_remote(server.address).build(config("Signs", "x"))
    for x in (torch.ones(4, 3), torch.zeros(4, 3)):
        inner_call(model, x)
    assert server.learnt == []


def test_a_hostile_server_reads_no_decision_by_a_request_on_one_branch(
    curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    """The only known branch calls a block without a program; the other outcome has no program at all."""
    head = (op("torch.Tensor.max", X, out="v"), op("torch.Tensor.gt", Ref("v"), 0.5, out="c"))
    branch = (*head, Guard(value=Ref("c"), outcome=True), ModuleCall(path="first", args=(X,), out="z"))
    server = curious(Outer(), (("", recorded_as(branch, "z")),))
    model = make_remote(server.address).build(config("Signs", "x"))
    inner_call(model, torch.ones(4, 3))
    assert server.learnt == []


def test_a_hostile_server_reads_no_size_between_blocks_of_a_container(
    curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    """The outermost module is torch's own."""
    model = nn.Sequential(Outer(), Inner())
    steps = (*COUNTED["rows chosen by a mask"][:-1],)
    server = curious(model, (("0", recorded_as(steps, "y")),))
    built = make_remote(server.address).build(config("Signs", "x"))
    for module in (built, torch.compile(built, backend="eager")):
        inner_call(module, torch.eye(4, 3))
    assert server.learnt == []


class Lazy(Outer):
    """A block with a layer that gets its size at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.lazy = nn.LazyLinear(2, bias=False)


def number_of_x(out: str) -> tuple[OpCall, ...]:
    return (
        op("torch.Tensor.select", X, 0, 0, out="row"),
        op("torch.Tensor.select", Ref("row"), 0, 0, out="number"),
        op("torch.Tensor.long", Ref("number"), out="whole"),
        op("torch.Tensor.item", Ref("whole"), out=out),
    )


def test_a_hostile_server_stores_no_number_as_the_size_of_a_lazy_layer(
    curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    """The first call turns a number into a size; the second call passes the size to a block."""
    store = (*number_of_x("v"), op("torch.zeros", [1, Ref("v")], out="y"), ModuleCall(path="lazy", args=(Ref("y"),)))
    size = Size(Dim("attr:lazy.weight", 1))
    read = (op("torch.zeros", [size, 3], out="y"), CALL_FIRST)
    server = curious(Lazy(), (("", recorded_as(store, "x")), ("", recorded_as(read, "z", "encode"))))
    model = make_remote(server.address).build(config("Signs", "x"))
    model(torch.full((4, 3), 703.0))
    assert model.lazy.weight.shape == (2, 703)
    inner_call(model, torch.ones(4, 3), "encode")
    assert server.learnt == []


MEMORY: dict[str, tuple[OpCall, ...]] = {
    "empty": (OpCall(name="torch.empty", args=([4, 3],), kwargs={"device": "cpu"}, out="b"),),
    "new_empty": (OpCall(name="torch.Tensor.new_empty", args=(X, [4, 3]), kwargs={"device": "cpu"}, out="b"),),
    "empty_like": (OpCall(name="torch.empty_like", args=(X,), kwargs={"device": "cpu"}, out="b"),),
    "zeros": (OpCall(name="torch.zeros", args=([4, 3],), kwargs={"device": "cpu"}, out="b"),),
}


@pytest.mark.parametrize("how", MEMORY)
def test_a_hostile_server_reads_no_uninitialised_memory_in_a_replay(
    how: str, curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    """A value read in a replay could be a value of the call: memory is not cleared. A constant stands for the value."""
    steps = (
        *MEMORY[how],
        op("torch.Tensor.mul", Ref("b"), 0, out="zero"),
        op("torch.Tensor.nan_to_num", Ref("zero"), out="finite"),
        op("torch.Tensor.sum", Ref("finite"), out="number"),
        op("torch.Tensor.long", Ref("number"), out="whole"),
        op("torch.Tensor.item", Ref("whole"), out="v"),
        OpCall(name="torch.zeros", args=([Ref("v"), 3],), kwargs={"device": "cpu"}, out="y"),
        CALL_FIRST,
    )
    server = curious(Outer(), (("", recorded_as(steps, "z")),))
    model = make_remote(server.address).build(config("Signs", "x"))
    inner_call(model, torch.ones(4, 3))
    assert server.learnt == []


def choosing(path: str, *reads: tuple[str, str, Any]) -> RecordedProgram:
    return replace(recorded_as((ModuleCall(path=path, args=(X,), out="z"),), "z"), reads=reads)


@pytest.mark.parametrize("guess", ["secret", "other"])
@pytest.mark.parametrize("has_other", [True, False])
def test_a_hostile_server_guesses_no_attribute_by_the_path_of_an_inner_call(
    guess: str, has_other: bool, curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    """Neither the path of an inner call nor the mere request tells that a guess is right."""
    programs = [choosing("first", ("", "api_key", guess)), *([choosing("second")] if has_other else [])]
    server = curious(Outer(), tuple(("", program) for program in programs))
    model = make_remote(server.address).build(config("Signs", "x"))
    model.api_key = "secret"
    with pytest.raises(CallSignatureError, match=REMEDY):
        model(torch.ones(4, 3))
    assert server.learnt == []


def test_a_changed_attribute_chooses_no_inner_call(curious: Callable[..., Curious], make_remote: MakeRemote) -> None:
    """The server knows the built value; a request on the other program would tell that the trainer has set another."""
    model = Outer()
    model.first.append(nn.Dropout(0.25))
    reads = (("first.1", "p", 0.25), ("first", "_modules", ("0", "1")))
    server = curious(model, (("", choosing("first", *reads)), ("", choosing("second"))))
    built = make_remote(server.address).build(config("Signs", "x"))
    built.first[1].p = 0.703
    inner_call(built, torch.ones(4, 3))
    assert server.learnt == []
    built.first[1].p = 0.25
    with pytest.raises(ModelFactoryError):  # the hostile server answers with nothing
        built(torch.ones(4, 3))
    assert len(server.learnt) == 1, "attributes as built are no obstacle"


def doubling(method: str = "forward") -> RecordedProgram:
    return recorded_as((op("torch.Tensor.mul", X, 2, out="z"),), "z", method)


OTHER_ANSWERS: dict[str, list[tuple[str, RecordedProgram]]] = {
    "a sibling": [("first.0", doubling()), ("second.0", doubling())],
    "the owner": [("first.0", doubling()), ("", doubling())],
    "a path with the same beginning": [("first.0", doubling()), ("first.01", doubling())],
    "another method inside": [("first.0", doubling()), ("first.0.layer", doubling("encode"))],
    "only the inside": [("first.0.layer", doubling())],
}


@pytest.mark.parametrize("answer", OTHER_ANSWERS)
def test_a_hostile_server_sends_no_program_of_another_block(
    answer: str, curious: Callable[..., Curious], make_remote: MakeRemote
) -> None:
    """An answer to a call has programs of the called block and of the blocks inside, and no others."""
    server = curious(Outer(), ())
    model = make_remote(server.address).build(config("Signs", "x"))
    server.recorded = encode_programs(tuple(OTHER_ANSWERS[answer]))
    with pytest.raises(ServerError, match="programs of another module or method"):
        model.first(torch.ones(4, 3))
    server.recorded = encode_programs((("first.0", doubling()), ("first.0.layer", doubling())))
    assert_same(model.first(torch.ones(4, 3)), torch.full((4, 3), 2.0))


@pytest.mark.parametrize("directly", [False, True])
def test_inner_calls_that_follow_from_sizes_are_recorded(
    pair: Callable[..., tuple[nn.Module, nn.Module]], sent: list[program_pb2.RecordProgramRequest], *, directly: bool
) -> None:
    steps = [
        {"call": "module:first", "args": ["$x"], "out": "y"},
        {"call": "module:second", "args": ["$y"], "out": "z"},
    ]
    modules = {"first": {"_type_": "valued.Signs"}, "second": {"_type_": "valued.Dropped"}}
    graph = {"inputs": ["x"], "modules": modules, "steps": steps, "outputs": ["z"]}
    remote, local = pair({"config": {"schema_version": 1, "model": {"graph": graph}}})
    seen: list[Tensor] = []
    remote.graph_modules["first"].layer.register_forward_hook(lambda *items: seen.append(items[2]))
    x = torch.rand(5, 3)
    remote.eval()
    local.eval()
    assert_same(remote.forward(x) if directly else remote(x), local(x))
    assert [request.module_path for request in sent] == ["graph_modules.first", "graph_modules.second"]
    assert not any(item.is_meta for item in seen), "a replay runs no hooks of the trainer"
