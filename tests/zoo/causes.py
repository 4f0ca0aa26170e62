"""The cause in the reason of a refusal: the same words for all models that fail for one cause."""

from __future__ import annotations

import re

_CAUSES = (
    (r"the forward calls (\S+), which (?:is not|can)", "calls `{}`"),
    (r"the forward calls (\S+), and the result can differ", "asks `{}`"),
    (r"the forward calls (\S+?)[,.:;]? ", "calls `{}`"),
    (r"the forward reads (\.\S+) of a tensor", "reads `{}` of a tensor"),
    (r"decides by the values of a tensor", "decides by values"),
    (r"neither an input nor a parameter or buffer", "uses a tensor of no module"),
    (r"which is no size of an input", "uses a number that is no size of an input"),
    (r"not on the symbolic sizes of a recording", "does not run on symbolic sizes"),
    (r"only the program failed", "the program fails at other sizes"),
    (r"only the original failed", "the original fails where the program runs"),
    (r"does not reproduce the forward", "the program differs from the forward"),
    (r"the forward keeps (?:a value|something)", "keeps a value for the next call"),
    (r"the forward assigns", "assigns an attribute"),
    (r"has a hook in (\w+)", "has a hook in `{}`"),
    (r"overrides (\w+\(\))", "overrides `{}`"),
    (r"the attribute '\w+' is not portable: an? (\S+) is", "has an attribute of the class `{}`"),
    (r"the forward returns an? (\S+)", "returns a `{}`"),
    (r"autograd\.Function|autograd function", "uses an `autograd.Function`"),
    (r"more than (\d+) branches", "decides by values, with many outcomes"),
    (r"exit code", "takes too long"),
)


def cause_of(reason: str) -> str:
    """Return the cause of a refusal in a few words.

    >>> cause_of("the model (A): the forward calls torch._assert, which is not in the table of ops (a.py:1: x)")
    'calls `torch._assert`'
    """
    for pattern, text in _CAUSES:
        if found := re.search(pattern, reason):
            return text.format(*(item.rstrip(",.:;") for item in found.groups()))
    return re.split(r" \(|\. Remedy|: ", reason.partition("): ")[2] or reason)[0][:80]
