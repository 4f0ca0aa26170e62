"""Configs and blocks that would take the server's memory, time, disk, files, network or life."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from model_factory import BuildError, ConfigError, LimitError, RemoteModelFactory
from model_factory.limits import KIB, MIB
from model_factory.v1 import build_pb2, capabilities_pb2, program_pb2, service_pb2_grpc
from support.configs import layers
from support.guarded import BOUNDS, CANARY, PLUGINS
from support.server import ServerProcess, descendants
from support.wire import built_from

A_SECOND = 1.0


def hostile(name: str, **arguments: Any) -> dict[str, Any]:
    return {"config": layers({"_type_": f"hostile.{name}", **arguments})}


def test_the_bounds_are_shown(guarded: ServerProcess) -> None:
    with grpc.insecure_channel(guarded.address) as channel:
        stub = service_pb2_grpc.ModelFactoryServiceStub(channel)
        shown = stub.GetCapabilities(capabilities_pb2.GetCapabilitiesRequest()).limits
    assert (shown.weights_bytes, shown.modules, shown.values, shown.nesting) == (MIB, 50, 400, 12)
    assert (shown.config_bytes, shown.request_bytes, shown.components) == (32 * KIB, 256 * KIB, 9)
    assert (shown.memory_bytes, shown.blob_bytes) == (2 * KIB * MIB, 3 * MIB)
    assert (shown.plan_timeout_ms, shown.build_timeout_ms, shown.build_cpu_timeout_ms) == (20_000, 25_000, 2_000)
    assert (shown.queue, shown.workers, shown.client_workers) == (6, 2, 2)
    assert (shown.rpcs, shown.client_rpcs, shown.client_queue) == (8, 128, 512)
    assert shown.connections == 2048


@pytest.mark.parametrize(
    ("config", "message"),
    [
        # 400 TB in 60 bytes: refused from the plan, which allocates nothing.
        (
            layers({"_type_": "nn.Linear", "in_features": 10_000_000, "out_features": 10_000_000}),
            r"400000040000000 bytes of weights; this server builds at most 1048576",
        ),
        (
            layers({"_type_": "nn.Embedding", "num_embeddings": 2**61, "embedding_dim": 4}),
            r"bytes of weights|failed|Overflow|overflow|too large",
        ),
        (layers(*[{"_type_": "nn.ReLU"}] * 60), r"the model has 6\d modules; this server builds at most 50"),
        (layers({"_type_": "nn.Linear", "in_features": [[[1] * 3] * 20] * 6}), r"at most 400 values, got \d{3}"),
        (layers({"_type_": "nn.Linear", "in_features": [[[[[[[[[1]]]]]]]]]}), r"nests at most 12 deep, got 1\d"),
        (layers({"_type_": "nn.Linear", "notes": "n" * 40_000}), r"a config takes at most 32768 bytes, got 40\d\d\d"),
        (
            layers(
                {"_type_": "nn.TransformerEncoder", "num_layers": 100_000_000, "encoder_layer":
                 {"_type_": "nn.TransformerEncoderLayer", "d_model": 2, "nhead": 1, "dim_feedforward": 2}},
            ),
            r"memory|processor time|planning the model took longer",
        ),
    ],
    ids=["400 TB", "more than addresses", "modules", "nodes", "nesting", "bytes", "endless layers"],
)  # fmt: skip
def test_a_config_over_a_bound(config: dict[str, Any], message: str, attacked: RemoteModelFactory) -> None:
    started = time.monotonic()
    with pytest.raises((LimitError, BuildError, ConfigError), match=message):
        attacked.build({"config": config})
    assert time.monotonic() - started < 2 * float(BOUNDS["--build-timeout"])


def test_requests_over_a_bound(attacked: RemoteModelFactory) -> None:
    small = layers({"_type_": "nn.ReLU"})
    with pytest.raises(LimitError, match="at most 9 components, got 10"):
        attacked.build({f"m{index}": small for index in range(10)})
    large = layers({"_type_": "nn.Linear", "notes": "n" * 31_000})
    with pytest.raises(LimitError, match=r"larger than max \(\d+ vs\. 262144\)"):
        attacked.build({f"m{index}": large for index in range(9)})


def test_the_size_is_that_of_the_dtype_asked_for(
    guarded: ServerProcess, make_remote: Callable[..., RemoteModelFactory]
) -> None:
    config = {"config": layers({"_type_": "nn.Linear", "in_features": 400, "out_features": 450, "bias": False})}
    assert make_remote(guarded.address).build(config) is not None
    with pytest.raises(LimitError, match="the model has 1440000 bytes of weights; this server builds at most 1048576"):
        make_remote(guarded.address, dtype=torch.float64).build(config)
    twice = {"config": layers({"_type_": "nn.Linear", "in_features": 600, "out_features": 600, "bias": False})}
    with pytest.raises(LimitError, match="the model has 1440000 bytes of weights"):
        make_remote(guarded.address).build(twice)
    assert make_remote(guarded.address, dtype=torch.bfloat16).build(twice) is not None


FORM = [["x", {"tensor": 2}]]
MLP = layers({"_type_": "mlp", "dims": [4, 2]})


def tensors(shape: Any, **more: Any) -> dict[str, Any]:
    return {"call_signature": FORM, "tensors": [{"dtype": "float32", "shape": shape} | more]}


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"training": {f"{key:x}": True for key in range(51)}}, "RESOURCE_EXHAUSTED", "at most 50 modules, got 51"),
        ({"training": {"k" * 33_000: True}}, "RESOURCE_EXHAUSTED", "at most 32768 bytes, got 33"),
        ({"module_path": "p" * 33_000}, "RESOURCE_EXHAUSTED", "at most 32768 bytes, got 33"),
        ({"call": tensors([1] * 60 + [4])}, "INVALID_ARGUMENT", "61 axes; at most 16"),
        (
            {"call": {"call_signature": FORM, "tensors": [{"dtype": "float32", "shape": [1]}] * 1001}},
            "INVALID_ARGUMENT|RESOURCE_EXHAUSTED",
            "1001 tensors; at most 1000|at most 32768 bytes",
        ),
        ({"call": tensors([2**70, 0])}, "INVALID_ARGUMENT", "malformed call"),
        ({"call": tensors([2, 4], dtype="bits8")}, "INVALID_ARGUMENT", "may be named"),
        ({"call": b'{"call_signature":[["x",{"tensor":2}]],"tensors":[{"dtype":"float32","shape":[1e999,4]}]}'},
         "INVALID_ARGUMENT", "call"),
        ({"call": tensors([2, 4]) | {"call_signature": [["y", {"tensor": 2}]]}},
         "INVALID_ARGUMENT", "the forward takes 'x'"),
    ],
    ids=["flags", "flag name", "path", "axes", "tensors", "no size", "dtype", "infinite", "argument"],
)  # fmt: skip
def test_a_call_to_record_over_a_bound(
    changes: dict[str, Any], code: str, message: str, attacked: RemoteModelFactory, guarded: ServerProcess
) -> None:
    """Each would have kept a worker, or the whole server, busy for long, or been an error of ours."""
    call = changes.pop("call", tensors([2, 4]))
    request = program_pb2.RecordProgramRequest(
        component=build_pb2.Component(name="m", config_json=json.dumps(MLP).encode()),
        module_path="graph_modules.layer0",
        call_json=call if isinstance(call, bytes) else json.dumps(call).encode(),
        build=built_from(guarded.address, MLP),
    )
    for field, value in changes.items():
        getattr(request, field).update(value) if isinstance(value, dict) else setattr(request, field, value)
    started = time.monotonic()
    with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.ModelFactoryServiceStub(channel).RecordProgram(request, timeout=60)
    assert caught.value.code().name in code.split("|"), caught.value.details()
    assert re.search(message, caught.value.details() or "")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", ["", "n" * 200_000, "\x1b[31mred", "a\u2028b", "\x9b2J"], ids=ascii)
def test_a_component_name_that_is_none(name: str, guarded: ServerProcess) -> None:
    """The answer arrives with its details, and the log has neither its length nor its control sequences."""
    before = len(guarded.log)
    component = build_pb2.Component(name=name, config_json=json.dumps(MLP).encode())
    with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(
            service_pb2_grpc.ModelFactoryServiceStub(channel).BuildModels(
                build_pb2.BuildModelsRequest(components=[component]), timeout=20
            )
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "1 to 255 bytes" in (caught.value.details() or "")
    assert any(detail.Is(ErrorInfo.DESCRIPTOR) for detail in rpc_status.from_call(caught.value).details)
    written = guarded.log[before:]
    assert len(written) < 10_000
    assert not set(written) & {"\x1b", "\u2028", "\x9b"}


def test_a_dtype_is_shown_in_part(guarded: ServerProcess) -> None:
    before = len(guarded.log)
    request = build_pb2.BuildModelsRequest(
        components=[build_pb2.Component(name="m", config_json=json.dumps(MLP).encode())], dtype="\0" * 200_000
    )
    with grpc.insecure_channel(guarded.address) as channel, pytest.raises(grpc.RpcError, match="dtype"):
        list(service_pb2_grpc.ModelFactoryServiceStub(channel).BuildModels(request, timeout=20))
    assert len(guarded.log) - before < 10_000


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mkldnn", "privateuseone", "meta", 0])
def test_a_device_is_not_for_a_config_to_choose(device: Any, attacked: RemoteModelFactory) -> None:
    linear = {"_type_": "nn.Linear", "in_features": 2, "out_features": 3}
    with pytest.raises(ConfigError, match="cannot be chosen by a config: this server builds models on cpu"):
        attacked.build({"config": layers(linear | {"device": device})})
    assert attacked.build({"config": layers(linear | {"device": "cpu"})}) is not None
    too_large = {"_type_": "nn.Linear", "in_features": 10**6, "out_features": 10**6, "device": "cpu"}
    with pytest.raises(LimitError, match="bytes of weights; this server builds at most"):  # planned all the same
        attacked.build({"config": layers(too_large)})


def test_a_block_sees_no_gpu_where_models_are_built_on_the_cpu(attacked: RemoteModelFactory) -> None:
    with pytest.raises(ConfigError, match="'CUDA_VISIBLE_DEVICES': ''"):
        attacked.build(hostile("Tells", what="environment"))


@pytest.mark.parametrize("key", ["_modules", "_parameters", "forward", "training", "__dict__", "named_modules"])
def test_a_key_that_hides_what_a_module_is(key: str, attacked: RemoteModelFactory) -> None:
    linear = {"_type_": "nn.Linear", "in_features": 2, "out_features": 3}
    with pytest.raises(ConfigError, match=r"name of an attribute|reserved"):
        attacked.build({"config": layers({"_type_": "nn.ParameterDict", "parameters": {key: linear}})})


def test_what_the_operator_sets_for_builds(tmp_path: Path, make_remote: Callable[..., RemoteModelFactory]) -> None:
    flags = ("--worker-network", "--max-open-files", "77", "--max-builds-per-client", "1", "--plugin", "hostile_blocks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PLUGINS), prepend=os.pathsep)
        server = ServerProcess(tmp_path / "store", *flags)
    try:
        factory = make_remote(server.address)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            with pytest.raises(ConfigError, match="seen: connected"):
                factory.build(hostile("Tells", what="network", address=address))
        with pytest.raises(ConfigError, match=r"Max open files +77 "):
            factory.build(hostile("Tells", what="limits"))
        notes = tmp_path / "begun"
        sleeps = layers({"_type_": "hostile.Sleeps", "notes": str(notes), "seconds": 2.0})
        builds = [in_progress(server.address, sleeps, seed=seed) for seed in range(2)]
        (first,) = wait_for(notes, 1)
        time.sleep(0.5)
        assert len(server.workers()) == 1, "another worker is free, but not for this client"
        for build in builds:
            build.cancel()
        assert gone([first], 2 * A_SECOND)
    finally:
        assert server.stop() == 0


def test_a_size_that_cannot_be_planned_is_bounded_all_the_same(attacked: RemoteModelFactory) -> None:
    """What only real tensors tell: one allocation too large is refused by the kernel, a sum by the exact size."""
    with pytest.raises(LimitError, match=r"needs more than the \d+ bytes of memory that this server allows"):
        attacked.build(hostile("NeedsRealTensors", numbers=2**31))
    with pytest.raises(LimitError, match=r"the model has 4000000 bytes of weights; this server builds at most 1048576"):
        attacked.build(hostile("NeedsRealTensors", numbers=10**6))
    with pytest.raises(LimitError, match=r"bytes of memory that this server allows"):
        attacked.describe(hostile("NeedsRealTensors", numbers=2**31))
    assert attacked.build(hostile("NeedsRealTensors", numbers=10)) is not None


def test_a_block_that_fills_the_memory(attacked: RemoteModelFactory) -> None:
    with pytest.raises(LimitError, match=r"more than the \d+ bytes of memory") as caught:
        attacked.build(hostile("HoardsObjects"))
    (allowed,) = re.findall(r"the (\d+) bytes", str(caught.value))
    assert int(allowed) < 3 * KIB * MIB, "what it may take beside what it has, and what it has"


def test_a_block_that_crashes_its_process(attacked: RemoteModelFactory) -> None:
    with pytest.raises(BuildError, match="the worker process was ended by SIGSEGV"):
        attacked.build(hostile("Segfaults"))


def test_a_block_that_uses_the_processor_for_ever(attacked: RemoteModelFactory, tmp_path: Path) -> None:
    """Ended by its processor time, and its own processes with it."""
    notes = tmp_path / "children"
    with pytest.raises(
        LimitError, match=r"more than the 2 seconds of processor time|planning the model took longer than"
    ):
        attacked.build(hostile("Spins", notes=str(notes), children=1))
    children = [int(number) for number in notes.read_text(encoding="utf-8").split()]
    assert len(children) == 1
    assert gone(children, A_SECOND)


def test_a_block_that_fills_the_disk(attacked: RemoteModelFactory, tmp_path: Path) -> None:
    path = tmp_path / "endless"
    with pytest.raises(BuildError, match="File too large"):
        attacked.build(hostile("FillsTheDisk", path=str(path)))
    assert path.stat().st_size <= 3 * MIB


def test_what_a_block_sees(attacked: RemoteModelFactory, guarded: ServerProcess) -> None:
    """No variable that is not allowed, no network, no core dumps."""
    with pytest.raises(ConfigError, match="seen: ") as caught:
        attacked.build(hostile("Tells", what="environment"))
    assert CANARY not in str(caught.value)
    assert "CANARY_SECRET" not in str(caught.value)
    assert "'ALLOWED_VARIABLE': 'seen'" in str(caught.value)
    # A fork server that died and is started again sees no more than the first one.
    fork_servers = {child for child, _ in descendants(guarded.pid) if b"fork_server_main" in command_line(child)}
    for child in fork_servers:
        os.kill(child, signal.SIGKILL)
    assert gone(list(fork_servers), 5.0)
    with pytest.raises((ConfigError, BuildError), match="seen: ") as caught:
        attacked.build(hostile("Tells", what="environment", address="again"))
    assert fork_servers
    assert CANARY not in str(caught.value)
    assert CANARY not in guarded.log
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=r"seen: OSError|seen: ConnectionRefusedError|seen: TimeoutError"):
            attacked.build(hostile("Tells", what="network", address=f"127.0.0.1:{port}"))
    assert "can reach the network" not in guarded.log, "warned of, although it is not so"
    with pytest.raises(ConfigError, match="seen: ") as caught:
        attacked.build(hostile("Tells", what="limits"))
    limits = dict(re.findall(r"^ *(Max [a-z ]+?)  +(\d+|unlimited)", str(caught.value), re.MULTILINE))
    assert limits["Max core file size"] == "0"
    assert limits["Max cpu time"] == "2"
    assert limits["Max open files"] == "1024"
    assert limits["Max file size"] == str(3 * MIB)


def command_line(process: int) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes()


def gone(processes: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{process}").exists() and not zombie(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(path: Path, lines: int = 1) -> list[int]:
    deadline = time.monotonic() + 30
    while not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < lines:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(line) for line in path.read_text(encoding="utf-8").split()]


def in_progress(address: str, config: dict[str, Any], seed: int = 0) -> Any:
    """A build that is asked for and not waited for."""
    channel = grpc.insecure_channel(address)
    component = build_pb2.Component(name="m", config_json=json.dumps(config).encode())
    request = build_pb2.BuildModelsRequest(components=[component], seed=seed)
    return service_pb2_grpc.ModelFactoryServiceStub(channel).BuildModels(request, timeout=60)


def test_a_build_ends_with_its_last_client(
    attacked: RemoteModelFactory, guarded: ServerProcess, tmp_path: Path
) -> None:
    """Cancelled, or simply gone: within a second the process is dead and its worker slot free."""
    notes = tmp_path / "begun"
    config = layers({"_type_": "hostile.Sleeps", "notes": str(notes)})
    first, second = in_progress(guarded.address, config), in_progress(guarded.address, config)
    (worker,) = wait_for(notes)
    first.cancel()
    time.sleep(0.3)
    assert not gone([worker], 0.0), "the second client still waits for it"
    second.cancel()
    assert gone([worker], A_SECOND)
    deadline = time.monotonic() + A_SECOND
    while guarded.workers():
        assert time.monotonic() < deadline
    assert list((guarded.store / "staging").iterdir()) == []


@pytest.mark.parametrize("way", ["the block fails", "the process is killed"])
def test_a_failure_reaches_all_who_wait_and_is_not_kept(
    way: str, attacked: RemoteModelFactory, guarded: ServerProcess, tmp_path: Path
) -> None:
    """One job fails once for all of them; who asks again gets another job, which fails or not as things are then."""
    notes, go, cause = tmp_path / "begun", tmp_path / "go", tmp_path / "cause"
    model = hostile("FailsFor", notes=str(notes), go=str(go), cause=str(cause))
    said = "is in the way" if way == "the block fails" else "was ended by SIGKILL"
    cause.touch()
    before = counted(guarded)

    def ask(number: int) -> str:
        factory = RemoteModelFactory(guarded.address, seed=7, cache_dir=tmp_path / str(number))
        with pytest.raises(BuildError, match=said) as caught:
            factory.build(model)
        factory.close()
        return re.sub(r"request [0-9a-f]+", "request", str(caught.value))

    with futures.ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(ask, number) for number in range(5)]
        (worker,) = wait_for(notes)
        while counted(guarded)["joined"] < before["joined"] + 4:
            assert not any(item.done() for item in waiting)
            time.sleep(0.02)
        if way == "the block fails":
            go.touch()
        else:
            os.kill(worker, signal.SIGKILL)
        assert len({item.result(30) for item in waiting}) == 1
    assert len(wait_for(notes)) == 1, "it was built more than once"
    assert {name: number - before[name] for name, number in counted(guarded).items()} == {
        "joined": 4, "miss": 1, "hit": 0, "failed": 1, "built": 0
    }  # fmt: skip
    go.touch()
    said = "is in the way"
    ask(5)  # the cause is there still
    assert len(wait_for(notes)) == 2, "the failure was kept"
    cause.unlink()
    assert attacked.build(model) is not None
    assert len(wait_for(notes)) == 3
    assert (counted(guarded)["failed"], counted(guarded)["built"]) == (before["failed"] + 2, before["built"] + 1)


def counted(server: ServerProcess) -> dict[str, float]:
    """By the server's metrics: components asked for, by whether they were there, and builds, by how they ended."""
    text = server.metrics_page()
    lookups = re.findall(r'^model_factory_store_lookups_total{result="(\w+)"} (\S+)$', text, re.MULTILINE)
    builds = re.findall(r'^model_factory_jobs_total{kind="build",outcome="(\w+)"} (\S+)$', text, re.MULTILINE)
    return {name: float(number) for name, number in lookups} | {
        "failed": sum(float(number) for outcome, number in builds if outcome not in {"OK", "CANCELLED"}),
        "built": sum(float(number) for outcome, number in builds if outcome == "OK"),
    }


def test_a_queue_has_an_end(attacked: RemoteModelFactory, guarded: ServerProcess, tmp_path: Path) -> None:
    """And what is cancelled while it waits leaves it."""
    notes = tmp_path / "begun"
    config = layers({"_type_": "hostile.Sleeps", "notes": str(notes)})
    builds = [in_progress(guarded.address, config, seed=seed) for seed in range(7)]
    workers = wait_for(notes, 2)
    with pytest.raises(LimitError, match=r"RPCs are in progress|builds are waiting"):
        attacked.build({f"m{index}": layers({"_type_": "nn.PReLU", "init": index}) for index in range(3)})
    for build in builds:
        build.cancel()
    assert gone(workers, A_SECOND)
    assert attacked.build({"config": layers({"_type_": "nn.PReLU", "init": 0.125})}) is not None  # by a free worker
