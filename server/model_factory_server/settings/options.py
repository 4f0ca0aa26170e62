"""From the fields of a dataclass to flags, variables, file keys, help and a listing: one table, no second list.

A field made with :func:`setting` is one option. A field whose type is a dataclass is a group of them, whose title in
the help is the first line of that class's documentation. The names follow from the field's: ``max_nodes`` is the flag
``--max-nodes``, the variable ``MODEL_FACTORY_MAX_NODES`` and the file's key ``max_nodes``. A value is looked for in
that order, and then there is the default.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from model_factory.config.syntax.plain_data import to_plain
from model_factory.config.syntax.yaml_tree import parse_yaml
from model_factory.environment import WORDS
from model_factory.errors import ConfigError, ServerError
from model_factory.limits import KIB, MIB
from model_factory.wording import nearest

T = TypeVar("T")

PREFIX = "MODEL_FACTORY_"
DEFAULT = "default"
"""Where a value came from that nobody gave."""

MAX_FILE_BYTES = MIB
"""Of a file of settings."""

_TABLE_KEY = "setting"
_ONE_LINE = 1 << 20
_UNITS = {"": 1, "KiB": KIB, "MiB": MIB, "GiB": KIB * MIB, "TiB": MIB * MIB}
# What Kubernetes puts into the environment for a service whose name begins with ours.
_KUBERNETES = re.compile(
    r"MODEL_FACTORY(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting, as it is given from outside."""

    name: str
    """Its key in a file; flag and variable follow from it."""
    help: str
    """What it is, in a few words."""
    kind: type
    """Of one value: bool, int, float, str or Path."""
    is_list: bool
    """Whether it has any number of values."""
    is_size: bool
    """Whether it counts bytes, and so may have a unit."""
    default: Any
    """The value when nobody gives one."""
    metavar: str
    """What stands for the value in the help."""
    choices: tuple[str, ...]
    """What is allowed; empty: anything of the kind."""
    minimum: float | None
    """The least that a number may be."""
    maximum: float | None
    """The most that a number may be."""
    group: str
    """The heading in the help."""
    place: tuple[str, ...]
    """The fields that lead to it."""

    @property
    def flag(self) -> str:
        """As on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """As in the environment."""
        return f"{PREFIX}{self.name.upper()}"

    def parse(self, text: str) -> Any:
        """Read one value from text.

        Raises:
            ValueError: it is not one; the message says what is allowed.
        """
        if self.kind is bool:
            if text.lower() not in WORDS:
                raise ValueError(f"{text!r} is not one of {', '.join(WORDS)}")
            return WORDS[text.lower()]
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}")
        value = _size(text) if self.is_size else _converted(self.kind, text)
        if self.minimum is not None and not value >= self.minimum:
            raise ValueError(f"{text} is too small: at least {self.minimum:g}")
        if self.maximum is not None and not value <= self.maximum:
            raise ValueError(f"{text} is too large: at most {self.maximum:.12g}")
        if value == float("inf"):
            raise ValueError(f"{text} is not a number that ends")
        return value

    def read(self, value: Any) -> Any:
        """Read what a file or a variable says: plain YAML data, or text.

        Raises:
            ValueError: it is not a value of this option.
        """
        if not self.is_list:
            return self._read_one(value)
        items = [item for part in value.split(",") if (item := part.strip())] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise ValueError(f"{value!r} is not a list")  # noqa: TRY004  a wrong value like any other
        return tuple(self._read_one(item) for item in items)

    def _read_one(self, value: Any) -> Any:
        if value is None and self.default is None:
            return None
        if isinstance(value, bool) is not (self.kind is bool) and not isinstance(value, str):
            raise ValueError(f"{value!r} is not a value for this")
        if not isinstance(value, str | int | float):
            raise ValueError(f"{value!r} is not a single value")  # noqa: TRY004  a wrong value like any other
        return self.parse(str(value))


def setting(
    default: Any,
    text: str,
    *,
    name: str = "",
    metavar: str = "",
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Make a dataclass field that is an option.

    Args:
        default: Its default; a tuple for an option that may be repeated.
        text: The help.
        name: In files; by default the field's name.
        metavar: Stands for the value in the help.
        choices: The texts that are allowed.
        minimum: The least number.
        maximum: The largest number.
    """
    how = {
        "text": text,
        "name": name,
        "metavar": metavar,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
    }
    return dataclasses.field(default=default, metadata={_TABLE_KEY: how})


