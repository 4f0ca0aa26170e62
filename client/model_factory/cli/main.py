"""``model-factory``: one command for trainers and operators.

Commands that need more than this package are added by the packages that have them, through the entry-point group
``model_factory.commands``: a function that takes the sub-parsers and adds its own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from model_factory.cli.cache import add_cache
from model_factory.config import resolve_file
from model_factory.environment import default_server, environment
from model_factory.errors import ModelFactoryError
from model_factory.source.lock import LOCK_NAME

_MAX_SECONDS = 86400.0

_COMMAND_GROUP = "model_factory.commands"
_SERVE = "serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the result is the exit status: 0, 1 for an error that is ours, 2 for wrong usage."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown and arguments.run is not _no_server:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = arguments.run(arguments)
    except ModelFactoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="model-factory", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=metadata.version("model-factory"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="build models on a server")
    _add_configs(build)
    _add_server(build)
    build.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write each model's state dict and descriptor here"
    )
    build.add_argument(
        "--seed",
        type=int,
        default=None,
        help="seed of the weights (default: the first that torch draws, the same in every run)",
    )
    build.add_argument("--dtype", default=None, help="cast floating tensors, to bfloat16 say")
    build.set_defaults(run=_build)

    describe = commands.add_parser("describe", help="show a model's modules, how each travels and why, and sizes")
    _add_configs(describe)
    _add_server(describe)
    describe.add_argument(
        "--quick", action="store_true", help="types, shapes and sizes alone: the server does not try how modules travel"
    )
    describe.set_defaults(run=_describe)

    trust = commands.add_parser("trust", help="show the source that models would run here, and pin it in a lock file")
    _add_configs(trust)
    _add_server(trust)
    trust.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path(LOCK_NAME),
        metavar="FILE",
        help="the lock file (default: %(default)s)",
    )
    trust.add_argument("--check", action="store_true", help="write nothing; status 1 if the lock file is another")
    trust.add_argument("--text", action="store_true", help="print the source, too")
    trust.set_defaults(run=_trust)

    validate = commands.add_parser("validate", help="resolve and check configs; needs no server")
    _add_configs(validate)
    validate.set_defaults(run=_validate)

    blocks = commands.add_parser("blocks", help="show what a server can build, with arguments and defaults")
    _add_server(blocks)
    blocks.add_argument("names", nargs="*", metavar="NAME", help="only these, or those whose name starts so")
    blocks.set_defaults(run=_blocks)

    add_cache(commands)

    health = commands.add_parser("health", help="ask whether a server serves; for probes")
    _add_server(health)
    _add_timeout(health, 5.0)
    health.set_defaults(run=_health)

    doctor = commands.add_parser("doctor", help="check a deployment from here, and say what to do")
    _add_server(doctor)
    _add_timeout(doctor, 10.0)
    doctor.add_argument("--json", action="store_true", help="print one JSON document")
    doctor.set_defaults(run=_doctor)

    for entry in metadata.entry_points(group=_COMMAND_GROUP):
        entry.load()(commands)
    if _SERVE not in commands.choices:
        serve = commands.add_parser(_SERVE, help="run a server (needs model-factory-server)")
        serve.set_defaults(run=_no_server)
    return parser


def _add_configs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="a YAML file, or NAME=FILE; the name is else the file's"
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default=default_server(), metavar="HOST:PORT", help="default: %(default)s")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, above 0 and at most {_MAX_SECONDS:g}")
    return seconds


def _add_timeout(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument(
        "--timeout", type=_seconds, default=seconds, metavar="SECONDS", help="of each question (default: %(default)g)"
    )


def _named_configs(arguments: argparse.Namespace) -> dict[str, str]:
    named: dict[str, str] = {}
    for item in arguments.configs:
        name, separator, path = item.partition("=")
        if not separator:
            name, path = Path(item).stem, item
        if name in named:
            raise ModelFactoryError(f"two configs are called {name!r}; give one another name: NAME={path}")
        named[name] = path
    return named


def _components(arguments: argparse.Namespace) -> dict[str, str]:
    named = _named_configs(arguments)
    if named.keys() == {"config_path"}:  # which in a model_cfg asks for a model without a name
        raise ModelFactoryError("no model can be called 'config_path' here; give it another name: NAME=FILE")
    return named


def _validate(arguments: argparse.Namespace) -> int:
    for path in _named_configs(arguments).values():
        config = resolve_file(path, environment())
        print(f"{path}: valid, {len(config.model.modules)} modules, digest {config.digest}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from model_factory.cli.models import build  # noqa: PLC0415  torch, which validate can do without

    return build(
        _components(arguments), arguments.server, seed=arguments.seed, dtype=arguments.dtype, output=arguments.output
    )


def _describe(arguments: argparse.Namespace) -> int:
    from model_factory.cli.models import describe  # noqa: PLC0415  torch, which validate can do without

    return describe(_components(arguments), arguments.server, portability=not arguments.quick)


def _trust(arguments: argparse.Namespace) -> int:
    from model_factory.cli.trust import trust  # noqa: PLC0415  torch, which validate can do without

    return trust(
        _components(arguments), arguments.server, lock=arguments.output, check=arguments.check, text=arguments.text
    )


def _blocks(arguments: argparse.Namespace) -> int:
    from model_factory.cli.models import blocks  # noqa: PLC0415  torch, which validate can do without

    return blocks(arguments.server, arguments.names)


def _health(arguments: argparse.Namespace) -> int:
    from model_factory.client.connection import Connection  # noqa: PLC0415  grpc, which validate can do without

    status = Connection(arguments.server).health(arguments.timeout)
    print(status)
    return 0 if status == "SERVING" else 1


def _doctor(arguments: argparse.Namespace) -> int:
    from model_factory.cli.doctor import doctor  # noqa: PLC0415  grpc, which validate can do without

    return doctor(arguments.server, timeout=arguments.timeout, as_json=arguments.json)


def _no_server(_arguments: argparse.Namespace) -> int:
    print("error: this installation has no server. Remedy: pip install 'model-factory[server]'", file=sys.stderr)
    return 1
