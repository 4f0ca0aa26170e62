"""Descriptors from an untrusted peer: the rebuild makes modules of torch's classes, or refuses.

Every rebuild here runs under a guard that fails the test when anything is imported, unpickled, compiled or executed.
"""

from __future__ import annotations

import builtins
import importlib
import json
import marshal
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from matrix.blocks import BLOCKS
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor
from model_factory.descriptor.rebuild import rebuild
from model_factory.descriptor.walks import MAX_DEPTH
from model_factory.documents import FORMAT, encode_document
from model_factory.errors import FormatError
from model_factory.model_file.load import load
from support.model_files import write_model_file

Document = dict[str, Any]


@contextmanager
def nothing_executed() -> Iterator[None]:
    """Fail on a new import, on pickle, marshal, eval, exec and compile, and on opening a file."""

    def banned(*args: Any, **_: Any) -> Any:
        raise AssertionError(f"the rebuild executes something: {args[:1]}")

    real_import = builtins.__import__

    def guarded_import(name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in sys.modules:
            banned(name)
        return real_import(name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module, names in {
            pickle: ("load", "loads", "Unpickler", "_Unpickler"),
            marshal: ("load", "loads"),
            importlib: ("import_module", "__import__", "reload"),
            builtins: ("eval", "exec", "compile", "open"),
            torch: ("load",),
        }.items():
            for name in names:
                patch.setattr(module, name, banned)
        patch.setattr(builtins, "__import__", guarded_import)
        yield


def document_of(module: nn.Module) -> Document:
    document = json.loads(encode_descriptor(describe(module)))
    assert isinstance(document, dict)
    return document


Rebuild = Callable[[Document, nn.Module], nn.Module]
"""Rebuilds a hostile document over the real tensors of a module."""


@pytest.fixture(params=["server", "file"])
def rebuild_document(request: pytest.FixtureRequest, tmp_path: Path) -> Rebuild:
    """A trainer that receives the document from a server, or reads the document from a file."""

    def rebuild_received(document: Document, module: nn.Module) -> nn.Module:
        tensors = {name: tensor.detach() for name, tensor in named_tensors(module, describe(module)).items()}
        data = json.dumps(document).encode()
        if request.param == "server":
            with nothing_executed():
                return rebuild(decode_descriptor(data), tensors)
        write_model_file(tmp_path / "model.mf", data, tensors)
        with nothing_executed():
            loaded = load(tmp_path / "model.mf")
        assert isinstance(loaded, nn.Module)
        return loaded

    return rebuild_received


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("name", BLOCKS)
def test_the_rebuild_executes_nothing(name: str, rebuild_document: Rebuild) -> None:
    module = BLOCKS[name]()
    assert isinstance(rebuild_document(document_of(module), module), nn.Module)


@pytest.mark.parametrize(
    "act",
    [
        lambda: importlib.import_module("json"),
        lambda: __import__("this"),
        lambda: pickle.loads(b"N."),  # noqa: S301  has to be caught
        lambda: eval("1"),  # noqa: S307  has to be caught
        lambda: exec("1"),  # noqa: S102  has to be caught
        lambda: open("/etc/hostname"),  # noqa: SIM115, PTH123  has to be caught
        lambda: torch.onnx.nothing,
    ],
)
def test_the_guard_catches(act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.onnx", raising=False)
    monkeypatch.delattr(torch, "onnx", raising=False)
    with pytest.raises(AssertionError, match="executes"), nothing_executed():
        act()


def changed(path: tuple[Any, ...], value: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        place: Any = document
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value

    return change


def attribute(name: str, value: Any) -> Callable[[Document], None]:
    return lambda document: document["modules"][1]["attributes"].append([name, value])


def tensor_attribute(name: str, value: Any) -> Callable[[Document], None]:
    return lambda document: document["tensors"][0][6].append([name, value])


ROOT, CHILD = ("modules", 0), ("modules", 1)

CLASSES = (
    "os.system subprocess.Popen builtins.eval torch.jit.ScriptModule nn.DataParallel nn.modules.module.Module "
    "torch.nn.Linear Linear nn.Linear.forward nn.functional.relu nn.__class__ nn.LinearCrossEntropyOptions"
).split()

SHADOWED = (
    "forward __class__ __dict__ __call__ __reduce__ __getattr__ __setstate__ _parameters _buffers _modules training "
    "_forward_hooks _forward_pre_hooks _load_state_dict_pre_hooks _backward_hooks _call_impl _compiled_call_impl to "
    "state_dict load_state_dict register_buffer parameters train _apply half type extra_repr "
    "_non_persistent_buffers_set __init__ __del__ T_destination call_super_init"
).split()

VALUES = {
    "a function outside the table": {"stock": "os.system"},
    "a function of torch outside the table": {"stock": "torch.load"},
    "a nested function outside the table": [{"tuple": [{"stock": "builtins.eval"}]}],
    "an unknown constant": {"torch": "load"},
    "a constant that would be imported": {"torch": "_dynamo"},
    "a dunder for a constant": {"torch": "__builtins__"},
    "a program's value": {"ref": "x"},
    "a device": {"device": True},
    "an unknown kind": {"object": "os"},
    "two kinds": {"torch": "float32", "tuple": []},
    "no kind": {},
    "an unknown float": {"float": "__import__('os')"},
    "a key that is a list": {"dict": [[[1], 2]]},
    "a key twice": {"dict": [["a", 1], ["a", 2]]},
    "a tensor out of range": {"tensor": 99},
    "a negative tensor": {"tensor": -1},
    "a tensor by name": {"tensor": "0.weight"},
    "a tensor inside a list": [{"tensor": 0}],
    "a size of texts": {"size": ["a"]},
    "a size that is no list": {"size": 3},
}

STRUCTURES: dict[str, Callable[[Document], None]] = {
    "no modules": changed(("modules",), []),
    "a number as a module": changed(("modules",), [3]),
    "another format": changed(("format",), 999),
    "another key": changed(("code",), "import os"),
    "another key of a module": changed((*CHILD, "code"), "import os"),
    "an unknown kind": changed((*CHILD, "kind"), "source"),
    "a program without a signature": changed((*CHILD, "kind"), "program"),
    "a graph without a program": changed((*CHILD, "kind"), "graph"),
    "a child out of range": changed((*ROOT, "children", 0, 1), 7),
    "a negative child": changed((*ROOT, "children", 0, 1), -1),
    "a child that is true": changed((*ROOT, "children", 0, 1), True),
    "a child below itself": changed((*CHILD, "children"), [["up", 0]]),
    "a child that is itself": changed((*CHILD, "children"), [["self", 1]]),
    "two children of one name": changed((*ROOT, "children", 1, 0), "0"),
    "a child named like an attribute": changed((*CHILD, "children"), [["in_features", 2]]),
    "a child with a path for a name": changed((*ROOT, "children", 0, 0), "a.b"),
    "a child with a number for a name": changed((*ROOT, "children", 0, 0), 3),
    "a module outside of the tree": changed((*ROOT, "children"), [["0", 1]]),
    "a parameter out of range": changed((*CHILD, "parameters", 0, 1), 99),
    "a parameter without its flag": changed(("tensors", 0, 4), False),
    "a parameter named like a buffer": changed((*CHILD, "buffers"), [["weight", 1, True]]),
    "a buffer out of range": changed((*CHILD, "buffers"), [["b", 99, True]]),
    "a text as a flag": changed((*CHILD, "training"), "yes"),
    "a shape that is wrong": changed(("tensors", 0, 2), [3, 3]),
    "a shape of other rank": changed(("tensors", 0, 2), [6]),
    "a negative shape": changed(("tensors", 0, 2), [-3, -2]),
    "an enormous shape": changed(("tensors", 0, 2), [1 << 62, 1 << 62]),
    "a fractional shape": changed(("tensors", 0, 2), [1.5, 2]),
    "another dtype": changed(("tensors", 0, 1), "float64"),
    "a dtype that is a layout": changed(("tensors", 0, 1), "strided"),
    "a dtype that is a function": changed(("tensors", 0, 1), "load"),
    "a dtype that would be imported": changed(("tensors", 0, 1), "_inductor"),
    "a missing tensor": changed(("tensors", 0, 0), "other"),
    "two tensors of one name": changed(("tensors", 1, 0), "0.weight"),
    "an axis twice in an order": changed(("tensors", 0, 5), [0, 0]),
    "an order out of range": changed(("tensors", 0, 5), [1, 2]),
    "an order of another shape": changed(("tensors", 0, 5), [1, 0]),
    "too few fields of a tensor": changed(("tensors", 0), ["0.weight", "float32"]),
    "an attribute twice": attribute("in_features", 2),
    "a tensor's method": tensor_attribute("backward", 1),
    "a tensor's class": tensor_attribute("__class__", 1),
    "a tensor's storage": tensor_attribute("data", 1),
    "a function for a tensor": tensor_attribute("note", {"stock": "os.system"}),
}


@pytest.mark.parametrize("change", STRUCTURES.values(), ids=STRUCTURES)
def test_structure_is_refused(change: Callable[[Document], None], rebuild_document: Rebuild) -> None:
    module = linear()
    document = document_of(module)
    change(document)
    with pytest.raises(FormatError):
        rebuild_document(document, module)


@pytest.mark.parametrize("name", CLASSES)
def test_class_outside_the_table_is_refused(name: str, rebuild_document: Rebuild) -> None:
    module = linear()
    document = document_of(module)
    document["modules"][1]["type"] = name
    with pytest.raises(FormatError, match="stock"):
        rebuild_document(document, module)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("stock", name) for name in (*SHADOWED, "reset_parameters")] + [("program", name) for name in SHADOWED],
)
def test_shadowing_attribute_is_refused(kind: str, name: str, rebuild_document: Rebuild) -> None:
    module = linear()
    document = document_of(module)
    node = document["modules"][1]
    if kind == "program":
        node |= {"kind": kind, "signature": [], "frozen": []}
    node["attributes"].append([name, 1])
    with pytest.raises(FormatError, match="cannot have the attribute"):
        rebuild_document(document, module)


@pytest.mark.parametrize(
    "name", ["_path", "_recorder", "_programs", "_signature", "_frozen", "_type_name", "_initialise"]
)
def test_block_keeps_its_own_attributes(name: str, rebuild_document: Rebuild) -> None:
    module = linear()
    document = document_of(module)
    document["modules"][1] |= {"kind": "program", "signature": [], "frozen": [], "attributes": [[name, 1]]}
    with pytest.raises(FormatError, match="cannot have the attribute"):
        rebuild_document(document, module)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_value_is_refused(value: Any, rebuild_document: Rebuild) -> None:
    module = linear()
    document = document_of(module)
    attribute("note", value)(document)
    with pytest.raises(FormatError):
        rebuild_document(document, module)


@pytest.mark.parametrize("names", [5, ["forward"], ["__class__"], [["weight"]], [None]])
def test_rnn_with_wrong_names_of_weights_is_refused(names: Any, rebuild_document: Rebuild) -> None:
    module = nn.LSTM(2, 3)
    document = document_of(module)
    attributes = dict(document["modules"][0]["attributes"])
    document["modules"][0]["attributes"] = list((attributes | {"_flat_weights_names": names}).items())
    with pytest.raises(FormatError, match="LSTM"):
        rebuild_document(document, module)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 4000),
        ("hidden_size", 3.0),
        ("input_size", 1),
        ("proj_size", 2),
        ("num_layers", 0),
        ("num_layers", 10**9),
        ("num_layers", True),
        ("bidirectional", True),
        ("bias", False),
        ("mode", "LSTM"),
        ("mode", "GRUE"),
    ],
)
def test_rnn_with_wrong_sizes_is_refused(name: str, value: Any, rebuild_document: Rebuild) -> None:
    """The kernels would read beyond the weights."""
    module = nn.GRU(2, 3)
    document = document_of(module)
    attributes = dict(document["modules"][0]["attributes"])
    document["modules"][0]["attributes"] = list((attributes | {name: value}).items())
    with pytest.raises(FormatError, match="GRU"):
        rebuild_document(document, module)


