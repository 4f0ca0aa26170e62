"""The stages of a job, in order. Imports no torch."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """What a job is doing; clients see each change as progress.

    Example:
        >>> [stage.value for stage in Stage]
        ['queued', 'constructing', 'recording', 'writing', 'done']
    """

    QUEUED = "queued"
    """Waiting for a worker."""
    CONSTRUCTING = "constructing"
    """Running the constructors of the model."""
    RECORDING = "recording"
    """Recording and verifying programs."""
    WRITING = "writing"
    """Writing the weights into the store."""
    DONE = "done"
    """Finished: the result is in the store."""
