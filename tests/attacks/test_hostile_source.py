"""A server offers source that does harm: without the trainer's trust nothing of it is fetched, imported or executed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import RemoteModelFactory
from model_factory.describe.describe import describe, named_tensors
from model_factory.descriptor.codec import encode_descriptor, encode_programs
from model_factory.descriptor.weights import write_weights
from model_factory.digest import digest_of
from model_factory.documents import encode_document
from model_factory.errors import FormatError, IntegrityError, ServerError, SourceError
from model_factory.limits import MAX_SOURCE_BYTES, MAX_SOURCE_FILE_BYTES, MAX_SOURCE_FILES
from model_factory.program.runtime.program_module import ProgramModule
from model_factory.source.bundle import decode_bundle
from support.hostile_server import HostileServer

CONFIG = {
    "schema_version": 1,
    "model": {"sequential": {"layers": [{"_type_": "nn.Linear", "in_features": 2, "out_features": 3}]}},
}
CANARY = "MODEL_FACTORY_TEST_CANARY"
EVIL = f"""
import os
from pathlib import Path
from torch import nn
Path(os.environ[{CANARY!r}]).write_text("executed")
class Evil(nn.Linear):
    pass
class NoModule:
    pass
def function():
    pass
alias = Evil
"""


def bundle_of(files: Any, requires: Any = ()) -> bytes:
    """A bundle's document, with no check of what is in it."""
    return encode_document({"format": 1, "files": files, "requires": list(requires)})


def descriptor_of(
    bundle: bytes, source: Any = ("evil", "Evil", "it is needed"), digest: str = "", **node: Any
) -> bytes:
    """Two linear layers, one of which is said to be source."""
    document = json.loads(encode_descriptor(describe(plain())))
    document["modules"][1] |= {"kind": "source", "source": list(source)} | node
    document["bundle"] = [digest or digest_of(bundle), len(bundle)]
    return encode_document(document)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


def weights() -> bytes:
    file = io.BytesIO()
    write_weights(file, named_tensors(plain(), describe(plain())))
    return file.getvalue()


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "canary"
    monkeypatch.setenv(CANARY, str(path))
    return path


@pytest.fixture
def hostile() -> Iterator[Callable[..., HostileServer]]:
    started: list[HostileServer] = []

    def start(descriptor: bytes, bundle: bytes, *, digest: str = "") -> HostileServer:
        server = HostileServer(descriptor, weights(), encode_programs(()), {digest or digest_of(bundle): bundle})
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


def build(server: HostileServer, cache: Path, trust_source: Any) -> Any:
    factory = RemoteModelFactory(server.address, seed=1, cache_dir=cache, trust_source=trust_source)
    try:
        return factory.build({"config": CONFIG})
    finally:
        factory.close()


def test_untrusted_bundle_is_neither_fetched_nor_run(hostile: Any, canary: Path, tmp_path: Path) -> None:
    bundle = bundle_of({"evil.py": EVIL})
    server = hostile(descriptor_of(bundle), bundle)
    for trusted in (None, False, [], ["0" * 64]):
        with pytest.raises(SourceError, match=r"0 \(nn\.Linear\): it is needed\. The bundle is [0-9a-f]{64}; "):
            build(server, tmp_path / "cache", trusted)
    assert digest_of(bundle) not in server.asked
    lock = tmp_path / "other.lock"
    pinned = {"needed_by": [], "files": {"evil.py": "0" * 64}, "requires": []}
    lock.write_text(json.dumps({"format": 1, "bundles": {"1" * 64: pinned}}))
    with pytest.raises(SourceError, match=r"The files differ from the files in the lock file: changed evil\.py\."):
        build(server, tmp_path / "cache", lock)
    assert not canary.exists()
    assert not [name for name in sys.modules if "evil" in name]
    model = build(server, tmp_path / "cache", [digest_of(bundle)])
    assert canary.read_text() == "executed", "the harm that the rest of this test asserts absent"
    assert type(model[0]).__name__ == "Evil"


def test_other_bytes_than_the_trusted_are_not_run(hostile: Any, canary: Path, tmp_path: Path) -> None:
    trusted, sent = (bundle_of({"evil.py": text}) for text in (EVIL.replace("executed", "Executed"), EVIL))
    server = hostile(descriptor_of(trusted), sent, digest=digest_of(trusted))
    with pytest.raises(IntegrityError, match="sent other bytes"):
        build(server, tmp_path / "cache", [digest_of(trusted)])
    assert not canary.exists()