def options_of(cls: type, group: str = "", place: tuple[str, ...] = ()) -> Iterator[Option]:
    """Yield the options of a dataclass, in the order of its fields."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            title = (hint.__doc__ or "").partition("\n")[0].rstrip(".")
            yield from options_of(hint, title, (*place, field.name))  # type: ignore[arg-type]  # a class, as given
        elif _TABLE_KEY in field.metadata:
            yield _option(field, hint, group, (*place, field.name))


def read_file(path: Path) -> dict[str, tuple[Any, str]]:
    """Read a file of settings, one YAML mapping: each value, and where it stands.

    Raises:
        ServerError: it cannot be read or is something else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ServerError(f"{path} has more than {MAX_FILE_BYTES} bytes, which no file of settings has")
        lines = (line.strip() for line in data.decode().splitlines())
        if not any(line and not line.startswith("#") for line in lines):
            return {}
        tree = parse_yaml(data.decode(), str(path))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ServerError(f"cannot read the settings in {path}: {error}") from None
    return {key: (to_plain(node), str(node.place)) for key, node in tree.entries.items()}


def gather(
    options: Sequence[Option],
    *,
    flags: Mapping[str, Any],
    variables: Mapping[str, str],
    file: Path | None,
    other_variables: Sequence[str],
) -> dict[str, tuple[Any, str]]:
    """Return each option's value by its name, and where it came from.

    Args:
        options: The table.
        flags: What the command line gave, by option name, parsed.
        variables: The environment.
        file: The file of settings, if there is one.
        other_variables: Variables with our prefix that are somebody else's.

    Raises:
        ServerError: a key or a variable with our prefix means nothing, or a value is wrong; the message names it.
    """
    by_name = {option.name: option for option in options}
    by_variable = {option.variable: option for option in options}
    allowed = {*by_variable, *other_variables}
    for variable in variables:
        if variable.startswith(PREFIX) and variable not in allowed and not _KUBERNETES.fullmatch(variable):
            raise ServerError(f"the variable {variable} means nothing to this server{nearest(variable, allowed)}")
    content = {} if file is None else read_file(file)
    for key in content:
        if key not in by_name:
            raise ServerError(f"{content[key][1]}: there is no setting {key!r}{nearest(key, by_name)}")
    found: dict[str, tuple[Any, str]] = {}
    for name, option in by_name.items():
        if name in flags:
            found[name] = (flags[name], option.flag)
        elif variables.get(option.variable):  # an empty one is none: compose files make those
            found[name] = (_checked(option, variables[option.variable], option.variable), option.variable)
        elif name in content:
            value, place = content[name]
            found[name] = (_checked(option, value, f"{place}: {name}"), place)
        else:
            found[name] = (option.default, DEFAULT)
    return found


def assemble(cls: Callable[..., T], options: Sequence[Option], values: Mapping[str, tuple[Any, str]]) -> T:
    """Make the dataclass from its options' values."""
    tree: dict[str, Any] = {}
    for option in options:
        node = tree
        for part in option.place[:-1]:
            node = node.setdefault(part, {})
        node[option.place[-1]] = values[option.name][0]
    made: T = _built(cls, tree)
    return made


def listing(options: Sequence[Option], values: Mapping[str, tuple[Any, str]]) -> str:
    """Write values as a file of settings, each with where it came from."""
    lines: list[str] = []
    group = ""
    for option in options:
        if option.group != group:
            group = option.group
            lines += ["", f"# {group}"]
        value, source = values[option.name]
        text = (
            yaml.safe_dump(_plain(value), default_flow_style=True, width=_ONE_LINE).removesuffix("\n...\n").rstrip("\n")
        )
        lines.append(f"{option.name}: {text}  # {source}")
    return "\n".join(lines)


def _option(field: dataclasses.Field[Any], hint: Any, group: str, place: tuple[str, ...]) -> Option:
    how = field.metadata[_TABLE_KEY]
    is_list = getattr(hint, "__origin__", None) is tuple
    kinds = [item for item in get_args(hint) or (hint,) if item not in (NoneType, ...)]
    name = how["name"] or field.name
    is_size = name.endswith("_bytes")
    return Option(
        name=name,
        help=how["text"],
        kind=kinds[0],
        is_list=is_list,
        is_size=is_size,
        default=field.default,
        metavar=how["metavar"] or ("SIZE" if is_size else {int: "N", float: "SECONDS", Path: "FILE"}.get(kinds[0], "")),
        choices=how["choices"],
        minimum=how["minimum"],
        maximum=how["maximum"],
        group=group,
        place=place,
    )


def _checked(option: Option, value: Any, what: str) -> Any:
    try:
        return option.read(value)
    except ValueError as error:
        raise ServerError(f"{what}: {error}") from None


def _converted(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = {int: "whole number", float: "number"}.get(kind, "value")  # type: ignore[call-overload]
        raise ValueError(f"{text!r} is not a {what}") from None


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?([KMGT]iB|)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: a number of bytes, or with a unit as in 64MiB")
    return int(match[1]) * _UNITS[match[2]]


def _built(cls: Any, tree: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    given = {
        name: _built(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in tree.items()
    }
    return cls(**given)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
