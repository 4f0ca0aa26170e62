"""Observability of the real command: log lines, metrics, spans, health and reflection."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import promql_parser
import pytest
import torch
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from model_factory import ConfigError, RemoteModelFactory, StoreError
from model_factory.v1 import build_pb2, capabilities_pb2, service_pb2_grpc, wire
from support.configs import layers
from support.load.soak import SERVER_FLAGS, soak
from support.otlp import Collector, attributes
from support.server import ServerProcess, running_server

MakeRemote = Callable[..., RemoteModelFactory]
SERVICE = "model_factory.v1.ModelFactoryService"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SOAK_SECONDS = 5.0
CLIENTS = 80
PARSE_SECONDS = 2.0


def linear(width: int, **more: Any) -> dict[str, Any]:
    return {"_type_": "nn.Linear", "in_features": 3, "out_features": width, **more}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[ServerProcess]:
    """A server with every kind of observation on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_SERVICE_NAME", "the-service")
        flags = ("--log-format", "json", "--log-level", "debug", "--metrics-listen", "127.0.0.1:0", "--reflection")
        flags += SERVER_FLAGS
        with running_server(tmp_path_factory.mktemp("observed") / "store", *flags) as process:
            yield process


@pytest.fixture
def channel(observed: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(observed.address) as made:
        yield made


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    return service_pb2_grpc.ModelFactoryServiceStub(channel)


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


def lines_of(server: ServerProcess, request_id: str, seconds: float = 5.0) -> list[dict[str, Any]]:
    """Return the lines of an RPC once its access line is written, after the client has the response."""
    deadline = time.monotonic() + seconds
    while True:
        found = [line for line in lines(server) if line.get("request_id") == request_id]
        if any(line["logger"] == "model_factory_server.access" for line in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def scrape(server: ServerProcess) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(server.metrics_page())
        for sample in family.samples
    }


def value(samples: dict[Any, float], name: str, **labels: str) -> float:
    """Return the sum of the samples with these labels."""
    wanted = labels.items()
    return sum(number for (at, others), number in samples.items() if at == name and wanted <= dict(others).items())


def test_a_call_has_one_access_line_with_its_id(observed: ServerProcess, stub: Any) -> None:
    call = stub.GetCapabilities.with_call(
        capabilities_pb2.GetCapabilitiesRequest(), metadata=[(wire.REQUEST_ID, "my-request.0001")]
    )[1]
    assert dict(call.trailing_metadata())[wire.REQUEST_ID] == "my-request.0001"
    (line,) = lines_of(observed, "my-request.0001")
    assert line["logger"] == "model_factory_server.access"
    assert line["method"] == f"{SERVICE}/GetCapabilities"
    assert line["status"] == "OK"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < line["duration_ms"] < 10_000
    assert line["level"] == "info"


@pytest.mark.parametrize("sent", ["short", "x" * 65, "with space 1234", "new\tline-1234", "ünïcödé"])
def test_a_malformed_id_is_replaced(sent: str, stub: Any, observed: ServerProcess) -> None:
    metadata = [(wire.REQUEST_ID, sent)]
    try:
        call = stub.GetCapabilities.with_call(capabilities_pb2.GetCapabilitiesRequest(), metadata=metadata)[1]
    except (grpc.RpcError, ValueError):  # gRPC itself refuses other texts than plain ASCII
        return
    made = dict(call.trailing_metadata())[wire.REQUEST_ID]
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert len(lines_of(observed, made)) == 1
    assert sent not in json.dumps(lines(observed))


def test_a_builds_lines_name_its_key(observed: ServerProcess, stub: Any) -> None:
    request = build_pb2.BuildModelsRequest(
        components=[build_pb2.Component(name="one", config_json=json.dumps(layers(linear(4))).encode())], seed=1
    )
    call = stub.BuildModels(request, metadata=[(wire.REQUEST_ID, "a-build-0001")])
    key = list(call)[-1].manifest.components[0].build_key
    job, access = lines_of(observed, "a-build-0001")
    assert access["builds"] == [job["build"]] == [key]
    assert job["outcome"] == "OK"
    assert set(job["stage_seconds"]) == {"queued", "constructing", "recording", "writing"}
    assert all(seconds >= 0 for seconds in job["stage_seconds"].values())


def test_private_details_are_in_the_log_alone(observed: ServerProcess, make_remote: MakeRemote) -> None:
    """The error of a failing store has a request id; path and cause are in the log under this id only."""
    staging = observed.store / "staging"
    moved = staging.rename(staging.with_name("moved"))
    staging.touch()
    try:
        with pytest.raises(StoreError, match=r"store cannot be read or written.*\(request ([0-9a-f]{32})\)") as caught:
            make_remote(observed.address).build({"config": layers(linear(5))})
    finally:
        staging.unlink()
        moved.rename(staging)
    assert str(observed.store) not in str(caught.value)
    request_id = re.search(r"\(request (\S+)\)", str(caught.value))[1]
    access = lines_of(observed, request_id)[-1]
    assert access["status"] == "INTERNAL"
    assert str(observed.store) in access["error"]


def test_a_failing_build_leaves_its_traceback_in_the_log(observed: ServerProcess, stub: Any) -> None:
    config = json.dumps(layers(linear(-1))).encode()
    request = build_pb2.BuildModelsRequest(components=[build_pb2.Component(name="bad", config_json=config)])
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.BuildModels(request, metadata=[(wire.REQUEST_ID, "a-failure-0001")]))
    assert "Traceback" not in str(caught.value.details()) + str(caught.value.trailing_metadata())
    said = lines_of(observed, "a-failure-0001")
    assert any("Traceback" in line["message"] and "linear.py" in line["message"] for line in said)
    access = said[-1]
    assert (access["status"], access["component"]) == ("FAILED_PRECONDITION", "bad")