def test_a_bundle_that_cannot_be_one_is_not_asked_for(hostile: Any, canary: Path, tmp_path: Path) -> None:
    document = json.loads(descriptor_of(b""))
    document["bundle"] = [digest_of(b""), MAX_SOURCE_BYTES + 1]
    server = hostile(encode_document(document), b"")
    with pytest.raises(FormatError, match="at most"):
        build(server, tmp_path / "cache", True)
    assert digest_of(b"") not in server.asked


CLASSES = {
    "a function": ("evil", "function"),
    "no module": ("evil", "NoModule"),
    "an imported class": ("evil", "nn.Linear"),
    "an imported module": ("evil", "os"),
    "a name through an import": ("evil", "os.path"),
    "another name of a class": ("evil", "alias"),
    "a dunder": ("evil", "__builtins__"),
    "nothing": ("evil", ""),
    "a module of the trainer's": ("os", "system"),
    "a module of torch's": ("torch.nn", "Linear"),
    "a private name of the bundle": (f"_model_factory_source_{'0' * 64}.evil", "Evil"),
    "a path": ("../evil", "Evil"),
    "a relative module": (".evil", "Evil"),
    "no name of a module": ("", "Evil"),
}


@pytest.mark.parametrize("where", CLASSES.values(), ids=CLASSES)
def test_a_trusted_bundle_gives_its_own_module_classes_only(
    where: tuple[str, str], hostile: Any, canary: Path, tmp_path: Path
) -> None:
    """A pinned bundle is no licence for the rest of the descriptor, which nothing pins."""
    bundle = bundle_of({"evil.py": EVIL})
    server = hostile(descriptor_of(bundle, (*where, "")), bundle)
    with pytest.raises((SourceError, FormatError), match="class"):
        build(server, tmp_path / "cache", [digest_of(bundle)])


ATTRIBUTES = "forward __class__ __dict__ _parameters training state_dict register_buffer __init__ extra_repr".split()


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_source_modules_keep_their_methods(name: str, hostile: Any, canary: Path, tmp_path: Path) -> None:
    bundle = bundle_of({"evil.py": EVIL})
    attributes = [["in_features", 2], ["out_features", 3], [name, 1]]
    server = hostile(descriptor_of(bundle, attributes=attributes), bundle)
    with pytest.raises(FormatError, match="cannot have the attribute"):
        build(server, tmp_path / "cache", [digest_of(bundle)])


