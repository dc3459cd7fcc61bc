"""`$(NAME)` references in commands, environment values and subPathExpr.

`$(NAME)` of a known variable becomes its value, of an unknown one stays as written; `$$` is a literal dollar
sign, so `$$(NAME)` is never a reference. Source: Kubernetes API, core/v1 Container.command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_REFERENCE = re.compile(r"\$(?:(\$)|\(([^)]*)\))")


def expand(text: str, variables: Mapping[str, str], *, unknown: Callable[[str], None] | None = None) -> str:
    """Replace the references in one string.

    Args:
        text: the string.
        variables: values by name.
        unknown: called with every name that has no value (the reference itself stays in the text).
    """
    if "$" not in text:
        return text

    def replacement(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        value = variables.get(match[2])
        if value is None:
            if unknown is not None:
                unknown(match[2])
            return match[0]
        return value

    return _REFERENCE.sub(replacement, text)


def expand_all(words: Sequence[str], variables: Mapping[str, str]) -> tuple[str, ...]:
    """Replace the references in every word of a command."""
    return tuple(expand(word, variables) for word in words)
