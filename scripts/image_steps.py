"""Runs the build steps of the Dockerfiles without a container engine, and checks the results.

Every ``COPY`` and ``RUN`` of the build stage runs with the default build arguments, in a folder in place of ``/src``
and a virtual environment in place of ``/opt/model-factory``. Commands of the system package manager are left out. Then
the doctor of the trainer image checks the server of the server image.

``ARG=VALUE`` on the command line sets a build argument: ``TORCH_INDEX=...``.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.container import check_contained, contained, why_not
from support.dockerfile import ROOT, Stage, read_dockerfile
from support.server import descendants

_OPT, _SRC = "/opt/model-factory", "/src"


def build(name: str, folder: Path, given: dict[str, str]) -> Path:
    """Run the build stage of an image; return the folder in place of ``/opt/model-factory``."""
    _, (stage, last) = read_dockerfile(ROOT / "docker" / f"{name}.Dockerfile")
    places = {_OPT: str(folder / "opt"), _SRC: str(folder / "src")}
    (folder / "src").mkdir(parents=True)
    arguments: dict[str, str] = {}
    for instruction, rest in stage.steps:
        if instruction == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = _moved(given.get(key, value), places)
        elif instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                _copy(ROOT / source, folder / "src" / target)
        elif instruction == "RUN" and "apt-get" not in rest:
            print(f"{name}: {rest}", flush=True)
            environment = {"PATH": os.environ["PATH"], "HOME": str(folder)} | _pip() | arguments
            command = re.sub(r"^python3 ", f"{sys.executable} ", _moved(rest, places))
            subprocess.run(["sh", "-euc", command], check=True, env=environment, cwd=folder / "src")
    shutil.rmtree(folder / "src")  # the last stage has no sources
    assert last.all("COPY") == [f"--from=build {_OPT} {_OPT}"]
    return folder / "opt"


def main() -> int:
    """Build the environments of both images and check the server from the trainer."""
    given = dict(item.split("=", 1) for item in sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="model-factory-images-") as name:
        folder = Path(name)
        server, trainer = build("server", folder / "server", given), build("trainer", folder / "trainer", given)
        plain = {"PATH": os.environ["PATH"], "HOME": name, "MODEL_FACTORY_CACHE": f"{name}/cache"}
        absent = subprocess.run([trainer / "bin" / "python", "-c", "import model_factory_server"], env=plain,
                                capture_output=True, check=False)  # fmt: skip
        assert absent.returncode, "the trainer image contains the server"
        _run(folder, server, trainer)
    return 0


def _run(folder: Path, server: Path, trainer: Path) -> None:
    """Start the server with the command of the image, probe the health, run the doctor of the trainer, and stop."""
    last, asking = (read_dockerfile(ROOT / "docker" / f"{name}.Dockerfile")[1][-1] for name in ("server", "trainer"))
    serving = _Image(last, server, folder / "server")
    diagnosing = _Image(asking, trainer, folder / "trainer")
    command = serving.command([*last.command("ENTRYPOINT"), "--listen", "127.0.0.1:0"])
    with subprocess.Popen(command, env=serving.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().removeprefix("listening on ").strip()
        asked = [serving.command([*last.health_check, "--server", address]),
                 diagnosing.command([*asking.command("CMD"), "--server", address])]  # fmt: skip
        for image, command in zip((serving, diagnosing), asked, strict=True):
            subprocess.run(command, env=image.environment, check=True)
        if serving.is_contained:
            for child in (process.pid, *(child for child, _ in descendants(process.pid))):
                check_contained(child, last.one("USER"), set(serving.writable))
        process.send_signal(getattr(signal, last.one("STOPSIGNAL")))
    assert process.returncode == 0, process.returncode
    print(f"contained: {serving.is_contained} {why_not()}", flush=True)


class _Image:
    """The last stage of a Dockerfile, run from the folder in place of ``/opt/model-factory``."""

    def __init__(self, stage: Stage, opt: Path, folder: Path) -> None:
        self._stage = stage
        self._opt = opt
        self.is_contained = not why_not()
        self.writable = {"/tmp": folder / "tmp", stage.one("VOLUME"): folder / "volume"}  # noqa: S108
        for path in self.writable.values():
            path.mkdir()

    def command(self, command: list[str]) -> list[str]:
        """Return the command line for a container, or for no container if this user cannot create any."""
        if not self.is_contained:
            return [str(self._opt / "bin" / command[0]), *command[1:]]
        places = {_OPT: self._opt, str(self._opt): self._opt}  # the scripts contain the path of the environment
        return contained(command, user=self._stage.one("USER"), writable=self.writable, read_only=places)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of the image."""
        given = self._stage.environment
        places = {} if self.is_contained else {place: str(path) for place, path in self.writable.items()}
        given = {name: _moved(value, places | {"${PATH}": os.environ["PATH"]}) for name, value in given.items()}
        return {"HOME": "/tmp"} | given  # noqa: S108


def _pip() -> dict[str, str]:
    """Return the pip settings of this user, for package indexes."""
    return {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}


def _moved(text: str, places: dict[str, str]) -> str:
    for old, new in places.items():
        text = text.replace(old, new)
    return text


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main())
