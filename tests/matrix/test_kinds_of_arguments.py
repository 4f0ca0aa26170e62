"""Kinds of arguments that a rebuilt module takes as the original does: arrays, records, objects of public packages."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensordict
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from matrix.portability import rebuilt_elsewhere, rebuilt_with_programs, with_recorder
from model_factory.errors import CallSignatureError, FormatError, NotPortableError
from model_factory.program.call_signature import call_signature, call_signature_text, without_values
from model_factory.program.codec.signatures import decode_call_signature, encode_call_signature
from model_factory.program.example_call import decode_call, encode_call, encode_call_without_values
from model_factory.program.runtime.named_results import Record, RecordTuple
from model_factory_server.export.record.recorder import record
from support.compare import assert_same
from support.recording import InProcessRecorder, ask

WIDTH = 4
FROM_NUMPY = torch.from_numpy  # as `from torch import from_numpy`


@dataclasses.dataclass
class Batch:
    obs: Tensor
    goal: Tensor | None = None
    count: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Nested:
    batch: Batch
    scale: Tensor


class Pair(NamedTuple):
    mean: Tensor
    std: Tensor


class Trainers(NamedTuple):
    """A named tuple of the trainer's own."""

    mean: Tensor
    std: Tensor


@dataclasses.dataclass
class TrainersBatch:
    """A dataclass of the trainer's own."""

    obs: Tensor
    goal: Tensor | None = None
    count: int = 1


class TakesBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, batch: Batch) -> Tensor:
        if not isinstance(batch, Batch):
            raise TypeError
        y: Tensor = self.linear(batch.obs)
        return y if batch.goal is None else y * batch.goal


class TakesNested(TakesBatch):
    def forward(self, nested: Nested | None) -> Any:  # type: ignore[override]
        assert type(nested) is Nested
        return super().forward(nested.batch) * nested.scale, dataclasses.replace(nested.batch, goal=nested.scale)


class TakesPair(TakesBatch):
    def forward(self, pair: Pair) -> Pair:  # type: ignore[override]
        assert type(pair) is Pair
        return Pair(self.linear(pair.mean) + pair.std, pair[1])


class TakesAnything(TakesBatch):
    def forward(self, batch: Any) -> Tensor:
        return self.linear(batch.obs) * (2 if batch.goal is None else batch.goal)  # type: ignore[no-any-return]


class TakesArray(TakesBatch):
    def forward(self, x: Any, gain: Any = 1.0) -> Tensor:  # type: ignore[override]
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(x)
        x = x.to(self.linear.weight.dtype)
        return self.linear(x.reshape(-1, x.shape[-1])) * gain  # type: ignore[no-any-return]


class CopiesOnce(nn.Module):
    """Writes to a copy of an array."""

    def forward(self, x: Any) -> Tensor:
        return torch.tensor(x).add_(1)


class Copies(TakesBatch):
    def forward(self, x: Any) -> Any:  # type: ignore[override]
        assert x.dtype == np.float32
        assert x.ndim == 2
        y = torch.tensor(x, dtype=torch.float32) + torch.as_tensor(x, dtype=torch.float32)
        return self.linear(y), torch.asarray(x) * x.size


class TakesSize(TakesBatch):
    def forward(self, x: Tensor, size: Any) -> Tensor:  # type: ignore[override]
        return self.linear(x).expand(size)  # type: ignore[no-any-return]


class Unannotated(TakesBatch):
    def forward(self, state):  # type: ignore[no-untyped-def]
        return self.linear(state["obs"]) + state.goal


def obs(rows: int = 3) -> Tensor:
    return torch.randn(rows, WIDTH)


