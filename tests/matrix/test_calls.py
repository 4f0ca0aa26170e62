"""Calls of a rebuilt module beside calls of the original: names of arguments, kinds of arguments, tools that trace."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs, with_recorder
from model_factory.describe.declared_methods import declared_methods
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor
from model_factory.descriptor.rebuild import rebuild
from model_factory.errors import CallSignatureError, FormatError, NotPortableError
from model_factory.program.call_signature import OMITTED
from model_factory.program.codec.programs import decode_program
from model_factory.program.forward_signature import ForwardParameter, ForwardSignature
from model_factory.program.ir import Program, Ref
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.program_module import ProgramModule
from support.asserting import Asserts
from support.recording import InProcessRecorder, ask

WIDTH = 4

Model = tuple[nn.Module, nn.Module]


class Policy(nn.Module):
    portable_methods = ("encode",)

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, obs: Tensor, goal: Tensor | None = None, *, scale: float = 2.0) -> Tensor:
        y = self.linear(obs) * scale
        return y if goal is None else y + goal

    def encode(self, image: Tensor, twice: bool = False) -> Tensor:
        return self.linear(image) * (2 if twice else 1)

    def example_inputs(self) -> dict[str, list[dict[str, Any]]]:
        obs, goal = torch.zeros(2, WIDTH), torch.zeros(3, WIDTH)
        return {"forward": [{"obs": obs}, {"obs": goal, "goal": goal}], "encode": [{"image": obs}]}


class Parameters(nn.Module):
    """Every kind of parameter."""

    def forward(self, a: Tensor, /, b: Tensor, *more: Tensor, c: int = 3, **named: Tensor) -> Tensor:
        for item in (*more, *named.values()):
            b = b + item
        return a * c + b


class OwnDefault(nn.Module):
    """A default that is no plain data."""

    def forward(self, x: Tensor, act: Any = torch.relu, scale: float = 2.0) -> Tensor:
        return act(x) * scale

    def example_inputs(self) -> list[dict[str, Any]]:
        return [{"x": torch.zeros(2, 3)}]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    original = Policy()
    return original, rebuilt_with_programs(original)


def parameters_of(method: Any) -> list[tuple[str, Any, Any]]:
    return [(item.name, item.kind, item.default) for item in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize("method", ["forward", "encode"])
def test_signature_is_the_original_one(model: Model, method: str) -> None:
    original, rebuilt = model
    assert parameters_of(getattr(original, method)) == parameters_of(getattr(rebuilt, method))
    expected, found = (inspect.getfullargspec(getattr(module, method)) for module in model)
    assert expected.args == found.args
    assert getattr(rebuilt, method).__name__ == method


def test_every_kind_of_parameter_is_in_the_signature() -> None:
    assert parameters_of(rebuilt_elsewhere(Parameters()).forward) == parameters_of(Parameters().forward)


def test_bound_arguments_are_those_of_the_original(model: Model) -> None:
    original, rebuilt = model
    calls = [((1,), {}), ((1, 2), {}), ((), {"goal": 2, "obs": 1}), ((1,), {"scale": 3.0})]
    for args, kwargs in calls:
        expected, found = (inspect.signature(module.forward).bind(*args, **kwargs) for module in (original, rebuilt))
        assert expected.arguments == found.arguments


def test_class_has_the_name_of_the_original(model: Model) -> None:
    original, rebuilt = model
    assert type(rebuilt).__name__ == "Policy"
    assert repr(rebuilt) == repr(original)
    assert isinstance(rebuilt, ProgramModule)


def test_blocks_of_a_class_share_a_class() -> None:
    rebuilt = rebuilt_elsewhere(nn.Sequential(Policy(), Parameters(), Policy()))
    assert type(rebuilt[0]) is type(rebuilt[2])
    assert type(rebuilt[0]) is not type(rebuilt[1])


def test_copies_have_the_class_and_the_signature(model: Model) -> None:
    original, rebuilt = model
    x = torch.randn(5, WIDTH)
    file = io.BytesIO()
    torch.save(rebuilt, file)
    file.seek(0)
    copies = (
        *(copy.deepcopy(rebuilt), copy.copy(rebuilt), pickle.loads(pickle.dumps(rebuilt))),  # noqa: S301  our own bytes
        torch.load(file, weights_only=False),
    )
    for twin in copies:
        assert type(twin) is type(rebuilt)
        assert parameters_of(twin.encode) == parameters_of(original.encode)
        assert torch.equal(twin(obs=x), original(obs=x))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_shapes_by_name(model: Model, *, strict: bool) -> None:
    original, rebuilt = model
    batch = torch.export.Dim("batch")
    given = {"obs": torch.randn(5, WIDTH), "goal": torch.randn(5, WIDTH)}
    shapes = {"obs": {0: batch}, "goal": {0: batch}}
    exported = torch.export.export(rebuilt, (), given, dynamic_shapes=shapes, strict=strict)
    assert exported.graph_signature.user_inputs == ("obs", "goal")
    other = {name: torch.randn(7, WIDTH) for name in given}
    assert torch.equal(exported.module()(**other), original(**other))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_traces_take_arguments_by_name(model: Model) -> None:
    original, rebuilt = model
    x, other = torch.randn(5, WIDTH), torch.randn(7, WIDTH)
    traced = torch.jit.trace(rebuilt, example_kwarg_inputs={"obs": x})  # without a warning of the tracer
    assert torch.equal(traced(obs=other), original(other))
    assert torch.equal(torch.jit.trace_module(rebuilt, {"encode": x}).encode(other), original.encode(other))


def test_compiled_methods_take_arguments_by_name(model: Model) -> None:
    original, rebuilt = model
    x = torch.randn(5, WIDTH)
    compiled = torch.compile(rebuilt, backend="eager", fullgraph=True)
    assert torch.equal(compiled(obs=x, scale=2.0), original(x))
    assert torch.equal(torch.compile(rebuilt.encode, backend="eager", fullgraph=True)(image=x), original.encode(x))


def test_default_that_is_no_plain_data_is_the_original_one() -> None:
    original = OwnDefault()
    rebuilt = rebuilt_with_programs(original)
    x = torch.randn(4, 3)
    assert list(inspect.signature(rebuilt.forward).parameters) == ["x", "act", "scale"]
    assert inspect.signature(rebuilt.forward).bind(x).arguments == {"x": x}
    assert inspect.signature(rebuilt.forward).parameters["act"].default is OMITTED
    assert torch.equal(rebuilt(x), original(x))
    assert torch.equal(pickle.loads(pickle.dumps(rebuilt))(x, scale=2.0), original(x))  # noqa: S301  our own bytes


class Sequence(nn.Module):
    """Reads a size, an index and its own table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, WIDTH)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return (x + self.table(index)).reshape(x.shape[0] * x.shape[1], -1) / x.shape[1]


