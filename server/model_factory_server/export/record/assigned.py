"""Attributes that the forwards of a model assign."""

from __future__ import annotations

from dataclasses import dataclass, field

from model_factory.errors import NotPortableError
from model_factory_server.export.trace.module_calls import BUFFERS


@dataclass(slots=True)
class Assigned:
    """Attributes and buffers that the forwards of a model assign; those that a forward reads before may be caches."""

    attributes: dict[tuple[int, str], str] = field(default_factory=dict)
    """Class, by ``id`` of the module's ``__dict__`` and name of the attribute."""
    read: set[str] = field(default_factory=set)
    """Names of attributes of custom modules that a run has read before an assignment."""
    private: set[tuple[str, str]] = field(default_factory=set)
    """Class and name of attributes with private names that a run has assigned."""
    private_read: set[tuple[str, str]] = field(default_factory=set)
    """Class and name of attributes with private names that a run has read, and not assigned.

    A run that reads and assigns is compared with a second call of its kind when its program is verified.
    """

    def refuse_read(self) -> None:
        """Refuse a buffer, and an attribute read before its assignment: other calls may read both.

        Names count, not modules: equal blocks are recorded once, and a method may read what another has assigned.

        Raises:
            NotPortableError: a forward assigns the attribute, and a forward reads the attribute.

        Example:
            >>> Assigned({(1, "last"): "Block"}).refuse_read()
        """
        for (_, name), cls in self.attributes.items():
            if name in self.read or name.startswith(BUFFERS):
                raise NotPortableError(
                    f"the forward assigns {cls}.{name}, which a forward reads at its next call, and programs assign no "
                    "attributes. Remedy: update a buffer in place"
                )
        for cls, name in sorted(self.private & self.private_read):
            raise NotPortableError(
                f"the forward assigns {cls}.{name}, which a forward reads in a call of another kind, and programs "
                "assign no attributes. Remedy: update a buffer in place"
            )
