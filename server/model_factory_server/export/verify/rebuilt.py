"""Verifies a module rebuilt from source code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from model_factory.describe.assignments import attributes_restored_after
from model_factory.errors import NotPortableError
from model_factory.program.call_signature import call_signature, rebuild_arguments
from model_factory.program.forward_signature import ForwardSignature
from model_factory_server.export.verify.runs import Run, compare_results, run_once


def verify_rebuilt(original: nn.Module, rebuilt: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Compare a rebuilt module of the same class with ``original`` on a call, in both modes.

    Raises:
        NotPortableError: the rebuilt module differs or fails.

    Example:
        >>> import copy
        >>> layer = nn.Linear(2, 2)
        >>> verify_rebuilt(layer, copy.deepcopy(layer), {"input": torch.ones(3, 2)})
    """
    signature = ForwardSignature.of(original.forward)
    given, examples = call_signature(arguments)

    def run(module: nn.Module) -> Exception | Run:
        def call(leaves: list[torch.Tensor]) -> Any:
            return signature.call(module, rebuild_arguments(given, leaves, arguments))

        return run_once(call, module, examples, writes_parameters=True)

    with attributes_restored_after(original), attributes_restored_after(rebuilt):
        for mode in (False, True):
            original.train(mode)  # an own train() may return nothing
            rebuilt.train(mode)
            expected, actual = run(original), run(rebuilt)
            if isinstance(expected, Exception):
                continue
            if isinstance(actual, Exception):
                raise NotPortableError(f"the source code fails after a rebuild: {type(actual).__name__}: {actual}")
            try:
                compare_results(expected.observed, actual.observed, [list(example.shape) for example in examples])
            except NotPortableError as error:
                detail = str(error).partition(". Remedy: ")[0]
                raise NotPortableError(
                    f"the source code behaves differently after a rebuild: {detail}. Remedy: keep the state of the "
                    "forward in parameters, buffers and plain attributes, and not in module-level variables"
                ) from None
