"""Compiled descriptors are the wire contracts of the fields.json beside them: names, numbers, types."""

import json
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

import proto.cri
import proto.devices
from proto.cri import runtime_pb2
from proto.devices import plugin_pb2

CONTRACTS = {
    package.__name__: (
        module.DESCRIPTOR,
        json.loads((Path(package.__file__).parent / "fields.json").read_text()),
    )
    for package, module in ((proto.cri, runtime_pb2), (proto.devices, plugin_pb2))
}
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


def short(descriptor: Descriptor | EnumDescriptor) -> str:
    return descriptor.full_name.removeprefix(descriptor.file.package + ".")


def type_name(field: FieldDescriptor) -> str:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = message.fields_by_name["key"], message.fields_by_name["value"]
        return f"map<{type_name(key)}, {type_name(value)}>"
    if message is not None:
        return short(message)
    if field.enum_type is not None:
        return short(field.enum_type)
    return SCALARS[field.type]


def row(field: FieldDescriptor) -> dict[str, object]:
    found: dict[str, object] = {"number": field.number, "name": field.name, "type": type_name(field)}
    if field.is_repeated and not str(found["type"]).startswith("map<"):
        found["repeated"] = True
    if field.GetOptions().deprecated:
        found["deprecated"] = True
    return found


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_package_and_the_set_of_messages(name):
    descriptor, table = CONTRACTS[name]
    assert descriptor.package == table["package"]
    assert set(descriptor.message_types_by_name) == set(table["messages"])


@pytest.mark.parametrize(
    ("contract", "name"),
    [(contract, name) for contract, (_, table) in CONTRACTS.items() for name in sorted(table["messages"])],
)
def test_message_fields(contract, name):
    descriptor, table = CONTRACTS[contract]
    message: Descriptor = descriptor.message_types_by_name[name]
    assert [row(field) for field in message.fields] == table["messages"][name]


@pytest.mark.parametrize("name", CONTRACTS)
def test_enums(name):
    descriptor, table = CONTRACTS[name]
    enums = dict(descriptor.enum_types_by_name)
    for message in descriptor.message_types_by_name.values():
        enums |= {short(nested): nested for nested in message.enum_types}
    compiled = {name: {v.name: v.number for v in enum.values} for name, enum in enums.items()}
    assert compiled == table["enums"]


@pytest.mark.parametrize("name", CONTRACTS)
def test_services(name):
    descriptor, table = CONTRACTS[name]
    compiled = {
        service.name: {
            method.name: [
                short(method.input_type),
                short(method.output_type),
                "server-stream" if method.server_streaming else "unary",
            ]
            for method in service.methods
        }
        for service in descriptor.services_by_name.values()
    }
    assert compiled == table["services"]