def test_an_error_in_memory_names_its_component(make_remote: MakeRemote, observed: ServerProcess) -> None:
    good, bad = layers(linear(4)), layers(linear(4, nonsense=1))
    factory = make_remote(observed.address)
    with pytest.raises(ConfigError, match=r"^<config of 'second'>: model\.sequential\.layers\[0\]\.nonsense: "):
        factory.build({"first": good, "second": bad})
    with pytest.raises(ConfigError, match=r"^<config of 'second'>: .*schema_version"):
        factory.build({"first": good, "second": {**good, "schema_version": 2}})
    with pytest.raises(ConfigError, match=r"^<config>: model\.sequential"):
        factory.build({"config": bad})


def test_metrics_count_rpcs_jobs_and_lookups(observed: ServerProcess, make_remote: MakeRemote, stub: Any) -> None:
    before = scrape(observed)
    factory = make_remote(observed.address, seed=11)
    factory.build({"a": layers(linear(6)), "b": layers(linear(7))})
    factory.build({"a": layers(linear(6))})
    factory.describe({"a": layers(linear(8))})
    with pytest.raises(ConfigError):
        factory.build({"config": layers(linear(4, nonsense=1))})
    with pytest.raises(grpc.RpcError):
        stub.ReadBlob(build_pb2.Component(name="x")).next()
    after = scrape(observed)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    build = {"grpc_service": SERVICE, "grpc_method": "BuildModels", "grpc_type": "server_stream"}
    assert grown("grpc_server_started_total", **build) == 3
    assert grown("grpc_server_handled_total", grpc_code="OK", **build) == 2
    assert grown("grpc_server_handled_total", grpc_code="INVALID_ARGUMENT", **build) == 1
    assert grown("grpc_server_msg_received_total", **build) == 3
    assert grown("grpc_server_msg_sent_total", **build) > 8  # progress, and two manifests
    assert grown("grpc_server_handling_seconds_count", **build) == 3
    assert 0 < grown("grpc_server_handling_seconds_sum", **build) < 60
    assert grown("grpc_server_handling_seconds_bucket", le="+Inf", **build) == 3
    assert grown("model_factory_jobs_total", kind="build", outcome="OK") == 2
    assert grown("model_factory_jobs_total", kind="build", outcome="CONFIG_INVALID") == 1
    assert grown("model_factory_jobs_total", kind="describe", outcome="OK") == 1
    assert grown("model_factory_stage_seconds_count", kind="build", stage="writing") == 2
    assert grown("model_factory_stage_seconds_sum", kind="build", stage="constructing") > 0
    assert grown("model_factory_store_lookups_total", result="hit") == 1
    assert grown("model_factory_store_lookups_total", result="miss") == 3
    sent = sum(path.stat().st_size for path in (observed.store / "blobs").rglob("*/*"))
    assert 0 < grown("model_factory_blob_sent_bytes_total") <= sent
    assert value(after, "model_factory_jobs_total", kind="warm_up", outcome="OK") == 1
    assert value(after, "model_factory_serving") == 1
    assert value(after, "model_factory_queue_jobs") == value(after, "model_factory_workers") == 0
    assert value(after, "model_factory_worker_slots") == 2
    for kind in ("requests", "responses"):
        assert value(after, "model_factory_held_bytes", kind=kind) == 0
        assert value(after, "model_factory_waiting_messages", kind=kind) == 0
        assert value(after, "model_factory_max_held_bytes", kind=kind) > 1e6
    assert value(after, "model_factory_fork_server_replacements_total") == 0
    assert value(after, "model_factory_build_info", backend="builtin", torch_version=torch.__version__) == 1
    assert 10e6 < value(after, "process_resident_memory_bytes") < 1e9
    assert value(after, "process_open_fds") > 3


