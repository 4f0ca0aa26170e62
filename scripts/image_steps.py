"""Do the build steps of the Dockerfiles without a container engine, and ask what comes of them.

Read from the files themselves: each ``COPY`` and each ``RUN`` of the build stage, with the arguments' defaults, in a
folder that stands for ``/src`` and a virtual environment that stands for ``/opt/model-factory``. What the system's
package manager does is left out. Then the server of the one environment is checked by the doctor of the other.

``ARG=VALUE`` on the command line gives a build argument: ``TORCH_INDEX=...``.
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

from support.dockerfile import ROOT, read_dockerfile

_OPT, _SRC = "/opt/model-factory", "/src"


def build(name: str, folder: Path, given: dict[str, str]) -> Path:
    """Do the build stage of an image; return what stands for its ``/opt/model-factory``."""
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
    shutil.rmtree(folder / "src")  # the last stage has nothing of it
    assert last.all("COPY") == [f"--from=build {_OPT} {_OPT}"]
    return folder / "opt"


def main() -> int:
    """Build both images' environments and let one check the other."""
    given = dict(item.split("=", 1) for item in sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="model-factory-images-") as name:
        folder = Path(name)
        server, trainer = build("server", folder / "server", given), build("trainer", folder / "trainer", given)
        plain = {"PATH": os.environ["PATH"], "HOME": name, "MODEL_FACTORY_CACHE": f"{name}/cache"}
        absent = subprocess.run([trainer / "bin" / "python", "-c", "import model_factory_server"], env=plain,
                                capture_output=True, check=False)  # fmt: skip
        assert absent.returncode, "the trainer's image has the server"
        _, (_, last) = read_dockerfile(ROOT / "docker" / "server.Dockerfile")
        _, (_, asking) = read_dockerfile(ROOT / "docker" / "trainer.Dockerfile")
        command, *rest = last.command("ENTRYPOINT")
        where = ["--listen", "127.0.0.1:0", "--store", f"{name}/store"]
        with subprocess.Popen(
            [server / "bin" / command, *rest, *where], env=plain, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("listening on ").strip()
            probe, *probing = last.health_check
            subprocess.run([server / "bin" / probe, *probing, "--server", address], env=plain, check=True)
            doctor, *doing = asking.command("CMD")
            subprocess.run([trainer / "bin" / doctor, *doing, "--server", address], env=plain, check=True)
            process.send_signal(getattr(signal, last.one("STOPSIGNAL")))
        assert process.returncode == 0, process.returncode
    return 0


def _pip() -> dict[str, str]:
    """What this user has set for pip, so that it finds packages here."""
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
