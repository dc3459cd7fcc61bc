"""A pod's supervisor: holds its namespaces and outlives everything of ours but the machine.

One thread, one loop. It is forked by the spawner, which may then die, as may nodelet-cri: logs go on being
written and exits recorded, and whoever connects to the socket in the state folder (0700, uid 0) next is told
all facts. It ends when told to `stop`, after its last container.

Not here: networks (CNI), cgroup limits, images, clean-up of what is left on disk; those are nodelet-cri's.
"""

from __future__ import annotations

import _signal as signal
import errno
import os
import sys
import time

from cri.runtime import holder, namespaces, record, sockets
from cri.runtime.connection import Answer, Connection
from cri.runtime.container import Container
from cri.runtime.execution import Execution
from cri.runtime.loop import Loop
from host import syscalls
from host.errors import from_errno
from host.failpoints import arm, reach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from cri.runtime.oci.commands import Commands
    from cri.runtime.sockets import Socket

SOCKET = b"sock"


class Supervisor:
    """State of one pod, and the requests about it."""

    def __init__(
        self, folder: bytes, spec: dict[str, Any], *, has_network: bool = False, loop: Loop | None = None
    ) -> None:
        """For `run`.

        Args:
            folder: the sandbox's state folder.
            spec: what `messages.sandbox` writes.
            has_network: this process is in the pod's own network namespace already.
            loop: one that watches something else, too (see `rehearsal`).
        """
        self._folder, self._spec, self._has_network = folder, spec, has_network
        self._loop = loop or Loop()
        self._containers: dict[str, Container] = {}
        self._by_pid: dict[int, Container | Execution | Callable[[int], None]] = {}
        self._holders: dict[str, int] = {}
        """Process ids of those that hold a scope, by container."""
        self._executions: list[Execution] = []
        self._commands: Commands | None = None
        """Of external runtimes, once the pod has had a container of one."""
        self._connections: list[Connection] = []
        self._stopping: list[Answer] = []
        self._is_stopping = False
        self._created_at = time.time_ns()
        self._reaper_pidfd = self._userns = -1
        self._requests: dict[str, Callable[[dict[str, Any], Answer], None]] = {
            "snapshot": self._snapshot,
            "hold": self._hold,
            "let-go": self._let_go,
            "create": self._create,
            "start": self._start,
            "signal": self._signal,
            "remove": self._remove,
            "exec": self._exec,
            "exec-signal": self._exec_signal,
            "attach": self._attach,
            "resize": self._resize,
            "reopen-log": self._reopen_log,
            "stop": self._stop,
        }

    def run(self, first: Socket) -> None:
        """Set up, answer request 0 on the first connection, serve until stopped."""
        listener = sockets.listen(SOCKET, self._folder)
        connection = self._connect(first)
        try:
            reach("supervisor.listening")
            self._userns = namespaces.enter(self._spec, self._folder, has_network=self._has_network)
            if self._spec["share_pid"]:
                self._reaper_pidfd = namespaces.start_reaper(self._spec, self._userns)
            facts = {"pid": os.getpid(), "start_time": record.start_time(os.getpid())}
            record.write(self._folder, "supervisor", {**facts, "created_at": self._created_at})
            reach("supervisor.recorded")
        except OSError as exc:
            Answer(connection, 0).fail(exc.errno or errno.EIO, str(exc), "namespaces")
            connection.flush()
            return
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        self._loop.watch_children(self._ended)
        self._loop.watch(listener.fileno(), lambda _: self._accept(listener))
        Answer(connection, 0).ok(self._facts())
        self._loop.run()

    def _accept(self, listener: Socket) -> None:
        sock = sockets.accept(listener)
        if sock is not None:
            self._connect(sock)

    def _connect(self, sock: Socket) -> Connection:
        connection = Connection(self._loop, sock, on_request=self._request, on_close=self._disconnected)
        self._connections.append(connection)
        return connection

    def _disconnected(self, connection: Connection) -> None:
        """Execs belong to their client: nobody else can read what they print."""
        self._connections.remove(connection)
        for execution in self._executions[:]:
            if execution.connection is connection:
                execution.kill(signal.SIGKILL)
        for container in self._holders.keys() - self._containers.keys():
            self._release(container)

    def _request(self, request: dict[str, Any], answer: Answer) -> None:
        handler = self._requests.get(request.get("op", ""))
        if handler is None:
            answer.fail(errno.ENOSYS, f"supervisor has no request {request.get('op')!r}")
            return
        handler(request, answer)

    def _find(self, request: dict[str, Any]) -> Container:
        container = self._containers.get(request["container"])
        if container is None:
            raise from_errno(errno.ENOENT, f"container {request['container']}")
        return container

    def _facts(self) -> dict[str, Any]:
        containers = [item.facts() for item in self._containers.values() if item.created_at]
        return {"pid": os.getpid(), "created_at": self._created_at, "containers": containers}

    def _snapshot(self, request: dict[str, Any], answer: Answer) -> None:
        answer.ok(self._facts())

    def _hold(self, request: dict[str, Any], answer: Answer) -> None:
        """Fork the process that a container's scope is made with; it is the client's until `create`."""
        name = request["container"]
        if self._is_stopping:
            raise from_errno(errno.ESHUTDOWN, "sandbox is stopping")
        if name in self._holders:
            raise from_errno(errno.EEXIST, f"holder of container {name}")
        pid = self._holders[name] = holder.fork()
        self._by_pid[pid] = lambda status: self._forget_holder(name, pid)
        answer.ok({"pid": pid})

    def _let_go(self, request: dict[str, Any], answer: Answer) -> None:
        self._release(request["container"])
        answer.ok()

    def _release(self, container: str) -> None:
        pid = self._holders.pop(container, 0)
        if pid:
            holder.let_go(pid)

    def _forget_holder(self, container: str, pid: int) -> None:
        if self._holders.get(container) == pid:
            del self._holders[container]

    def _create(self, request: dict[str, Any], answer: Answer) -> None:
        spec = request["spec"]
        if self._is_stopping:
            raise from_errno(errno.ESHUTDOWN, "sandbox is stopping")
        if spec["id"] in self._containers:
            raise from_errno(errno.EEXIST, f"container {spec['id']}")
        if spec["userns"] != self._spec["userns"]:
            raise from_errno(errno.EINVAL, "container is not for this pod's user namespace")
        folder = self._folder + b"/containers/" + spec["id"].encode()
        container = self._oci_container(folder, spec) if spec["oci"] else Container(self._loop, folder, spec)
        container.create(answer, self._pid_namespace(spec), self._userns)
        reach("supervisor.container_forked")
        self._containers[container.id] = container
        if container.pid:
            self._by_pid[container.pid] = container

    def _oci_container(self, folder: bytes, spec: dict[str, Any]) -> Container:
        """Imports what no other pod needs."""
        from cri.runtime.oci.commands import Commands
        from cri.runtime.oci.container import OciContainer

        if self._commands is None:
            self._commands = Commands(self._loop, self._by_pid)
        return OciContainer(self._loop, folder, spec, commands=self._commands, on_exit=self._tell_exit)

    def _pid_namespace(self, spec: dict[str, Any]) -> int | None:
        """For `Container.create`: None is the host's, -1 a new one, else a pidfd of a member."""
        mode = spec["pid_mode"]
        if mode == "host":
            return None
        if mode == "target":
            return self._find({"container": spec["target"]}).pidfd
        return self._reaper_pidfd if mode == "pod" else -1

    def _start(self, request: dict[str, Any], answer: Answer) -> None:
        self._find(request).start(answer)

    def _signal(self, request: dict[str, Any], answer: Answer) -> None:
        container = self._find(request)
        if request["all"] and request["signal"] == signal.SIGKILL:
            container.kill()
        else:
            container.signal(request["signal"])
        answer.ok()

    def _remove(self, request: dict[str, Any], answer: Answer) -> None:
        """Forget an exited container; one that never started is killed, and the client asks again."""
        container = self._find(request)
        if container.exit is None:
            raise from_errno(errno.EBUSY, f"remove container {container.id}: it has not exited")
        del self._containers[container.id]
        container.close()
        reach("supervisor.container_forgotten")
        answer.ok()

    def _exec(self, request: dict[str, Any], answer: Answer) -> None:
        container = self._find(request)
        if container.spec["oci"]:
            self._executions.append(self._oci_execution(container, request, answer))
            return
        execution = Execution(self._loop, container, request, answer)
        self._executions.append(execution)
        self._by_pid[execution.pid] = execution

    def _oci_execution(self, container: Any, request: dict[str, Any], answer: Answer) -> Execution:
        from cri.runtime.oci.execution import OciExecution

        return OciExecution(self._loop, container, request, answer, on_done=self._executions.remove)

    def _exec_signal(self, request: dict[str, Any], answer: Answer) -> None:
        for execution in self._executions[:]:
            if execution.id == request["exec"] and execution.connection is answer.connection:
                execution.kill(request["signal"])
        answer.ok()

    def _attach(self, request: dict[str, Any], answer: Answer) -> None:
        names, fds = self._find(request).attach(request)
        answer.ok({"streams": names}, fds)

    def _resize(self, request: dict[str, Any], answer: Answer) -> None:
        self._find(request).resize(request["width"], request["height"])
        answer.ok()

    def _reopen_log(self, request: dict[str, Any], answer: Answer) -> None:
        self._find(request).reopen_log()
        answer.ok()

    def _stop(self, request: dict[str, Any], answer: Answer) -> None:
        """Kill everything; answered, and ended, when the last process is reaped."""
        self._is_stopping = True
        self._stopping.append(answer)
        for container in self._containers.values():
            if container.exit is None:
                container.kill()
        for name in self._holders.keys() - self._containers.keys():
            self._release(name)
        self._end_if_stopped()

    def _ended(self, pid: int, status: int) -> None:
        """A child was reaped; orphans of containers come here too and need nothing more."""
        child = self._by_pid.pop(pid, None)
        if isinstance(child, Execution):
            self._executions.remove(child)
            child.ended(status)
        elif isinstance(child, Container):
            if child.ended(status):
                self._tell_exit(child)
            else:
                del self._containers[child.id]
                self._release(child.id)
        elif child is not None:
            child(status)
        elif self._commands is not None:
            self._commands.orphan_ended(pid, status)
        self._end_if_stopped()

    def _tell_exit(self, container: Container) -> None:
        self._release(container.id)
        for connection in self._connections[:]:
            connection.send({"event": "exited", "container": container.id, "facts": container.facts()})

    def _end_if_stopped(self) -> None:
        if not self._is_stopping or self._by_pid:
            return
        reach("supervisor.stopped")
        for answer in self._stopping:
            answer.ok(self._facts())
            answer.connection.flush()
        self._loop.stop()


def main(folder: bytes, spec: dict[str, Any], first: Socket, *, has_network: bool = False) -> NoReturn:
    """Be the supervisor of one pod; called in a child of the spawner that has closed all else."""
    code = 1
    try:
        os.setsid()
        os.umask(0o077)
        syscalls.set_process_name(b"nodelet-pod")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _redirect(folder)
        arm()
        Supervisor(folder, spec, has_network=has_network).run(first)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _redirect(folder: bytes) -> None:
    """Standard input from the null device; output, which only an error of ours makes, to a file."""
    null = os.open(b"/dev/null", os.O_RDWR | os.O_CLOEXEC)
    errors = os.open(
        folder + b"/errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    for target, fd in enumerate((null, errors, errors)):
        os.dup2(fd, target, inheritable=True)
    os.close(null)
    os.close(errors)
