"""Builds on a server: each made once, the same every time, and independent of what else is asked for."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from model_factory import ConfigError, RemoteModelFactory
from model_factory.digest import digest_of_file
from model_factory.v1 import build_pb2
from support.cases import CASES
from support.compare import assert_same
from support.configs import layers
from support.server import ServerProcess
from support.wire import build_manifest, digests

Start = Callable[..., ServerProcess]

ALL = {name: case.config for name, case in CASES.items()}
CLIENTS = 6


def linear(width: int) -> dict[str, Any]:
    return layers({"_type_": "nn.Linear", "in_features": 4, "out_features": width})


class WorkerCount:
    """Counts the worker processes of a server inside the block."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._idle = server.workers()
        self.seen: set[int] = set()
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> WorkerCount:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.is_set():
            now = self._server.workers() - self._idle
            self.seen |= now
            self.most = max(self.most, len(now))


def test_many_clients_of_one_model_cause_one_build(server: ServerProcess, tmp_path: Path) -> None:
    start = threading.Barrier(CLIENTS)

    def build(index: int) -> dict[str, Any]:
        with RemoteModelFactory(server.address, seed=103, cache_dir=tmp_path / f"cache{index}") as factory:
            start.wait()
            return dict(factory.build({"config_path": CASES["info_embedder"].config}).state_dict())

    with WorkerCount(server) as workers, ThreadPoolExecutor(CLIENTS) as pool:
        states = list(pool.map(build, range(CLIENTS)))
    assert len(workers.seen) == 1
    for state in states[1:]:
        assert_same(state, states[0])


def test_different_models_are_built_side_by_side_within_the_limit(start_server: Start) -> None:
    server = start_server(None, "--workers", "2")
    asked = {f"m{width}": linear(width) for width in range(1, 7)}
    with WorkerCount(server) as workers:
        built = build_manifest(server.address, asked)
    assert list(built) == list(asked)
    assert all(item.built_now for item in built.values())
    assert len(workers.seen) == len(asked)
    assert workers.most <= 2
    assert server.stop() == 0


def test_a_model_that_is_built_already_is_not_built_again(server: ServerProcess) -> None:
    first = build_manifest(server.address, {"mlp": ALL["mlp"]}, seed=105)
    with WorkerCount(server) as workers:
        second = build_manifest(server.address, {"mlp": ALL["mlp"]}, seed=105)
    assert first["mlp"].built_now
    assert not second["mlp"].built_now
    assert workers.seen == set()
    assert digests(first) == digests(second)
    assert first["mlp"].build_key == second["mlp"].build_key


def test_another_seed_changes_the_weights_and_nothing_else(server: ServerProcess) -> None:
    one, two = (build_manifest(server.address, ALL, seed=seed) for seed in (100, 101))
    for name in ALL:
        first, second = digests(one)[name], digests(two)[name]
        assert first[:2] == second[:2]
        assert first[2] != second[2], name


@pytest.mark.slow
def test_other_servers_and_restarts_give_the_same_bytes(start_server: Start, tmp_path: Path) -> None:
    """Programs included: a recording must not depend on hash seeds or on what was recorded before."""
    found = []
    names = ["mlp", "conv_graph", "action_decoder", "vae_prior"]
    for order in (names, names[::-1]):
        server = start_server(tmp_path / f"store {order[0]}")
        found.append(digests(build_manifest(server.address, {name: ALL[name] for name in order}, seed=9)))
        assert server.stop() == 0
    for name in names:
        assert found[0][name] == found[1][name], name


def test_a_restarted_server_needs_no_build(start_server: Start, tmp_path: Path) -> None:
    first = start_server(tmp_path / "store")
    before = build_manifest(first.address, {"mlp": ALL["mlp"]})
    assert first.stop() == 0
    second = start_server(tmp_path / "store")
    with WorkerCount(second) as workers:
        after = build_manifest(second.address, {"mlp": ALL["mlp"]})
    assert digests(after) == digests(before)
    assert not after["mlp"].built_now
    assert workers.seen == set()
    assert second.stop() == 0


def test_weights_do_not_depend_on_what_else_is_asked_for(server: ServerProcess) -> None:
    together = digests(build_manifest(server.address, ALL, seed=42))
    for name in ("mlp", "conv_graph", "action_decoder"):
        alone = digests(build_manifest(server.address, {name: ALL[name]}, seed=42))
        assert alone[name] == together[name]
    renamed = digests(build_manifest(server.address, {"other": ALL["mlp"]}, seed=42))
    assert renamed["other"][:2] == together["mlp"][:2]
    assert renamed["other"][2] != together["mlp"][2]


