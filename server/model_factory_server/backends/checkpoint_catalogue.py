"""The operator's catalogue of checkpoints: names for configs, and the files behind the names. Imports no torch.

A client sends a name and never a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from model_factory.config import ModelConfig
from model_factory.config.schema.check import WEIGHTS_PATH
from model_factory.digest import digest_of
from model_factory.documents import encode_document
from model_factory.errors import ConfigError, ServerError
from model_factory.wording import listed, nearest, quoted
from model_factory_server.settings.server_settings import BackendSettings

_FILES_OF_FOLDER = ("*.safetensors", "*.safetensors.index.json")  # as on the Hugging Face Hub


def check_catalogue(settings: BackendSettings) -> None:
    """Check that the file or folder of every checkpoint exists.

    Raises:
        ServerError: a path does not exist.
    """
    for name, path in settings.checkpoint_paths.items():
        if not path.exists():
            raise ServerError(
                f"--checkpoint {name}={path}: no such file or folder. Remedy: name a safetensors file, a file of "
                "torch.save with tensors only, or a folder with model.safetensors"
            )


def checkpoint_path(settings: BackendSettings, model: ModelConfig) -> Path | None:
    """Return the file or folder of a config's checkpoint; ``None`` for a config without a checkpoint.

    Raises:
        ConfigError: the catalogue has no checkpoint of this name; the message lists the names.

    Example:
        >>> from model_factory.config import resolve_mapping
        >>> model = {"weights": "tiny", "sequential": {"layers": [{"_type_": "nn.ReLU"}]}}
        >>> config = resolve_mapping({"schema_version": 1, "model": model}, env={}).model
        >>> checkpoint_path(BackendSettings(checkpoints=("tiny=/models/tiny.safetensors",)), config)
        PosixPath('/models/tiny.safetensors')
    """
    if model.weights is None:
        return None
    name, paths = model.weights.name, settings.checkpoint_paths
    if name not in paths:
        known = sorted(paths)
        raise ConfigError(
            f"Unknown checkpoint {quoted(name)}; known: {listed(known)}{nearest(name, known)}", path=WEIGHTS_PATH
        )
    return paths[name]


def checkpoint_files(path: Path) -> list[Path]:
    """Return the files that a checkpoint is read from: the file itself, or the weights in a folder."""
    if not path.is_dir():
        return [path]
    return sorted(item for pattern in _FILES_OF_FOLDER for item in path.glob(pattern))


def checkpoint_digest(path: str, digests: Mapping[str, str]) -> str:
    """Return the digest of a checkpoint, from the digests of the files read by a build; empty without such a file.

    The digest of a checkpoint in one file is the digest of the file.

    Example:
        >>> checkpoint_digest("/models/tiny.safetensors", {"/models/tiny.safetensors": "ab" * 32})[:4]
        'abab'
    """
    folder = f"{path}/"
    found = {file.removeprefix(folder): digest for file, digest in digests.items() if f"{file}/".startswith(folder)}
    if len(found) == 1:
        return next(iter(found.values()))
    return digest_of(encode_document(found)) if found else ""