def test_no_text_of_a_client_becomes_a_label(observed: ServerProcess, channel: grpc.Channel) -> None:
    labels = {label for _, labels in scrape(observed) for label in labels}
    for method in ("/canary.Service/Method", f"/{SERVICE}/CanaryMethod", "/canary"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    after = scrape(observed)
    assert value(after, "grpc_server_handled_total", grpc_method="unknown", grpc_code="UNIMPLEMENTED") >= 3
    new = {label for _, labels in after for label in labels} - labels
    assert new <= {
        ("grpc_service", "unknown"), ("grpc_method", "unknown"), ("grpc_type", "unary"), ("grpc_code", "UNIMPLEMENTED")
    }  # fmt: skip


def test_the_store_is_measured(observed: ServerProcess) -> None:
    """The store is walked at most every 15 s, so the numbers may be older than the files."""
    samples = scrape(observed)
    assert (
        0
        < value(samples, "model_factory_store_files", kind="blobs")
        <= sum(path.is_file() for path in (observed.store / "blobs").rglob("*"))
    )
    assert value(samples, "model_factory_store_bytes", kind="blobs") > 0
    assert value(samples, "model_factory_store_bytes", kind="records") > 0
    assert value(samples, "model_factory_store_free_bytes") > 1e6


DOCS = Path(__file__).parents[2] / "docs"


def families(server: ServerProcess) -> dict[str, str]:
    """Return the types of exported metrics, by the names of the operators' page."""
    found = {item.name: item.type for item in text_string_to_metric_families(server.metrics_page())}
    return {f"{name}_total" if kind == "counter" else name: kind for name, kind in found.items()}


ONLY_WITH_A_GPU = {"model_factory_gpu_memory_bytes"}


def test_the_page_for_operators_has_every_metric(observed: ServerProcess) -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted({*families(observed), *ONLY_WITH_A_GPU})


def labels_of(server: ServerProcess) -> dict[str, set[str]]:
    """Return the labels of exported series, by the names of queries; empty without a sample."""
    found = list(text_string_to_metric_families(server.metrics_page()))
    labels: dict[str, set[str]] = {
        f"{item.name}_total" if item.type == "counter" else item.name: set() for item in found
    }
    for sample in (sample for item in found for sample in item.samples):
        labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def selectors(query: str) -> list[promql_parser.VectorSelector]:
    """Return the selectors of a query; ValueError for an invalid query."""
    found: list[promql_parser.VectorSelector] = []

    def note(part: promql_parser.Expr) -> bool:
        if isinstance(part, promql_parser.VectorSelector):
            found.append(part)
        elif isinstance(part, promql_parser.MatrixSelector):
            found.append(part.vector_selector)
        return True

    promql_parser.walk(promql_parser.parse(query), note)
    return list({str(item): item for item in found}.values())


def check_query(query: str, exported: dict[str, set[str]]) -> None:
    """Check that a query parses, and selects existing series by possible labels and values."""
    reasons = {reason.name for reason in (*wire.CATALOGUE, wire.INTERNAL)}
    can_be = {
        "outcome": reasons | {"OK", "CANCELLED"},
        "grpc_code": {code.name for code in grpc.StatusCode},
        "grpc_service": {SERVICE},
        "job": {"model-factory"},
    }
    asked = selectors(query)
    assert asked, query
    for item in asked:
        if item.name in ONLY_WITH_A_GPU:
            continue
        assert item.name == "up" or item.name in exported, f"{item.name} in {query}"
        for matcher in item.matchers.matchers:
            labels = exported.get(item.name, set())
            assert matcher.name in {*labels, "job", "instance"}, f"{item} in {query}"
            if matcher.name in can_be:
                assert set(matcher.value.split("|")) <= can_be[matcher.name], f"{item} in {query}"


def test_queries_of_alerts_and_page_select_existing_series(observed: ServerProcess, stub: Any) -> None:
    stub.GetCapabilities(capabilities_pb2.GetCapabilitiesRequest())
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    rules = yaml.safe_load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert re.findall(r"^### (ModelFactory\w+)$", page, re.MULTILINE) == [rule["alert"] for rule in rules]
    exported = labels_of(observed)
    assert {"kind", "outcome"} <= exported["model_factory_jobs_total"]
    for rule in rules:
        check_query(rule["expr"], exported)
        assert promql_parser.parse_duration(rule["for"])
    spans = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    queries = [" ".join(span.split()) for span in spans if re.search(r"\((grpc|model_factory|process)_", span)]
    assert len(queries) == 3
    for query in queries:
        check_query(query, exported)
    for wrong in (
        "rate(model_factory_queue_jobs)",
        "model_factory_no_such == 0",
        'model_factory_serving{x="1"}',
        "up (",
    ):
        with pytest.raises((AssertionError, ValueError)):
            check_query(wrong, exported)


def test_every_alert_has_a_firing_and_a_quiet_case(observed: ServerProcess) -> None:
    """``make alerts`` runs the cases with promtool."""
    rules = yaml.safe_load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    tried = yaml.safe_load((DOCS / "alerts.test.yaml").read_text(encoding="utf-8"))["tests"]
    exported = labels_of(observed)
    names = [rule["alert"] for rule in rules]
    assert {item["name"] for item in tried} >= {f"{name} {how}" for name in names for how in ("fires", "is quiet")}
    for item in tried:
        (test,) = item["alert_rule_test"]
        assert item["name"].startswith(f"{test['alertname']} {'fires' if test['exp_alerts'] else 'is quiet'}")
        assert test["alertname"] in names
        for series in item["input_series"]:
            check_query(series["series"], exported)


def spans_of(collector: Collector, trace: str, count: int, seconds: float = 10.0) -> list[Any]:
    deadline = time.monotonic() + seconds
    while True:
        found = [span for span in collector.spans if span.trace_id.hex() == trace]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_spans_continue_the_clients_trace(observed: ServerProcess, stub: Any, collector: Collector) -> None:
    config = json.dumps(layers(linear(9))).encode()
    request = build_pb2.BuildModelsRequest(components=[build_pb2.Component(name="traced", config_json=config)])
    metadata = [("traceparent", f"00-{TRACE}-{PARENT}-01"), (wire.REQUEST_ID, "a-trace-0001")]
    key = list(stub.BuildModels(request, metadata=metadata))[-1].manifest.components[0].build_key
    spans = {span.name: span for span in spans_of(collector, TRACE, 5)}
    assert set(spans) == {
        f"{SERVICE}/BuildModels", "build queued", "build constructing", "build recording", "build writing"
    }  # fmt: skip
    call = spans.pop(f"{SERVICE}/BuildModels")
    assert call.parent_span_id.hex() == PARENT
    said = attributes(call)
    assert said["rpc.system"] == "grpc"
    assert said["rpc.service"] == SERVICE
    assert said["rpc.method"] == "BuildModels"
    assert said["model_factory.outcome"] == "OK"
    assert said["model_factory.request_id"] == "a-trace-0001"
    assert [item.string_value for item in said["model_factory.builds"].values] == [key]
    for span in spans.values():
        assert span.parent_span_id == call.span_id
        assert attributes(span)["model_factory.build"] == key
        assert call.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert {item["service.name"] for item in collector.resources} == {"the-service"}
    assert all(line["trace_id"] == TRACE for line in lines_of(observed, "a-trace-0001"))


def test_a_failed_call_has_a_failed_span(stub: Any, collector: Collector) -> None:
    trace = TRACE[::-1]
    request = build_pb2.BuildModelsRequest(components=[build_pb2.Component(name="x", config_json=b"{")])
    with pytest.raises(grpc.RpcError):
        list(stub.BuildModels(request, metadata=[("traceparent", f"00-{trace}-{PARENT}-01")]))
    (span,) = spans_of(collector, trace, 1)
    assert attributes(span)["model_factory.outcome"] == "INVALID_ARGUMENT"
    assert span.status.code == 2  # ERROR


def test_reflection_names_the_services(channel: grpc.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    ask = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    services, file = list(stub.ServerReflectionInfo(iter(ask)))
    names = {item.name for item in services.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert b"BuildModels" in file.file_descriptor_response.file_descriptor_proto[0]


def test_reflection_is_off_by_default(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(())))
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_cancelled_call_is_counted_as_such(observed: ServerProcess, channel: grpc.Channel, stub: Any) -> None:
    before = scrape(observed)
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    config = json.dumps(layers(*[linear(3) for _ in range(40)])).encode()
    request = build_pb2.BuildModelsRequest(components=[build_pb2.Component(name="gone", config_json=config)], seed=77)
    with pytest.raises(grpc.RpcError):
        list(stub.BuildModels(request, timeout=0.05, metadata=[(wire.REQUEST_ID, "too-late-0001")]))
    (access,) = [line for line in lines_of(observed, "too-late-0001") if line["logger"].endswith("access")]
    assert access["status"] in {"DEADLINE_EXCEEDED", "CANCELLED"}
    deadline = time.monotonic() + 5
    wanted = {"grpc_method": "Watch", "grpc_code": "CANCELLED"}
    while value(scrape(observed), "grpc_server_handled_total", **wanted) == value(
        before, "grpc_server_handled_total", **wanted
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stopping_server_is_not_serving_from_the_first_signal(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """During the drain delay new RPCs are still accepted, so that balancers notice before the port closes."""
    server = start_server(tmp_path / "stopping", "--drain-delay", "60", "--log-level", "warning")
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server._process.terminate()
        signalled = time.monotonic()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - signalled < 1.0
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        factory = RemoteModelFactory(server.address, cache_dir=tmp_path / "c", seed=1)
        assert factory.build({"config": layers(linear(4))})  # new calls, on a new connection
        assert server.log == ""
        server._process.terminate()  # a second signal ends the delay
        assert server._process.wait(30) == 0
        watch.cancel()
    assert "second signal to stop" in server.log


@pytest.mark.slow
def test_many_clients_of_all_kinds(observed: ServerProcess) -> None:
    """A soak of some seconds, with the checks of the hour-long command."""
    outcome = soak(observed, seconds=SOAK_SECONDS, clients=CLIENTS, seed=20261123)
    # All processes share two cores, and the span of each RPC is kept until its export.
    assert not outcome.faults(health_seconds=2.0, growth_mib=64.0), outcome.summary()
    assert {"hit", "download", "describe", "build", "give up"} <= set(outcome.latencies)
    assert len(outcome.probes) > SOAK_SECONDS
    assert max(sample.descriptors for sample in outcome.samples) > CLIENTS / 2, "too few connections for this test"


def test_a_health_check_does_not_wait_for_large_configs(server: ServerProcess) -> None:
    """Parsing the largest configs takes seconds; health checks do not wait for a dozen of these."""
    layers = [{"_type_": "nn.Linear", "in_features": 3, "out_features": 3}] * 12_000
    config = json.dumps({"schema_version": 1, "model": {"sequential": {"layers": layers}}}).encode()
    # One name twice: parsed and then refused, without a build.
    names = [*(str(index) for index in range(8)), "0"]
    request = build_pb2.DescribeModelsRequest(
        components=[build_pb2.Component(name=name, config_json=config) for name in names]
    )
    took: list[float] = []
    with grpc.insecure_channel(server.address) as channel, grpc.insecure_channel(server.address) as other:
        calls = [
            service_pb2_grpc.ModelFactoryServiceStub(other).DescribeModels.future(request, timeout=120)
            for _ in range(4)
        ]
        health = health_pb2_grpc.HealthStub(channel)
        begun = time.monotonic()
        while time.monotonic() - begun < PARSE_SECONDS:
            started = time.monotonic()
            answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            took.append(time.monotonic() - started)
        assert not any(call.done() for call in calls), "the configs were parsed too fast for this test"
        for call in calls:
            call.cancel()
    assert max(took) < 1.0, sorted(took)[-5:]
