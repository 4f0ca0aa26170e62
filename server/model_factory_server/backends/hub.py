"""Pretrained models from ``torch.hub``, offline unless the operator allows downloads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch

from model_factory.errors import BuildError, ModelFactoryError
from model_factory_server.backends.code_files import cached_hub_repository, local_hub_repository
from model_factory_server.backends.redaction import without_paths
from model_factory_server.settings.server_settings import HubSettings

_ENTRY_POINT = "radio_model"
_RESNET34 = "https://download.pytorch.org/models/resnet34-b627a593.pth"  # torchvision's IMAGENET1K_V1


def load_radio(hub: HubSettings) -> Any:
    """Load the pretrained RADIO model of the settings.

    Raises:
        BuildError: the repository has no local copy and downloads are forbidden, or the code of the repository fails.
    """
    repository = local_hub_repository(hub)
    if repository is None and not hub.allow_download:
        raise BuildError(
            f"this server has no local copy of the hub repository {hub.repository} and downloads nothing. Remedy: "
            "start the server with --hub-dir FOLDER, a folder with the hubconf.py of the repository and the weights in "
            "checkpoints/, or with --allow-hub-download"
        )
    load: Any = torch.hub.load  # torch declares no types
    try:
        with hub_folder(hub):
            if repository is not None:
                return load(str(repository), _ENTRY_POINT, source="local", version=hub.version)
            return load(hub.repository, _ENTRY_POINT, trust_repo=True, version=hub.version)
    except ModelFactoryError:
        raise
    except Exception as error:
        detail = without_paths(f"{type(error).__name__}: {error}")
        raise BuildError(
            f"loading version {hub.version!r} of {hub.repository} (--radio-version, --radio-repo) failed: {detail}"
        ) from error


def load_resnet34(hub: HubSettings) -> Mapping[str, torch.Tensor]:
    """Load the state dict of a ResNet-34 trained on ImageNet, from ``checkpoints/`` of the hub folder.

    Raises:
        BuildError: the file is missing and downloads are forbidden, or the file is damaged.
    """
    name = Path(_RESNET34).name
    try:
        with hub_folder(hub):
            state: Mapping[str, torch.Tensor] = torch.hub.load_state_dict_from_url(
                _RESNET34, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
            return state
    except ModelFactoryError:
        raise
    except Exception as error:
        detail = without_paths(f"{type(error).__name__}: {error}")
        raise BuildError(f"loading checkpoints/{name} of the hub folder (--hub-dir) failed: {detail}") from error


@contextmanager
def hub_folder(hub: HubSettings) -> Iterator[None]:
    """Set the folder of ``torch.hub`` for weights, and refuse downloads unless allowed."""
    before = torch.hub.get_dir()
    with ExitStack() as patches:
        if hub.directory is not None:
            torch.hub.set_dir(str(hub.directory))
        if not hub.allow_download:
            patches.enter_context(patch.object(torch.hub, "download_url_to_file", _refuse_download))
        try:
            yield
        finally:
            torch.hub.set_dir(before)


@contextmanager
def hub_of_other_code(hub: HubSettings) -> Iterator[None]:
    """Make ``torch.hub`` of code without an own hub setting read the hub folder; no effect without a hub folder.

    ``torch.hub.load`` of the repository of the settings loads the local copy, from whatever branch the code asks for.
    """
    if hub.directory is None:
        yield
        return
    with hub_folder(hub), patch.object(torch.hub, "load", functools.partial(_load, hub, torch.hub.load)):
        yield


def _load(
    hub: HubSettings,
    original: Callable[..., Any],
    repo_or_dir: str,
    model: str,
    *args: Any,
    source: str = "github",
    trust_repo: bool | str | None = None,
    **kwargs: Any,
) -> Any:
    """Load a model as ``torch.hub.load`` does, and a repository with a local copy from the copy.

    Raises:
        BuildError: the repository has no local copy, and downloads are forbidden.
    """
    if source.lower() != "github":
        return original(repo_or_dir, model, *args, source=source, **kwargs)
    is_known = repo_or_dir.partition(":")[0] == hub.repository.partition(":")[0]
    local = (local_hub_repository(hub) if is_known else None) or cached_hub_repository(hub, repo_or_dir)
    if local is not None:
        return original(str(local), model, *args, source="local", **kwargs)
    if hub.allow_download:  # without a question of torch.hub: on a server nobody answers
        return original(repo_or_dir, model, *args, trust_repo=trust_repo is not False, **kwargs)
    folder = repo_or_dir.partition(":")[0].replace("/", "_")
    raise BuildError(
        f"the model loads the hub repository {repo_or_dir}, --hub-dir has no copy, and this server downloads nothing. "
        f"Remedy: put a copy of the repository into --hub-dir as {folder}_main, or start the server with "
        "--allow-hub-download"
    )


def _refuse_download(url: str, dst: str, *_args: Any, **_kwargs: Any) -> NoReturn:
    name = Path(dst).name
    raise BuildError(
        f"the model wants to download {url}, and this server downloads nothing. Remedy: put the file into "
        f"--hub-dir as checkpoints/{name}, or start the server with --allow-hub-download"
    )
