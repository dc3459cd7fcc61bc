"""Programs of a few system calls, made on the spot: static ELF files of raw machine code.

A filter must be asked in every way in which a program can ask it: as a 64-bit call, as an x32 call, through
the 32-bit gate, and with arguments that no C library would pass. x86-64 only.

    probe(Call(41, (40, 1, 0)), Call(102, (1, 0), gate="i386"))      an ELF that prints 8 bytes a call
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

X32 = 0x40000000
"""__X32_SYSCALL_BIT of asm/unistd.h."""
_BASE, _HEADERS = 0x400000, 64 + 56
_REGISTERS = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8")  # mov rdi, rsi, rdx, r10, r8
_GATE_REGISTERS = (b"\xbb", b"\xb9", b"\xba", b"\xbe", b"\xbf")  # mov ebx, ecx, edx, esi, edi


@dataclass(frozen=True)
class Call:
    """One system call: its number and arguments; by `syscall` or, with the gate, by `int 0x80`."""

    number: int
    arguments: tuple[int, ...] = ()
    gate: Literal["x86-64", "i386"] = "x86-64"


def _code(call: Call) -> bytes:
    if call.gate == "i386":
        moves = b"".join(
            op + struct.pack("<I", value) for op, value in zip(_GATE_REGISTERS, call.arguments, strict=False)
        )
        made = moves + b"\xb8" + struct.pack("<I", call.number) + b"\xcd\x80"
        made += b"\x48\x98"  # cdqe: the result has 32 bits
    else:
        moves = b"".join(
            op + struct.pack("<Q", value) for op, value in zip(_REGISTERS, call.arguments, strict=False)
        )
        made = moves + b"\x48\xb8" + struct.pack("<Q", call.number) + b"\x0f\x05"
    # push rax; write(1, rsp, 8); pop rax
    return made + b"\x50\x48\x89\xe6" + b"\xbf\1\0\0\0\xba\x08\0\0\0\xb8\1\0\0\0\x0f\x05" + b"\x58"


def probe(*calls: Call) -> bytes:
    """A program that makes the calls in turn and writes each result to standard output, 8 bytes each."""
    code = b"".join(_code(call) for call in calls)
    code += b"\x31\xff\xb8" + struct.pack("<I", 60) + b"\x0f\x05"  # exit(0)
    size = _HEADERS + len(code)
    ident = b"\x7fELF\2\1\1" + bytes(9)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code


def results(output: bytes) -> list[int]:
    """The results a probe wrote: negative ones are errno values."""
    return [value for (value,) in struct.iter_unpack("<q", output)]
