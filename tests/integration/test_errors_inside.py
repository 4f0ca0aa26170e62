"""An exception raised inside a model reaches the trainer as in process: the same object, with the step as a note."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from model_factory import GraphExecutionError, GraphModel, RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.server import ServerProcess

# A real torch layer, a custom block whose forward is a program, an op.
CONFIG: dict[str, Any] = {
    "schema_version": 1,
    "model": {
        "graph": {
            "inputs": ["x"],
            "modules": {
                "linear": {"_type_": "nn.Linear", "in_features": 6, "out_features": 6},
                "block": {"_type_": "mlp", "dims": [6, 5, 6]},
            },
            "steps": [
                {"call": "module:linear", "args": ["$x"], "out": "h"},
                {"call": "module:block", "args": ["$h"], "out": "z"},
                {"call": "op:add", "args": ["$z", "$x"], "out": "y"},
            ],
            "outputs": ["y"],
        }
    },
}
STEPS = {"linear": "step 0 (module:linear)", "block": "step 1 (module:block)"}


class _CustomError(Exception):
    def __init__(self, code: int, *, hint: str) -> None:  # which nothing could make again from its text
        super().__init__(code)
        self.hint = hint


class _CustomStop(BaseException):
    pass


@dataclasses.dataclass(frozen=True)
class _FrozenError(Exception):
    code: int


class _OwnTextError(RuntimeError):
    def __str__(self) -> str:
        return "CUDA out of memory, says a subclass"


RAISED: dict[str, Callable[[], BaseException]] = {
    "RuntimeError": lambda: RuntimeError("CUDNN_STATUS_NOT_SUPPORTED"),
    "OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CPU memory": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "ValueError": lambda: ValueError("stop here"),
    "TypeError": lambda: TypeError("no"),
    "IndexError": lambda: IndexError("index out of range in self"),
    "KeyError": lambda: KeyError("k"),
    "AssertionError": lambda: AssertionError("shape"),
    "NotImplementedError": lambda: NotImplementedError("later"),
    "AttributeError": lambda: AttributeError("nope"),
    "FloatingPointError": lambda: FloatingPointError("nan"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    "StopIteration": lambda: StopIteration(3),
    "StopAsyncIteration": StopAsyncIteration,
    "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError("a"), TypeError("b")]),
    "custom": lambda: _CustomError(7, hint="h"),
    "frozen": lambda: _FrozenError(7),
    "own text": lambda: _OwnTextError("x"),
    "custom stop": lambda: _CustomStop("stop"),
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
    "GeneratorExit": GeneratorExit,
}


@pytest.fixture(scope="module")
def remote_model(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    with RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path_factory.mktemp("errors")) as factory:
        return one(factory.build({"config": CONFIG}))


@pytest.fixture(scope="module")
def local_model() -> nn.Module:
    return one(PolicyConstructorModelFactory(seed=7).build({"config": CONFIG}))


@pytest.fixture(params=["remote", "local"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return copy.deepcopy(request.getfixturevalue(f"{request.param}_model"))


def one(model: Any) -> nn.Module:
    assert isinstance(model, GraphModel)
    return model


class _Raises(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Any) -> Any:
        raise self.error


def _arm(model: nn.Module, place: str, name: str, error: BaseException) -> None:
    """Have a child of the graph, or a child of that child, raise."""
    child = model.graph_modules[name]

    def hook(*_: Any) -> None:
        raise error

    if place == "forward hook":
        child.register_forward_hook(hook)
    elif place == "pre-hook":
        child.register_forward_pre_hook(hook)
    elif place == "replaced child":
        model.graph_modules[name] = _Raises(error)
    else:  # a layer inside a block, called by the block's program
        next(module for module in child.modules() if isinstance(module, nn.Linear)).register_forward_hook(hook)


def caught_from(call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001  the test looks at whatever was raised
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("name", ["linear", "block"])
@pytest.mark.parametrize("place", ["forward hook", "pre-hook", "replaced child", "layer hook"])
@pytest.mark.parametrize("kind", RAISED)
def test_the_very_exception_arrives_with_its_step(kind: str, place: str, name: str, model: nn.Module) -> None:
    error = RAISED[kind]()
    before = (type(error), str(error), repr(error), error.args, error.__cause__)
    _arm(model, place, name, error)
    notes = []
    for _ in range(3):  # the step is named once, however often the same object is raised
        assert caught_from(lambda: model(torch.ones(2, 6))) is error
        notes.append(list(getattr(error, "__notes__", ())))
    assert (type(error), str(error), repr(error), error.args, error.__cause__) == before
    assert notes == [[f"in {STEPS[name]} of a graph"]] * 3


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 7)])
def test_an_op_with_wrong_sizes_raises_what_torch_raises(
    shape: tuple[int, ...], remote_model: nn.Module, local_model: nn.Module
) -> None:
    x = torch.ones(shape)
    expected = caught_from(lambda: nn.functional.linear(x, local_model.graph_modules["linear"].weight))
    for model in (remote_model, local_model):
        error = caught_from(lambda model=model: model(x))
        assert type(error) is type(expected) is RuntimeError
        assert str(error) == str(expected)
        assert error.__notes__ == ["in step 0 (module:linear) of a graph"]


def test_a_step_that_is_an_op_is_named(model: nn.Module) -> None:
    model.graph_modules["block"] = nn.Linear(6, 4)
    with pytest.raises(RuntimeError, match="must match the size") as caught:
        model(torch.ones(2, 6))
    assert caught.value.__notes__ == ["in step 2 (op:add) of a graph"]


def test_each_graph_of_nested_ones_names_its_step(model: nn.Module) -> None:
    outer = one(PolicyConstructorModelFactory(seed=7).build({"config": CONFIG}))
    outer.graph_modules["block"] = model
    error = RuntimeError("inside")
    _arm(model, "forward hook", "linear", error)
    assert caught_from(lambda: outer(torch.ones(2, 6))) is error
    assert error.__notes__ == ["in step 0 (module:linear) of a graph", "in step 1 (module:block) of a graph"]


def test_what_the_graph_itself_refuses_is_an_error_of_the_graph(model: nn.Module) -> None:
    for call in (model, lambda: model(1, 2), lambda: model(y=1)):
        assert type(caught_from(call)) is GraphExecutionError
    del model.graph_modules["linear"]
    with pytest.raises(GraphExecutionError, match=r"^step 0 \(module:linear\): the module has no child"):
        model(torch.ones(2, 6))


# Copies of what libraries do with the errors of a model.


def _is_oom_of_accelerate(error: BaseException) -> bool:
    """``accelerate.utils.memory.should_reduce_batch_size``."""
    texts = ["out of memory.", "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.", "DefaultCPUAllocator: can't allocate memory"]
    return isinstance(error, RuntimeError) and len(error.args) == 1 and any(text in error.args[0] for text in texts)


def _is_oom_of_lightning(error: BaseException) -> bool:
    """``lightning.pytorch.utilities.memory.is_oom_error``."""
    return (
        isinstance(error, RuntimeError)
        and len(error.args) == 1
        and (("CUDA" in error.args[0] and "out of memory" in error.args[0]) or "DefaultCPUAllocator" in error.args[0])
    )


@pytest.mark.parametrize("kind", ["OutOfMemoryError", "CPU memory"])
def test_out_of_memory_is_found(kind: str, model: nn.Module) -> None:
    _arm(model, "forward hook", "block", RAISED[kind]())
    error = caught_from(lambda: model(torch.ones(2, 6)))
    assert _is_oom_of_accelerate(error)
    assert _is_oom_of_lightning(error)
    assert isinstance(error, torch.OutOfMemoryError) == (kind == "OutOfMemoryError")


def test_an_executable_batch_size_is_found(model: nn.Module) -> None:
    """As ``accelerate.utils.find_executable_batch_size`` halves it."""

    def refuse_large(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model.graph_modules["block"].register_forward_pre_hook(refuse_large)
    batch = 32
    while True:
        try:
            model(torch.ones(batch, 6))
            break
        except Exception as error:
            if not _is_oom_of_accelerate(error):
                raise
            batch //= 2
    assert batch == 4


def test_a_calibration_catcher_gets_the_inputs(model: nn.Module) -> None:
    """As GPTQ-like quantisers replace the first layer by one that notes its input and stops with a ``ValueError``."""
    seen: list[torch.Tensor] = []

    class Catcher(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            raise ValueError

    model.graph_modules["block"] = Catcher()
    for _ in range(3):
        try:
            model(torch.ones(2, 6))
        except ValueError:
            continue
        raise AssertionError("the catcher's error was another one")
    assert len(seen) == 3


def test_a_checkpointed_model_computes_the_same(model: nn.Module) -> None:
    """Checkpointing stops its second forward with an exception of its own."""
    x = torch.ones(2, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    (found,) = torch.autograd.grad(checkpoint.checkpoint(model, x, use_reentrant=False).sum(), x)
    assert found.equal(expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_model_computes_the_same_and_raises_the_childs_own_error(model: nn.Module) -> None:
    x = torch.ones(2, 6)
    assert torch.compile(model, backend="eager", fullgraph=True)(x).equal(model(x))
    error = _CustomError(3, hint="h")
    _arm(model, "replaced child", "block", error)
    torch._dynamo.reset()
    found = caught_from(lambda: torch.compile(model, backend="eager")(x))
    assert isinstance(found, _CustomError)
