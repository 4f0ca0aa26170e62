"""What ``train()`` does to a module: a class of someone's own may keep parts of itself in eval mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from model_factory.errors import NotPortableError

_METHODS = ("train", "eval")


def frozen_modules(module: nn.Module, where: str) -> tuple[str, ...]:
    """Paths below ``module`` (``""`` is itself) that its own ``train()`` leaves in eval mode, with all below them.

    Found by trying it.

    Raises:
        NotPortableError: it does anything else besides, which a rebuilt module would not.
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
            f"{where} has a {own[0]}() of its own that does more than to keep modules in eval mode, and methods do not "
            "travel. Remedy: do that in the forward, or on the trainer"
        )
    return frozen


def _frozen(module: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The outermost modules that are in eval mode as a whole, and whether there are others in eval mode."""
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
    """What else ``train()`` could change: attributes by identity, tensors also by version and requires_grad."""
    tensors = [*module.parameters(), *module.buffers()]
    return [
        [(name, id(value)) for item in module.modules() for name, value in item.__dict__.items() if name != "training"],
        [(id(item), item._version, item.requires_grad) for item in tensors],
    ]