Make = Callable[[int], Any]
CALLS: dict[str, tuple[type[nn.Module], Make, Make]] = {
    # the module, the arguments of the original, the arguments of a trainer
    "dataclass": (TakesBatch, lambda n: (Batch(obs(n), obs(n)),), lambda n: (TrainersBatch(obs(n), obs(n)),)),
    "dataclass with None": (TakesBatch, lambda n: (Batch(obs(n)),), lambda n: (TrainersBatch(obs(n)),)),
    "dataclass without a class": (TakesAnything, lambda n: (Batch(obs(n)),), lambda n: (TrainersBatch(obs(n)),)),
    "record in place of a dataclass": (
        TakesBatch,
        lambda n: (Batch(obs(n), obs(n)),),
        lambda n: (Record({"obs": obs(n), "goal": obs(n), "count": 1}),),
    ),
    "namespace in place of a dataclass": (
        TakesBatch,
        lambda n: (Batch(obs(n)),),
        lambda n: (types.SimpleNamespace(obs=obs(n), goal=None, count=1),),
    ),
    "nested dataclasses": (
        TakesNested,
        lambda n: (Nested(Batch(obs(n)), obs(n)),),
        lambda n: (types.SimpleNamespace(batch=TrainersBatch(obs(n)), scale=obs(n)),),
    ),
    "named tuple": (TakesPair, lambda n: (Pair(obs(n), obs(n)),), lambda n: (Trainers(obs(n), obs(n)),)),
    "result with names": (
        TakesPair,
        lambda n: (Pair(obs(n), obs(n)),),
        lambda n: (RecordTuple(("mean", "std"), (obs(n), obs(n))),),
    ),
    "record": (Unannotated, *[lambda n: (Record({"obs": obs(n), "goal": obs(n)}),)] * 2),
    "array": (TakesArray, lambda n: (obs(n).numpy(),), lambda n: (obs(n).numpy(),)),
    "array of doubles": (TakesArray, lambda n: (obs(n).double().numpy(),), lambda n: (obs(n).double().numpy(),)),
    "array of integers": (TakesArray, *[lambda n: (np.arange(n * WIDTH).reshape(n, WIDTH),)] * 2),
    "array of three axes": (TakesArray, lambda n: (np.ones((n, 2, WIDTH)),), lambda n: (np.ones((n, 2, WIDTH)),)),
    "copied array": (Copies, lambda n: (obs(n).numpy(),), lambda n: (obs(n).numpy(),)),
    "part of an array": (Copies, lambda n: (obs(n).numpy()[::2],), lambda n: (obs(n).numpy()[::2],)),
    "scalar": (TakesArray, lambda n: (obs(n), np.float32(0.1)), lambda n: (obs(n), np.float32(0.1))),
    "double": (TakesArray, lambda n: (obs(n), np.float64(0.1)), lambda n: (obs(n), np.float64(0.1))),
    "integer": (TakesArray, lambda n: (obs(n), np.int64(3)), lambda n: (obs(n), np.int64(3))),
    "truth": (TakesArray, lambda n: (obs(n), np.bool_(True)), lambda n: (obs(n), np.bool_(True))),
    "size": (TakesSize, lambda n: (obs(1), torch.Size((n, WIDTH))), lambda n: (obs(1), torch.Size((n, WIDTH)))),
}  # fmt: skip


