"""Derives flags, variables, file keys, help and the listing of settings from the fields of dataclasses.

A field made with :func:`setting` is one option. A field with a dataclass as type is a group of options; the first line
of the class's docstring is the group's title in the help. The field ``max_values`` becomes the flag ``--max-values``,
the variable ``MODEL_FACTORY_MAX_VALUES`` and the file's key ``max_values``. Precedence: flag, variable, file, default.
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
from model_factory.environment import WORDS, empty_access_variable
from model_factory.errors import ConfigError, ServerError
from model_factory.limits import KIB, MIB
from model_factory.wording import nearest

T = TypeVar("T")

PREFIX = "MODEL_FACTORY_"
DEFAULT = "default"
"""Source of a default value."""

MAX_FILE_BYTES = MIB
"""Size limit of a settings file."""

_DECLARATION = "setting"
_ONE_LINE = 1 << 20
_UNITS = {"": 1, "KiB": KIB, "MiB": MIB, "GiB": KIB * MIB, "TiB": MIB * MIB}
# Variables that Kubernetes sets for a service with a name like model-factory.
_KUBERNETES = re.compile(
    r"MODEL_FACTORY(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting, with its names and allowed values."""

    name: str
    """Key in a settings file; flag and variable derive from the key."""
    help: str
    """Help text."""
    kind: type
    """Type of one value: bool, int, float, str or Path."""
    is_list: bool
    """Whether the option takes several values."""
    is_size: bool
    """Whether the value counts bytes, with an optional unit."""
    default: Any
    """Default value."""
    metavar: str
    """Placeholder of the value in the help."""
    choices: tuple[str, ...]
    """Allowed texts; empty: any value of the type."""
    minimum: float | None
    """Smallest allowed number."""
    maximum: float | None
    """Largest allowed number."""
    group: str
    """Heading in the help."""
    needs_text: bool
    """Whether an empty variable is an error; an empty variable of another option counts as unset."""
    field_path: tuple[str, ...]
    """Names of the dataclass fields from the root to the option."""

    @property
    def flag(self) -> str:
        """Flag of the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """Environment variable."""
        return f"{PREFIX}{self.name.upper()}"

    def parse(self, text: str) -> Any:
        """Read one value from text.

        Raises:
            ValueError: the text is invalid; the message names the allowed values.

        Example:
            >>> @dataclass
            ... class Cache:
            ...     max_bytes: "int" = setting(1024, "size of the cache", minimum=1)
            >>> next(options_of(Cache)).parse("64MiB")
            67108864
        """
        if self.needs_text and not text.strip():
            raise ValueError(empty_access_variable(self.name))
        if self.kind is bool:
            if text.lower() not in WORDS:
                raise ValueError(f"{text!r} is not one of {', '.join(WORDS)}")
            return WORDS[text.lower()]
        if self.choices and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}")
        value = _size(text) if self.is_size else _converted(self.kind, text)
        if self.minimum is not None and not value >= self.minimum:
            raise ValueError(f"{text} is too small: the minimum is {self.minimum:g}")
        if self.maximum is not None and not value <= self.maximum:
            raise ValueError(f"{text} is too large: the maximum is {self.maximum:.12g}")
        if value == float("inf"):
            raise ValueError(f"{text} is not a finite number")
        return value

    def read(self, value: Any) -> Any:
        """Read the value of a file or a variable: plain YAML data, or text.

        Raises:
            ValueError: the value is invalid for this option.
        """
        if not self.is_list:
            return self._read_one(value)
        items = [item for part in value.split(",") if (item := part.strip())] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise ValueError(f"{value!r} is not a list")  # noqa: TRY004  an invalid value of a user
        return tuple(self._read_one(item) for item in items)

    def _read_one(self, value: Any) -> Any:
        if value is None and self.default is None:
            return None
        if isinstance(value, bool) is not (self.kind is bool) and not isinstance(value, str):
            raise ValueError(f"{value!r} has the wrong type")
        if not isinstance(value, str | int | float):
            raise ValueError(f"{value!r} is not a single value")  # noqa: TRY004  an invalid value of a user
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
    needs_text: bool = False,
) -> Any:
    """Make the dataclass field of an option.

    Args:
        default: Default value; a tuple for a repeatable option.
        text: Help text.
        name: Key in files; empty: the field's name.
        metavar: Placeholder of the value in the help.
        choices: Allowed texts.
        minimum: Smallest allowed number.
        maximum: Largest allowed number.
        needs_text: Whether an empty variable is an error.
    """
    declaration = {
        "text": text,
        "name": name,
        "metavar": metavar,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "needs_text": needs_text,
    }
    return dataclasses.field(default=default, metadata={_DECLARATION: declaration})


def options_of(cls: type, group: str = "", field_path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Yield the options of a dataclass, in the order of its fields.

    Example:
        >>> @dataclass
        ... class Queue:
        ...     max_jobs: "int" = setting(8, "waiting jobs", minimum=0)
        >>> [option.flag for option in options_of(Queue)]
        ['--max-jobs']
    """
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            title = (hint.__doc__ or "").partition("\n")[0].rstrip(".")
            yield from options_of(hint, title, (*field_path, field.name))  # type: ignore[arg-type]  # a class
        elif _DECLARATION in field.metadata:
            yield _option(field, hint, group, (*field_path, field.name))