@pytest.fixture
def unrecorded() -> tuple[nn.Module, nn.Module, InProcessRecorder]:
    return with_recorder(Sequence)


def sequences(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, length, WIDTH), torch.randint(0, 9, (batch, length))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_a_trace_records_the_missing_program_first(unrecorded: tuple[nn.Module, nn.Module, InProcessRecorder]) -> None:
    original, rebuilt, recorder = unrecorded
    traced = torch.jit.trace(rebuilt, sequences(3, 5))
    assert recorder.calls == 1
    given = sequences(2, 7)
    assert torch.equal(traced(*given), original(*given))


def test_an_export_records_the_missing_program_first(
    unrecorded: tuple[nn.Module, nn.Module, InProcessRecorder],
) -> None:
    original, rebuilt, recorder = unrecorded
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    exported = torch.export.export(rebuilt, sequences(3, 5), dynamic_shapes={"x": sizes, "index": sizes})
    assert recorder.calls == 1
    given = sequences(2, 7)
    assert torch.equal(exported.module()(*given), original(*given))


def test_one_graph_without_a_program_says_so(unrecorded: tuple[nn.Module, nn.Module, InProcessRecorder]) -> None:
    original, rebuilt, recorder = unrecorded
    compiled = torch.compile(rebuilt, backend="eager", fullgraph=True)
    for trace in (
        lambda: compiled(*sequences(3, 5)),
        lambda: torch.export.export(rebuilt, sequences(3, 5), strict=True),
    ):
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"has no program yet.*make the same call once before"):
            trace()
    assert recorder.calls == 0
    given = sequences(2, 7)
    rebuilt(*given)
    assert torch.equal(compiled(*given), original(*given))
    assert recorder.calls == 1


