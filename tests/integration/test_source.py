"""Blocks without a program: their source is sent if the operator shares the source and the trainer trusts it."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import einops
import pytest
import torch
from torch import nn

from model_factory import IntegrityError, RemoteModelFactory, load, save
from model_factory.cli.main import main
from model_factory.describe.describe import describe
from model_factory.descriptor.architecture import Architecture, Portability
from model_factory.errors import CallSignatureError, NotPortableError, SourceError
from model_factory.source.lock import read_lock
from model_factory.store import Blob
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.export.exporter import export_model, record_model
from support.base_install import make_site
from support.compare import assert_same, assert_same_runs, assert_same_state, train
from support.server import ServerProcess, running_server

PLUGINS = Path(__file__).parents[1] / "support" / "plugins"
WIDTH = 6  # so that tensors are no whole multiples of 64 bytes, and most of them not aligned in the weights file
MakeRemote = Callable[..., RemoteModelFactory]

CONFIG = {
    "schema_version": 1,
    "model": {
        "graph": {
            "inputs": ["x"],
            "modules": {
                "embed": {"_type_": "nn.Linear", "in_features": 4, "out_features": WIDTH},
                "router": {"_type_": "router", "width": WIDTH, "experts": 3},
                "vae": {"_type_": "autoencoder", "width": WIDTH, "latent": 2},
            },
            "steps": [
                {"call": "module:embed", "args": ["$x"], "out": "e"},
                {"call": "module:router", "args": ["$e"], "out": "r"},
                {"call": "module:vae", "args": ["$r"], "out": "y"},
            ],
            "outputs": ["y"],
        }
    },
}


def of(*names: str) -> dict[str, Any]:
    """The config's model with these of its modules only, one after the other."""
    graph = CONFIG["model"]["graph"]  # type: ignore[index]
    steps = [step for step in graph["steps"] if step["call"].removeprefix("module:") in names]
    chained = [
        step | {"args": ["$x" if index == 0 else f"${steps[index - 1]['out']}"]} for index, step in enumerate(steps)
    ]
    graph = graph | {
        "modules": {name: graph["modules"][name] for name in names},
        "steps": chained,
        "outputs": [chained[-1]["out"]],
    }
    return {"schema_version": 1, "model": {"graph": graph}}


def inputs(batch: int, width: int = 4) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, width, generator=torch.Generator().manual_seed(batch))}


@pytest.fixture(scope="module")
def source_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
        store = tmp_path_factory.mktemp("source") / "store"
        with running_server(store, "--plugin", "routed.plugin", "--share-source") as process:
            yield process


