"""List the blocks for configs."""

from __future__ import annotations

from model_factory_server.worker.jobs.workspace import Workspace
from model_factory_server.worker.outputs import ListOutput


def list_blocks(workspace: Workspace) -> ListOutput:
    """Return every block of the backend, sorted by name."""
    return ListOutput(blocks=workspace.backend.blocks())
