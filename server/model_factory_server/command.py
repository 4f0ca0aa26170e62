"""The commands ``serve`` and ``token``, added to ``model-factory`` by this package's entry point."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
from pathlib import Path
from typing import Any

from model_factory.cli.output import say, say_lines
from model_factory.environment import VARIABLES as CLIENT_VARIABLES
from model_factory.environment import empty_access_variable, environment
from model_factory.errors import ServerError
from model_factory_server.settings import options
from model_factory_server.settings.options import Option
from model_factory_server.settings.server_settings import Settings
from model_factory_server.worker.sandbox import forbid_inspection

OPTIONS = tuple(options.options_of(Settings))
CONFIG_VARIABLE = f"{options.PREFIX}CONFIG"

_EPILOG = """\
Every setting is also an environment variable, named in brackets, and a key of the YAML file given by --config: the flag
without leading dashes, with _ for -. Precedence: flag, variable, file, default. Sizes may have a unit (64MiB). Lists in
variables are separated by commas. Secrets are stored in files; settings hold the paths of these files only.
"""


def add_commands(commands: Any) -> None:
    """Add the server's commands to the sub-parsers of ``model-factory``."""
    token = commands.add_parser("token", help="make a token for a client, and its line for the server's token file")
    token.add_argument("name", metavar="NAME", help="the client's name, for quotas and logs")
    token.add_argument("--days", type=float, metavar="N", help="days until the token expires (default: never)")
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
        help="print every setting and the source of its value, as a settings file, and exit",
    )
    groups: dict[str, Any] = {"": parser}
    for option in OPTIONS:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], option)
    parser.set_defaults(run=_serve)


def _add(group: Any, option: Option) -> None:
    default = "" if option.default in (None, ()) else f" (default: {_shown(option.default)})"
    keywords: dict[str, Any] = {"action": "append"} if option.is_list else {}
    if option.kind is bool:
        keywords["action"] = argparse.BooleanOptionalAction
    else:
        metavar = option.metavar or "|".join(option.choices) or option.name.upper()
        keywords |= {"type": _parser(option), "metavar": metavar}
    text = f"{option.help}{default} [{option.variable}]"
    group.add_argument(
        option.flag, dest=option.name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **keywords
    )


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
    from model_factory_server.access.tokens import token_line  # noqa: PLC0415  --help needs no grpc

    token = secrets.token_urlsafe(32)
    line = token_line(arguments.name, token, arguments.days)
    say(f"for the client's token file: {token}")
    say(f"for the server's --tokens file: {line}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    forbid_inspection()
    variables = dict(environment())
    if CONFIG_VARIABLE in variables and not variables[CONFIG_VARIABLE].strip():  # the file may require tokens
        raise ServerError(empty_access_variable(CONFIG_VARIABLE))
    file = arguments._config or (Path(variables[CONFIG_VARIABLE]) if CONFIG_VARIABLE in variables else None)  # noqa: SLF001
    flags = {name: value for name, value in vars(arguments).items() if name in {option.name for option in OPTIONS}}
    values = options.gather(
        OPTIONS,
        flags={name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()},
        variables=variables,
        file=file,
        other_variables=[*CLIENT_VARIABLES, CONFIG_VARIABLE],
    )
    settings = options.assemble(Settings, OPTIONS, values)
    if arguments._print_config:  # noqa: SLF001  an argument, not a setting
        say_lines(options.listing(OPTIONS, values))
        return 0
    return _run(settings)


def _run(settings: Settings) -> int:
    from model_factory_server.app import serve  # noqa: PLC0415  --help needs no grpc
    from model_factory_server.backends.code_files import with_installed_plugins  # noqa: PLC0415  as above
    from model_factory_server.observe.logs import configure_logging  # noqa: PLC0415  as above

    configure_logging(settings.observe.log_format, settings.observe.log_level)
    plugins = with_installed_plugins(settings.backend.plugins)
    settings = dataclasses.replace(settings, backend=dataclasses.replace(settings.backend, plugins=plugins))
    serve(settings, lambda address: say(f"listening on {address}"))
    return 0
