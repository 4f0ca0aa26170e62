"""A real example of every document of ``docs/formats``. Write them into the pages with this file as a script."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests")]

import torch  # noqa: E402  after the path is set

from model_factory.blocks import SELF_CHECK_CONFIG  # noqa: E402
from model_factory.client.builds.build_lock import BuildLock  # noqa: E402
from model_factory.client.builds.known_builds import KnownBuilds  # noqa: E402
from model_factory.client.connection import Connection  # noqa: E402
from model_factory.client.credentials import Credentials  # noqa: E402
from model_factory.config import ResolvedConfig, parse_config  # noqa: E402
from model_factory.config.canonical import wire_bytes  # noqa: E402
from model_factory.config.request import Component, component_seed  # noqa: E402
from model_factory.describe.describe import describe, named_tensors  # noqa: E402
from model_factory.descriptor.codec import encode_descriptor, encode_programs  # noqa: E402
from model_factory.descriptor.weights import write_weights  # noqa: E402
from model_factory.digest import Blob, digest_of  # noqa: E402
from model_factory.documents import FORMAT, encode_document  # noqa: E402
from model_factory.identity import BuildInfo, BuiltComponent, Manifest  # noqa: E402
from model_factory.model_file.index import INDEX  # noqa: E402
from model_factory.model_file.save import save  # noqa: E402
from model_factory.program.example_call import encode_call  # noqa: E402
from model_factory.source.bundle import Requirement, decode_bundle, encode_bundle  # noqa: E402
from model_factory.source.lock import encode_lock, pin  # noqa: E402
from model_factory.store import Store  # noqa: E402
from model_factory_server.backends.builtin import BuiltinBackend  # noqa: E402
from model_factory_server.backends.identity import BackendIdentity  # noqa: E402
from model_factory_server.builds.build_records import (  # noqa: E402
    BuildRecord,
    DescriptionRecord,
    ProgramRecord,
    encode_record,
)
from model_factory_server.builds.checked_config import CheckedConfig  # noqa: E402
from model_factory_server.builds.keys import architecture_key, build_key, final_key, reads_key  # noqa: E402
from model_factory_server.export.exporter import record_model  # noqa: E402
from model_factory_server.export.source.bundling import Root, collect  # noqa: E402
from model_factory_server.in_process import PolicyConstructorModelFactory  # noqa: E402
from model_factory_server.settings.server_settings import BackendSettings  # noqa: E402
from model_factory_server.worker.construction import construct  # noqa: E402
from model_factory_server.worker.files.read_files import ReadFile  # noqa: E402
from model_factory_server.worker.weights_placement import AllocationLog  # noqa: E402

PAGES = ROOT / "docs" / "formats"
_PLUGINS = ROOT / "tests" / "support" / "plugins"
_EXAMPLE = re.compile(r"(?<=^## Example\n\n```json\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
_WIDTH = 110
_WIDE = {"_type_": "nn.Linear", "in_features": 128, "out_features": 256}  # large enough to be constructed in its file
_BACKEND = BackendIdentity(
    name="builtin", version="", code_digest="0" * 64, torch_version="2.9.0", device_kind="cpu", code_stamp=""
)


def examples() -> dict[str, Any]:
    """One document for each page, by the name of the page."""
    config = parse_config(encode_document(dict(SELF_CHECK_CONFIG)))
    model = construct(BuiltinBackend(BackendSettings()), config, 0, "cpu")
    described = describe(model)
    descriptor, programs = encode_descriptor(described), encode_programs(record_model(model))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        with store.stage() as (file, publish):
            weights = Blob(*write_weights(file, dict(named_tensors(model, described))))
            path = publish(weights)
        blobs = {"descriptor": store.put(descriptor), "programs": store.put(programs), "weights": weights}
        return {
            "descriptor": json.loads(descriptor),
            "programs": json.loads(programs),
            "values": json.loads(descriptor)["modules"][0]["program"],
            "call": _call(),
            "config": json.loads(wire_bytes(dict(SELF_CHECK_CONFIG))),
            "weights-header": header_of(path),
            "model-file": _model_file(Path(folder) / "model.mf"),
            "placement": _placement(),
            "build-lock": _build_lock(Path(folder), config, blobs),
            "known-build": _known_build(Path(folder), config, blobs),
            **_source(),
            **_records(store, config, blobs, programs),
        }


def _model_file(path: Path) -> Any:
    """The index of a file; the versions on the machine that writes the example do not matter."""
    model = PolicyConstructorModelFactory(seed=7).build({"config": SELF_CHECK_CONFIG})
    info: BuildInfo = model.build_info
    known = {name: getattr(_BACKEND, name) for name in ("code_digest", "torch_version")}
    versions = {"server_version": "0.1.0", "client_version": "0.1.0", "client_torch_version": "2.9.0"}
    keys = {"build_key": "0" * 64, "architecture_key": "0" * 64}
    vars(model)["build_info"] = replace(info, **known, **versions, **keys)
    save(model, path)
    index = json.loads(header_of(path)["__metadata__"][INDEX])
    return index | {"written_by": {"model_factory": "0.1.0", "torch": "2.9.0"}}


def _checked(config: ResolvedConfig) -> CheckedConfig:
    return CheckedConfig.parse(config.wire)


def _call() -> Any:
    """A call with an index tensor, a constant and an attribute that the trainer has set."""
    arguments = {"tokens": torch.arange(6).view(2, 3), "scale": 0.5, "mask": None}
    return json.loads(encode_call(arguments, outcomes=(True, 3), reads=(("drop", "p", 0.25),)))


def _source() -> dict[str, Any]:
    """A bundle and a lock file of it; the installed version of the package does not matter."""
    collected = decode_bundle(collect({"routed.layers"}, [Root(_PLUGINS)]))
    bundle = replace(collected, requires=(Requirement("einops", "einops", "0.8.1"),))
    data = encode_bundle(bundle)
    lock = {Blob.of(data).digest: pin(bundle, ("router (Router)",))}
    return {"source-bundle": json.loads(data), "lock-file": json.loads(encode_lock(lock))}


def _build_lock(folder: Path, config: ResolvedConfig, blobs: Mapping[str, Blob]) -> Any:
    info = BuildInfo(
        component="policy",
        seed=7,
        dtype="",
        config_digest=config.digest,
        build_key=build_key(_BACKEND, _checked(config), "", component_seed(7, "policy")),
        architecture_key=architecture_key(_BACKEND, _checked(config), ""),
        **{name: blob.digest for name, blob in blobs.items()},
        backend=_BACKEND.name,
        code_digest=_BACKEND.code_digest,
        device_kind=_BACKEND.device_kind,
        format_version=FORMAT,
        torch_version=_BACKEND.torch_version,
        server_version="0.1.0",
        client_torch_version="2.9.0",
        client_version="0.1.0",
    )
    lock = BuildLock(folder / "models.lock", {"policy": info})
    lock.write()
    return json.loads(lock.path.read_bytes())


def _known_build(folder: Path, config: ResolvedConfig, blobs: Mapping[str, Blob]) -> Any:
    store, component = Store(folder / "cache"), Component(name="policy", config=config)
    for blob in blobs.values():
        store.put(Store(folder).read(blob) or b"")
    keys = {
        "build_key": build_key(_BACKEND, _checked(config), "", 7),
        "architecture_key": architecture_key(_BACKEND, _checked(config), ""),
    }
    built = BuiltComponent(name="policy", **keys, **blobs)
    manifest = Manifest(
        identity=_BACKEND.public,
        components=(built,),
        inline={},
        server_version="0.1.0",
        server=digest_of(b"the server"),
    )
    KnownBuilds(Connection("gpu-node:50051", credentials=Credentials()), store, "").keep(component, built, manifest, 7)
    (path,) = (store.root / "records").rglob("?" * 64)
    return json.loads(path.read_bytes())


def _placement() -> Any:
    backend = BuiltinBackend(BackendSettings())
    config = parse_config(encode_document({"schema_version": 1, "model": {"sequential": {"layers": [_WIDE]}}}))
    with AllocationLog() as made:
        model = construct(backend, config, 0, "meta")
    placement = made.placement(model)
    assert placement is not None
    return json.loads(placement.encode())


def _records(store: Store, config: ResolvedConfig, blobs: Mapping[str, Blob], programs: bytes) -> dict[str, Any]:
    files = (ReadFile("/data/vocabulary.txt", Blob.of(b"one\ntwo\n").digest),)
    base = build_key(_BACKEND, _checked(config), "", 0)
    documents = {"descriptor": blobs["descriptor"], "programs": blobs["programs"]}
    records = {
        "build-record": BuildRecord(**blobs, source=None, files=files, warnings=("blocks: no table: uses defaults",)),
        "description-record": DescriptionRecord(**documents, files=files),
        "program-record": ProgramRecord(programs=blobs["programs"], files=files),
    }
    keys = {
        "build-record": final_key(base, files),
        "description-record": final_key(architecture_key(_BACKEND, _checked(config), ""), files),
        "program-record": digest_of(b"the key of a call"),
        "read-paths": reads_key(base),
        "node-programs": digest_of(b"the key of a component"),
    }
    for name, record in records.items():
        store.put_record(keys[name], encode_record(record))
    store.put_record(keys["read-paths"], [file.path for file in files])
    with store.locked(base, "builds a model"):
        holder = json.loads((store.root / "locks" / base).read_bytes())
    store.put_record(keys["node-programs"], {"programs": _empty(programs)})
    found = {name: json.loads(record_path(store, key).read_bytes()) for name, key in keys.items()}
    return found | {"lock-holder": holder | {"pid": 4711, "host": "node-3", "since": 1764450000.5}}


def _empty(programs: bytes) -> str:
    """The text of a set without programs: a record has the whole document as a text."""
    return encode_document(json.loads(programs) | {"programs": []}).decode()


def record_path(store: Store, key: str) -> Path:
    """Where a store has a record."""
    return store.root / "records" / key[:2] / key


def header_of(weights: Path) -> Any:
    """The header of a weights file."""
    with weights.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def example_text(page: str) -> str:
    """The example in a page, with its line end."""
    found = _EXAMPLE.findall(page)
    assert len(found) == 1, "a page has one example, below '## Example'"
    return str(found[0])


def pretty(value: Any, indent: int = 0, used: int = 0) -> str:
    """JSON in which a value that fits a line takes one line."""
    text = json.dumps(value, ensure_ascii=False)
    if indent + used + len(text) <= _WIDTH or not isinstance(value, dict | list) or not value:
        return text
    inner = " " * (indent + 2)
    if isinstance(value, list):
        items = [pretty(item, indent + 2) for item in value]
    else:
        names = {key: json.dumps(key) + ": " for key in value}
        items = [names[key] + pretty(item, indent + 2, len(names[key])) for key, item in value.items()]
    first, last = ("[", "]") if isinstance(value, list) else ("{", "}")
    return f"{first}\n{inner}" + f",\n{inner}".join(items) + f"\n{' ' * indent}{last}"


def main() -> None:
    """Write the examples into the pages."""
    for name, document in examples().items():
        page = PAGES / f"{name}.md"
        text = page.read_text(encoding="utf-8")
        assert text.count("## Example\n\n```json\n") == 1
        before, start, rest = text.partition("## Example\n\n```json\n")
        after = rest[rest.index("```\n") :]
        page.write_text(f"{before}{start}{pretty(document)}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
