"""What a hostile server could do to a trainer that only builds and calls: by sizes, by programs, by words."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import FormatError, GraphExecutionError, RemoteModelFactory, StoreError
from model_factory.client.connection import Connection
from model_factory.client.fetch import fetch_blob
from model_factory.describe.describe import describe
from model_factory.descriptor.codec import decode_descriptor, decode_programs, encode_descriptor, encode_programs
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.weights import write_weights
from model_factory.documents import FORMAT
from model_factory.program.ir import ModuleCall, OpCall, Program, Ref, TorchConst
from model_factory.program.runtime.graph_model import GraphModel
from model_factory.program.runtime.interpreter import Runner
from model_factory.store import Blob, Store
from model_factory.v1 import build_pb2
from support.configs import layers
from support.hostile_server import HostileServer

IDENTITY = layers({"_type_": "nn.Identity"})
HUGE = 1 << 50

Start = Callable[[nn.Module], "LyingServer"]


class LyingServer(HostileServer):
    """Serves a model, and lies about how large a part of it is."""

    def __init__(self, model: nn.Module) -> None:
        weights = io.BytesIO()
        write_weights(weights, {name: tensor.detach() for name, tensor in model.state_dict().items()})
        super().__init__(encode_descriptor(describe(model)), weights.getvalue(), encode_programs(()), {})
        self.huge = ""
        """The part whose size is a lie."""
        self.stage = 0
        """What it says to be at before the build is done; 0: nothing."""

    def BuildModels(self, request: Any, context: Any) -> Iterator[build_pb2.BuildModelsResponse]:  # noqa: N802
        if self.stage:
            progress = build_pb2.BuildProgress(component="model", stage=self.stage)  # type: ignore[arg-type]
            yield build_pb2.BuildModelsResponse(progress=progress)
        for answer in super().BuildModels(request, context):
            if self.huge:
                getattr(answer.manifest.components[0], self.huge).size_bytes = HUGE
            yield answer


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[LyingServer] = []

    def serve(model: nn.Module) -> LyingServer:
        started.append(LyingServer(model))
        return started[-1]

    yield serve
    for server in started:
        server.close()


@pytest.mark.parametrize("part", ["descriptor", "programs", "weights"])
def test_a_size_that_is_a_lie_makes_nothing_go_from_the_cache(part: str, start: Start, tmp_path: Path) -> None:
    server = start(nn.Linear(2, 3))
    server.huge = part
    kept = Store(tmp_path).put(os.urandom(1000))
    with pytest.raises(FormatError, match=f"of {HUGE} bytes"):
        RemoteModelFactory(server.address, cache_dir=tmp_path).build({"config": IDENTITY})
    assert Store(tmp_path).find(kept) is not None
    assert not any(server.blobs[digest] == getattr(server, part) for digest in server.asked)
    server.huge = ""
    assert isinstance(RemoteModelFactory(server.address, cache_dir=tmp_path).build({"config": IDENTITY}), nn.Linear)


def test_a_blob_that_never_fits_is_not_begun(start: Start, tmp_path: Path) -> None:
    server = start(nn.Linear(2, 3))
    cache = Store(tmp_path, max_bytes=2000)
    kept = cache.put(os.urandom(1000))
    with pytest.raises(StoreError, match="do not fit"):
        fetch_blob(Connection(server.address), cache, Blob("ab" * 32, HUGE))
    assert cache.find(kept) is not None
    assert server.asked == []
    assert not list((tmp_path / "staging").iterdir())


def test_a_stage_of_a_later_server_is_no_error(start: Start, tmp_path: Path) -> None:
    server = start(nn.Linear(2, 3))
    server.stage = 99
    assert isinstance(RemoteModelFactory(server.address, cache_dir=tmp_path).build({"config": IDENTITY}), nn.Linear)


def run(op: str, *args: Any, values: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """Run one op of the table as a program does, over named values."""
    values = values or {}
    program = Program(
        inputs=tuple(values), steps=(OpCall(name=op, args=args, kwargs=kwargs, out="y"),), result=Ref("y")
    )
    return Runner(program).run(nn.Identity(), list(values.values()))


def rebuilt(module: nn.Module) -> nn.Module:
    """Return the module as a client makes it."""
    return rebuild(describe(module), module.state_dict(), ())


PROBABILITIES = torch.randn(50, 1, 20).log_softmax(2)


@pytest.mark.parametrize("target", [10**9, 20, -1, -3000])
@pytest.mark.parametrize("as_module", [False, True])
def test_targets_of_a_ctc_loss_that_are_no_classes(target: int, as_module: bool) -> None:
    """The kernel reads, and writes gradients, where they point."""
    targets = torch.full((1, 10), target)
    values = {"p": PROBABILITIES, "t": targets}
    args = (Ref("p"), Ref("t"), (50,), (10,))
    by_module = ModuleCall(path="loss", args=args, out="y")
    by_op = OpCall(name="torch.nn.functional.ctc_loss", args=args, out="y")
    program = Program(inputs=tuple(values), steps=(by_module if as_module else by_op,), result=Ref("y"))
    module = rebuilt(nn.ModuleDict({"loss": nn.CTCLoss()}))
    with pytest.raises(GraphExecutionError, match="classes, 0 to 19"):
        Runner(program).run(module, list(values.values()))
    targets.clamp_(1, 19)
    assert Runner(program).run(module, list(values.values())).isfinite()


@pytest.mark.parametrize("offsets", [[0, -50_000_000], [0, 7], [-1, 2], [0, 3, 1]])
@pytest.mark.parametrize("as_module", [False, True])
def test_offsets_of_an_embedding_bag_outside_its_input(offsets: list[int], as_module: bool) -> None:
    module = rebuilt(nn.ModuleDict({"bag": nn.EmbeddingBag(5, 3, mode="sum")}))
    tokens, weights = torch.tensor([1, 2, 3, 4]), torch.ones(4)
    by_module = ModuleCall(path="bag", args=(Ref("x"), Ref("o"), Ref("w")), out="y")
    by_op = OpCall(
        name="torch.nn.functional.embedding_bag",
        args=(Ref("x"), Ref("table"), Ref("o")),
        kwargs={"mode": "sum", "per_sample_weights": Ref("w")},
        out="y",
    )
    inputs = ("x", "o", "w", "table")
    program = Program(inputs=inputs, steps=(by_module if as_module else by_op,), result=Ref("y"))
    table = module.get_parameter("bag.weight")
    with pytest.raises(GraphExecutionError, match="offsets"):
        Runner(program).run(module, [tokens, torch.tensor(offsets), weights, table])
    assert Runner(program).run(module, [tokens, torch.tensor([0, 2]), weights, table]).shape == (2, 3)


@pytest.mark.parametrize("op", ["torch.linalg.eig", "torch.linalg.eigvals"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_eigenvalues_of_what_is_not_finite(op: str, number: float) -> None:
    with pytest.raises(GraphExecutionError, match="finite"):
        run(op, Ref("x"), values={"x": torch.full((8, 8), number, dtype=torch.complex64)})
    run(op, Ref("x"), values={"x": torch.eye(8, dtype=torch.complex64)})


@pytest.mark.parametrize("name", ["_mkldnn", "sparse_coo", "sparse_csr", "qint8", "bits8", "float4_e2m1fn_x2", "load"])
def test_layouts_and_dtypes_whose_kernels_trust_their_arguments(name: str) -> None:
    with pytest.raises(FormatError, match="may be named"):
        run("torch.empty", [8, 8], layout=TorchConst(name))


def test_a_program_has_no_name_for_what_its_run_keeps() -> None:
    """Else it could have an object that the trainer passed called, or its attributes read."""
    called: list[Any] = []
    for name in ("<self>", "<device>"):
        program = Program(
            inputs=("fn",),
            steps=(
                OpCall(name="identity", args=(Ref("fn"),), out=name),
                ModuleCall(path="", args=(1,), out="z"),
            ),
            result=Ref("z"),
        )
        with pytest.raises((GraphExecutionError, RecursionError)):
            GraphModel(program, {})(called.append)
    assert called == []


def recorded(**changes: Any) -> bytes:
    """A set of one program, for the identity of one matrix."""
    entry = {
        "call_signature": [["x", {"tensor": 2}]],
        "training": [],
        "dtypes": [],
        "size_conditions": [],
        "reads": [],
        "absent": [],
        "shared": [],
        "inlined": [],
        "modes": [],
        "program": {"inputs": ["x"], "steps": [], "result": {"ref": "x"}},
        "method": "forward",
    }
    return json.dumps({"format": FORMAT, "programs": [{"paths": [""], "recorded": entry | changes}]}).encode()


def block(programs: bytes) -> nn.Module:
    node = {"kind": "program", "type": "Block", "training": True, "attributes": [], "children": [], "parameters": []}
    node |= {"buffers": [], "signature": [["x", "positional", True, None]], "frozen": []}
    document = {"format": FORMAT, "modules": [node], "tensors": []}
    return rebuild(decode_descriptor(json.dumps(document).encode()), {}, decode_programs(programs))


@pytest.mark.parametrize(
    "size",
    [
        {"op": ["pow", 10, {"op": ["pow", 10, 10]}]},
        {"op": ["mul", *[2**31] * 60]},
        {"op": ["floordiv", 1, 0]},
        {"op": ["sqrt", -1]},
        {"op": ["add"]},
        {"dim": ["x", 99]},
        {"op": ["pow", 10.0, 1000]},
    ],
    ids=lambda size: str(size)[:30],
)
def test_a_size_that_has_no_end_or_no_value(size: Any) -> None:
    as_result = {"inputs": ["x"], "steps": [], "result": {"size": size}}
    for programs in (recorded(program=as_result), recorded(size_conditions=[{"op": ["gt", size, 0]}])):
        with pytest.raises(FormatError, match="cannot be computed"):
            block(programs)(torch.ones(2, 3))
    assert torch.equal(block(recorded())(torch.ones(2, 3)), torch.ones(2, 3))


@pytest.mark.parametrize(
    "condition", [{"size_conditions": [{"dim": ["z", 0]}]}, {"dtypes": [["z", "float32"]]}], ids=str
)
def test_a_condition_on_what_is_no_argument(condition: Any) -> None:
    with pytest.raises(FormatError, match="condition on 'z'"):
        block(recorded(**condition))
