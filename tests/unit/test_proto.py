"""The compiled CRI descriptors are the wire contract of proto/cri/fields.json: names, numbers, types."""

import json
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

import proto.cri
from proto.cri import runtime_pb2

TABLE = json.loads((Path(proto.cri.__file__).parent / "fields.json").read_text())
SCALARS = {
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_UINT64: "uint64",
}


def short(full_name: str) -> str:
    return full_name.removeprefix(TABLE["package"] + ".")


def type_name(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return f"map<{type_name(key)}, {type_name(value)}>"
    if message is not None:
        return short(message.full_name)
    if field.enum_type is not None:
        return short(field.enum_type.full_name)
    return SCALARS[field.type]


def row(field: FieldDescriptor) -> dict[str, object]:
    found: dict[str, object] = {"number": field.number, "name": field.name, "type": type_name(field)}
    if field.is_repeated and not str(found["type"]).startswith("map<"):
        found["repeated"] = True
    if field.GetOptions().deprecated:
        found["deprecated"] = True
    return found


MESSAGES: dict[str, Descriptor] = dict(runtime_pb2.DESCRIPTOR.message_types_by_name)


def test_the_package_and_the_set_of_messages():
    assert runtime_pb2.DESCRIPTOR.package == TABLE["package"]
    assert set(MESSAGES) == set(TABLE["messages"])


@pytest.mark.parametrize("name", sorted(TABLE["messages"]))
def test_message_fields(name):
    assert [row(field) for field in MESSAGES[name].fields] == TABLE["messages"][name]


def test_enums():
    enums = dict(runtime_pb2.DESCRIPTOR.enum_types_by_name)
    for message in MESSAGES.values():
        enums |= {short(nested.full_name): nested for nested in message.enum_types}
    compiled = {name: {v.name: v.number for v in enum.values} for name, enum in enums.items()}
    assert compiled == TABLE["enums"]


def test_services():
    compiled = {
        service.name: {
            method.name: [
                short(method.input_type.full_name),
                short(method.output_type.full_name),
                "server-stream" if method.server_streaming else "unary",
            ]
            for method in service.methods
        }
        for service in runtime_pb2.DESCRIPTOR.services_by_name.values()
    }
    assert compiled == TABLE["services"]
