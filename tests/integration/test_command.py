"""The ``model-factory`` command, run by people and service managers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_factory import BuildInfo, RemoteModelFactory, UnavailableError
from model_factory.descriptor.codec import decode_descriptor
from model_factory.descriptor.rebuild import rebuild
from model_factory.digest import digest_of_file
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES, CONFIGS
from support.compare import assert_same
from support.server import COMMAND, ServerProcess, descendants, wait_gone

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = CONFIGS / "small"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"MODEL_FACTORY_CACHE": str(tmp_path / "cache")} | variables
        command = [COMMAND, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path, env=environment
        )

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_cleanly_and_leaves_nothing(
    number: signal.Signals, start_server: Callable[..., ServerProcess], run: Run
) -> None:
    server = start_server()
    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", server.address)
    assert run("build", SMALL / "mlp.yaml", "--server", server.address).returncode == 0
    below = descendants(server.pid)
    assert below, "no fork server?"
    os.kill(server.pid, number)
    assert server._process.wait(60) == 0
    assert wait_gone(below)
    assert not list((server.store / "staging").iterdir())
    assert "Traceback" not in server.log


@pytest.mark.usefixtures("less_patience")
def test_serve_stops_while_it_builds(
    start_server: Callable[..., ServerProcess], make_remote: Callable[..., RemoteModelFactory]
) -> None:
    server = start_server(None, "--drain-timeout", "0.1")
    layers = [{"_type_": "nn.Linear", "in_features": 5000, "out_features": 5000}] * 12
    config = {"config": {"schema_version": 1, "model": {"sequential": {"layers": layers}}}}
    with ThreadPoolExecutor(1) as pool:
        build = pool.submit(make_remote(server.address).build, config)
        while not server.workers():
            assert not build.done(), "the build was too fast for this test"
        assert server.stop() == 0
        with pytest.raises(UnavailableError):
            build.result(60)


@pytest.mark.parametrize("listen", ["127.0.0.1:notaport", "256.256.256.256:0", "nonsense"])
def test_serve_refuses_a_wrong_address(listen: str, run: Run, tmp_path: Path) -> None:
    done = run("serve", "--listen", listen, "--store", tmp_path / "store")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_taken_port(server: ServerProcess, run: Run, tmp_path: Path) -> None:
    done = run("serve", "--listen", server.address, "--store", tmp_path / "store")
    assert done.returncode == 1
    assert f"cannot listen on {server.address}" in done.stderr


def test_serve_refuses_a_store_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("serve", "--listen", "127.0.0.1:0", "--store", tmp_path / "file")
    assert done.returncode == 1
    assert f"cannot use {tmp_path / 'file'} as a store" in done.stderr


def test_build_writes_loadable_files(server: ServerProcess, run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run("build", SMALL / "mlp.yaml", f"conv={SMALL / 'conv_graph.yaml'}", "--server", server.address,
               "--seed", 7, "-o", output)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output.iterdir()} == {
        "mlp.safetensors",
        "mlp.descriptor.json",
        "mlp.build_info.json",
        "conv.safetensors",
        "conv.descriptor.json",
        "conv.build_info.json",
    }
    local = PolicyConstructorModelFactory(seed=7).build({"mlp": SMALL / "mlp.yaml", "conv": SMALL / "conv_graph.yaml"})
    for name, model in local.items():
        state = load_file(output / f"{name}.safetensors")
        parameters = sum(item.numel() for item in model.parameters())
        assert f"{name}: {parameters:,} parameters" in done.stdout
        model.eval()
        model.load_state_dict({key: torch.zeros_like(value) for key, value in state.items()}, strict=True)
        model.load_state_dict(state, strict=True)
        fresh = PolicyConstructorModelFactory(seed=7).build({name: SMALL / f"{CASE_OF[name]}.yaml"})[name]
        assert_same(dict(model.state_dict()), dict(fresh.state_dict()))
        info = BuildInfo.from_dict(json.loads((output / f"{name}.build_info.json").read_text(encoding="utf-8")))
        assert (info.component, info.seed, info.weights) == (name, 7, digest_of_file(output / f"{name}.safetensors"))
        described = decode_descriptor((output / f"{name}.descriptor.json").read_bytes())
        twin = rebuild(described, state)
        assert [key for key, _ in twin.named_parameters()] == [key for key, _ in model.named_parameters()]


CASE_OF = {"mlp": "mlp", "conv": "conv_graph"}


def test_build_in_another_dtype(server: ServerProcess, run: Run, tmp_path: Path) -> None:
    done = run("build", SMALL / "mlp.yaml", "--server", server.address, "--dtype", "bfloat16", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {value.dtype for value in load_file(tmp_path / "out" / "mlp.safetensors").values()} == {torch.bfloat16}
    done = run("build", SMALL / "mlp.yaml", "--server", server.address, "--dtype", "float99")
    assert done.returncode == 1
    assert "float99" in done.stderr


def test_build_explains_errors(server: ServerProcess, run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("schema_version: 1\nmodel: {sequential: {layers: [{_type_: nn.Linaer}]}}\n", encoding="utf-8")
    done = run("build", bad, "--server", server.address, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {bad}:2:")
    assert "nn.Linear" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("build", SMALL / "mlp.yaml", "--server", "127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1 cannot be reached" in done.stderr


def test_two_configs_with_one_name(server: ServerProcess, run: Run, tmp_path: Path) -> None:
    (tmp_path / "mlp.yaml").write_bytes((SMALL / "mlp.yaml").read_bytes())
    done = run("build", SMALL / "mlp.yaml", tmp_path / "mlp.yaml", "--server", server.address)
    assert done.returncode == 1
    assert "two configs are called 'mlp'" in done.stderr
    done = run("build", f"config_path={SMALL / 'mlp.yaml'}", "--server", server.address)
    assert done.returncode == 1
    assert "a model cannot be called 'config_path'. Remedy: give another name, NAME=FILE" in done.stderr


def rows(table: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if line and not set(line) <= {"-"}]


@pytest.mark.parametrize("name", CASES)
def test_describe_is_a_table_with_right_totals(name: str, server: ServerProcess, run: Run) -> None:
    done = run("describe", "--quick", CASES[name].config, "--server", server.address)
    assert done.returncode == 0, done.stderr
    title, header, *body, total = rows(done.stdout)
    assert title == [name]
    assert header == ["name", "type", "kind", "shapes", "parameters", "bytes"]
    model = PolicyConstructorModelFactory().build({name: CASES[name].config})[name]
    modules = dict(model.named_modules())
    assert [row[0] for row in body] == ["(model)", *list(modules)[1:]]
    for row in body[1:]:
        assert row[1].removeprefix("nn.").rpartition(".")[2] == type(modules[row[0]]).__name__
        own = [*modules[row[0]].named_parameters(recurse=False), *modules[row[0]].named_buffers(recurse=False)]
        shapes = " ".join(f"{key}{list(item.shape)}" for key, item in own)
        assert shapes in " ".join(row[3:])
    parameters = sum(item.numel() for item in model.parameters())
    size = sum(item.nbytes for item in [*model.parameters(), *model.buffers()])
    assert total == ["total", f"{len(body)} modules", f"{parameters:,}", f"{size:,}"]
    assert sum(int(row[-2].replace(",", "")) for row in body) == parameters
    assert sum(int(row[-1].replace(",", "")) for row in body) == size


def test_describe_of_a_large_model_builds_no_weights(start_server: Callable[..., ServerProcess], run: Run) -> None:
    server = start_server()
    done = run("describe", "--quick", CONFIGS / "three_cameras" / "vae_prior.yaml", "--server", server.address)
    assert done.returncode == 0, done.stderr
    assert sum(path.stat().st_size for path in (server.store / "blobs").rglob("*/*")) < 1024 * 1024
    assert server.stop() == 0


def test_validate(run: Run, tmp_path: Path) -> None:
    good = [case.config for case in CASES.values()]
    done = run("validate", *good)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(good)
    assert all(re.search(r": valid, \d+ modules?, digest [0-9a-f]{64}$", line) for line in lines)
    bad = tmp_path / "bad.yaml"
    bad.write_text("schema_version: 1\nmodel: {graph: {}}\n", encoding="utf-8")
    done = run("validate", good[0], bad)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {bad}:2:")
    assert run("validate", tmp_path / "nowhere.yaml").returncode == 1


def test_validate_reads_the_environment(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "schema_version: 1\nmodel: {sequential: {layers: [{_type_: nn.ReLU, inplace: '${env:bool:IN_PLACE}'}]}}\n",
        encoding="utf-8",
    )
    assert run("validate", config).returncode == 1
    digests = {run("validate", config, IN_PLACE=value).stdout for value in ("true", "YES", "no")}
    assert len(digests) == 2


def test_the_digest_is_the_same_for_any_order_of_keys(run: Run, tmp_path: Path) -> None:
    layer = {"_type_": "nn.Linear", "in_features": 2, "out_features": 3, "bias": False}
    digests = set()
    for index, spec in enumerate([layer, dict(reversed(layer.items()))]):
        path = tmp_path / f"{index}.json"
        document = {"schema_version": 1, "model": {"sequential": {"layers": [spec]}}}
        path.write_text(json.dumps(document), encoding="utf-8")
        digests.add(run("validate", path).stdout.split()[-1])
    assert len(digests) == 1


def test_blocks_lists_arguments_and_defaults(server: ServerProcess, run: Run) -> None:
    done = run("blocks", "--server", server.address)
    assert done.returncode == 0, done.stderr
    names = {match.group(1) for match in re.finditer(r"^([^\s(]+)\(", done.stdout, re.MULTILINE)}
    assert {"mlp", "conv_bn_act", "residual_block", "nn.Linear", "nn.Conv2d", "nn.TransformerEncoder"} <= names
    assert {
        f"vfp_single_{name}" for name in ("info_embedder", "multimodal_bridge", "action_decoder", "prior", "posterior")
    } <= names
    done = run("blocks", "mlp", "residual_block", "nn.Linear", "--server", server.address)
    assert "mlp(dims, activation=None, dropout=0.0, bias=True, final_activation=None)" in done.stdout
    assert "residual_block(in_channels, out_channels=None, stride=1, act=None)" in done.stdout
    assert "nn.Linear(in_features, out_features, bias=True" in done.stdout
    assert "nn.Conv2d" not in done.stdout
    done = run("blocks", "no_such_block", "--server", server.address)
    assert done.returncode == 1
    assert "no_such_block" in done.stderr


def test_the_server_may_come_from_the_environment(server: ServerProcess, run: Run) -> None:
    assert run("blocks", "mlp", MODEL_FACTORY_SERVER=server.address).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["build"], ["serve", "--workers", "0"], ["build", "--x", "c"]])
def test_wrong_usage(arguments: list[str], run: Run) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: model-factory")


def test_help_and_version(run: Run) -> None:
    assert run("--version").stdout.strip() == metadata.version("model-factory")
    done = run("--help")
    assert all(name in done.stdout for name in ("serve", "build", "describe", "validate", "blocks"))


@pytest.mark.parametrize("arguments", [["validate", SMALL / "mlp.yaml"], ["serve", "--help"]])
def test_commands_without_torch_do_not_import_torch(arguments: list[object]) -> None:
    code = (
        "import sys\nfrom model_factory.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe(server: ServerProcess) -> None:
    command = f"'{COMMAND}' blocks --server {server.address} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=100,
                          check=False)  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
