"""Placeholders for arguments that no program reads."""

from __future__ import annotations

from typing import Any

from model_factory.errors import CallSignatureError


class Unreadable:
    """Placeholder for an argument of a class that a program cannot take: a forward may pass the argument on only."""

    def __init__(self, type_name: str, path: str) -> None:
        object.__setattr__(self, "_type_name", type_name)
        object.__setattr__(self, "_path", path)

    def __getattribute__(self, name: str) -> Any:
        type_name, path = (object.__getattribute__(self, own) for own in ("_type_name", "_path"))
        raise CallSignatureError(
            f"argument {path!r} is a {type_name.removeprefix('builtins.')}; a remotely built module reads tensors, "
            "NumPy arrays, None, numbers and texts, and lists, tuples, dicts, named tuples, dataclasses, TensorDicts "
            "and OmegaConf configs of them. Remedy: pass the parts of the object that the forward reads"
        )


def _refuse_use(value: Unreadable, *_args: Any) -> Any:
    return value.use


for _name in (
    "len iter getitem setitem contains bool eq ne lt le gt ge hash float int index complex format str add radd "
    "sub rsub mul rmul truediv rtruediv floordiv mod pow neg abs and or xor invert"
).split():
    setattr(Unreadable, f"__{_name}__", _refuse_use)
