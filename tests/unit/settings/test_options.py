"""Settings: flags, variables, file, defaults, and the messages about mistakes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_factory.cli.main import main
from model_factory.errors import ServerError
from model_factory_server.command import OPTIONS
from model_factory_server.settings import options
from model_factory_server.settings.options import Option, assemble, gather, options_of, setting
from model_factory_server.settings.server_settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """Things inside."""

    folder: Path | None = setting(None, "a folder")
    most_bytes: int = setting(1024, "how much", minimum=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """All."""

    count: int = setting(2, "how many", minimum=1)
    quick: bool = setting(False, "in a hurry")
    names: tuple[str, ...] = setting((), "who")
    inner: Inner = field(default_factory=Inner)


TABLE = tuple(options_of(Outer))


def given(
    tmp_path: Path, *, flags: dict[str, Any] | None = None, variables: dict[str, str] | None = None, file: str = ""
) -> tuple[Outer, dict[str, str]]:
    path = tmp_path / "settings.yaml"
    path.write_text(file, encoding="utf-8")
    values = gather(
        TABLE, flags=flags or {}, variables=variables or {}, file=path, other_variables=["MODEL_FACTORY_CACHE"]
    )
    return assemble(Outer, TABLE, values), {name: source for name, (_, source) in values.items()}


def test_precedence_is_flag_variable_file_default(tmp_path: Path) -> None:
    file = "count: 3\nmost_bytes: 2MiB\nquick: true\nnames: [a, b]\n"
    variables = {"MODEL_FACTORY_COUNT": "4", "MODEL_FACTORY_MOST_BYTES": "3 KiB"}
    settings, sources = given(tmp_path, flags={"count": 5}, variables=variables, file=file)
    assert settings == Outer(count=5, quick=True, names=("a", "b"), inner=Inner(most_bytes=3072))
    assert sources == {
        "count": "--count",
        "quick": f"{tmp_path / 'settings.yaml'}:3:8",
        "names": f"{tmp_path / 'settings.yaml'}:4:8",
        "folder": "default",
        "most_bytes": "MODEL_FACTORY_MOST_BYTES",
    }
    assert given(tmp_path)[0] == Outer()
    # An empty variable counts as unset: compose files set empty variables.
    assert given(tmp_path, variables={"MODEL_FACTORY_COUNT": "", "MODEL_FACTORY_FOLDER": ""})[0] == Outer()
    assert given(tmp_path, variables={"MODEL_FACTORY_NAMES": "x, y", "MODEL_FACTORY_FOLDER": "/a"})[0] == Outer(
        names=("x", "y"), inner=Inner(folder=Path("/a"))
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("cuont: 3", r"settings\.yaml:1:8: unknown setting 'cuont'; did you mean 'count'\?"),
        ("count: 0", r"settings\.yaml:1:8: count: 0 is too small: the minimum is 1"),
        ("count: many", r"count: 'many' is not a whole number"),
        ("count: true", r"count: True has the wrong type"),
        ("count: null", r"count: None is not a single value"),
        ("count: 1\ncount: 2", r"Duplicate mapping key 'count'"),
        ("quick: 7", r"quick: 7 has the wrong type"),
        ("names: {a: 1}", r"names: \{'a': 1\} is not a list"),
        ("most_bytes: 5 miles", r"'5 miles' is not a size: give a number of bytes, or a unit"),
        ("- 1", r"must be a mapping"),
        ("a: [", r"not valid YAML"),
    ],
)
def test_mistakes_in_the_file_are_named(file: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=message):
        given(tmp_path, file=file)


def test_mistakes_in_variables_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ServerError, match=r"MODEL_FACTORY_CUONT is not a variable of this server.*did you mean 'MODEL_FACTORY_COUNT'"
    ):
        given(tmp_path, variables={"MODEL_FACTORY_CUONT": "1"})
    with pytest.raises(ServerError, match=r"MODEL_FACTORY_QUICK: 'maybe' is not one of true, "):
        given(tmp_path, variables={"MODEL_FACTORY_QUICK": "maybe"})
    # Variables of the client, and variables that Kubernetes sets for services called model-factory and
    # model-factory-server, are no mistakes.
    given(
        tmp_path,
        variables={
            "MODEL_FACTORY_CACHE": "/cache",
            "MODEL_FACTORY_SERVICE_HOST": "10.0.0.1",
            "MODEL_FACTORY_PORT": "tcp://10.0.0.1:50051",
            "MODEL_FACTORY_PORT_50051_TCP_ADDR": "10.0.0.1",
            "MODEL_FACTORY_SERVER_SERVICE_PORT_GRPC": "50051",
            "UNRELATED": "1",
        },
    )
    with pytest.raises(ServerError, match="cannot read the settings in"):
        gather(TABLE, flags={}, variables={}, file=tmp_path / "nowhere.yaml", other_variables=())


def test_every_setting_is_in_the_table_and_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A field without ``setting(...)`` would be out of reach for operators."""

    def leaves(cls: type) -> int:
        hints = options.get_type_hints(cls)
        return sum(leaves(hints[item.name]) if hasattr(hints[item.name], "__slots__") and
                   hints[item.name].__module__ == Settings.__module__ else 1 for item in fields(cls))  # fmt: skip

    assert len(OPTIONS) == leaves(Settings)
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in OPTIONS:
        assert f"{option.flag} " in text or f"{option.flag}," in text
        assert f"[{option.variable}]" in text
        assert re.sub(r"\s+", " ", option.help) in text, option.name


def test_print_config_prints_a_settings_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_FACTORY_WORKERS", "3")
    (tmp_path / "in.yaml").write_text("build_timeout: 12.5\nplugin: [one, two]\n", encoding="utf-8")
    assert main(["serve", "--config", str(tmp_path / "in.yaml"), "--max-weights-bytes", "1GiB", "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert "workers: 3  # MODEL_FACTORY_WORKERS\n" in printed
    assert "max_weights_bytes: 1073741824  # --max-weights-bytes\n" in printed
    assert f"build_timeout: 12.5  # {tmp_path}/in.yaml:1:16\n" in printed
    assert "listen: 127.0.0.1:50051  # default\n" in printed
    content = yaml.safe_load(printed)
    assert set(content) == {option.name for option in OPTIONS}
    monkeypatch.delenv("MODEL_FACTORY_WORKERS")
    monkeypatch.setenv("MODEL_FACTORY_CONFIG", str(tmp_path / "out.yaml"))
    (tmp_path / "out.yaml").write_text(printed, encoding="utf-8")
    assert main(["serve", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == content


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_default_is_an_allowed_value(option: Option) -> None:
    if option.default is not None and not option.is_list:
        assert option.parse(str(option.default)) == option.default
    assert option.help[0].islower() or option.help[0].isupper()
    assert not option.help.endswith(".")
