"""``model-factory serve``: added to the command by this package's entry point."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from model_factory.limits import MIB
from model_factory.settings import DEFAULT_ADDRESS
from model_factory_server.settings import BACKENDS, BUILTIN, DEVICES, BackendSettings, HubSettings, Settings


def add_serve(commands: Any) -> None:
    """Add the ``serve`` command to the sub-parsers of ``model-factory``."""
    parser = commands.add_parser("serve", help="run a server", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--listen", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="port 0 picks a free one")
    parser.add_argument(
        "--store", default=Path("model-factory-store"), type=Path, metavar="DIR", help="blobs and records"
    )
    parser.add_argument(
        "--no-share-store",
        action="store_true",
        help="do not tell clients where the store lies; those on this machine then transfer blobs, too",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where models are initialised")
    parser.add_argument("--builders", type=_positive_int, default=2, metavar="N", help="builds at the same time")
    parser.add_argument("--build-timeout", type=float, default=600.0, metavar="SECONDS", help="of one component")
    parser.add_argument(
        "--max-weights-mib", type=_positive_int, default=64 * 1024, metavar="MIB", help="weights of one component"
    )
    parser.add_argument("--drain-timeout", type=float, default=30.0, metavar="SECONDS", help="after a signal to stop")
    _add_backend(parser)
    parser.set_defaults(run=_serve)


def _add_backend(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what builds")
    group.add_argument("--backend", choices=BACKENDS, default=BUILTIN, help="who turns configs into models")
    group.add_argument(
        "--backend-path", type=Path, metavar="DIR", help="the checkout with the package model_constructor"
    )
    group.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="a module with register(registry), beside those of installed packages; may be repeated",
    )
    hub = HubSettings()
    group = parser.add_argument_group("the pretrained model of the block radiov3")
    group.add_argument("--radio-repo", default=hub.repository, metavar="OWNER/NAME[:REF]", help="its hub repository")
    group.add_argument("--radio-version", default=hub.version, metavar="VERSION", help="its name in the repository")
    group.add_argument(
        "--hub-dir",
        type=Path,
        metavar="DIR",
        help="local copy of the repository, or a torch.hub folder; weights are under its checkpoints",
    )
    group.add_argument("--allow-hub-download", action="store_true", help="download what is not in --hub-dir")


def _serve(arguments: argparse.Namespace) -> int:
    from model_factory_server.app import serve  # noqa: PLC0415  grpc, which --help can do without
    from model_factory_server.backends.sources import with_installed_plugins  # noqa: PLC0415  the same

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = Settings(
        listen=arguments.listen,
        store=arguments.store,
        backend=BackendSettings(
            name=arguments.backend,
            path=arguments.backend_path,
            plugins=with_installed_plugins(arguments.plugin),
            hub=HubSettings(
                repository=arguments.radio_repo,
                version=arguments.radio_version,
                directory=arguments.hub_dir,
                allow_download=arguments.allow_hub_download,
            ),
        ),
        share_store=not arguments.no_share_store,
        device=arguments.device,
        builders=arguments.builders,
        build_timeout=arguments.build_timeout,
        max_weights_bytes=arguments.max_weights_mib * MIB,
        drain_timeout=arguments.drain_timeout,
    )
    serve(settings, lambda address: print(f"listening on {address}", flush=True))  # noqa: T201  the command's output
    return 0


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value
