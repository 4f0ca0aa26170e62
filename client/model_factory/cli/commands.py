"""The parts of the command ``model-factory``, for trainers and operators.

Other packages add commands through the entry-point group ``model_factory.commands``: a function that adds commands to
the given sub-parsers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from model_factory.cli.cache import add_cache
from model_factory.cli.output import say, say_error, say_traceback
from model_factory.config import resolve_file
from model_factory.environment import default_server, environment
from model_factory.errors import ModelFactoryError
from model_factory.source.lock import LOCK_NAME

_DESCRIPTION = "Build trainable torch modules on a model server; inspect configs, caches and servers."
_MAX_SECONDS = 86400.0

_BUILD_LOCK = "models.lock"
_COMMAND_GROUP = "model_factory.commands"
_SERVE = "serve"


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0, or 1 for an error. Wrong usage exits with 2."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown and arguments.run is not _no_server:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = arguments.run(arguments)
    except ModelFactoryError as error:
        say_error(error)
        return 1
    except BrokenPipeError:
        # The reader of the output is gone; without this line Python reports the same error again while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  a bug, or an error of torch, whose text may quote a server
        say_traceback(error)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="model-factory", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=metadata.version("model-factory"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_build,
        _add_load,
        _add_export,
        _add_lock,
        _add_describe,
        _add_trust,
        _add_validate,
        _add_blocks,
        _add_checkpoints,
        add_cache,
        _add_health,
        _add_doctor,
    ):
        add(commands)
    for entry in metadata.entry_points(group=_COMMAND_GROUP):
        entry.load()(commands)
    if _SERVE not in commands.choices:
        serve = commands.add_parser(_SERVE, help="run a server (needs model-factory-server)")
        serve.set_defaults(run=_no_server)
    return parser


def _add_build(commands: Any) -> None:
    parser = commands.add_parser("build", help="build models on a server")
    _add_configs(parser)
    _add_server(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.mf|DIR",
        help="write one model file, or a folder with state dict, descriptor and build info of each model",
    )
    _add_seed(parser)
    parser.set_defaults(run=_build)


def _add_lock(commands: Any) -> None:
    parser = commands.add_parser("lock", help="build models on a server, and pin the builds in a file")
    _add_configs(parser)
    _add_server(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(_BUILD_LOCK), metavar="FILE", help="build lock (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with status 1 if a build differs")
    _add_seed(parser)
    parser.set_defaults(run=_lock)


def _add_describe(commands: Any) -> None:
    parser = commands.add_parser("describe", help="show the modules of a model: types, sizes and portability")
    _add_configs(parser)
    _add_server(parser)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="show types, shapes and sizes only; skip the portability check, which takes as long as a first build",
    )
    parser.set_defaults(run=_describe)


def _add_load(commands: Any) -> None:
    parser = commands.add_parser("load", help="show and check a model file; needs no server")
    parser.add_argument("file", type=Path, metavar="FILE", help="file or folder from model_factory.save or build -o")
    parser.set_defaults(run=_load)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write a model of a file as a program for torch.export or ONNX")
    parser.add_argument("file", type=Path, metavar="FILE", help="model file")
    parser.add_argument("--format", choices=("pt2", "onnx"), default="pt2", help="default: %(default)s")
    parser.add_argument("--model", metavar="NAME", help="model to export, of a file with several models")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=[DTYPE:]AXIS,...",
        help="shape of an input of the forward: a number is a fixed size, a name an axis of any size; "
        "for example observation=batch,12, tokens=int64:batch,20, mask=none, views.0=batch,3,64,64",
    )
    parser.add_argument("--inputs", type=Path, metavar="FILE", help="safetensors file with example values by name")
    parser.add_argument("--trust-source", type=Path, metavar="LOCK", help="lock file with the trusted source code")
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help="default: FILE with the format as suffix")
    parser.set_defaults(run=_export)


def _add_trust(commands: Any) -> None:
    parser = commands.add_parser(
        "trust", help="show the source code that models would run on this machine, and pin the code in a lock file"
    )
    _add_configs(parser, "a YAML file or a model file (.mf)")
    _add_server(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(LOCK_NAME), metavar="FILE", help="lock file (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if the lock file is out of date"
    )
    parser.add_argument("--text", action="store_true", help="print the source code, too")
    parser.set_defaults(run=_trust)


def _add_validate(commands: Any) -> None:
    parser = commands.add_parser("validate", help="resolve and check configs; needs no server")
    _add_configs(parser)
    parser.set_defaults(run=_validate)


def _add_blocks(commands: Any) -> None:
    parser = commands.add_parser("blocks", help="list the blocks of a server, with arguments and defaults")
    _add_server(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="list only blocks with a name that begins like this")
    parser.set_defaults(run=_blocks)


def _add_checkpoints(commands: Any) -> None:
    parser = commands.add_parser("checkpoints", help="list the checkpoints of a server, for model.weights of a config")
    _add_server(parser)
    parser.set_defaults(run=_checkpoints)


def _add_health(commands: Any) -> None:
    parser = commands.add_parser("health", help="print the health status of a server; for probes")
    _add_server(parser)
    _add_timeout(parser, 5.0)
    parser.add_argument(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="wait for a server that is still starting, up to this time (default: ask once)",
    )
    parser.set_defaults(run=_health)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="check a deployment from this machine, and print remedies")
    _add_server(parser)
    _add_timeout(parser, 10.0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_doctor)


def _add_configs(parser: argparse.ArgumentParser, kind: str = "a YAML file") -> None:
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help=f"FILE or NAME=FILE, with {kind} (default name: file name)"
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server", default=default_server(), metavar="HOST:PORT", help="address of the server (default: %(default)s)"
    )


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="seed of the weights (default: the first number from torch's generator, the same in every run)",
    )
    parser.add_argument("--dtype", default=None, help="cast floating tensors to this dtype, for example bfloat16")


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
        "--timeout",
        type=_seconds,
        default=seconds,
        metavar="SECONDS",
        help="time limit of each RPC (default: %(default)g)",
    )


def _named_configs(arguments: argparse.Namespace) -> dict[str, str]:
    named: dict[str, str] = {}
    for item in arguments.configs:
        name, separator, path = item.partition("=")
        if not separator:
            name, path = Path(item).stem, item
        if name in named:
            raise ModelFactoryError(f"two configs are called {name!r}. Remedy: give a name, NAME={path}")
        named[name] = path
    return named


def _components(arguments: argparse.Namespace) -> dict[str, str]:
    named = _named_configs(arguments)
    if named.keys() == {"config_path"}:  # in a model_cfg, this key requests a model without a name
        raise ModelFactoryError("a model cannot be called 'config_path'. Remedy: give another name, NAME=FILE")
    return named


def _validate(arguments: argparse.Namespace) -> int:
    for path in _named_configs(arguments).values():
        config = resolve_file(path, environment())
        say(f"{path}: valid, {len(config.model.modules)} modules, digest {config.digest}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from model_factory.cli.models import build  # noqa: PLC0415  validate must not import torch

    return build(
        _components(arguments), arguments.server, seed=arguments.seed, dtype=arguments.dtype, output=arguments.output
    )


def _lock(arguments: argparse.Namespace) -> int:
    from model_factory.cli.lock import lock  # noqa: PLC0415  validate must not import torch

    return lock(
        *(_components(arguments), arguments.server),
        seed=arguments.seed,
        dtype=arguments.dtype,
        output=arguments.output,
        check=arguments.check,
    )


def _load(arguments: argparse.Namespace) -> int:
    from model_factory.cli.files import load  # noqa: PLC0415  validate must not import torch

    return load(arguments.file)


def _export(arguments: argparse.Namespace) -> int:
    from model_factory.cli.export import export  # noqa: PLC0415  validate must not import torch

    return export(
        *(arguments.file, arguments.format),
        name=arguments.model,
        shapes=arguments.input,
        values=arguments.inputs,
        output=arguments.output,
        trust_source=arguments.trust_source,
    )


def _describe(arguments: argparse.Namespace) -> int:
    from model_factory.cli.models import describe  # noqa: PLC0415  validate must not import torch

    return describe(_components(arguments), arguments.server, portability=not arguments.quick)


def _trust(arguments: argparse.Namespace) -> int:
    from model_factory.cli.trust import trust  # noqa: PLC0415  validate must not import torch

    return trust(
        _components(arguments), arguments.server, lock=arguments.output, check=arguments.check, text=arguments.text
    )


def _blocks(arguments: argparse.Namespace) -> int:
    from model_factory.cli.models import blocks  # noqa: PLC0415  validate must not import torch

    return blocks(arguments.server, arguments.names)


def _checkpoints(arguments: argparse.Namespace) -> int:
    from model_factory.cli.models import checkpoints  # noqa: PLC0415  validate must not import torch

    return checkpoints(arguments.server)


def _health(arguments: argparse.Namespace) -> int:
    from model_factory.client.connection import Connection  # noqa: PLC0415  validate must not import grpc

    connection = Connection(arguments.server)
    if arguments.wait is not None:
        connection.wait(arguments.wait)
    status = connection.health(arguments.timeout)
    say(status)
    return 0 if status == "SERVING" else 1


def _doctor(arguments: argparse.Namespace) -> int:
    from model_factory.cli.doctor import doctor  # noqa: PLC0415  validate must not import grpc

    return doctor(arguments.server, timeout=arguments.timeout, as_json=arguments.json)


def _no_server(_arguments: argparse.Namespace) -> int:
    say("error: this installation has no server. Remedy: pip install 'model-factory[server]'", error=True)
    return 1
