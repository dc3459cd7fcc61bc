"""System calls that Python 3.11 has no function for, through ctypes: the only module with raw calls.

Imports as little as it can, because container supervisors are forked from a process that has it loaded.
Every call is prepared when the module is loaded, so that nothing is imported or looked up afterwards (a
container's init calls these after it has entered the image's root). Errors are `host.errors.HostError`.
Numbers are those of linux/*.h; they are the same on x86-64 and arm64 where no table says otherwise.
"""

from __future__ import annotations

import ctypes
import os
import struct

from host.errors import from_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
CLONE_INTO_CGROUP = 0x200000000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_GET_TID_ADDRESS = 40
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECBIT_NO_SETUID_FIXUP = 0x4
SECCOMP_MODE_FILTER = 2

_SIGCHLD = 17
_CAP_HEADER = struct.pack("=2I", 0x20080522, 0)
_CAP_DATA = struct.Struct("=6I")
_OPEN_HOW = struct.Struct("=3Q")
"""struct open_how of linux/openat2.h: flags, mode, resolve."""
_MOUNT_ATTR = struct.Struct("=4Q")
"""struct mount_attr of linux/mount.h: set, clear, propagation, user namespace."""

_X86 = {"pivot_root": 155, "bpf": 321, "inotify_init1": 294, "inotify_add_watch": 254}
_ARM = {"pivot_root": 41, "bpf": 280, "inotify_init1": 26, "inotify_add_watch": 27}
_NUMBERS = {
    **(_ARM if os.uname().machine == "aarch64" else _X86),
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_long, _ulong, _int, _chars = ctypes.c_long, ctypes.c_ulong, ctypes.c_int, ctypes.c_char_p

_mount = _libc.mount
_mount.argtypes = (_chars, _chars, _chars, _ulong, _chars)
_umount2 = _libc.umount2
_umount2.argtypes = (_chars, _int)
_unshare = _libc.unshare
_unshare.argtypes = (_int,)
_setns = _libc.setns
_setns.argtypes = (_int, _int)
_prctl = _libc.prctl
_prctl.argtypes = (_int, _ulong, _ulong, _ulong, _ulong)
_prctl_text = _libc["prctl"]  # a second object for the same function: no array type is made for a text
_prctl_text.argtypes = (_int, _chars)
_capset = _libc.capset
_capset.argtypes = (_chars, _chars)
_sethostname = _libc.sethostname
_sethostname.argtypes = (_chars, ctypes.c_size_t)


def _raw(*kinds: Any) -> Any:
    """syscall(2) for arguments of these types, which C code then converts: a third of what `call` takes."""
    function = _libc["syscall"]
    function.restype, function.argtypes = _long, (_long, *kinds)
    return function


_openat2 = _raw(_int, _chars, _chars, _ulong)
_open_tree = _raw(_int, _chars, _int)
_move_mount = _raw(_int, _chars, _int, _chars, _int)
_mount_setattr = _raw(_int, _chars, _int, _chars, _ulong)
_fsopen = _raw(_chars, _int)
_fsconfig = _raw(_int, _int, _chars, _chars, _int)
_fsmount = _raw(_int, _int, _int)
_clone3 = ctypes.PyDLL(None, use_errno=True).syscall  # the interpreter's lock is kept, as os.fork keeps it
_clone3.restype = ctypes.c_long
_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_in_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_in_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_in_parent, _after_fork_in_child):
    _hook.restype = None


class _CloneArgs(ctypes.Structure):
    """struct clone_args of linux/sched.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


class _SockFprog(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _path(path: str | bytes) -> bytes:
    return path if isinstance(path, bytes) else os.fsencode(path)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise from_errno(ctypes.get_errno(), what)
    return result


def _call(name: str, *args: object) -> int:
    """One raw system call; integers are passed as long, bytes and structures by address."""
    ready = (_long(arg) if isinstance(arg, int) else arg for arg in args)
    return int(_syscall(_long(_NUMBERS[name]), *ready))


def call(name: str, *args: object, subject: str = "") -> int:
    """A system call whose arguments another module of `host` packs; answers its result.

    Args:
        subject: what it is about, for the error's words.
    """
    return _check(_call(name, *args), f"{name} {subject}".rstrip())


def mount(
    source: str | bytes,
    target: str | bytes,
    fstype: str | bytes = b"",
    flags: int = 0,
    data: str | bytes = b"",
) -> None:
    """mount(2). The target is followed: never one inside a container's root (use `move_mount`)."""
    words = [_path(word) or None for word in (source, target, fstype, data)]
    _check(_mount(words[0], words[1], words[2], flags, words[3]), f"mount {target!r}")


