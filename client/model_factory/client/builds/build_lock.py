"""Build locks: files that pin the builds of a trainer, for version control.

A build lock pins results: models without model code. The lock file of ``model-factory trust`` (``source/lock.py``) pins
source code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from model_factory.digest import Blob
from model_factory.documents import BUILD_LOCK_FORMAT, decode_document, expect_name, expect_type
from model_factory.errors import FormatError, LockError
from model_factory.identity import BuildInfo
from model_factory.store.staging import whole_file
from model_factory.wording import listed, quoted

log = logging.getLogger(__name__)

_REQUESTED = {"config_digest": "config", "seed": "seed", "dtype": "dtype"}
_RESULTS = {"descriptor": "descriptor", "programs": "programs", "weights": "weights"}
_CAUSES = {
    "checkpoint": "checkpoint",
    "checkpoint_digest": "content of the checkpoint",
    "backend": "backend",
    "code_digest": "code of the backend",
    "torch_version": "torch of the server",
    "server_version": "version of the server",
    "device_kind": "device of the server",
    "format_version": "format",
    "build_key": "build key",
}
_SHOWN_CHARS = 12


class BuildLock:
    """The content of a build lock.

    >>> model = factory.build(model_cfg)
    >>> lock = BuildLock("models.lock", {"model": model.build_info})
    >>> lock.write()
    >>> BuildLock.read("models.lock").check(model.build_info)
    """

    def __init__(self, path: str | PathLike[str], models: Mapping[str, BuildInfo]) -> None:
        """Make the lock of built models, by name; :meth:`write` writes the file.

        Raises:
            LockError: a digest is unknown: of a model built in this process, or with a checkpoint of the trainer.
        """
        self.path = Path(path)
        self.models = models
        for name, info in models.items():
            if None in {getattr(info, field) for field in _RESULTS}:
                raise LockError(
                    f"the build info of {quoted(name)} lacks digests that a lock pins. Remedy: build the model on a "
                    "server, or in this process with all_digests=True; in both cases without weights="
                )

    @classmethod
    def read(cls, path: str | PathLike[str]) -> BuildLock:
        """Read a build lock.

        Raises:
            LockError: the file is missing or malformed.
        """
        remedy = f"Remedy: write the file with `model-factory lock CONFIG --seed SEED -o {path}`"
        try:
            document = decode_document(Path(path).read_bytes(), f"the build lock {path}")
            return cls(path, _decode(document))
        except OSError as error:
            raise LockError(f"the build lock {path} cannot be read: {error.strerror or error}. {remedy}") from None
        except FormatError as error:
            raise LockError(f"{path} is not a build lock: {error}. {remedy}") from None

    def write(self) -> None:
        """Write the file, sorted and indented for readable diffs."""
        models = {name: info.as_dict() for name, info in self.models.items()}
        text = json.dumps({"format": BUILD_LOCK_FORMAT, "models": models}, indent=2, sort_keys=True)
        with whole_file(self.path) as file:
            file.write(f"{text}\n".encode())

    def seed(self, names: Iterable[str]) -> int:
        """Return the pinned seed of models of one request.

        Raises:
            LockError: a model is not pinned, or the models have different seeds.
        """
        seeds = {name: self._pinned(name).seed for name in names}
        if len(set(seeds.values())) > 1:
            each = ", ".join(f"{quoted(name)} with seed {seed}" for name, seed in seeds.items())
            raise LockError(f"{self.path} pins {each}. Remedy: build the models of each seed in a request of their own")
        return next(iter(seeds.values()))

    def check_request(self, name: str, config_digest: str, dtype: str, seed: int) -> None:
        """Refuse a request for another model than the pinned model; nothing has been sent yet.

        Raises:
            LockError: the model is not pinned, or config, dtype or seed differ.
        """
        pinned = self._pinned(name)
        given = {"config_digest": config_digest, "seed": seed, "dtype": dtype}
        differences = [
            _difference(label, getattr(pinned, field), given[field])
            for field, label in _REQUESTED.items()
            if getattr(pinned, field) != given[field]
        ]
        if differences:
            raise self._error(name, differences, f"{seed}")

    def check(self, info: BuildInfo) -> None:
        """Refuse a build with other digests than the pinned build, and name everything that differs.

        A build with the pinned digests by another server is the pinned build.

        Raises:
            LockError: the model is not pinned, or descriptor, programs or weights differ.
        """
        pinned = self._pinned(info.component)
        found = {
            field: _difference(label, getattr(pinned, field), getattr(info, field))
            for field, label in (_REQUESTED | _RESULTS | _CAUSES).items()
            if getattr(pinned, field) != getattr(info, field)
        }
        if found.keys() & (_REQUESTED | _RESULTS).keys():
            raise self._error(info.component, list(found.values()), f"{info.seed}")
        if found:
            log.info("%s: the pinned digests, although: %s", info.component, "; ".join(found.values()))

    def _pinned(self, name: str) -> BuildInfo:
        if name not in self.models:
            raise LockError(
                f"{self.path} pins no model {quoted(name)}, only {listed(sorted(self.models))}. Remedy: write the lock "
                f"with all models of the trainer, `model-factory lock {name}=CONFIG -o {self.path}`"
            )
        return self.models[name]

    def _error(self, name: str, differences: list[str], seed: str) -> LockError:
        return LockError(
            f"{self.path} pins another build of {quoted(name)}: {'; '.join(differences)}. Remedy: build with the "
            f"pinned config and server, or pin the new build with `model-factory lock {name}=CONFIG --seed {seed} -o "
            f"{self.path}`"
        )


def _decode(document: Any) -> dict[str, BuildInfo]:
    if expect_type(document, dict).keys() != {"format", "models"} or document["format"] != BUILD_LOCK_FORMAT:
        raise FormatError(f"expected exactly the keys 'format' and 'models', and format {BUILD_LOCK_FORMAT}")
    models = {
        expect_name(name): BuildInfo.from_dict(item) for name, item in expect_type(document["models"], dict).items()
    }
    for name, info in models.items():
        if info.component != name:
            raise FormatError(f"{quoted(name)} pins a model called {quoted(info.component)}")
    return models


def _difference(label: str, pinned: object, found: object) -> str:
    return f"{label} {_shown(pinned)} is {_shown(found)}"


def _shown(value: object) -> str:
    """Return the beginning of a digest, or the whole of another value."""
    return (
        f"{value[:_SHOWN_CHARS]}..."
        if isinstance(value, str) and len(value) == len(Blob.of(b"").digest)
        else repr(value)
    )
