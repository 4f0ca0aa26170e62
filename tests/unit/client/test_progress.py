"""Progress is a bar on terminals and in notebooks, else lines of the log, and of the first rank alone."""

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


@pytest.mark.usefixtures("at_once")
def test_a_plain_log_has_a_line_for_each_stage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with caplog.at_level(logging.INFO, progress.log.name):
        work(waits=False)
    assert [record.getMessage() for record in caplog.records] == [
        "encoder: constructing after 0 s",
        "encoder: done after 0 s",
        "encoder: weights of 4000000 bytes after 0 s",
    ]


@pytest.mark.usefixtures("at_once")
def test_a_notebook_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = io.StringIO()
    monkeypatch.setattr(sys, "stderr", notebook)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    work()
    assert "encoder: constructing" in notebook.getvalue()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("rank", ["RANK", "SLURM_PROCID"])
def test_the_first_rank_alone_shows_progress(
    rank: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def shown(**variables: str) -> str:
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)
            for name, value in variables.items():
                patch.setenv(name, value)
            work(waits=False)
        return terminal.getvalue()

    caplog.set_level(logging.INFO, progress.log.name)
    assert "encoder" in shown(**{rank: "0"})
    assert shown(**{rank: "1"}) == ""
    assert not caplog.records
    assert "encoder" in shown(**{rank: "1"}, MODEL_FACTORY_PROGRESS="yes")
    assert shown(MODEL_FACTORY_PROGRESS="no") == ""


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(waits=False)
    assert "encoder" not in terminal.getvalue()