def umount(target: str | bytes, flags: int = 0) -> None:
    """umount2(2); UMOUNT_NOFOLLOW is always added."""
    _check(_umount2(_path(target), flags | UMOUNT_NOFOLLOW), f"umount {target!r}")


def unshare(flags: int) -> None:
    """unshare(2) with CLONE_NEW* flags, for the calling thread."""
    _check(_unshare(flags), f"unshare 0x{flags:x}")


def fork(*, flags: int = 0, cgroup: int = -1) -> tuple[int, int]:
    """fork(2) by way of clone3(2), which can do at birth what costs much more afterwards.

    For a process with one thread; at-fork hooks of Python run as with os.fork.

    Args:
        flags: CLONE_NEW* namespaces that the child is born in; CLONE_PARENT makes it this process's sibling.
        cgroup: descriptor of a cgroup2 folder to be born in (CLONE_INTO_CGROUP), or -1.

    Returns:
        (process id, pidfd) in the parent, (0, -1) in the child.
    """
    tid_address, pidfd = ctypes.c_uint64(0), ctypes.c_int(-1)
    # Where the C library keeps its thread id: the kernel writes the child's own there, as with its fork.
    _prctl(PR_GET_TID_ADDRESS, ctypes.addressof(tid_address), 0, 0, 0)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd))
    args.exit_signal = 0 if flags & CLONE_PARENT else _SIGCHLD  # a sibling has ours
    if tid_address.value:
        args.flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
        args.child_tid = tid_address.value
    if cgroup >= 0:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup
    number, size = _long(_NUMBERS["clone3"]), _long(ctypes.sizeof(args))
    _before_fork()
    pid = _clone3(number, ctypes.byref(args), size)
    if pid == 0:
        _after_fork_in_child()
        return 0, -1
    code = ctypes.get_errno()
    _after_fork_in_parent()
    if pid < 0:
        raise from_errno(code, "clone3")
    return int(pid), pidfd.value


def setns(fd: int, flags: int = 0) -> None:
    """setns(2): move the calling thread into the namespace, or a pidfd's namespaces named by `flags`."""
    _check(_setns(fd, flags), "setns")


def pivot_root(new_root: str | bytes, put_old: str | bytes) -> None:
    """pivot_root(2)."""
    _check(_call("pivot_root", _path(new_root), _path(put_old)), "pivot_root")


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    """prctl(2) with plain numbers; answers its result."""
    return _check(_prctl(option, arg2, arg3, 0, 0), f"prctl {option}")


def set_process_name(name: bytes) -> None:
    """What /proc/<pid>/comm shows; cut to 15 bytes by the kernel."""
    _check(_prctl_text(PR_SET_NAME, name), "prctl PR_SET_NAME")


def sethostname(name: bytes) -> None:
    """sethostname(2) in the calling thread's UTS namespace."""
    _check(_sethostname(name, len(name)), "sethostname")


def capset(*, effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread, with 64-bit masks (version 3 of the interface)."""
    low, high = 0xFFFFFFFF, 32
    data = _CAP_DATA.pack(
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> high,
        permitted >> high,
        inheritable >> high,
    )
    _check(_capset(_CAP_HEADER, data), "capset")


def load_seccomp(program: bytes) -> None:
    """Install a classic BPF program (8 bytes an instruction) as this thread's seccomp filter."""
    prog = _SockFprog(len(program) // 8, program)
    _check(_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(prog), 0, 0), "load seccomp filter")


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2): close every descriptor of the range; flag 4 marks them close-on-exec instead."""
    _check(_call("close_range", first, last, flags), "close_range")


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """pidfd_send_signal(2): never hits a reused process id."""
    _check(_call("pidfd_send_signal", pidfd, signal, 0, 0), f"pidfd_send_signal {signal}")


def pidfd_open(pid: int) -> int:
    """pidfd_open(2); the descriptor is readable once the process has ended."""
    try:
        return os.pidfd_open(pid)
    except OSError as exc:
        raise from_errno(exc.errno or 0, f"pidfd_open {pid}") from exc


def openat2(dirfd: int, path: str | bytes, *, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); O_CLOEXEC is always added.

    Args:
        dirfd: with RESOLVE_IN_ROOT the folder that counts as "/", also for links met on the way.
        resolve: RESOLVE_* flags.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    done = _openat2(_NUMBERS["openat2"], dirfd, _path(path), how, _OPEN_HOW.size)
    return _check(done, f"open {_text(path)}")


def open_tree(dirfd: int, path: str | bytes, flags: int) -> int:
    """open_tree(2): with OPEN_TREE_CLONE a detached copy of the mount at that path."""
    done = _open_tree(_NUMBERS["open_tree"], dirfd, _path(path), flags | OPEN_TREE_CLOEXEC)
    return _check(done, f"open {_text(path)}")


def move_mount(mount_fd: int, target_fd: int) -> None:
    """move_mount(2) of a detached mount onto an open (O_PATH) file or folder."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _check(_move_mount(_NUMBERS["move_mount"], mount_fd, b"", target_fd, b"", flags), "move_mount")