def graph(*inputs: str) -> GraphModel:
    return GraphModel(Program(inputs=inputs, steps=(), result=Ref(inputs[-1])), {})


def test_graph_has_the_inputs_as_parameters() -> None:
    original = graph("obs", "goal")
    for model in (original, rebuilt_elsewhere(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):  # noqa: S301
        assert isinstance(model, GraphModel)
        assert type(model).__name__ == "GraphModel"
        assert list(inspect.signature(model.forward).parameters) == ["obs", "goal"]
        assert model(goal=2, obs=1) == 2
    exported = torch.export.export(original, (torch.ones(2), torch.ones(3)), dynamic_shapes={"obs": None, "goal": None})
    assert exported.graph_signature.user_inputs == ("obs", "goal")


def test_graph_with_an_input_named_by_a_keyword_of_python_runs() -> None:
    assert graph("lambda")(5) == 5
    assert graph("lambda")(**{"lambda": 5}) == 5


def test_graph_with_an_input_named_self_runs() -> None:
    assert list(inspect.signature(graph("self", "x").forward).parameters) == ["self", "x"]


@pytest.mark.parametrize(
    "parameters",
    [
        [["a b", "positional", True, None]],
        [["x", "positional", True, None], ["x", "keyword", True, None]],
        [["x", "keyword", True, None], ["y", "positional", True, None]],
        [["x", "positional", False, None], ["y", "positional", True, None]],
        [["lambda", "keyword", True, None]],
    ],
)
def test_parameters_that_python_refuses_are_refused(parameters: list[Any]) -> None:
    signature = ForwardSignature(tuple(ForwardParameter(*item) for item in parameters))
    with pytest.raises(FormatError, match="impossible parameters"):
        ProgramModule("Policy", signature, "", None, ())


@pytest.mark.parametrize("name", ["train", "__len__", "a b", "forward", "__class__", "_initialise"])
def test_methods_with_a_name_of_python_or_of_modules_are_refused(name: str) -> None:
    descriptor = describe(Policy())
    hostile = encode_descriptor(descriptor).replace(b'"encode"', f'"{name}"'.encode())
    with pytest.raises(FormatError, match="method"):
        _rebuild(hostile)


def _rebuild(document: bytes) -> nn.Module:
    tensors = {f"linear.{name}": item for name, item in nn.Linear(WIDTH, WIDTH).state_dict().items()}
    return rebuild(decode_descriptor(document), tensors)


def test_a_class_cannot_declare_a_method_of_python() -> None:
    class Sized(nn.Module):
        portable_methods = ("__len__",)

        def __len__(self) -> int:
            return 1

    with pytest.raises(NotPortableError, match="a name that rebuilt modules have already"):
        declared_methods(Sized(), "the model")


def test_an_assert_of_values_is_part_of_one_graph() -> None:
    original, rebuilt = Asserts(), rebuilt_with_programs(Asserts())
    x = torch.randn(4, 3)
    for module in (original, rebuilt):
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), x * 2)
        with pytest.raises(RuntimeError):
            compiled(x - 200)
    assert torch.equal(rebuilt(x), x * 2)
    ask(rebuilt, InProcessRecorder(Asserts))
    with pytest.raises(CallSignatureError, match="x is too small"):
        rebuilt(x - 200)


@pytest.mark.parametrize("args", [[True, False], [True, 1], [True]])
def test_an_impossible_assert_is_refused(args: list[Any]) -> None:
    step = {"call": "guard:assert", "args": args, "kwargs": [], "out": ""}
    with pytest.raises(FormatError, match="unknown kind"):
        decode_program({"inputs": ["x"], "steps": [step], "result": None})