NAMES = (
    "../evil.py",
    "/etc/evil.py",
    "a/../evil.py",
    "./evil.py",
    "a//evil.py",
    "a\\evil.py",
    "C:/evil.py",
    "evil\0.py",
    "evil.py\n",
    " evil.py",
    "evil.pyc",
    "evil.so",
    "evil",
    "evil.py/",
    ".py",
    "",
    "évil.py",
    "class/evil.py",
    "a.b.py",
    f"{'e' * 300}.py",
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_of_a_file_is_a_path(name: str) -> None:
    with pytest.raises(FormatError, match="cannot be a file of a bundle"):
        decode_bundle(bundle_of({name: "", "good.py": ""}))


BUNDLES: dict[str, bytes] = {
    "a name twice": b'{"files":{"a.py":"","a.py":"import os"},"format":1,"requires":[]}',
    "names that differ in case": bundle_of({"evil.py": "", "Evil.py": ""}),
    "a module and a package": bundle_of({"a.py": "", "a/__init__.py": ""}),
    "a module inside a module": bundle_of({"a.py": "", "a/b.py": ""}),
    "too many files": bundle_of({f"f{index}.py": "" for index in range(MAX_SOURCE_FILES + 1)}),
    "a huge file": bundle_of({"a.py": "#" * (MAX_SOURCE_FILE_BYTES + 1)}),
    "a huge bundle": bundle_of({f"f{index}.py": "#" * MAX_SOURCE_FILE_BYTES for index in range(9)}),
    "a NUL": bundle_of({"a.py": "x = 1\0"}),
    "a lone surrogate": b'{"files":{"a.py":"\\ud800"},"format":1,"requires":[]}',
    "no files": bundle_of({}),
    "files that are no mapping": bundle_of(["a.py"]),
    "a file that is no text": bundle_of({"a.py": 1}),
    "another key": bundle_of({"a.py": ""}).replace(b'"format"', b'"code":1,"format"'),
    "another format": bundle_of({"a.py": ""}).replace(b'"format":1', b'"format":9'),
    "a requirement with options": bundle_of({"a.py": ""}, [["--index-url http", "x", "1"]]),
    "a requirement that is none": bundle_of({"a.py": ""}, ["yaml"]),
    "a requirement inside a package": bundle_of({"a.py": ""}, [["os.path", "x", "1"]]),
    "a pickle": b"\x80\x04N.",
    "a zip": b"PK\x03\x04",
}


@pytest.mark.parametrize("data", BUNDLES.values(), ids=BUNDLES)
def test_what_is_no_bundle_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_bundle(data)


def test_a_requirement_is_looked_for_without_being_imported(hostile: Any, canary: Path, tmp_path: Path) -> None:
    bundle = bundle_of({"evil.py": EVIL}, [["antigravity", "x", ""], ["no_such_package_here", "no-such", "1"]])
    with pytest.raises(SourceError, match=r"imports 'no_such_package_here'.*pip install 'no-such==1'"):
        build(hostile(descriptor_of(bundle), bundle), tmp_path / "cache", True)
    assert "antigravity" not in sys.modules
    assert not canary.exists()


def test_source_that_fails_is_an_error_of_the_build(hostile: Any, tmp_path: Path) -> None:
    for text, message in [
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("from evil.nowhere import x", "ModuleNotFoundError"),
        ("import evil.evil", "ModuleNotFoundError"),
    ]:
        bundle = bundle_of({"evil.py": text})
        with pytest.raises(SourceError, match=f"the source failed with {message}"):
            build(hostile(descriptor_of(bundle), bundle), tmp_path / "cache", True)


CLIENT = """
import json, os, sys
from pathlib import Path
import torch
from model_factory import ModelFactoryError, RemoteModelFactory
plain, cache, config, canary, *hostile = sys.argv[1:]
config = {"config": json.loads(config)}
RemoteModelFactory(plain, seed=1, cache_dir=cache).build(config)  # whatever is imported at a first use is so now

seen, homes = [], (sys.prefix, sys.base_prefix, str(Path(sys.modules["model_factory"].__file__).parents[2]))
def watch(event, args):
    if event == "exec" and not args[0].co_filename.startswith((*homes, "<frozen ")):
        seen.append(f"exec {args[0].co_filename}")
    elif event == "compile":
        seen.append(f"compile {args[1]}")
    elif event.startswith(("pickle.", "marshal.", "subprocess.", "os.system", "os.exec", "ctypes.dlopen")):
        # The interpreter's own caches aside, and dlopen(None), which is this process itself.
        if "pycache" not in str(args) and event != "marshal.loads" and (event, args) != ("ctypes.dlopen", (None,)):
            seen.append(f"{event} {args}")
sys.addaudithook(watch)
for address in hostile:
    for trusted in (None, False, ["0" * 64]):
        try:
            RemoteModelFactory(address, seed=1, cache_dir=cache, trust_source=trusted).build(config)
        except ModelFactoryError as error:
            print(type(error).__name__)
        else:
            print("built")
print(json.dumps([seen, Path(canary).exists()]))
RemoteModelFactory(hostile[0], seed=1, cache_dir=cache, trust_source=True).build(config)
print(json.dumps([seen, Path(canary).exists()]))
"""


def test_a_real_client_executes_and_unpickles_nothing(hostile: Any, canary: Path, tmp_path: Path) -> None:
    """Watched by an audit hook, which sees every pickle and every code object that is run, however it is come by."""
    bundle = bundle_of({"evil.py": EVIL})
    documents = [
        descriptor_of(bundle),
        descriptor_of(bundle, ("os", "system", "")),
        descriptor_of(bundle, digest="0" * 63 + "1"),
        descriptor_of(bundle).replace(b'"kind":"source"', b'"kind":"stock"'),
        descriptor_of(bundle).replace(b'"type":"nn.Sequential"', b'"type":"os.system"'),
        descriptor_of(bundle, attributes=[["forward", {"stock": "builtins.eval"}]]),
        descriptor_of(bundle_of({"../../evil.py": EVIL})),
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.",
    ]
    servers = [hostile(document, bundle) for document in documents]
    good = hostile(encode_descriptor(describe(plain())), bundle)
    addresses = [server.address for server in servers]
    arguments = [good.address, tmp_path / "cache", json.dumps(CONFIG), canary, *addresses]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CLIENT, *map(str, arguments)],
        env=os.environ | {CANARY: str(canary)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *errors, before, after = done.stdout.splitlines()
    assert len(errors) == 3 * len(servers)
    assert set(errors) == {"SourceError", "FormatError"}
    assert json.loads(before) == [[], False]
    seen, executed = json.loads(after)
    assert executed, "the canary works"
    name = f"<model-factory {digest_of(bundle)[:12]}>/evil.py"
    assert {f"compile {name}", f"exec {name}"} <= set(seen), "the hook works"
    assert all(digest_of(bundle) not in server.asked for server in servers[1:])


# Source in the response to a call


class Unrecorded(nn.Linear):
    """Sent as a program, without any."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


@contextmanager
def offering(
    hostile: Any, bundle: bytes, source: bytes, cache: Path, trust_source: Any
) -> Iterator[tuple[HostileServer, Any]]:
    """A model whose first block has no program, and a server that responds to its call with a descriptor of source."""
    torch.manual_seed(0)
    model = nn.Sequential(Unrecorded(2, 3), nn.Linear(3, 2))
    server = hostile(encode_descriptor(describe(model)), bundle)
    server.recorded, server.recorded_source = encode_programs(()), source
    with RemoteModelFactory(server.address, seed=1, cache_dir=cache, trust_source=trust_source) as factory:
        built = factory.build({"config": CONFIG})
        assert isinstance(built[0], ProgramModule)
        yield server, built


def source_of(bundle: bytes, source: Any = ("evil", "Evil", "it is needed"), **node: Any) -> bytes:
    document = json.loads(encode_descriptor(describe(nn.Linear(2, 3))))
    document["modules"][0] |= {"kind": "source", "source": list(source)} | node
    document["bundle"] = [digest_of(bundle), len(bundle)]
    return encode_document(document)


def test_untrusted_source_of_a_call_is_neither_fetched_nor_run(hostile: Any, canary: Path, tmp_path: Path) -> None:
    bundle = bundle_of({"evil.py": EVIL + "# of a call\n"})
    for trusted in (None, False, [], ["0" * 64]):
        with offering(hostile, bundle, source_of(bundle), tmp_path / "cache", trusted) as (server, model):
            with pytest.raises(SourceError, match=r"0 \(nn\.Linear\): it is needed\. The bundle is [0-9a-f]{64}; "):
                model(torch.ones(1, 2))
            assert digest_of(bundle) not in server.asked
            assert isinstance(model[0], ProgramModule)
    assert not canary.exists()
    with offering(hostile, bundle, source_of(bundle), tmp_path / "cache", [digest_of(bundle)]) as (_, model):
        result = model(torch.ones(1, 2))
    assert canary.read_text() == "executed", "the harm that the rest of this test asserts absent"
    assert type(model[0]).__name__ == "Evil"
    assert result.equal(plain()(torch.ones(1, 2)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": ("evil", "NoModule", "")}, FormatError, "is not the class of a module"),
        ({"source": ("evil", "alias", "")}, SourceError, "does not define the class"),
        ({"source": ("os", "system", "")}, SourceError, "the bundle has no module 'os'"),
        ({"attributes": [["forward", 1]]}, FormatError, "cannot have the attribute 'forward' set"),
        ({"attributes": [["_modules", 1]]}, FormatError, "cannot have the attribute '_modules' set"),
    ],
)
def test_a_malformed_description_leaves_the_module(
    hostile: Any, canary: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    bundle = bundle_of({"evil.py": EVIL})
    with offering(hostile, bundle, source_of(bundle, **changes), tmp_path / "cache", True) as (_, model):
        with pytest.raises(error, match=message):
            model(torch.ones(1, 2))
        assert isinstance(model[0], ProgramModule)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (b"", ServerError, "sent programs of another module or method"),
        (encode_descriptor(describe(nn.Linear(2, 3))), FormatError, "without a bundle"),
        (b"[]", FormatError, "descriptor"),
    ],
    ids=["nothing", "no source", "no descriptor"],
)
def test_a_response_is_a_program_or_source(
    hostile: Any, tmp_path: Path, source: bytes, error: type[Exception], message: str
) -> None:
    bundle = bundle_of({"evil.py": EVIL})
    with offering(hostile, bundle, source, tmp_path / "cache", True) as (_, model):
        with pytest.raises(error, match=message):
            model(torch.ones(1, 2))
        assert isinstance(model[0], ProgramModule)
