"""The pages for trainers: every command and every block of Python runs as written, with a real server."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from model_factory import BuildInfo
from support.server import ServerProcess

ROOT = Path(__file__).parents[2]
SLOW = ("lightning", "accelerate", "sbatch")
"""Examples that take longer than ten seconds."""

SLURM = {
    "sbatch": '#!/bin/bash\nSLURM_NTASKS=2 SLURM_JOB_NODELIST=here bash "$@"\n',
    "scontrol": "#!/bin/bash\necho localhost\necho another\n",
    "srun": "#!/bin/bash\nfor rank in $(seq 0 $((SLURM_NTASKS - 1))); do\n"
    '  SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & pids+=($!)\ndone\n'
    'for pid in "${pids[@]}"; do wait "$pid" || exit 1; done\n',
}
"""What a job script uses of Slurm, on one machine."""

Run = Callable[..., str]


def blocks(page: str) -> list[tuple[str, str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```(python|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(server: ServerProcess, tmp_path: Path) -> Run:
    """Run one block in a folder with a config and the examples; return the output."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in SLURM.items():
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "policy.yaml").symlink_to(ROOT / "examples" / "trainers" / "policy.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODEL_FACTORY_SERVER": server.address,
        "MODEL_FACTORY_CACHE": str(tmp_path / "cache"),
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": "file:./mlruns",
    }

    def run(language: str, text: str, **more: str) -> str:
        command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euc", text]
        environment = os.environ | variables | more
        done = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, start_new_session=True)  # fmt: skip
        try:
            output, errors = done.communicate(timeout=200)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(done.pid, signal.SIGKILL)  # the ranks of a command that hangs, too
        assert done.returncode == 0, f"{text}\n{output}\n{errors}"
        return output

    return run


@pytest.mark.slow
@pytest.mark.parametrize("page", ["experiments.md", "offline.md"])
def test_the_blocks_of_a_page_run_one_after_the_other(page: str, run: Run) -> None:
    found = blocks(page)
    assert {language for language, _ in found} == {"python", "sh"}
    for language, text in found:
        run(language, text)


def losses(output: str) -> list[float]:
    return [float(text) for text in re.findall(r"^step \d+ loss (\S+)$", output, re.MULTILINE)]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        pytest.param(
            *block, marks=pytest.mark.slow if any(name in block[1] for name in SLOW) else (), id=f"block {index}"
        )
        for index, block in enumerate(blocks("trainers.md"))
    ],
)
def test_every_example_of_trainers_runs_and_learns(language: str, text: str, run: Run) -> None:
    output = run(language, text)
    if "examples/" in text:
        first, last = losses(output)
        assert last < first / 2


def test_every_example_is_on_the_page() -> None:
    page = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    scripts = [path.name for path in (ROOT / "examples" / "trainers").iterdir() if path.suffix in {".py", ".sbatch"}]
    assert len(scripts) > 5
    assert [name for name in scripts if f"examples/trainers/{name}" not in page] == []


@pytest.mark.slow
def test_the_server_and_the_own_process_train_alike(run: Run, tmp_path: Path) -> None:
    command = "python examples/trainers/plain.py"
    remote = run("sh", command)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    local = run("sh", command, MODEL_FACTORY_SERVER="")
    assert losses(remote) == losses(local)
    assert BuildInfo.from_dict(checkpoint["build"]).weights is not None
    again = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert all(value.equal(again[name]) for name, value in checkpoint["model"].items())


@pytest.mark.slow
def test_torchrun_and_slurm_train_alike(run: Run, tmp_path: Path) -> None:
    torchrun = run("sh", "torchrun --standalone --nproc-per-node 2 examples/trainers/distributed.py")
    assert losses(run("sh", "sbatch examples/trainers/distributed.sbatch")) == losses(torchrun)
    infos = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["build"]
    assert infos["weights"]


@pytest.mark.slow
def test_ranks_with_different_models_stop(run: Run, tmp_path: Path) -> None:
    source = (ROOT / "examples" / "trainers" / "distributed.py").read_text(encoding="utf-8")
    (tmp_path / "policy.yaml").unlink()
    (tmp_path / "policy.yaml").write_bytes((ROOT / "examples" / "trainers" / "policy.yaml").read_bytes())
    changed = source.replace("seed=7", "seed=dist.get_rank()")
    assert changed != source
    (tmp_path / "distributed.py").write_text(changed, encoding="utf-8")
    with pytest.raises(AssertionError, match="the ranks have different weights"):
        run("sh", "torchrun --standalone --nproc-per-node 2 distributed.py")
