"""The files under docker/: consistent with the code, and what they start does what they say.

No container engine runs here. What would run in the containers runs in this environment instead, read from the files:
the server under a read-only root file system where this user may make one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_factory.cli.main import main
from model_factory.settings import VARIABLES
from model_factory_server.command import CONFIG_VARIABLE, OPTIONS
from model_factory_server.options import assemble, gather
from model_factory_server.settings import Settings
from support.dockerfile import ROOT, Stage, read_dockerfile
from support.server import COMMAND, descendants, wait_gone

DOCKER = ROOT / "docker"
ALL_VARIABLES = {*VARIABLES, CONFIG_VARIABLE, *(option.variable for option in OPTIONS)}
SECRETS, STORE = "/run/secrets", "/var/lib/model-factory"


def document(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


def final(name: str) -> Stage:
    return read_dockerfile(DOCKER / f"{name}.Dockerfile")[1][-1]


@pytest.mark.parametrize("name", ["server", "trainer"])
def test_images_are_small_unprivileged_and_made_of_what_is_here(name: str) -> None:
    outer, (build, last) = read_dockerfile(DOCKER / f"{name}.Dockerfile")
    assert build.base == last.base == "${BASE}"
    assert outer["BASE"].rpartition(":")[2] not in {"", "latest"}, "a base image has a tag"
    for rest in build.all("COPY"):
        *sources, _ = rest.split()
        assert all((ROOT / source).exists() for source in sources), rest
    assert last.all("COPY") == ["--from=build /opt/model-factory /opt/model-factory"], "and nothing of the build"
    assert last.one("USER") == "10001"
    users = [index for index, (step, _) in enumerate(last.steps) if step == "USER"]
    assert all(index < users[0] for index, (step, _) in enumerate(last.steps) if step in {"RUN", "COPY"})
    assert {key for key in last.environment if key.startswith("MODEL_FACTORY_")} <= ALL_VARIABLES
    installs = [rest for rest in build.all("RUN") if "pip install" in rest]
    assert all("--no-cache-dir" in rest for rest in installs)
    assert any("server" in rest for rest in installs) == (name == "server")
    assert build.arguments["PIP_CONSTRAINT"] == "/src/constraints.txt"


def test_the_servers_image_says_how_it_is_run() -> None:
    last = final("server")
    assert last.command("ENTRYPOINT") == ["model-factory", "serve"], "in its exec form: signals reach it"
    assert last.health_check == ["model-factory", "health"]
    assert last.one("STOPSIGNAL") == "SIGTERM"
    assert last.one("VOLUME") == last.environment["MODEL_FACTORY_STORE"] == STORE


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_compose_is_consistent() -> None:
    compose = document("compose.yaml")
    server, trainer = compose["services"]["server"], compose["services"]["trainer"]
    for service in (server, trainer):
        assert set(service["environment"]) <= ALL_VARIABLES
        assert set(service["secrets"]) <= set(compose["secrets"])
        paths = [value for value in service["environment"].values() if value.startswith(SECRETS)]
        assert {path.removeprefix(f"{SECRETS}/") for path in paths} <= set(service["secrets"])
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert any(item.startswith("/tmp:") for item in service["tmpfs"])  # noqa: S108
        assert all(item.partition(":")[0] in compose["volumes"] for item in service["volumes"])
    settings = assembled(server["environment"])
    assert seconds(server["stop_grace_period"]) > settings.drain_delay + settings.drain_timeout
    assert all(item.startswith("127.0.0.1:") for item in server["ports"])
    assert trainer["depends_on"] == {"server": {"condition": "service_healthy"}}
    gpu = document("compose.gpu.yaml")["services"]["server"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert set(gpu["environment"]) <= ALL_VARIABLES
    outer, (build, _) = read_dockerfile(DOCKER / "server.Dockerfile")
    assert set(gpu["build"]["args"]) <= {*outer, *build.arguments}


def assembled(variables: dict[str, str], file: Path | None = None) -> Settings:
    values = gather(OPTIONS, flags={}, variables=variables, file=file, other_variables=[*VARIABLES, CONFIG_VARIABLE])
    return assemble(Settings, OPTIONS, values)


def test_kubernetes_is_consistent(tmp_path: Path) -> None:
    names = document("k8s/kustomization.yaml")["resources"]
    assert sorted(names) == sorted(path.name for path in (DOCKER / "k8s").glob("*.yaml") if "kustom" not in path.name)
    kinds = {(item := document(f"k8s/{name}"))["kind"]: item for name in names}
    spec = kinds["Deployment"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    labels = spec["template"]["metadata"]["labels"]
    for selector in (
        spec["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector == labels

    (tmp_path / "config.yaml").write_text(kinds["ConfigMap"]["data"]["config.yaml"], encoding="utf-8")
    settings = assembled({}, tmp_path / "config.yaml")
    assert pod["terminationGracePeriodSeconds"] > settings.drain_delay + settings.drain_timeout
    mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
    assert set(mounts.values()) == {item["name"] for item in pod["volumes"]}
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert set(variables) <= ALL_VARIABLES
    access = settings.access
    for path in (settings.store, access.tls_cert, access.tls_key, access.tokens, variables["MODEL_FACTORY_CONFIG"],
                 variables["MODEL_FACTORY_CA_FILE"]):  # fmt: skip
        assert path is not None
        assert str(path) in mounts or str(Path(path).parent) in mounts, path
    ports = {item["name"]: item["containerPort"] for item in container["ports"]}
    assert settings.listen.endswith(f":{ports['grpc']}")
    assert str(settings.observe.metrics_listen).endswith(f":{ports['metrics']}")

    assert pod["securityContext"]["runAsNonRoot"]
    assert str(pod["securityContext"]["runAsUser"]) == final("server").one("USER")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
    assert kinds["Service"]["spec"]["clusterIP"] == "None"
    assert kinds["PodDisruptionBudget"]["spec"]["minAvailable"] < spec["replicas"]
    assert kinds["NetworkPolicy"]["spec"]["egress"] == []


def test_probes_are_commands_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    pod = document("k8s/deployment.yaml")["spec"]["template"]["spec"]
    probes = [pod["containers"][0][name] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    for command in [*(probe["exec"]["command"] for probe in probes), final("server").health_check]:
        assert command[0] == "model-factory"
        with socket.create_server(("127.0.0.1", 0)) as closed:
            address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert main([*command[1:], "--server", address]) == 1  # understood, and nobody there
        assert "cannot be reached" in capsys.readouterr().err
    for probe in probes:
        given = probe["exec"]["command"]
        own = float(given[given.index("--timeout") + 1]) if "--timeout" in given else 5.0
        assert own <= probe["timeoutSeconds"]


READ_ONLY = """
set -e
mount --make-rprivate /
for folder in "$1" "$2"; do mount --bind "$folder" "$folder"; done
mount -o bind,remount,ro /
shift 2
exec "$@"
"""


def under_read_only_root(store: Path, temporary: Path, command: list[str]) -> list[str]:
    """The command with only these two folders writable, where this user can have it so."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False).returncode:
        return command
    return [unshare, "--mount", "sh", "-c", READ_ONLY, "sh", str(store), str(temporary), *command]


