"""Modules sent as source code, modules below that keep their kind, and refusals."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import decode_descriptor, encode_descriptor
from model_factory.descriptor.rebuild import rebuild
from model_factory.errors import NotPortableError, SourceError
from model_factory.program.runtime.program_module import ProgramModule
from model_factory.source.loader import load_source
from model_factory_server.export.exporter import export_model
from model_factory_server.export.source.bundling import Root
from support.compare import assert_same_runs, assert_same_state

PLUGINS = Path(__file__).parents[1] / "support" / "plugins"
ROOTS = (Root(PLUGINS, frozenset({"routed"})),)


class Library(nn.Module):
    """A class of a package that is not the operator's, so the source code must not be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.layer(tokens)[:, : tokens.shape[1]]


class Undecidable(Library):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * float(len(set(tokens.argmax(-1).tolist())))


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(PLUGINS)
    torch.manual_seed(0)
    yield importlib.import_module("routed.policy")
    for name in [name for name in sys.modules if name.partition(".")[0] == "routed"]:
        del sys.modules[name]


def test_a_librarys_module_below_source_stays_a_program(routed: Any) -> None:
    """Shared with the graph, and called by the source code with the call signature of its examples."""
    library = Library()
    model = nn.Sequential(routed.Router(16, 2, library), library)
    portable = export_model(model, roots=ROOTS)
    assert portable.sources is not None
    assert {path for path, _ in portable.programs} == {"0.corrector"}
    descriptor = describe(model, portable.sources.classes, portable.sources.ref)
    arrived = decode_descriptor(encode_descriptor(descriptor))
    assert arrived == descriptor
    kinds = {path: arrived.modules[index].kind for index, path in arrived.paths().items()}
    assert [kinds[path] for path in ("0", "0.corrector", "0.experts.1")] == ["source", "program", "source"]
    assert kinds["0.gate"] == kinds["0.experts.1.up"] == "stock"
    source = load_source(portable.sources.bundle, portable.sources.ref.digest, "a test")
    tensors = {name: item.detach().clone() for name, item in named_tensors(model, descriptor).items()}
    with pytest.raises(SourceError, match="a Router needs trusted source here, and no source is trusted"):
        rebuild(arrived, tensors, portable.programs)
    rebuilt = rebuild(
        arrived, tensors, portable.programs, find_class=lambda item: source.find_class(item.module, item.qualname)
    )
    assert isinstance(rebuilt[1], ProgramModule)
    assert rebuilt[0].corrector is rebuilt[1]
    assert_same_state(rebuilt, model)
    for training in (False, True):
        assert_same_runs(Named(rebuilt).train(training), Named(model).train(training), {"x": torch.randn(7, 16)})


class Named(nn.Module):
    """A sequence whose input has a name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


def hidden_lambda(router: nn.Module) -> None:
    router.activation = lambda x: x


def hooked(router: nn.Module) -> None:
    router.register_forward_hook(lambda *_: None)


def undecidable(router: nn.Module) -> None:
    router.corrector = Undecidable()


def local_class(router: nn.Module) -> None:
    """A class that cannot be imported by name."""

    class Local(type(router)):  # type: ignore[misc]
        pass

    router.__class__ = Local


REFUSED = {
    hidden_lambda: r"0 \(Router\): the attribute 'activation' is not portable: a builtins\.function is not plain data",
    hooked: r"0 \(Router\) has a hook in _forward_hooks",
    undecidable: r"0\.corrector \(Undecidable\): the forward",
    local_class: r"0 \(Local\): the forward",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_source_is_no_way_around_other_refusals(change: Any, routed: Any) -> None:
    model = nn.Sequential(routed.Router(16, 2))
    change(model[0])
    with pytest.raises(NotPortableError, match=REFUSED[change]):
        export_model(model, roots=ROOTS)


def test_methods_outside_a_program_are_in_the_source(routed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A custom state dict is a reason for source code, even if the forward could be recorded."""
    autoencoder = importlib.import_module("routed.autoencoder").Autoencoder

    def state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return nn.Module.state_dict(self, *args, **kwargs)

    monkeypatch.setattr(autoencoder, "state_dict", state_dict, raising=False)
    model = nn.Sequential(autoencoder(16, 2))
    with pytest.raises(NotPortableError, match=re.escape("overrides state_dict()")):
        export_model(model)
    portable = export_model(model, roots=ROOTS)
    assert portable.sources is not None
    assert [item.qualname for item in portable.sources.classes.values()] == ["Autoencoder"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("encode", "portable_methods is 'encode'. Remedy: make it a tuple"),
        (("nothing",), "names 'nothing', which is not a method of the class"),
        (("train",), "names 'train', a name that rebuilt modules have already"),
        (("forward",), "names 'forward', a name that rebuilt modules have already"),
    ],
)
def test_wrong_declarations_of_methods_are_named(
    names: Any, message: str, routed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder = importlib.import_module("routed.autoencoder").Autoencoder
    monkeypatch.setattr(autoencoder, "portable_methods", names)
    with pytest.raises(NotPortableError, match=re.escape(message)):
        describe(nn.Sequential(autoencoder(16, 2)))


@pytest.mark.parametrize("name", ["Samples", "Follows"])
def test_source_that_draws_and_source_that_writes_to_parameters(routed: Any, name: str) -> None:
    """Compared from the same state of every generator, and with the parameters restored after each run."""
    torch.manual_seed(0)
    model = nn.Sequential(getattr(importlib.import_module("routed.keeping"), name)())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(10):  # without the seed, about one run in ten passed by chance
        portable = export_model(model, roots=ROOTS)
        assert portable.sources is not None
        assert list(portable.sources.classes) == [model[0]]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
