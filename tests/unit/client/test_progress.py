"""Progress is shown on a terminal, and nowhere else."""

import io
import logging
import sys

import pytest

from model_factory.client import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(*, waits: bool = True) -> None:
    with progress.building(["encoder", "decoder"]) as report:
        report("encoder", "constructing")
        report("encoder", "done")
    with progress.downloading("encoder", 4_000_000) as download:
        if waits:
            download.waiting(None)
        download.received(1_000_000)
        download.received(3_000_000)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0)


@pytest.mark.usefixtures("at_once")
def test_a_person_sees_stages_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work()
    shown = terminal.getvalue()
    assert "encoder: constructing" in shown
    assert "1/2" in shown
    assert "4.00M" in shown
    assert "waits for another process" in shown


@pytest.mark.usefixtures("at_once")
def test_a_log_file_gets_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, progress.log.name)  # messages about waiting may go to the log
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    work()
    assert log.getvalue() == ""


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(waits=False)
    assert "encoder" not in terminal.getvalue()
