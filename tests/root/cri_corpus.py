"""Requests that no kubelet sends: every field of a configuration with values that are too long, too large, or
hold what breaks paths, lines and terminals. Made from the message descriptors, so that no field is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

Path = tuple[FieldDescriptor, ...]

LONG = "x" * (300 << 10)
TEXTS = {"long": LONG, "nul": "a\0b", "odd": "../../\n\x1b]0;x\x07é\u202e"}
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-1, 99),
}


def changes(kind: Descriptor, above: Path = ()) -> Iterator[tuple[str, Path, Any]]:
    """(what, path of the field, value) for each field of a message and of the messages in it."""
    for field in kind.fields:
        path = (*above, field)
        name = ".".join(item.name for item in path)
        if field.message_type and field.message_type.GetOptions().map_entry:
            yield from ((f"{name} key {what}", path, {text: "v"}) for what, text in TEXTS.items())
            yield from ((f"{name} value {what}", path, {"k": text}) for what, text in TEXTS.items())
        elif field.message_type:
            yield from changes(field.message_type, path)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield from ((f"{name} {what}", path, text) for what, text in TEXTS.items())
        elif field.cpp_type in _RANGES:
            yield from ((f"{name} {value}", path, value) for value in _RANGES[field.cpp_type])


def put(message: Any, path: Path, value: Any) -> None:
    """Set one field, making the messages on the way; a further element where it is repeated."""
    *way, field = path
    for step in way:
        inner = getattr(message, step.name)
        message = inner.add() if step.is_repeated else inner
        message.SetInParent()
    if isinstance(value, dict):
        getattr(message, field.name).update(value)
        return
    if field.type == FieldDescriptor.TYPE_BYTES:
        value = value.encode()
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def nested_groups(depth: int) -> bytes:
    """A message of unknown groups in groups (field 1000), as deep as wanted (CVE-2025-4565)."""
    return b"\xc3\x3e" * depth + b"\xc4\x3e" * depth
