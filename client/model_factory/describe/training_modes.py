"""Finds modules left in eval mode by a custom ``train()``."""

from __future__ import annotations

from typing import Any

from torch import nn

from model_factory.errors import NotPortableError

_METHODS = ("train", "eval")


def frozen_modules(module: nn.Module, where: str) -> tuple[str, ...]:
    """Paths below ``module`` (``""`` is the module itself) of modules left in eval mode by a custom ``train()``.

    A path includes every module below the path. The function calls ``train()`` and ``eval()`` and restores all flags.

    Raises:
        NotPortableError: ``train()`` or ``eval()`` fails, or has other effects.

    Example:
        >>> class Frozen(nn.Sequential):
        ...     def train(self, mode=True):
        ...         super().train(mode)
        ...         self[0].eval()
        ...         return self
        >>> frozen_modules(Frozen(nn.Dropout(), nn.Dropout()), "the model")
        ('0',)
    """
    own = [name for name in _METHODS if getattr(type(module), name) is not getattr(nn.Module, name)]
    if not own:
        return ()
    before = _state(module)
    flags = [(item, item.training) for item in module.modules()]
    try:
        module.eval()
        same = _state(module) == before and not any(item.training for item in module.modules())
        module.train()
        frozen, partly = _frozen(module)
        same = same and _state(module) == before and not partly
    except Exception as error:
        raise NotPortableError(f"{where}.{own[0]}() failed: {type(error).__name__}: {error}") from error
    finally:
        for item, flag in flags:
            item.training = flag
    if not same:
        raise NotPortableError(
            f"{where} overrides {own[0]}() and does more than keep modules in eval mode, and the rebuilt module would "
            "lack the other effects. Remedy: move the other effects into the forward, or run them on the trainer"
        )
    return frozen


def _frozen(module: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The outermost modules entirely in eval mode, and whether other modules are in eval mode."""
    roots: list[str] = []
    partly = False
    for path, item in module.named_modules():
        if item.training or any(root == "" or path.startswith(f"{root}.") for root in roots):
            continue
        if any(below.training for below in item.modules()):
            partly = True
        else:
            roots.append(path)
    return tuple(roots), partly


def _state(module: nn.Module) -> list[Any]:
    """The state that ``train()`` could change: identities of attributes, and version and requires_grad of tensors."""
    tensors = [*module.parameters(), *module.buffers()]
    return [
        [(name, id(value)) for item in module.modules() for name, value in item.__dict__.items() if name != "training"],
        [(id(item), item._version, item.requires_grad) for item in tensors],
    ]
