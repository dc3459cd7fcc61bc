"""Traffic control messages as values: queueing disciplines, packet filters and what they act on.

Sent over `host.netlink.Netlink` like those of host.rtnl; what a device has of these goes with the device.
Layouts: linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h; `tc qdisc show`, `tc filter show`.

Filters are classic BPF (cls_bpf): one program in the request itself, without the bpf(2) system call, its
privileges and its file descriptors.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from host import nlmsg
from host.nlmsg import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request, attr, nest
from host.rtnl import IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, RTM_NEWLINK, link_body, name_bytes

RTM_NEWQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_GETTFILTER = 36, 38, 44, 46
TC_ACT_UNSPEC, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_STOLEN = 0xFFFFFFFF, 0, 2, 4
"""What a filter in direct-action mode may answer: ask the next filter, let pass, drop, it is mine now."""

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TC_H_ROOT, _TC_H_CLSACT, _CLSACT_INGRESS = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFFFFF2
_CLSACT_HANDLE, _ROOT_HANDLE = 0xFFFF0000, 0x00010000
_ETH_P_ALL = 0x0003
_TCA_BPF_ACT, _TCA_BPF_OPS_LEN, _TCA_BPF_OPS, _TCA_BPF_FLAGS = 1, 4, 5, 8
_TCA_BPF_FLAG_ACT_DIRECT = 1
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS, _TCA_EGRESS_REDIR = 1, 2, 2, 1
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TC_LINKLAYER_ETHERNET = 1
_U32_MAX = 0xFFFFFFFF

_TCMSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_RATE = struct.Struct("=BBHhHI")  # cell log, link layer, overhead, cell align, minimum unit, bytes a second
_TBF = struct.Struct("=12s12sIII")  # rate, peak rate, limit, buffer, mtu
_MIRRED = struct.Struct("=IIiiiiI")  # index, capab, action, refcnt, bindcnt, eaction, device
_FILTER = struct.Struct("=HBBI")  # struct sock_filter: code, jump if true, jump if false, k
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")


@dataclass(frozen=True)
class Instruction:
    """One instruction of classic BPF (linux/filter.h): jumps count the instructions to skip."""

    code: int
    k: int
    jump_true: int = 0
    jump_false: int = 0


@dataclass(frozen=True)
class Filter:
    """A BPF filter on what comes out of a device: its program, and where it sends what matches."""

    priority: int
    program: tuple[Instruction, ...]
    target: int = 0  # index of the device; 0: the program's answer is the verdict


@dataclass(frozen=True)
class Bucket:
    """A token bucket (`tbf`) on a device, and its rate in bytes a second."""

    index: int
    rate: int


def add_ifb(name: str) -> Request:
    """An intermediate functional block: what is redirected to it is queued there and then goes on."""
    body = link_body(
        attr(IFLA_IFNAME, name_bytes(name)), nest(IFLA_LINKINFO, attr(IFLA_INFO_KIND, b"ifb")), up=True
    )
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"add ifb {name}")


def add_clsact(index: int) -> Request:
    """The place for filters on what comes out of a device, seen from the node: of a pod, what it sends."""
    body = _TCMSG.pack(0, index, _CLSACT_HANDLE, _TC_H_CLSACT, 0) + attr(_TCA_KIND, b"clsact\0")
    return Request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body, "add clsact")


def ingress_filter(index: int, priority: int, program: Sequence[Instruction]) -> Request:
    """A filter whose program answers with a verdict (`TC_ACT_…`) by itself.

    Args:
        index: of the device, which has a clsact.
        priority: those with lower numbers are asked first.
        program: classic BPF over the whole frame; a load beyond its end answers 0, TC_ACT_OK.
    """
    return _filter(
        index,
        priority,
        program,
        attr(_TCA_BPF_FLAGS, _U32.pack(_TCA_BPF_FLAG_ACT_DIRECT)),
        what="add ingress filter",
    )


def redirect_ingress(index: int, priority: int, *, target: int) -> Request:
    """Send whatever gets to this priority out through the device with index `target`."""
    parameters = _MIRRED.pack(0, 0, TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, target)
    action = nest(
        1,
        attr(_TCA_ACT_KIND, b"mirred\0"),
        nest(_TCA_ACT_OPTIONS, attr(_TCA_MIRRED_PARMS, parameters)),
    )
    everything = [Instruction(0x06, _U32_MAX)]  # return: matches
    return _filter(index, priority, everything, nest(_TCA_BPF_ACT, action), what="redirect to ifb")


def _filter(index: int, priority: int, program: Sequence[Instruction], *options: bytes, what: str) -> Request:
    code = b"".join(_FILTER.pack(item.code, item.jump_true, item.jump_false, item.k) for item in program)
    info = priority << 16 | _ETH_P_ALL << 8  # the protocol is in network order
    body = _TCMSG.pack(0, index, 0, _CLSACT_INGRESS, info) + attr(_TCA_KIND, b"bpf\0")
    body += nest(
        _TCA_OPTIONS,
        attr(_TCA_BPF_OPS_LEN, _U16.pack(len(program))),
        attr(_TCA_BPF_OPS, code),
        *options,
    )
    return Request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, body, what)


def set_rate(index: int, *, rate: int, burst: int, latency: float) -> Request:
    """Limit what a device sends (`tbf`, a token bucket).

    Args:
        index: of the device.
        rate: bytes a second.
        burst: bytes that may pass at once after a pause.
        latency: seconds a packet may wait before the queue is full.
    """
    spec = _RATE.pack(0, _TC_LINKLAYER_ETHERNET, 0, 0, 0, min(rate, _U32_MAX))
    limit = min(int(rate * latency) + burst, _U32_MAX)
    parameters = _TBF.pack(spec, bytes(12), limit, 0, 0)
    options = [attr(_TCA_TBF_PARMS, parameters), attr(_TCA_TBF_BURST, _U32.pack(burst))]
    if rate > _U32_MAX:
        options.append(attr(_TCA_TBF_RATE64, _U64.pack(rate)))
    body = _TCMSG.pack(0, index, _ROOT_HANDLE, _TC_H_ROOT, 0)
    body += attr(_TCA_KIND, b"tbf\0") + nest(_TCA_OPTIONS, *options)
    return Request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body, "limit the rate")


def dump_ingress_filters(index: int) -> Request:
    """The filters on what comes out of a device; for `parse_filter`."""
    return Request(
        RTM_GETTFILTER, nlmsg.NLM_F_DUMP, _TCMSG.pack(0, index, 0, _CLSACT_INGRESS, 0), "list filters"
    )


def parse_filter(body: bytes) -> Filter | None:
    """From the payload of RTM_NEWTFILTER; None for one that is no BPF program."""
    *_, info = _TCMSG.unpack_from(body)
    found = dict(nlmsg.attrs(body, _TCMSG.size))
    options = dict(nlmsg.attrs(found.get(_TCA_OPTIONS, b"")))
    if found.get(_TCA_KIND) != b"bpf\0" or _TCA_BPF_OPS not in options:
        return None  # each priority is listed without options first
    steps = _FILTER.iter_unpack(options[_TCA_BPF_OPS])
    program = tuple(Instruction(code, k, true, false) for code, true, false, k in steps)
    return Filter(info >> 16, program, _redirect_target(options.get(_TCA_BPF_ACT, b"")))


def _redirect_target(actions: bytes) -> int:
    for _, action in nlmsg.attrs(actions):
        parts = dict(nlmsg.attrs(action))
        options = dict(nlmsg.attrs(parts.get(_TCA_ACT_OPTIONS, b"")))
        if parts.get(_TCA_ACT_KIND) == b"mirred\0" and _TCA_MIRRED_PARMS in options:
            *_, kind, target = _MIRRED.unpack_from(options[_TCA_MIRRED_PARMS])
            return int(target) if kind == _TCA_EGRESS_REDIR else 0
    return 0


def dump_queues() -> Request:
    """The queueing disciplines of all devices; for `parse_bucket`."""
    return Request(RTM_GETQDISC, nlmsg.NLM_F_DUMP, _TCMSG.pack(0, 0, 0, 0, 0), "list queues")


def parse_bucket(body: bytes) -> Bucket | None:
    """From the payload of RTM_NEWQDISC; None for any other kind."""
    _family, index, *_ = _TCMSG.unpack_from(body)
    found = dict(nlmsg.attrs(body, _TCMSG.size))
    options = dict(nlmsg.attrs(found.get(_TCA_OPTIONS, b"")))
    if found.get(_TCA_KIND) != b"tbf\0" or _TCA_TBF_PARMS not in options:
        return None
    if _TCA_TBF_RATE64 in options:
        return Bucket(index, int(_U64.unpack(options[_TCA_TBF_RATE64])[0]))
    return Bucket(index, int(_RATE.unpack_from(options[_TCA_TBF_PARMS])[-1]))