def test_the_composed_services_work_together(tmp_path: Path) -> None:
    """Server and trainer with what their images and the compose file say: TLS, a token, probe, doctor, drain."""
    if shutil.which("openssl") is None:
        pytest.skip("make-secrets.sh needs openssl")
    compose = document("compose.yaml")["services"]
    shutil.copy(DOCKER / "make-secrets.sh", tmp_path)
    path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", tmp_path / "make-secrets.sh"], check=True, env=os.environ | {"PATH": path}, timeout=60)
    store, temporary, cache = tmp_path / "store", tmp_path / "tmp", tmp_path / "cache"
    for folder in (store, temporary, cache):
        folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as unused, socket.create_server(("127.0.0.1", 0)) as other:
        port, metrics = unused.getsockname()[1], other.getsockname()[1]

    def here(name: str) -> dict[str, str]:
        """The service's environment, with the places and ports that stand for the container's."""
        given = final(name).environment | compose[name]["environment"]
        given = {key: value for key, value in given.items() if key.startswith(("MODEL_FACTORY_", "PYTHON"))}
        for old, new in {
            SECRETS: str(tmp_path / "secrets"), STORE: str(store), "/var/cache/model-factory": str(cache),
            "0.0.0.0:50051": f"127.0.0.1:{port}", "localhost:50051": f"localhost:{port}",
            "server:50051": f"localhost:{port}", "0.0.0.0:9090": f"127.0.0.1:{metrics}",
        }.items():  # fmt: skip
            given = {key: value.replace(old, new) for key, value in given.items()}
        return {"PATH": path, "TMPDIR": str(temporary), "HOME": str(temporary)} | kept | given

    kept = {name: value for name, value in os.environ.items() if name in {"PYTHONPATH", "OMP_NUM_THREADS"}}
    image = final("server")
    command = [*image.command("ENTRYPOINT"), *compose["server"]["command"]]
    environment = here("server")
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(under_read_only_root(store, temporary, command), env=environment, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while subprocess.run(image.health_check, env=environment, capture_output=True, check=False).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        trainer = subprocess.run(
            compose["trainer"]["command"], env=here("trainer"), capture_output=True, text=True, timeout=200, check=False
        )
        assert trainer.returncode == 0, trainer.stdout + trainer.stderr
        assert trainer.stdout.count("OK ") == 8
        stranger = {key: value for key, value in here("trainer").items() if "TOKEN" not in key}
        refused = subprocess.run(
            compose["trainer"]["command"], env=stranger, capture_output=True, text=True, timeout=200, check=False
        )
        assert refused.returncode == 1
        assert "FAIL    capabilities" in refused.stdout
        below = descendants(server.pid)
        server.send_signal(getattr(signal, image.one("STOPSIGNAL")))
        assert server.wait(60) == 0
        assert wait_gone(below)
    finally:
        server.kill()
        server.wait()
    assert '"identity": "token:trainer"' in (tmp_path / "log").read_text()
    assert any((store / "blobs").iterdir())