def plain(value: Any) -> Any:
    """Return a result as a rebuilt module returns it: without classes."""
    if dataclasses.is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Record):
        return {name: plain(item) for name, item in value.fields().items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("case", CALLS)
def test_call_is_the_one_of_the_original(case: str) -> None:
    make, own, trainers = CALLS[case]
    original, remote, recorder = with_recorder(make)
    for rows in (3, 5):
        results = []
        for module, arguments in ((original, own), (remote, trainers)):
            torch.manual_seed(rows)
            result = module(*arguments(rows))
            sum(item.sum() for item in _tensors(result) if item.requires_grad).backward()
            results.append(plain(result))
        assert_same(results[0], results[1], case)
        assert_same(original.linear.weight.grad, remote.linear.weight.grad)
    assert recorder.calls == (2 if case == "size" else 1)


def _tensors(value: Any) -> list[Tensor]:
    return [item for item in torch.utils._pytree.tree_leaves(plain(value)) if isinstance(item, Tensor)]


def test_examples_keep_their_classes() -> None:
    class WithExamples(TakesNested):
        def example_inputs(self) -> list[dict[str, Any]]:
            return [{"nested": Nested(Batch(obs(2), obs(2)), obs(2))}]

    original = WithExamples()
    remote = rebuilt_with_programs(original)
    given = Nested(Batch(obs(5), obs(5)), obs(5))
    assert_same(plain(original(given)), plain(remote(given)))


def test_array_shares_memory_and_gets_no_gradient() -> None:
    class Adds(nn.Module):
        def forward(self, x: Any) -> Tensor:
            return torch.from_numpy(x).add_(1) * 2

    original, remote = Adds(), rebuilt_elsewhere(Adds())
    ask(remote, InProcessRecorder(Adds))
    arrays = [np.ones(3, np.float32), np.ones(3, np.float32)]
    assert torch.equal(original(arrays[0]), remote(arrays[1]))
    assert not remote(arrays[1]).requires_grad
    assert (arrays[1] == 3).all()


def test_a_copy_of_an_array_shares_no_memory() -> None:
    remote = rebuilt_elsewhere(CopiesOnce())
    ask(remote, InProcessRecorder(CopiesOnce))
    array = np.ones(3, np.float32)
    assert torch.equal(remote(array), torch.full((3,), 2.0))
    assert (array == 1).all()


def test_values_in_records_are_part_of_the_call() -> None:
    class Counts(nn.Module):
        def forward(self, batch: Batch) -> Tensor:
            return batch.obs * batch.count

    original, remote = Counts(), rebuilt_elsewhere(Counts())
    recorder = InProcessRecorder(Counts)
    ask(remote, recorder)
    for count in (1, 3, 3):
        given = TrainersBatch(obs(), count=count)
        assert torch.equal(original(given), remote(given))
    assert recorder.calls == 2


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda _self, x: torch.from_numpy(x + 1), "computes with a NumPy array"),
        (lambda _self, x: torch.from_numpy(np.square(x)), "computes with a NumPy array"),
        (lambda _self, x: torch.ones(2) * float(x[0, 0]), "computes with a NumPy array"),
        (lambda _self, x: torch.from_numpy(np.stack([x])), "computes with a NumPy array"),
        (lambda _self, x: torch.ones(2) * x.mean(), "computes with a NumPy array"),
        (lambda _self, x: torch.from_numpy(np.asarray(x)) * 2, "computes with a NumPy array"),
        (lambda _self, x: FROM_NUMPY(np.asarray(x, np.float32)) * 2, "computes with a NumPy array"),
        (lambda _self, x: FROM_NUMPY(x) * 2, "numpy.object_"),
        (lambda _self, x: torch.tensor(x, requires_grad=True) * 2, "requires_grad"),
    ],
)
def test_computations_of_numpy_are_refused(forward: Any, reason: str) -> None:
    module = type("Computes", (nn.Module,), {"forward": forward})()
    with pytest.raises((NotPortableError, CallSignatureError), match=reason):
        record(module, {"x": np.ones((2, 3), np.float32)})


def test_writing_to_the_callers_record_is_refused() -> None:
    class Writes(nn.Module):
        def forward(self, batch: Batch) -> Tensor:
            batch.goal = batch.obs * 2
            return batch.goal

    with pytest.raises(NotPortableError, match="writes to its caller's argument batch"):
        record(Writes(), {"batch": Batch(obs())})


def test_other_objects_are_refused_with_the_argument_and_the_remedy() -> None:
    class Config:
        width = 3

    class Reads(nn.Module):
        def forward(self, x: Tensor, config: Any) -> Tensor:
            return x * config.width  # type: ignore[no-any-return]

    remote = rebuilt_elsewhere(Reads())
    ask(remote, InProcessRecorder(Reads))
    with pytest.raises(CallSignatureError, match=r"argument 'config' is a .*Config; .*Remedy: pass the parts"):
        remote(obs(), Config())


ARGUMENTS = {
    "batch": Batch(torch.zeros(2, 3), count=7),
    "pair": Pair(torch.zeros(2), torch.zeros(1, dtype=torch.int64)),
    "record": Record({"a": torch.zeros(2), "b": None}),
    "array": np.zeros((2, 3), np.int32),
    "scalar": np.float32(0.5),
    "flag": np.bool_(True),
    "size": torch.Size((2, 3)),
}


def test_signatures_are_read_and_written() -> None:
    signature, tensors = call_signature(ARGUMENTS)
    assert decode_call_signature(encode_call_signature(signature)) == signature
    assert len(tensors) == 5
    text = call_signature_text(signature)
    assert "dataclass{obs: Tensor[rank 2], goal: None, count: 7}" in text
    assert "array=Array[rank 2, int32], scalar=numpy.float32(0.5), flag=numpy.bool(True)" in text
    decoded = decode_call(encode_call(ARGUMENTS)).arguments
    assert call_signature(decoded)[0] == signature
    assert type(decoded["scalar"]) is np.float32


def test_values_in_records_stay_with_the_trainer() -> None:
    given, _ = call_signature(ARGUMENTS)
    document = encode_call_without_values(ARGUMENTS)
    assert b"7" not in document.replace(b'"shape"', b"")
    assert b"0.5" not in document
    decoded = without_values(call_signature(decode_call(document).arguments)[0])
    assert decoded == without_values(given)