def mount_setattr(
    mount_fd: int,
    *,
    set: int = 0,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    userns: int = 0,
) -> None:
    """mount_setattr(2) on an open mount: MOUNT_ATTR_* and MS_PRIVATE, MS_SLAVE or MS_SHARED.

    `userns`: with MOUNT_ATTR_IDMAP the user namespace whose maps a detached mount takes, for ever.
    """
    attributes = _MOUNT_ATTR.pack(set, clear, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    done = _mount_setattr(_NUMBERS["mount_setattr"], mount_fd, b"", flags, attributes, _MOUNT_ATTR.size)
    _check(done, "mount_setattr")


def new_mount(
    fstype: bytes, options: tuple[tuple[bytes, bytes], ...] = (), *, attributes: int = 0, source: bytes = b""
) -> int:
    """fsopen, fsconfig, fsmount: a detached mount of a new file system.

    Args:
        options: in order; an empty value sets a flag.
        attributes: MOUNT_ATTR_*.

    Returns:
        the mount's descriptor.
    """
    what = f"mount {_text(fstype)}"
    fs = _check(_fsopen(_NUMBERS["fsopen"], fstype, FSOPEN_CLOEXEC), what)
    configure = _NUMBERS["fsconfig"]
    try:
        for key, value in ((b"source", source or fstype), *options):
            command = FSCONFIG_SET_STRING if value else FSCONFIG_SET_FLAG
            done = _fsconfig(configure, fs, command, key, value or None, 0)
            _check(done, f"{what} option {_text(key)}={_text(value)}")
        _check(_fsconfig(configure, fs, FSCONFIG_CMD_CREATE, None, None, 0), what)
        return _check(_fsmount(_NUMBERS["fsmount"], fs, FSMOUNT_CLOEXEC, attributes), what)
    finally:
        os.close(fs)


_BPF_PROG_LOAD, _BPF_PROG_ATTACH = 5, 8
_BPF_PROG_TYPE_CGROUP_DEVICE, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI = 15, 6, 2


def control_devices(cgroup: int, program: bytes) -> None:
    """bpf(2): let an eBPF program decide about devices in an open cgroup2 folder, beside those above it.

    EINVAL: the kernel has no CONFIG_CGROUP_BPF, or its verifier refuses the program.
    """
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"Apache-2.0")
    first = _BPF_PROG_TYPE_CGROUP_DEVICE | len(program) // 8 << 32  # union bpf_attr: prog_type, insn_cnt
    load = (ctypes.c_uint64 * 6)(first, ctypes.addressof(code), ctypes.addressof(licence))
    fd = _check(_call("bpf", _BPF_PROG_LOAD, ctypes.byref(load), ctypes.sizeof(load)), "load device program")
    try:
        attach = (ctypes.c_uint32 * 4)(cgroup, fd, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI)
        done = _call("bpf", _BPF_PROG_ATTACH, ctypes.byref(attach), ctypes.sizeof(attach))
        _check(done, "attach device program")
    finally:
        os.close(fd)


def release_memory() -> None:
    """malloc_trim(3): give free pages of the heap back. The C library keeps megabytes after large buffers."""
    _libc.malloc_trim(0)


def _text(path: str | bytes) -> str:
    return path if isinstance(path, str) else path.decode(errors="replace")
