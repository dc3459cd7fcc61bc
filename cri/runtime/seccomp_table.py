"""The system calls an unprivileged container may make, by subject: the data of the default seccomp profile.

In behaviour this is the profile that Docker and containerd made the field's default: what is not listed fails
with EPERM, what the kernel grew after the table was written fails with ENOSYS, so that C libraries fall back.
io_uring and userfaultfd are not in it, as in theirs. `seccomp` turns it into a filter.
"""

from __future__ import annotations

from collections.abc import Mapping

FILES = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd
getdents getdents64 ioctl lchown lchown32 link linkat _llseek lseek lstat lstat64 mkdir mkdirat mknod mknodat
name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile sendfile64 splice stat stat64
statfs statfs64 statmount listmount statx symlink symlinkat sync sync_file_range sync_file_range2 syncfs tee
truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
cachestat arm_fadvise64_64 arm_sync_file_range
"""

ATTRIBUTES_AND_WATCHES = """
fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat fanotify_mark inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch landlock_add_rule landlock_create_ruleset landlock_restrict_self
"""

WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
eventfd2 _newselect pause poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
"""

MEMORY = """
brk madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
process_mrelease
"""

PROCESSES = """
alarm arch_prctl arm_set_tls set_tls breakpoint cacheflush capget capset execve execveat exit exit_group fork
futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area getcpu
getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpgid getpgrp getpid
getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid gettid
getuid getuid32 ioprio_get ioprio_set kill modify_ldt pidfd_open pidfd_send_signal pipe pipe2 prctl prlimit64
restart_syscall riscv_hwprobe rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsgid32
setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 sigaltstack
sigpending sigprocmask sigreturn sigsuspend sysinfo tgkill times tkill ugetrlimit uname uretprobe vfork wait4
waitid waitpid ptrace process_vm_readv process_vm_writev
"""

CLOCKS = """
adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
clock_nanosleep clock_nanosleep_time64 gettimeofday nanosleep time timer_create timer_delete timer_getoverrun
timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64
timerfd_settime timerfd_settime64
"""

TALKING = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketpair
ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt
shmget
"""

ALWAYS: tuple[str, ...] = tuple(
    "".join((FILES, ATTRIBUTES_AND_WATCHES, WAITING, MEMORY, PROCESSES, CLOCKS, TALKING)).split()
)

WITH_CAPABILITY: Mapping[str, tuple[str, ...]] = {
    "BPF": ("bpf",),
    "DAC_READ_SEARCH": ("open_by_handle_at",),
    "PERFMON": ("perf_event_open",),
    "SYS_ADMIN": (
        "bpf",
        "clone",
        "clone3",
        "fanotify_init",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "lookup_dcookie",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "perf_event_open",
        "quotactl",
        "quotactl_fd",
        "setdomainname",
        "sethostname",
        "setns",
        "syslog",
        "umount",
        "umount2",
        "unshare",
    ),
    "SYS_BOOT": ("reboot",),
    "SYS_CHROOT": ("chroot",),
    "SYS_MODULE": ("delete_module", "finit_module", "init_module"),
    "SYS_NICE": ("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    "SYS_PACCT": ("acct",),
    "SYS_PTRACE": ("kcmp", "pidfd_getfd", "process_madvise"),
    "SYS_RAWIO": ("ioperm", "iopl"),
    "SYS_TIME": ("clock_settime", "clock_settime64", "settimeofday", "stime"),
    "SYS_TTY_CONFIG": ("vhangup",),
    "SYSLOG": ("syslog",),
}
"""What a capability of the container adds."""

PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""personality(2): Linux, uname as of 2.6, 32-bit addresses, both, and the question for the present one."""

CLONE_NAMESPACES = 0x7E020000
"""The CLONE_NEW* bits; clone(2) without CAP_SYS_ADMIN may set none of them."""

SOCKET_FAMILIES: tuple[tuple[int, int], ...] = (
    (0xFFFFFFE0, 0),
    (0xFFFFFFFC, 32),
    (0xFFFFFFFE, 36),
    (0xFFFFFFFF, 39),
    (0xFFFFFFFF, 41),
    (0xFFFFFFFE, 42),
    (0xFFFFFFFC, 44),
)
"""(mask, value) of the families that socket(2) may make: 0 to 47 but 38 (AF_ALG, the kernel's cryptography,
with its record of escapes) and 40 (AF_VSOCK, the hypervisor's, which leads out of the pod's network).

The kernel looks at the lower half of the argument only, so a comparison of all 64 bits ("not 40", "above 40")
lets 2^32 + 40 pass for another family."""

NOT_THERE: tuple[str, ...] = ("clone3", "socketcall")
"""Fail with ENOSYS instead of EPERM without CAP_SYS_ADMIN: their arguments lie in memory, out of a filter's
sight, and C libraries then use clone and socket, whose arguments are checked."""
