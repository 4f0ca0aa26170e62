"""``model-factory serve``: added to the command by this package's entry point."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
from pathlib import Path
from typing import Any

from model_factory.environment import VARIABLES as CLIENT_VARIABLES
from model_factory.environment import environment
from model_factory_server.settings import options
from model_factory_server.settings.options import Option
from model_factory_server.settings.server_settings import Settings

OPTIONS = tuple(options.options_of(Settings))
CONFIG_VARIABLE = f"{options.PREFIX}CONFIG"

_EPILOG = """\
Each setting is also a variable, named in brackets, and a key of the YAML file that --config names: the flag without
its dashes, with _ for -. A flag goes before a variable, a variable before the file, the file before the default. Sizes
may have a unit (64MiB), lists in variables have commas. What is secret is in files of its own: settings name them.
"""


def add_commands(commands: Any) -> None:
    """Add the server's commands to the sub-parsers of ``model-factory``."""
    token = commands.add_parser("token", help="make a token for a client, and the line that a server knows it by")
    token.add_argument("name", metavar="NAME", help="the client's name: quotas and logs go by it")
    token.add_argument("--days", type=float, metavar="N", help="how long it is valid (default: for ever)")
    token.set_defaults(run=_token)
    parser = commands.add_parser(
        "serve", help="run a server", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"YAML file of settings [{CONFIG_VARIABLE}]", dest="_config"
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        dest="_print_config",
        help="print every setting and where its value comes from, as a file of settings, and end",
    )
    groups: dict[str, Any] = {"": parser}
    for option in OPTIONS:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], option)
    parser.set_defaults(run=_serve)


def _add(group: Any, option: Option) -> None:
    default = "" if option.default in (None, ()) else f" (default: {_shown(option.default)})"
    how: dict[str, Any] = {"action": "append"} if option.is_list else {}
    if option.kind is bool:
        how["action"] = argparse.BooleanOptionalAction
    else:
        metavar = option.metavar or "|".join(option.choices) or option.name.upper()
        how |= {"type": _parser(option), "metavar": metavar}
    text = f"{option.help}{default} [{option.variable}]"
    group.add_argument(option.flag, dest=option.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **how)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parser(option: Option) -> Any:
    def parse(text: str) -> Any:
        try:
            return option.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def _token(arguments: argparse.Namespace) -> int:
    from model_factory_server.access.access import token_line  # noqa: PLC0415  grpc, which --help can do without

    token = secrets.token_urlsafe(32)
    line = token_line(arguments.name, token, arguments.days)
    print(f"for the client's token file: {token}")  # noqa: T201  the command's output
    print(f"for the server's --tokens file: {line}")  # noqa: T201  the same
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    variables = dict(environment())
    file = arguments._config or (Path(variables[CONFIG_VARIABLE]) if variables.get(CONFIG_VARIABLE) else None)  # noqa: SLF001
    flags = {name: value for name, value in vars(arguments).items() if name in {option.name for option in OPTIONS}}
    values = options.gather(
        OPTIONS,
        flags={name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()},
        variables=variables,
        file=file,
        other_variables=[*CLIENT_VARIABLES, CONFIG_VARIABLE],
    )
    settings = options.assemble(Settings, OPTIONS, values)
    if arguments._print_config:  # noqa: SLF001  an argument, named apart from the settings
        print(options.listing(OPTIONS, values))  # noqa: T201  the command's output
        return 0
    return _run(settings)


def _run(settings: Settings) -> int:
    from model_factory_server.app import serve  # noqa: PLC0415  grpc, which --help can do without
    from model_factory_server.backends.code_files import with_installed_plugins  # noqa: PLC0415  the same
    from model_factory_server.observe.logs import configure_logging  # noqa: PLC0415  the same

    configure_logging(settings.observe.log_format, settings.observe.log_level)
    plugins = with_installed_plugins(settings.backend.plugins)
    settings = dataclasses.replace(settings, backend=dataclasses.replace(settings.backend, plugins=plugins))
    serve(settings, lambda address: print(f"listening on {address}", flush=True))  # noqa: T201  the command's output
    return 0