def read_file(path: Path) -> dict[str, tuple[Any, str]]:
    """Read a settings file, one YAML mapping: each value with its place in the file.

    Raises:
        ServerError: the file cannot be read or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ServerError(f"{path} has more than {MAX_FILE_BYTES} bytes, the limit of a settings file")
        lines = (line.strip() for line in data.decode().splitlines())
        if not any(line and not line.startswith("#") for line in lines):
            return {}
        tree = parse_yaml(data.decode(), str(path))
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise ServerError(f"cannot read the settings in {path}: {error}") from None
    blank = _blank_keys(data.decode())
    return {key: ("" if key in blank else to_plain(node), str(node.place)) for key, node in tree.entries.items()}


def gather(
    options: Sequence[Option],
    *,
    flags: Mapping[str, Any],
    variables: Mapping[str, str],
    file: Path | None,
    other_variables: Sequence[str],
) -> dict[str, tuple[Any, str]]:
    """Return the value of each option by name, with the source of the value.

    Args:
        options: All options.
        flags: Parsed values of the command line, by option name.
        variables: Environment variables.
        file: Settings file, or None.
        other_variables: Variables with the same prefix and another purpose.

    Raises:
        ServerError: a key, a variable with the prefix or a value is invalid; the message names the key or variable.
    """
    by_name = {option.name: option for option in options}
    by_variable = {option.variable: option for option in options}
    allowed = {*by_variable, *other_variables}
    for variable in variables:
        if variable.startswith(PREFIX) and variable not in allowed and not _KUBERNETES.fullmatch(variable):
            raise ServerError(f"{variable} is not a variable of this server{nearest(variable, allowed)}")
    content = {} if file is None else read_file(file)
    for key in content:
        if key not in by_name:
            raise ServerError(f"{content[key][1]}: unknown setting {key!r}{nearest(key, by_name)}")
    found: dict[str, tuple[Any, str]] = {}
    for name, option in by_name.items():
        if name in flags:
            found[name] = (flags[name], option.flag)
        elif variables.get(option.variable) or (option.needs_text and option.variable in variables):
            # An empty variable of any other option counts as unset: compose files set empty variables.
            found[name] = (_checked(option, variables[option.variable], option.variable), option.variable)
        elif name in content:
            value, source = content[name]
            value = None if value == "" and not option.needs_text else value
            found[name] = (_checked(option, value, f"{source}: {name}"), source)
        else:
            found[name] = (option.default, DEFAULT)
    return found


def assemble(cls: Callable[..., T], options: Sequence[Option], values: Mapping[str, tuple[Any, str]]) -> T:
    """Make the dataclass from the values of its options, returned by :func:`gather`.

    Example:
        >>> @dataclass
        ... class Queue:
        ...     max_jobs: "int" = setting(8, "waiting jobs", minimum=0)
        >>> options = list(options_of(Queue))
        >>> variables = {"MODEL_FACTORY_MAX_JOBS": "4"}
        >>> values = gather(options, flags={}, variables=variables, file=None, other_variables=[])
        >>> assemble(Queue, options, values)
        Queue(max_jobs=4)
        >>> print(listing(options, values))
        max_jobs: 4  # MODEL_FACTORY_MAX_JOBS
    """
    tree: dict[str, Any] = {}
    for option in options:
        node = tree
        for part in option.field_path[:-1]:
            node = node.setdefault(part, {})
        node[option.field_path[-1]] = values[option.name][0]
    made: T = _built(cls, tree)
    return made


def listing(options: Sequence[Option], values: Mapping[str, tuple[Any, str]]) -> str:
    """Return the text of a settings file, with the source of each value as a comment."""
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


def _blank_keys(text: str) -> set[str]:
    """Return the keys without any text as value: not even ``null``."""
    root = yaml.compose(text, yaml.SafeLoader)
    entries = root.value if isinstance(root, yaml.MappingNode) else ()
    return {key.value for key, node in entries if node.value == "" and node.style is None}


def _option(field: dataclasses.Field[Any], hint: Any, group: str, field_path: tuple[str, ...]) -> Option:
    declaration = field.metadata[_DECLARATION]
    is_list = getattr(hint, "__origin__", None) is tuple
    kinds = [item for item in get_args(hint) or (hint,) if item not in (NoneType, ...)]
    name = declaration["name"] or field.name
    is_size = name.endswith("_bytes")
    return Option(
        name=name,
        help=declaration["text"],
        kind=kinds[0],
        is_list=is_list,
        is_size=is_size,
        default=field.default,
        metavar=declaration["metavar"]
        or ("SIZE" if is_size else {int: "N", float: "SECONDS", Path: "FILE"}.get(kinds[0], "")),
        choices=declaration["choices"],
        minimum=declaration["minimum"],
        maximum=declaration["maximum"],
        needs_text=declaration["needs_text"],
        group=group,
        field_path=field_path,
    )


def _checked(option: Option, value: Any, source: str) -> Any:
    try:
        return option.read(value)
    except ValueError as error:
        raise ServerError(f"{source}: {error}") from None


def _converted(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        noun = {int: "whole number", float: "number"}.get(kind, "value")  # type: ignore[call-overload]
        raise ValueError(f"{text!r} is not a {noun}") from None


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?([KMGT]iB|)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: give a number of bytes, or a unit as in 64MiB")
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
