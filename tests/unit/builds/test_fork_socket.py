"""The socket of the fork server lies in the store's scratch folder, or elsewhere where the folder takes no sockets."""

from __future__ import annotations

import errno
import multiprocessing
import socket
from pathlib import Path

import pytest

from model_factory_server.builds.fork_server import socket_in


def folder_of_sockets() -> str | None:
    found: str | None = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    return found


def test_a_folder_that_takes_sockets_is_used(tmp_path: Path) -> None:
    before = folder_of_sockets()
    with socket_in(tmp_path):
        assert folder_of_sockets() == str(tmp_path)
        assert list(tmp_path.iterdir()) == []
    assert folder_of_sockets() == before


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL])
def test_a_folder_that_takes_no_sockets_is_not_used(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(number, f"no socket at {address}")

    monkeypatch.setattr(socket, "socket", Refused)
    before = folder_of_sockets()
    with socket_in(tmp_path):
        assert folder_of_sockets() == before