@pytest.mark.parametrize(
    "argument",
    [
        {"dataclass": [["__class__", {"tensor": 1}]]},
        {"named_tuple": [["a b", {"tensor": 1}]]},
        {"record": [["__dict__", {"const": 1}]]},
        {"numpy": ["object_", 1]},
        {"numpy": ["float32", "text"]},
        {"numpy": ["bool", 1]},
        {"tensor_dict": [["x", {"tensor": 1}]]},
        {"array": "x"},
        {"class": [["x", {"tensor": 1}]]},
    ],
)
def test_impossible_signatures_are_refused(argument: Any) -> None:
    with pytest.raises(FormatError):
        decode_call_signature([["x", argument]])


def test_packages_are_not_imported() -> None:
    code = (
        "import sys, torch; from model_factory.program.call_signature import call_signature; "
        "call_signature({'x': {'y': torch.ones(2)}, 'z': object()}); "
        "print({'omegaconf', 'tensordict'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "set()\n"


class TakesTensorDict(TakesBatch):
    def forward(self, td: Any) -> Tensor:  # type: ignore[override]
        assert type(td).__name__ == "TensorDict"
        y: Tensor = self.linear(td["state", "obs"]) * td.batch_size[0]
        return y + td.get("goal")


class TakesConfig(TakesBatch):
    def forward(self, x: Tensor, cfg: Any, shape: Any) -> Tensor:  # type: ignore[override]
        y: Tensor = self.linear(x) * cfg.gain.factor
        return y.reshape(*shape) if type(shape).__name__ == "ListConfig" else x


def test_tensordict() -> None:
    original, remote, recorder = with_recorder(TakesTensorDict)
    for rows in (3, 5):
        state = {"state": {"obs": obs(rows)}, "goal": obs(rows), "text": "fold"}
        given = tensordict.TensorDict(state, batch_size=[rows])
        assert torch.equal(original(given), remote(given))
    assert recorder.calls == 1
    signature, _ = call_signature({"td": given})
    assert decode_call_signature(encode_call_signature(signature)) == signature
    assert signature[0][1][2] == 1
    with pytest.raises(CallSignatureError, match="TensorDict"):  # without its class it is another call
        remote({"state": {"obs": obs()}, "goal": obs()})


def test_writing_to_a_tensordict_is_refused() -> None:

    class Writes(nn.Module):
        def forward(self, td: Any) -> Any:
            td["action"] = td["obs"] * 2
            return td["action"]

    with pytest.raises(NotPortableError, match="writes to its caller's argument td"):
        record(Writes(), {"td": tensordict.TensorDict({"obs": obs()}, batch_size=[3])})


def test_configs_of_omegaconf() -> None:
    create = OmegaConf.create
    original, remote, recorder = with_recorder(TakesConfig)
    cfg = create({"factor": 3.0, "gain": {"factor": "${factor}"}})
    for rows in (3, 5):
        x = obs(rows)
        assert torch.equal(original(x, cfg, create([-1, 2])), remote(x, cfg, create([-1, 2])))
    assert recorder.calls == 1


def test_a_config_reads_no_variable_of_the_server() -> None:
    hostile = b'{"dict_config":[["a",{"list_config":[{"const":"${oc.env:HOME}"}]}]]}'
    call = b'{"call_signature":[["cfg",%s]],"tensors":[]}' % hostile
    with pytest.raises(CallSignatureError, match="resolve the config first"):
        decode_call(call)


COMPILED = ("dataclass without a class", "nested dataclasses", "named tuple", "record", "array", "size")


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_in_one_graph(case: str) -> None:
    make, own, trainers = CALLS[case]
    original, remote, _ = with_recorder(make)
    torch.manual_seed(3)
    remote(*trainers(3))
    compiled = torch.compile(remote, backend="eager", fullgraph=True)
    results = []
    for module, arguments in ((original, own), (compiled, trainers)):
        torch.manual_seed(3)
        results.append(plain(module(*arguments(3))))
    assert_same(results[0], results[1], case)


@pytest.mark.parametrize("case", ["dataclass without a class", "named tuple", "record", "result with names"])
def test_exported(case: str) -> None:
    make, own, trainers = CALLS[case]
    original, remote, _ = with_recorder(make)
    torch.manual_seed(3)
    given = trainers(3)
    if dataclasses.is_dataclass(given[0]):
        torch.export.register_dataclass(type(given[0]))
    exported = torch.export.export(remote, given)
    torch.manual_seed(3)
    assert_same(plain(original(*own(3))), plain(exported.module()(*given)))