@pytest.fixture(scope="module")
def lock(source_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written as a user writes it."""
    folder = tmp_path_factory.mktemp("lock")
    (folder / "policy.yaml").write_text(json.dumps(CONFIG), encoding="utf-8")
    done = command(folder, "trust", "policy.yaml", "--server", source_server.address)
    assert done.returncode == 0, done.stderr
    assert "policy: needs source code, bundle " in done.stdout
    assert "router (Router): the forward runs on real tensors, but not on the symbolic sizes" in done.stdout
    assert "experts.0 (Expert): part of a Router, which is sent as source code" in done.stdout
    assert f"  routed/policy.py, {lines_of('policy.py')} lines" in done.stdout
    assert "  imports einops, of einops " in done.stdout
    assert "plugin.py" not in done.stdout
    return folder / "model-factory.lock"


def lines_of(name: str) -> int:
    return len((PLUGINS / "routed" / name).read_text().splitlines())


class Done:
    """What the command said, run in this process: it takes seconds to import torch in another."""

    def __init__(self, folder: Path, arguments: tuple[object, ...]) -> None:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(folder)
            patch.setenv("MODEL_FACTORY_CACHE", str(folder / "cache"))
            self.returncode = main([str(argument) for argument in arguments])
        self.stdout, self.stderr = out.getvalue(), err.getvalue()


def command(folder: Path, *arguments: object) -> Done:
    return Done(folder, arguments)


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """The model as it is built in process, by those who have the code; nothing of it stays imported."""
    monkeypatch.syspath_prepend(PLUGINS)
    yield PolicyConstructorModelFactory(seed=7, plugins=["routed.plugin"]).build({"config": CONFIG})  # type: ignore[misc]
    for name in [name for name in sys.modules if name.partition(".")[0] == "routed"]:
        del sys.modules[name]


@pytest.fixture
def model(source_server: ServerProcess, make_remote: MakeRemote, lock: Path) -> nn.Module:
    # Some calls of methods have numbers that no example has.
    built = make_remote(source_server.address, trust_source=lock, share_values=True).build({"config": CONFIG})
    assert isinstance(built, nn.Module)
    return built


def test_it_is_the_in_process_model(model: nn.Module, original: nn.Module) -> None:
    assert_same_state(model, original)
    for training in (False, True):
        for batch in (2, 9):
            assert_same_runs(model.train(training), original.train(training), inputs(batch))
    assert model.graph_modules["router"].calls == original.graph_modules["router"].calls == 4
    assert train(model, inputs(8)) == train(original, inputs(8))
    assert_same_state(model, original)
    assert type(model.graph_modules["router"].experts[0].up) is nn.Linear


def test_it_lives_like_any_module(model: nn.Module, source_server: ServerProcess, make_remote: MakeRemote) -> None:
    router = model.graph_modules["router"]
    twin = copy.deepcopy(model)
    losses = train(model, inputs(8))
    assert train(twin, inputs(8)) == losses
    assert type(twin.graph_modules["router"]) is type(router)
    fresh = make_remote(source_server.address, trust_source=True, seed=8).build({"config": CONFIG})
    fresh.load_state_dict(model.state_dict())
    fresh.graph_modules["router"].calls = router.calls  # a plain attribute, which is in no state dict
    assert_same(fresh.eval()(**inputs(3)), model.eval()(**inputs(3)))
    assert type(fresh.graph_modules["router"]) is type(router), "one bundle, one class"
    assert repr(router).startswith("Router(")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        # A router may leave an expert unused.
        shared = nn.parallel.DistributedDataParallel(copy.deepcopy(fresh), find_unused_parameters=True)
        assert train(shared, inputs(8)) == train(fresh, inputs(8))
    finally:
        torch.distributed.destroy_process_group()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(converted.graph_modules["router"].norm) is nn.SyncBatchNorm


def test_tracebacks_show_its_lines(model: nn.Module) -> None:
    model.graph_modules["router"].calls = -1
    with pytest.raises(Exception, match="step -1 is negative") as raised:
        model(**inputs(2))
    text = "".join(traceback.format_exception(raised.value))
    assert 'raise ValueError(f"step {step} is negative")' in text
    assert "corrected = expert.correct(tokens[rows], scaling.checked(self.calls))" in text
    assert f'/routed/scales.py", line {line_of("scales.py", "raise ValueError")}, in checked' in text


def line_of(name: str, text: str) -> int:
    lines = (PLUGINS / "routed" / name).read_text().splitlines()
    return 1 + next(index for index, line in enumerate(lines) if text in line)


def test_the_trainers_own_modules_are_untouched(model: nn.Module) -> None:
    path = list(sys.path)
    model(**inputs(2))
    assert sys.path == path
    assert not {name for name in sys.modules if name.partition(".")[0] == "routed"}
    assert type(model.graph_modules["router"]).__module__.startswith("_model_factory_source_")
    assert importlib.util.find_spec("routed") is None


def test_without_trust_nothing_is_fetched(source_server: ServerProcess, make_remote: MakeRemote, lock: Path) -> None:
    (digest,) = read_lock(lock)
    for trusted in (None, False):
        factory = make_remote(source_server.address, trust_source=trusted)
        with pytest.raises(SourceError) as refused:
            factory.build({"policy": {**CONFIG}})
        text = str(refused.value)
        for part in ("component 'policy'", "router (Router): the forward runs", digest, "model-factory trust CONFIG"):
            assert part in text
        assert factory._cache.find(blob_of(source_server, digest)) is None
    with pytest.raises(SourceError, match="trust_source does not contain the digest"):
        make_remote(source_server.address, trust_source=["0" * 64]).build({"config": CONFIG})
    assert make_remote(source_server.address, trust_source={digest}).build({"config": CONFIG})
    assert factory.build({"config": of("embed")}), "what needs no source needs no trust"


def blob_of(server: ServerProcess, digest: str) -> Any:
    return Blob(digest, (server.store / "blobs" / digest[:2] / digest).stat().st_size)


def test_changed_source_is_refused_with_what_changed(
    source_server: ServerProcess, make_remote: MakeRemote, lock: Path, tmp_path: Path
) -> None:
    document = json.loads(lock.read_text())
    ((digest, pinned),) = document["bundles"].items()
    assert pinned["needed_by"][0] == "policy: graph_modules.router (Router)"
    pinned["files"]["routed/policy.py"] = "0" * 64
    pinned["files"]["routed/gone.py"] = "1" * 64
    del pinned["files"]["routed/layers.py"]
    document["bundles"] = {"2" * 64: pinned}
    older = tmp_path / "older.lock"
    older.write_text(json.dumps(document))
    with pytest.raises(SourceError) as refused:
        make_remote(source_server.address, trust_source=str(older)).build({"config": CONFIG})
    assert f"{older} does not contain the digest" in str(refused.value)
    assert "removed routed/gone.py, added routed/layers.py, changed routed/policy.py." in str(refused.value)
    asked = ("trust", lock.with_name("policy.yaml"), "--server", source_server.address, "--check", "-o")
    changed = command(tmp_path, *asked, older)
    assert changed.returncode == 1
    assert f"{older} does not have bundle {digest}:" in changed.stdout
    assert "  changed  routed/policy.py\n" in changed.stdout
    assert older.read_text() == json.dumps(document), "a check writes nothing"
    assert command(tmp_path, *asked, lock).returncode == 0


def test_the_lock_file_has_to_be_one(make_remote: MakeRemote, tmp_path: Path) -> None:
    broken = tmp_path / "broken.lock"
    with pytest.raises(SourceError, match=r"cannot be read: No such file.*model-factory trust CONFIG -o"):
        make_remote("127.0.0.1:1", trust_source=broken)
    for text in ("", "[]", "{}", '{"format": 1, "bundles": {"x": {}}}', '{"format": 9, "bundles": {}}'):
        broken.write_text(text)
        with pytest.raises(SourceError, match="is not a lock file"):
            make_remote("127.0.0.1:1", trust_source=broken)


def test_a_bundle_that_vanished_from_a_running_store(source_server: ServerProcess, lock: Path, tmp_path: Path) -> None:
    """A build or a description that was answered before is not true any more without it: it is made again."""
    for number, ask in enumerate(("build", "describe")):
        for again in (False, True):
            cache = tmp_path / f"cache{number}{again}"
            factory = RemoteModelFactory(source_server.address, seed=9, cache_dir=cache, trust_source=True)
            if ask == "build":
                assert factory.build({"config": CONFIG}) is not None
            architecture = factory.describe({"config": CONFIG}, portability=True)
            assert isinstance(architecture, Architecture)
            ref = architecture.descriptor.bundle
            assert ref is not None
            assert factory.read_source(ref)
            factory.close()
            (source_server.store / "blobs" / ref.digest[:2] / ref.digest).unlink()


def test_describe_shows_the_portability_of_each_module(source_server: ServerProcess, lock: Path) -> None:
    done = command(lock.parent, "describe", "policy.yaml", "--server", source_server.address)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert lines["graph_modules.router"].split()[:3] == ["graph_modules.router", "Router", "source"]
    assert "source: the forward runs on real tensors" in lines["graph_modules.router"]
    assert lines["graph_modules.vae"].endswith("  recorded for 1 call signature, encode recorded for 2 call signatures")
    assert lines["graph_modules.embed"].split()[2] == "stock"
    assert lines["(model)"].split()[2] == "graph"
    assert lines["name"].endswith("why")


def test_a_server_that_shares_nothing_refuses(original: nn.Module) -> None:
    """The recording of the same block, as a server without ``--share-source`` does it."""
    with pytest.raises(NotPortableError, match=r"^router \(Router\): the forward runs on real tensors"):
        record_model(original)
    refused: dict[str, str] = {}
    assert export_model(original, refused=refused).sources is None
    assert list(refused) == ["graph_modules.router"]
    original.graph_modules["embed"].register_forward_hook(lambda *_: None)
    refused = {}
    portable = export_model(original, refused=refused)
    described = describe(original, refused=refused)
    lines = {
        line.split()[0]: line
        for line in str(Architecture(described, Portability(programs=portable.programs, refused=refused))).splitlines()
    }
    assert lines["graph_modules.router"].split()[2] == lines["graph_modules.embed"].split()[2] == "none"
    assert "  not portable: the forward runs on real tensors" in lines["graph_modules.router"]
    assert "has a hook in _forward_hooks" in lines["graph_modules.embed"]
    assert lines["graph_modules.router.experts.0"].endswith("part of the program of graph_modules.router")
    assert lines["graph_modules.vae"].endswith("recorded for 1 call signature, encode recorded for 2 call signatures")


METHOD_CALLS = {
    "encode": lambda x: [((x,), {}), ((), {"x": x, "noisy": True}), ((x[0],), {"scale": 0.5})],
    "decode": lambda x: [((x[:, :2],), {}), ((x[None, :, :2],), {})],
}


def test_declared_methods_are_methods_of_the_rebuilt_module(model: nn.Module, original: nn.Module) -> None:
    """Some of these forms were recorded at the build, others are by the first call of them."""
    ours, theirs = (item.graph_modules["vae"] for item in (model, original))
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    for training in (False, True):
        for name, calls in METHOD_CALLS.items():
            for args, kwargs in calls(x):
                results = []
                for block in (ours.train(training), theirs.train(training)):
                    block.zero_grad()
                    torch.manual_seed(1)
                    result = getattr(block, name)(*args, **kwargs)
                    parts = result if isinstance(result, tuple) else (result,)
                    sum(part.square().sum() for part in parts).backward()
                    results.append((result, [item.grad for item in block.parameters()]))
                assert_same(results[0], results[1], f"{name} {training}")
    method = ours.encode
    assert method.__self__ is ours
    assert method.__name__ == "encode"
    assert copy.deepcopy(ours).encode.__self__ is not ours
    assert {"encode", "decode"} <= set(dir(ours))
    for args, kwargs in [((), {}), ((x,), {"other": 1}), ((x, 1.0), {})]:
        messages = []
        for block in (ours, theirs):
            with pytest.raises(TypeError) as raised:
                block.encode(*args, **kwargs)
            messages.append(str(raised.value))
        assert all("argument" in message and "encode() " in message for message in messages)
    with pytest.raises(CallSignatureError, match=r"argument 'z' is a object"):
        ours.decode(object())
    with pytest.raises(AttributeError, match=r"'Autoencoder' object has no attribute 'interpolate'.*portable_methods"):
        _ = ours.interpolate


TRAINER = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import torch
from model_factory import IntegrityError, RemoteModelFactory, load, save
from model_factory.cli.main import main
from model_factory.errors import SourceError
from support.compare import train
address, cache, lock, config = sys.argv[3:7]
factory = RemoteModelFactory(address, seed=7, cache_dir=cache, trust_source=lock)
config, x = {"config": json.loads(config)}, torch.linspace(-1, 1, 32).view(8, 4)
try:
    factory.build(config)
except SourceError as error:
    print(error)
sys.path.insert(0, sys.argv[7])
model = factory.build(config)
print(json.dumps(train(model, {"x": x}, steps=4)))
assert not {"routed", "model_factory_server"} & {name.partition(".")[0] for name in sys.modules}
"""


def test_a_trainer_without_the_operators_code_trains(
    source_server: ServerProcess, lock: Path, original: nn.Module, tmp_path: Path
) -> None:
    """In a process that has the base install only, first without the package that the source imports."""
    site = make_site(tmp_path / "site")
    third = tmp_path / "third"
    third.mkdir()
    (third / "einops").symlink_to(Path(einops.__file__).parent)
    arguments = (site, Path(__file__).parents[1], source_server.address, tmp_path / "cache", lock, json.dumps(CONFIG))
    started = [sys.executable, "-I", "-S", "-W", "error", "-c", TRAINER, *map(str, arguments), str(third)]
    done = subprocess.run(started, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    missing, losses = done.stdout.splitlines()
    assert "router (Router)" in missing
    assert "imports 'einops', which is not installed here. Remedy: pip install 'einops==" in missing
    x = torch.linspace(-1, 1, 32).view(8, 4)
    assert json.loads(losses) == train(original, {"x": x}, steps=4)


def test_source_lies_in_a_model_file(model: nn.Module, original: nn.Module, lock: Path, tmp_path: Path) -> None:
    """The bundle goes with the model; the trust of the process that loads the file decides."""
    path = tmp_path / "policy.mf"
    save(model, path)
    with pytest.raises(SourceError, match=r"policy\.mf: component 'model' needs source code .*router \(Router\)"):
        load(path)
    done = command(tmp_path, "load", path)
    assert done.returncode == 0, done.stderr
    assert "needs source code, bundle " in done.stdout
    done = command(tmp_path, "trust", path)
    assert done.returncode == 0, done.stderr
    assert read_lock(tmp_path / "model-factory.lock").keys() == read_lock(lock).keys()
    loaded = load(path, trust_source=tmp_path / "model-factory.lock")
    assert isinstance(loaded, nn.Module)
    save(loaded, tmp_path / "again.mf")
    assert (tmp_path / "again.mf").read_bytes() == path.read_bytes()
    assert_same_state(loaded, original)
    assert_same_runs(loaded, original, inputs(3))
    assert_same_runs(loaded.eval(), original.eval(), inputs(5))


def test_changed_source_in_a_file_does_not_run(model: nn.Module, lock: Path, tmp_path: Path) -> None:
    path = tmp_path / "policy.mf"
    save(model, path)
    data = path.read_bytes()
    assert data.count(b"class Router") == 1
    path.write_bytes(data.replace(b"class Router", b"class Robber"))
    with pytest.raises(IntegrityError, match="the file is damaged"):
        load(path, trust_source=lock)