@pytest.mark.parametrize("cls", [nn.RNN, nn.LSTM, nn.GRU])
def test_rnn_with_weights_cut_short_is_refused(cls: type[nn.RNNBase], rebuild_document: Rebuild) -> None:
    module = cls(2, 3)
    short = nn.Parameter(module.weight_hh_l0[:-1].detach())
    module._parameters["weight_hh_l0"] = short
    with pytest.raises(FormatError, match="weight_hh_l0 is not a tensor of the shape"):
        rebuild_document(document_of(module), module)


def test_class_name_that_writes_to_a_terminal_is_refused(rebuild_document: Rebuild) -> None:
    module = linear()
    document = document_of(module)
    document["modules"][0] |= {"kind": "program", "type": "A\x1b[2J\nB", "signature": [], "frozen": []}
    with pytest.raises(FormatError, match="is not a name"):
        rebuild_document(document, module)


@pytest.mark.parametrize("name", ["forward", "__del__", "__getattribute__", "in_features", "a b", "training"])
def test_parametrized_name_that_hides_something_is_refused(name: str, rebuild_document: Rebuild) -> None:
    module = parametrizations.weight_norm(nn.Linear(2, 3))
    document = document_of(module)
    holder = next(node for node in document["modules"] if node["type"] == "nn.ModuleDict")
    holder["children"][0][0] = name
    with pytest.raises(FormatError):
        rebuild_document(document, module)


