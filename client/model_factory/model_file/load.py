"""``load``: rebuilds models from a file, without a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from model_factory.descriptor.codec import Programs, decode_descriptor, decode_programs
from model_factory.descriptor.rebuild import Blueprint, FindClass
from model_factory.descriptor.tree import Descriptor
from model_factory.descriptor.weights import Entry, map_weights, open_weights, read_header, wrong_tensors
from model_factory.digest import Blob
from model_factory.documents import FORMAT
from model_factory.errors import FormatError, IntegrityError, ModelFactoryError
from model_factory.identity import BuildInfo
from model_factory.limits import MAX_SOURCE_BYTES
from model_factory.model_file import migrations
from model_factory.model_file.index import INDEX, Index, SavedComponent, decode_index
from model_factory.model_file.migrations import Rewrite, rewritten_bytes
from model_factory.source.loader import load_source
from model_factory.source.trust import Trust, TrustSource
from model_factory.store.file_locks import closed_on_error
from model_factory.wording import listed, nearest, quoted

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


def load(
    path: str | PathLike[str],
    *,
    device: str | torch.device = "cpu",
    trust_source: TrustSource = None,
    components: Iterable[str] | None = None,
    verify: bool = True,
) -> nn.Module | dict[str, nn.Module]:
    """Return the models of a file or folder from :func:`model_factory.save`; no server is needed.

    The models are trainable. On the CPU, the weights lie in a private mapping of the file: only the read pages take
    memory, a written page is copied, and the file never changes.

    Args:
        path: A file, or a folder with a ``model.safetensors``.
        device: Device of the tensors.
        trust_source: Source code that may run in this process; see :class:`model_factory.RemoteModelFactory`.
        components: Names of the models to load, for a file with several models; by default all.
        verify: Whether the bytes of the weights are compared with their digests. Without the comparison, only the used
            weights are read. Descriptors, programs and source are always compared.

    Returns:
        A module or a dict of modules, as saved.

    Raises:
        FormatError: the file is not a model file, is not whole, or has another version.
        IntegrityError: the file is damaged.
        SourceError: a model needs source that is not trusted, or that cannot run here.
        StoreError: the file cannot be read.

    Example:
        >>> from model_factory import load, save
        >>> save({"actor": factory.build(model_cfg), "critic": factory.build(model_cfg)}, "agent.mf")
        >>> sorted(load("agent.mf", components=["actor"]))
        ['actor']
    """
    trust = Trust(trust_source)
    with ModelFile(path) as file, file.errors():
        if components is None:
            file.check_tensors()
        names = file.names if components is None else [file.checked_name(name) for name in components]
        if verify:
            file.verify(names)
        models = {name: file.build(name, trust, device) for name in names}
    return next(iter(models.values())) if file.single and components is None else models


class ModelFile:
    """An open model file. Documents are read at their first use, and weights are mapped."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Open a file, or the file in a folder.

        Raises:
            FormatError: this is not a model file of this version.
            StoreError: the file cannot be read.
        """
        self.path = Path(path)
        self._file = open_weights(self.path)
        with closed_on_error(self._file), self.errors():
            header = read_header(self._file)
            self._index = _index(header.metadata)
        self._documents = header.metadata
        self._entries = {entry.name: entry for entry in header.entries}
        self._components = {item.name: item for item in self._index.components}
        self._descriptors: dict[str, Descriptor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # mappings of the file stay

    @property
    def names(self) -> list[str]:
        """Names of the models, in order."""
        return list(self._components)

    @property
    def single(self) -> bool:
        """Whether a module was saved rather than a mapping."""
        return self._index.single

    @property
    def index(self) -> Index:
        """The table of contents."""
        return self._index

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Add the path of the file to errors inside the block."""
        try:
            yield
        except ModelFactoryError as error:
            raise type(error)(f"{self.path}: {error}") from error

    def checked_name(self, name: str) -> str:
        """Return the name of a model of the file.

        Raises:
            FormatError: the file has no model of the name.
        """
        if name not in self._components:
            raise FormatError(f"no model {quoted(name)}; the file has {listed(self.names)}{nearest(name, self.names)}")
        return name

    def build_info(self, name: str) -> BuildInfo | None:
        """Return the record of a model's build, if known."""
        return self._components[name].build_info

    def descriptor(self, name: str) -> Descriptor:
        """Return the module tree of a model."""
        if name not in self._descriptors:
            rewrites = {version: item.descriptor for version, item in migrations.DOCUMENTS.items()}
            data = self._current(self._components[name].descriptor, rewrites, "the descriptor")
            self._descriptors[name] = decode_descriptor(data)
        return self._descriptors[name]

    def programs(self, name: str) -> Programs:
        """Return the programs of a model."""
        rewrites = {version: item.programs for version, item in migrations.DOCUMENTS.items()}
        return decode_programs(self._current(self._components[name].programs, rewrites, "the programs"))

    def source(self, bundle: Blob) -> bytes:
        """Return a bundle of source code as text; no code is run."""
        if bundle.size > MAX_SOURCE_BYTES:
            raise FormatError(f"a bundle of {bundle.size} bytes; at most {MAX_SOURCE_BYTES} are allowed")
        return self._document(bundle)

    def verify(self, names: Iterable[str]) -> None:
        """Compare the weights of models with their digests.

        Raises:
            IntegrityError: a tensor has other bytes.
        """
        entries = [entry for name in names for _, entry in self._tensors(self._components[name], self.descriptor(name))]
        wrong = wrong_tensors(self._file, entries, self._index.tensors)
        if wrong:
            raise IntegrityError(
                f"the file is damaged: {listed(wrong)} do not match their digests. Remedy: copy or save the file again"
            )

    def build(self, name: str, trust: Trust, device: str | torch.device = "cpu") -> nn.Module:
        """Rebuild a model.

        Raises:
            FormatError: a part breaks the format.
            SourceError: the model needs source that is not trusted, or that cannot run here.
        """
        descriptor = self.descriptor(name)
        blueprint = Blueprint(descriptor, self.programs(name))
        find_class = self._trusted_classes(name, descriptor, trust)
        names = dict(self._tensors(self._components[name], descriptor))
        mapped = map_weights(self._file, device, names.values())
        tensors = {own: mapped[entry.name] for own, entry in names.items()}
        model = blueprint.build(tensors, find_class=find_class)
        info = self.build_info(name)
        if info is not None:
            info.attach(model)
        return model

    def check_tensors(self) -> None:
        """Check that the file has the tensors of all models, and no others.

        Raises:
            FormatError: a tensor is missing, or belongs to no model.
        """
        found = [
            entry.name
            for name, component in self._components.items()
            for _, entry in self._tensors(component, self.descriptor(name))
        ]
        others = self._entries.keys() - set(found)
        if others or len(found) != len(self._entries):
            raise FormatError(f"tensors of no model, or of two models: {listed(sorted(others))}")

    def _tensors(self, component: SavedComponent, descriptor: Descriptor) -> Iterator[tuple[str, Entry]]:
        """Yield the tensors of a model: the name in the descriptor, and the place in the file."""
        prefix = self._index.prefix(component)
        for node in descriptor.tensors:
            if node.shape is not None:
                entry = self._entries.get(prefix + node.name)
                if entry is None:
                    raise FormatError(f"the file lacks the tensor {quoted(prefix + node.name)}")
                yield node.name, entry

    def _current(self, blob: Blob, rewrites: Mapping[int, Rewrite], what: str) -> bytes:
        """Return a document in the current format; the digest is that of the file's own document."""
        data = self._document(blob)
        return data if self._index.document_format == FORMAT else rewritten_bytes(data, rewrites, what, FORMAT)

    def _document(self, blob: Blob) -> bytes:
        text = self._documents.get(blob.digest)
        if text is None:
            raise FormatError(f"the file lacks the document {blob.digest}")
        data = text.encode()
        if Blob.of(data) != blob:
            raise IntegrityError(
                f"the file is damaged: document {blob.digest} has other content. Remedy: copy or save the file again"
            )
        return data

    def _trusted_classes(self, name: str, descriptor: Descriptor, trust: Trust) -> FindClass | None:
        bundle = descriptor.bundle
        if bundle is None:
            return None
        reasons = descriptor.source_reasons
        trust.check(name, bundle.digest, reasons, lambda: self.source(bundle))
        source = load_source(self.source(bundle), bundle.digest, f"{name}: {', '.join(reasons)}")
        return lambda item: source.find_class(item.module, item.qualname, item.reason)


def _index(metadata: Mapping[str, str]) -> Index:
    if INDEX not in metadata:
        raise FormatError(
            "this is a safetensors file without models. Remedy: write the file with model_factory.save; or load the "
            "tensors with load_state_dict into a built model"
        )
    return decode_index(metadata[INDEX])
