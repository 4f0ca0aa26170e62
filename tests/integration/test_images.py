"""The files under docker/: consistent with the code, and what they start does what they say.

No container engine runs here. What would run in the containers runs in this environment instead, read from the files:
server and trainer as the containers' user over a read-only root file system, where this user may do that.
"""

from __future__ import annotations

import json
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
from model_factory.environment import VARIABLES
from model_factory_server.command import CONFIG_VARIABLE, OPTIONS
from model_factory_server.settings.options import assemble, gather
from model_factory_server.settings.server_settings import Settings
from support.container import check_contained, contained, why_not
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
    names = document("k8s/base/kustomization.yaml")["resources"]
    base = DOCKER / "k8s" / "base"
    assert sorted(names) == sorted(path.name for path in base.glob("*.yaml") if "kustom" not in path.name)
    kinds = {(item := document(f"k8s/base/{name}"))["kind"]: item for name in names}
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


def rendered(name: str) -> dict[str, Any]:
    """What ``kubectl apply -k`` of a folder applies, by kind."""
    command = ["kubectl", "kustomize", DOCKER / "k8s" / name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return {item["kind"]: item for item in yaml.safe_load_all(done.stdout)}


def test_kustomizations_name_files_that_exist() -> None:
    for path in (DOCKER / "k8s").rglob("kustomization.yaml"):
        for resource in document(str(path.relative_to(DOCKER)))["resources"]:
            target = (path.parent / resource).resolve()
            assert target.exists()
            assert not path.parent.resolve().is_relative_to(target), f"{path}: kustomize refuses a folder around it"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize")
def test_kustomize_renders_them() -> None:
    base, gpu, single = rendered("base"), rendered("gpu"), rendered("single")
    assert {kind for kind in base if base[kind] != single.get(kind)} == {
        "Deployment", "PersistentVolumeClaim", "PodDisruptionBudget",
    }  # fmt: skip
    assert single.keys() == base.keys() - {"PodDisruptionBudget"}, "one replica could never leave its node"
    assert (single["Deployment"]["spec"]["replicas"], single["Deployment"]["spec"]["strategy"]) == (
        1, {"type": "Recreate"},
    )  # fmt: skip
    assert single["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert len(base) == len(document("k8s/base/kustomization.yaml")["resources"])
    assert {kind for kind in base if base[kind] != gpu[kind]} == {"Deployment"}
    (plain,) = base["Deployment"]["spec"]["template"]["spec"]["containers"]
    (container,) = gpu["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == plain["resources"]["limits"] | {"nvidia.com/gpu": 1}
    assert container["image"] == document("compose.gpu.yaml")["services"]["server"]["image"]
    assert {"name": "MODEL_FACTORY_DEVICE", "value": "cuda"} in container["env"]
    same = {"resources", "image", "env"}
    assert {key: container[key] for key in container if key not in same} == {
        key: plain[key] for key in plain if key not in same
    }
    for item in base.values():
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "model-factory"


def test_probes_are_commands_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    pod = document("k8s/base/deployment.yaml")["spec"]["template"]["spec"]
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
        assert own < probe["timeoutSeconds"]


class Composed:
    """The services of compose.yaml on this machine: in containers without an engine where this user may make them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = document("compose.yaml")["services"]
        self.is_contained = not why_not()
        self.path = f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
        shutil.copy(DOCKER / "make-secrets.sh", folder)
        subprocess.run(["sh", folder / "make-secrets.sh"], check=True, env=os.environ | {"PATH": self.path}, timeout=60)
        for name in ("store", "cache", "tmp"):
            (folder / name).mkdir()
        with socket.create_server(("127.0.0.1", 0)) as unused, socket.create_server(("127.0.0.1", 0)) as other:
            port, metrics = unused.getsockname()[1], other.getsockname()[1]
        self._addresses = {
            "0.0.0.0:50051": f"127.0.0.1:{port}", "localhost:50051": f"localhost:{port}",
            "server:50051": f"localhost:{port}", "0.0.0.0:9090": f"127.0.0.1:{metrics}",
        }  # fmt: skip

    def command(self, name: str, command: list[str]) -> list[str]:
        """What runs a command as in the service's container."""
        if not self.is_contained:
            return command
        secrets = {f"{SECRETS}/{item}": self.folder / "secrets" / item for item in self.services[name]["secrets"]}
        return contained(command, user=final(name).one("USER"), writable=self.writable(name), read_only=secrets)

    def writable(self, name: str) -> dict[str, Path]:
        """The service's volumes and temporary folders: places inside, and what stands for them."""
        (volume,) = (item.split(":") for item in self.services[name]["volumes"])
        (temporary,) = (item.partition(":")[0] for item in self.services[name]["tmpfs"])
        return {volume[1]: self.folder / volume[0], temporary: self.folder / "tmp"}

    def environment(self, name: str) -> dict[str, str]:
        """The service's variables; the ports are this test's, and outside a container so are the places."""
        given = final(name).environment | self.services[name]["environment"]
        given = {key: value for key, value in given.items() if key.startswith(("MODEL_FACTORY_", "PYTHON", "HOME"))}
        kept = {key: value for key, value in os.environ.items() if key in {"PYTHONPATH", "OMP_NUM_THREADS"}}
        moved = self._addresses
        if not self.is_contained:
            places = {place: str(path) for place, path in self.writable(name).items()}
            moved = moved | places | {SECRETS: str(self.folder / "secrets")}

        def here(value: str) -> str:
            return next((new + value.removeprefix(old) for old, new in moved.items() if value.startswith(old)), value)

        return {"PATH": self.path} | kept | {key: here(value) for key, value in given.items()}

    def run(self, name: str, command: list[str], without: str = "-") -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in self.environment(name).items() if without not in key}
        return subprocess.run(
            self.command(name, command), env=environment, capture_output=True, text=True, timeout=200, check=False
        )


NOT_ISOLATED = "builds no network namespace of their own"


NO_CONTAINER = why_not()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="make-secrets.sh needs openssl")
@pytest.mark.parametrize(
    "place",
    [
        pytest.param("container", marks=pytest.mark.skipif(bool(NO_CONTAINER), reason=NO_CONTAINER)),
        pytest.param("host", marks=pytest.mark.skipif(not NO_CONTAINER, reason="the test in a container does more")),
    ],
)
def test_the_composed_services_work_together(place: str, tmp_path: Path) -> None:
    """Server and trainer with what their images and the compose file say: TLS, a token, probe, doctor, drain.

    In a container: as user 10001 over a read-only root, without the system call that gives builds no network.
    """
    composed = Composed(tmp_path)
    assert composed.is_contained == (place == "container")
    services, image = composed.services, final("server")
    command = composed.command("server", [*image.command("ENTRYPOINT"), *services["server"]["command"]])
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=composed.environment("server"), stderr=log)
    try:
        deadline = time.monotonic() + 90
        while composed.run("server", image.health_check).returncode:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        trainer = composed.run("trainer", services["trainer"]["command"])
        assert trainer.returncode == 0, trainer.stdout + trainer.stderr
        assert trainer.stdout.count("OK ") == 8
        refused = composed.run("trainer", services["trainer"]["command"], without="TOKEN")
        assert refused.returncode == 1
        assert "FAIL    capabilities" in refused.stdout
        below = descendants(server.pid)
        if composed.is_contained:
            for process in (server.pid, *(child for child, _ in below)):
                check_contained(process, image.one("USER"), set(composed.writable("server")))
        server.send_signal(getattr(signal, image.one("STOPSIGNAL")))
        assert server.wait(60) == 0
        assert wait_gone(below)
    finally:
        server.kill()
        server.wait()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text(encoding="utf-8").splitlines()]
    assert any(line.get("identity") == "token:trainer" for line in lines)
    assert any((tmp_path / "store" / "blobs").iterdir())
    assert sum(line["message"].startswith("build OK") for line in lines) == 2  # at the start and for the doctor
    if not composed.is_contained:
        return
    # That builds can reach the network is said once, by the server itself, before anybody can ask for a build.
    (number,) = (number for number, line in enumerate(lines) if NOT_ISOLATED in line["message"])
    assert lines[number]["level"] == "warning"
    assert "Remedy" in lines[number]["message"]
    first = min(number for number, line in enumerate(lines) if str(line.get("method")).endswith("/BuildModels"))
    assert number < first
