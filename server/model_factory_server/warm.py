"""Imported once by the fork server: does everything that the first build of a process would have to do first.

Importing torch's tracing takes seconds, and so does its first use; every worker is forked from a process that has both
behind it. Nothing here starts a thread or touches a GPU, since neither survives a fork.
"""

from __future__ import annotations

import gc

from model_factory.collection import no_collection

with no_collection():  # which would take a tenth of the time
    import torch
    from torch import nn

    # multiprocessing imports what the server's main script does in each worker.
    import model_factory.cli.main  # noqa: F401
    import model_factory_server.forks
    import model_factory_server.worker  # noqa: F401  what is forked runs it
    from model_factory_server.constructor import default_registry
    from model_factory_server.draws import prepare
    from model_factory_server.recording.portable import record_model


class _Block(nn.Module):
    """Small, with what most blocks do: layers, positions, sizes, a cast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        positions = torch.arange(x.shape[1], device=x.device).float()[None, :, None]
        return torch.cat([x + torch.sin(positions).to(x.dtype), x[:, :1]], dim=1)

    def example_inputs(self) -> list[dict[str, torch.Tensor]]:
        return [{"x": torch.zeros(2, 3, 4)}]


def _warm_up() -> None:
    with torch.device("meta"):
        nn.TransformerEncoderLayer(4, 2, 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    record_model(_Block())
    default_registry()
    prepare()
    torch.set_num_threads(threads)


with no_collection():
    _warm_up()
gc.collect()
gc.freeze()  # or the first collection of every worker would write to, and so copy, all that is here