def test_nesting_without_end_is_refused(rebuild_document: Rebuild) -> None:
    module = nn.Sequential()
    document = document_of(module)
    node = document["modules"][0]
    depth = MAX_DEPTH + 1
    document["modules"] = [node | {"children": [["0", index + 1]]} for index in range(depth)] + [node]
    with pytest.raises(FormatError, match="deep"):
        rebuild_document(document, module)


def test_sharing_that_multiplies_is_refused(rebuild_document: Rebuild) -> None:
    """Forty modules that each hold the next one twice: a walk over the state dict would take 2**40 steps."""
    module = nn.Sequential()
    document = document_of(module)
    node = document["modules"][0]
    document["modules"] = [node | {"children": [["a", index + 1], ["b", index + 1]]} for index in range(40)] + [node]
    with pytest.raises(FormatError, match="visits"):
        rebuild_document(document, module)


def test_deeply_nested_attribute_is_refused() -> None:
    module = linear()
    document = document_of(module)
    attribute("note", "DEEP")(document)
    data = json.dumps(document).replace('"DEEP"', "[" * 5000 + "]" * 5000).encode()
    with nothing_executed(), pytest.raises(FormatError):
        decode_descriptor(data)


def chain(depth: int, *, frozen: list[str], name: str = "a", children: int = 1) -> bytes:
    """Program modules inside each other; each lists the next as ``children`` children."""
    program = document_of(linear())["modules"][0] | {"kind": "program", "type": "Block", "attributes": []}
    program |= {"signature": [], "parameters": [], "buffers": []}
    modules = [
        program | {"children": [[f"{name}{n}", index + 1] for n in range(children)], "frozen": frozen}
        for index in range(depth)
    ]
    modules.append(program | {"children": [], "frozen": []})
    return encode_document({"format": FORMAT, "modules": modules, "tensors": []})


def test_walks_that_double_at_each_level_are_refused() -> None:
    """``eval()`` of 20 levels took 42 seconds: each level entered the next as a child, and again as a frozen module."""
    for frozen, match in ((["a0"], "train"), ([], "visits")):
        data = chain(60, frozen=frozen, children=1 if frozen else 2)
        assert len(data) < 20_000
        with pytest.raises(FormatError, match=match):
            decode_descriptor(data)
    with pytest.raises(FormatError, match="train"):
        decode_descriptor(chain(1, frozen=["a0"] * 400_000))
    model = rebuild(decode_descriptor(chain(10, frozen=["a0"])), {})
    assert not any(item.training for item in model.train().modules() if item is not model)


def test_paths_are_bounded() -> None:
    """Short of the limit of visits, the names alone would fill the memory in a state dict."""
    with pytest.raises(FormatError, match="characters"):
        decode_descriptor(chain(15, frozen=[], name="n" * 990, children=2))


def test_a_frozen_module_exists() -> None:
    with pytest.raises(FormatError, match=r"keeps the module 'b\.c' in eval mode, which does not exist"):
        decode_descriptor(chain(3, frozen=["b.c"]))
