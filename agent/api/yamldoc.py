"""One YAML document to plain data, with libyaml's safe loader.

Only maps, lists, strings, numbers, booleans and null come out. The C parser is ten times faster than the
Python one, which counts at start; a document that repeats itself through aliases beyond reason is refused.
"""

from __future__ import annotations

from typing import Any

import yaml

from host.errors import InputError

MAX_ALIASES = 200


def load(raw: bytes, *, where: str) -> Any:
    """The document's data. Raises InputError that begins with `where`."""
    documents = load_all(raw, where=where)
    if len(documents) > 1:
        raise InputError(f"{where}: more than one YAML document, put one in a file")
    return documents[0] if documents else None


def load_all(raw: bytes, *, where: str) -> list[Any]:
    """The data of every document in a file that separates them by `---`."""
    if raw.count(b"*") > MAX_ALIASES and sum(1 for _ in _aliases(raw, where)) > MAX_ALIASES:
        raise InputError(f"{where}: more than {MAX_ALIASES} YAML aliases")
    result = []
    try:
        loader = yaml.CSafeLoader(raw)
        try:
            while loader.check_data():
                result.append(loader.get_data())
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise InputError(f"{where} is not YAML: {fault(exc)}") from exc
    return result


def fault(exc: Exception) -> str:
    """What the parser found, in one line that begins with the place."""
    mark = getattr(exc, "problem_mark", None)
    problem = getattr(exc, "problem", None) or str(exc)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return place + " ".join(problem.split())


def _aliases(raw: bytes, where: str) -> list[object]:
    try:
        return [event for event in yaml.parse(raw, yaml.CSafeLoader) if isinstance(event, yaml.AliasEvent)]
    except yaml.YAMLError as exc:
        raise InputError(f"{where} is not YAML: {fault(exc)}") from exc
