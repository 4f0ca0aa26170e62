"""Observability without a server: log lines, metrics, and traces that are off."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from model_factory.errors import ServerError
from model_factory_server.observe.gpu import GpuCollector
from model_factory_server.observe.logs import configure_logging, fields
from model_factory_server.observe.metrics import Metrics
from model_factory_server.observe.rpc_context import RpcContext, enter_rpc
from model_factory_server.observe.spans import Traces
from model_factory_server.observe.traces import configure_traces

Written = pytest.CaptureFixture[str]


@pytest.fixture
def written(capsys: Written) -> Iterator[Written]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield capsys
    root.handlers[:], root.level = handlers, level
    enter_rpc(RpcContext(request_id="", method=""))


LOGS_TO_A_FULL_DISK = """
import logging, multiprocessing, os
from model_factory_server.observe.logs import configure_logging
configure_logging("json", "info")
for _ in range(3):
    logging.getLogger("x").info("a line")
process = multiprocessing.get_context("spawn").Process(target=os.getpid)
process.start()
process.join()
print("started", process.exitcode)
"""


def test_a_log_that_cannot_be_written_fails_nothing_else() -> None:
    """On a full disk processes still start, although each start flushes every stream."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run([sys.executable, "-c", LOGS_TO_A_FULL_DISK], stdout=subprocess.PIPE, stderr=full,
                              env=environment, text=True, check=False, timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "started 0\n")


def test_no_message_can_look_like_another_line(written: Written) -> None:
    enter_rpc(RpcContext(request_id="id-00000001", method="S/M", identity='a" level=ERROR'))
    for log_format in ("text", "json"):
        configure_logging(log_format, "info")
        logging.getLogger("x").info("one\n2026-01-01 00:00:00 ERROR forged\r\nand more", extra=fields(build="abc"))
    text, structured = written.readouterr().err.rsplit("\n{", 1)
    first, *rest = text.splitlines()
    assert first.endswith(r'INFO x one request_id=id-00000001 identity="a\" level=ERROR" build=abc')
    assert rest
    assert all(line.startswith("    ") for line in rest)
    line = json.loads("{" + structured)
    assert line["message"].startswith("one\n2026")
    assert (line["request_id"], line["build"], line["level"]) == ("id-00000001", "abc", "info")


def test_levels_and_tracebacks(written: Written) -> None:
    configure_logging("json", "warning")
    logging.getLogger("x").info("not this")
    try:
        int("canary")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = map(json.loads, written.readouterr().err.splitlines())
    assert line["message"] == "failed"
    assert "Traceback" in line["exception"]
    assert "canary" in line["exception"]


class _NvmlError(Exception):
    pass


def nvml(*, works: bool) -> ModuleType:
    """The used part of NVML, after its documentation: two GPUs, or no driver."""
    module = ModuleType("pynvml")

    def init() -> None:
        if not works:
            raise _NvmlError("Driver Not Loaded")

    vars(module).update(
        NVMLError=_NvmlError,
        nvmlInit=init,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda index: SimpleNamespace(used=100 + index, total=1000),
    )
    return module


def test_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(works=True))
    registry = CollectorRegistry()
    GpuCollector.add_to(registry)
    name = "model_factory_gpu_memory_bytes"
    assert registry.get_sample_value(name, {"gpu": "1", "state": "used"}) == 101
    assert registry.get_sample_value(name, {"gpu": "0", "state": "total"}) == 1000


@pytest.mark.parametrize("module", [None, nvml(works=False)], ids=["not installed", "no driver"])
def test_no_gpu_no_metric(module: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    registry = CollectorRegistry()
    GpuCollector.add_to(registry)
    assert list(registry.collect()) == []


def test_metrics_refuse_an_invalid_address() -> None:
    for listen in ("127.0.0.1:99999", "nonsense", "256.256.256.256:0"):
        with pytest.raises(ServerError, match=r"cannot serve metrics on .*--metrics-listen"):
            Metrics().serve(listen)


def test_a_failing_metric_hides_no_other_metric(tmp_path: Path) -> None:
    """While a certificate is replaced, or with a store on an unmounted file system."""

    def expiry() -> float:
        raise ServerError("no certificate")

    class Idle:
        queued = running = 0

    metrics = Metrics()
    metrics.watch_certificate(expiry)
    metrics.watch(Idle(), 2, tmp_path / "gone")
    assert math.isnan(metrics.registry.get_sample_value("model_factory_certificate_expiry_timestamp_seconds") or 0.0)
    assert metrics.registry.get_sample_value("model_factory_store_free_bytes") is None
    assert metrics.registry.get_sample_value("model_factory_worker_slots") == 2


def test_traces_are_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for variables in (
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ):
        assert type(configure_traces(variables)) is Traces
    monkeypatch.delitem(sys.modules, "model_factory_server.observe.otel", raising=False)
    with pytest.raises(ServerError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT enables traces.*model-factory-server\[otel\]"):
        configure_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})


def test_an_exporter_that_is_not_installed() -> None:
    assert importlib.metadata.version("opentelemetry-sdk")
    with pytest.raises(ServerError, match=r"names 'zipkin', which is not installed. Installed: .*otlp_proto_grpc"):
        configure_traces({"OTEL_TRACES_EXPORTER": "zipkin"})