def test_the_key_is_of_the_config_and_not_of_its_text(server: ServerProcess, tmp_path: Path) -> None:
    spec = {"_type_": "nn.Linear", "in_features": 4, "out_features": 3}
    written = [
        layers(spec),
        layers(dict(reversed(spec.items()))),
        {"notes": "ignored", "params": {"w": 3}} | layers(spec | {"out_features": "${params.w}"}),
        {"templates": {"t": spec}} | layers({"_template_": "t"}),
    ]
    keys = {build_manifest(server.address, {"m": config})["m"].build_key for config in written}
    assert len(keys) == 1
    others = [layers(spec | {"out_features": 5}), layers(spec, {"_type_": "nn.ReLU"}), layers(spec | {"bias": False})]
    keys |= {build_manifest(server.address, {"m": config})["m"].build_key for config in others}
    keys.add(build_manifest(server.address, {"m": written[0]}, dtype="bfloat16")["m"].build_key)
    keys.add(build_manifest(server.address, {"m": written[0]}, seed=1)["m"].build_key)
    assert len(keys) == 1 + len(others) + 2


def test_stages_come_in_order_and_end_with_done(server: ServerProcess) -> None:
    seen: dict[str, list[int]] = {}
    build_manifest(
        server.address,
        {"a": ALL["mlp"], "b": linear(5)},
        seed=106,
        on_stage=lambda component, stage: seen.setdefault(component, []).append(stage),
    )
    assert set(seen) == {"a", "b"}
    for stages in seen.values():
        assert stages == sorted(stages)
        assert build_pb2.BUILD_STAGE_CONSTRUCTING in stages
        assert stages[-1] == build_pb2.BUILD_STAGE_DONE
        assert build_pb2.BUILD_STAGE_UNSPECIFIED not in stages


def test_blobs_in_the_store_are_what_their_names_say(server: ServerProcess) -> None:
    build_manifest(server.address, ALL)
    files = [path for path in (server.store / "blobs").rglob("*/*") if path.is_file()]
    assert len(files) >= 3 * len(ALL)
    for path in files:
        assert digest_of_file(path) == path.name


def test_a_client_that_goes_away_does_not_take_the_build_from_others(server: ServerProcess) -> None:
    config = {"m": layers({"_type_": "nn.Linear", "in_features": 4000, "out_features": 4000})}
    begun, joined = threading.Event(), threading.Event()

    class Gone(Exception):  # noqa: N818
        pass

    def leave(_component: str, stage: int) -> None:
        if stage >= build_pb2.BUILD_STAGE_CONSTRUCTING:
            begun.set()
            assert joined.wait(60)
            raise Gone

    def go_away() -> None:
        with pytest.raises(Gone):
            build_manifest(server.address, config, on_stage=leave)

    with WorkerCount(server) as workers:
        leaver = threading.Thread(target=go_away)
        leaver.start()
        assert begun.wait(60)
        stayed = build_manifest(server.address, config, on_stage=lambda _component, _stage: joined.set())
        leaver.join()
    assert stayed["m"].weights.size_bytes > 4000 * 4000 * 4
    assert len(workers.seen) == 1


def peak_memory(server: ServerProcess, width: int) -> tuple[int, int]:
    """Build one large layer; return the peak memory of its worker process, and the weights' size."""
    built = threading.Event()
    peaks = [0]

    def watch() -> None:
        while not built.wait(0.01):
            for worker in server.workers():
                with suppress(FileNotFoundError, ProcessLookupError):
                    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker}/status").read_text(encoding="ascii"))
                    peaks.append(int(found[1]) * 1024 if found else 0)  # a mark: it does not fall

    watching = threading.Thread(target=watch)
    watching.start()
    config = layers({"_type_": "nn.Linear", "in_features": width, "out_features": width})
    try:
        weights = build_manifest(server.address, {"m": config})["m"].weights
    finally:
        built.set()
        watching.join()
    (server.store / "blobs" / weights.blake3[:2] / weights.blake3).unlink()  # nobody else needs as much
    return max(peaks), weights.size_bytes


def test_a_build_has_its_weights_once_in_memory(server: ServerProcess) -> None:
    """Until they are on disk: no second copy to write them from, nor of the one large tensor that they are."""
    baseline, _ = peak_memory(server, 4)
    peak, size = peak_memory(server, 9000)
    assert size > 300 << 20
    assert baseline > 100 << 20, "of torch alone: the process was not seen"
    assert 0.5 * size < peak - baseline < 1.3 * size


def test_one_bad_component_does_not_spoil_a_build_that_others_wait_for(server: ServerProcess, tmp_path: Path) -> None:
    good = linear(77)
    bad = layers({"_type_": "nn.Linear", "in_features": 4})

    def spoil() -> None:
        with pytest.raises(ConfigError):
            RemoteModelFactory(server.address, seed=1, cache_dir=tmp_path / "spoil").build({"bad": bad, "good": good})

    def wait() -> Any:
        return RemoteModelFactory(server.address, seed=1, cache_dir=tmp_path / "wait").build({"good": good})

    with ThreadPoolExecutor(2) as pool:
        spoiled, waited = pool.submit(spoil), pool.submit(wait)
        spoiled.result()
        assert waited.result()["good"].graph_modules["layer0"].out_features == 77
