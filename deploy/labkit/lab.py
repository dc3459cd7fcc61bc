"""The lab as a whole: up, down, nodes; and its doors for tests: run something in a machine, ask the API.

Everything here can be called again at any time: each step looks at what is there and does what is missing,
which is also how a lab is repaired after a crash.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from deploy.labkit import binaries, cgroups, controlplane, machines, nodes, processes, versions
from deploy.labkit.api import Api, ApiError, wait_for
from deploy.labkit.errors import LabError, TimedOut
from deploy.labkit.layout import CONTROL, CONTROL_ADDRESS, SWITCH, Kind, Layout, Node
from deploy.labkit.machines import Machine
from deploy.labkit.processes import Records
from deploy.labkit.progress import Progress
from deploy.labkit.registryseed import fill_cache, seed_registry
from deploy.labkit.services import Service, ensure_service

MANIFESTS = Path(__file__).parent / "manifests"
_BASE = (versions.CONTROL_PLANE, versions.ETCD_SERVER, versions.COREDNS_SERVER)


def prepare(layout: Layout, progress: Progress, *, kinds: Sequence[Kind] = ()) -> None:
    """Everything that takes long the first time, for these kinds of nodes, too: binaries and images."""
    more = [project for kind in kinds for project in nodes.binaries_of(kind)]
    binaries.ensure(layout, [*_BASE, *more], progress)
    fill_cache(layout, progress)


class Lab:
    """One lab by its layout.

    Args:
        layout: its places.
        progress: what the user sees.
    """

    def __init__(self, layout: Layout, progress: Progress | None = None) -> None:
        self.layout = layout
        self.progress = progress or Progress(quiet=True)
        self.records = Records(layout.run)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one command changes a lab at a time.

        Raises:
            LabError: another one is at work.
        """
        self.layout.run_root.mkdir(parents=True, exist_ok=True)
        with (self.layout.run_root / f".{self.layout.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise LabError(f"another command is changing lab {self.layout.name}; wait for it") from exc
            try:
                yield
            finally:
                if not self.layout.state.exists():  # there is no such lab (any more): leave no lock of it
                    _remove_if_empty(self.layout.run_root, self.layout.name)

    def machine(self, name: str) -> Machine:
        """A running machine.

        Raises:
            LabError: it is not running.
        """
        found = machines.find(self.records, name)
        if found is None:
            there = ", ".join([SWITCH, CONTROL, *(node.name for node in nodes.known(self.layout))])
            where, option = f"lab {self.layout.name}", self.layout.option
            raise LabError(f"{name} of {where} is not running; it has {there}; run: deploy/lab {option}up")
        return found

    def api(self, *, keep: bool = False) -> Api:
        """A client of the apiserver with all rights (see `Api`)."""
        return controlplane.admin(self.layout, self.machine(CONTROL), keep=keep)

    def kubectl_command(
        self, arguments: Sequence[str], *, user: str = "admin"
    ) -> tuple[list[str], dict[str, str]]:
        """Argv and extra environment of a kubectl that runs in the control machine's network."""
        argv = [*self.machine(CONTROL).enter(network_only=True), str(self.layout.kubectl), *arguments]
        return argv, {
            "KUBECONFIG": str(self.layout.kubeconfigs / f"{user}.conf"),
            "KUBECACHEDIR": str(self.layout.state / "kubectl-cache"),
        }

    def kubectl(self, *arguments: str, input: str = "", check: bool = True, timeout: float = 120.0) -> str:
        """Run kubectl with all rights; its output."""
        argv, env = self.kubectl_command(arguments, user="super-admin")
        argv = ["env", *(f"{key}={value}" for key, value in env.items()), *argv]
        return processes.run(argv, input=input, timeout=timeout, check=check)

    def shell(self, machine: str, *argv: str, check: bool = True, timeout: float = 60.0) -> str:
        """Run a program in a machine; its output."""
        return processes.run([*self.machine(machine).enter(), *argv], check=check, timeout=timeout)

    def up(self, *, count: int = 2, app: bool = True) -> None:
        """Everything running, nodes n1 to n<count> Ready, DNS and (if wanted) the sample app answering."""
        with ThreadPoolExecutor(max_workers=2) as pool:
            more = [nodes.binaries_of(node.kind) for node in nodes.known(self.layout)]
            wanted = [*_BASE, *dict.fromkeys(project for projects in more for project in projects)]
            job = pool.submit(binaries.ensure, self.layout, wanted, self.progress)
            self._start_switch()
            job.result()
            images = pool.submit(seed_registry, self.layout, self.progress)
            with self.progress.step("control plane"):
                api = self._start_control()
            for number in range(1, count + 1):
                nodes.add(self.layout, f"n{number}")
            everyone = nodes.known(self.layout)
            for node in everyone:
                self._start_node(node)
            images.result()
            self._apply(["10-rbac.yaml", "15-node-network.yaml", "20-coredns.yaml"])
        self._wait_nodes(api, everyone)
        if not everyone:
            return
        with self.progress.step("cluster DNS"):
            self._wait_deployment(api, "kube-system", "coredns")
        if app:
            self._apply(["30-app.yaml"])
            with self.progress.step("sample app"):
                self._wait_deployment(api, "default", "hello")

    def _start_switch(self) -> None:
        _, fresh = machines.ensure(self.layout, self.records, SWITCH, address=None)
        if fresh:
            # The cables of all machines went with the old switch.
            for name in [CONTROL, *(node.name for node in nodes.known(self.layout))]:
                machines.remove(self.layout, self.records, name)

    def _start_control(self) -> Api:
        control, _ = machines.ensure(self.layout, self.records, CONTROL, address=CONTROL_ADDRESS)
        return controlplane.ensure(self.layout, self.records, control)

    def _start_node(self, node: Node) -> None:
        nodes.install(self.layout, node)
        disk = self.layout.machine(node.name)
        control = self.machine(CONTROL)
        controlplane.node_kubeconfig(self.layout, control, node.name, disk / "etc/kubernetes")
        machine, _ = machines.ensure(self.layout, self.records, node.name, address=node.address)
        for service in nodes.services(self.layout, node):
            if not service.needs_pod_range:
                ensure_service(self.layout, self.records, machine, service)

    def _set_pod_range(self, node: Node, pod_cidr: str) -> None:
        nodes.set_pod_range(self.layout, node, pod_cidr)
        machines.add_route(self.machine(CONTROL), pod_cidr, via=node.address)
        for service in nodes.services(self.layout, node):
            if service.needs_pod_range:
                ensure_service(self.layout, self.records, self.machine(node.name), service)

    def _apply(self, names: Sequence[str]) -> None:
        files = [f"--filename={MANIFESTS / name}" for name in names]
        self.kubectl("apply", "--server-side", "--force-conflicts", *files)

    def _wait_nodes(self, api: Api, wanted: Sequence[Node], *, seconds: float = 90.0) -> None:
        waiting = {node.name: node for node in wanted}

        def look() -> bool:
            for found in api.get("/api/v1/nodes")["items"]:
                name = found["metadata"]["name"]
                node = waiting.get(name)
                if node is None:
                    continue
                if pod_cidr := found["spec"].get("podCIDR"):
                    self._set_pod_range(node, pod_cidr)
                if _condition(found, "Ready"):
                    del waiting[name]
            for name in waiting:
                self.check_running(waiting[name])
            return not waiting

        if not waiting:
            return
        with self.progress.step(f"nodes {' '.join(waiting)}"):
            try:
                wait_for("all nodes Ready", look, seconds=seconds)
            except TimedOut as exc:
                reasons = "; ".join(self._reason(api, name) for name in waiting)
                raise TimedOut(f"{exc}: {reasons}") from exc

    def _reason(self, api: Api, name: str) -> str:
        """Why a node is not Ready, in its own words."""
        try:
            conditions = api.get(f"/api/v1/nodes/{name}")["status"].get("conditions", [])
        except ApiError:
            return f"{name} did not register (see: lab logs {name})"
        words = [entry.get("message", "") for entry in conditions if entry["type"] == "Ready"]
        return f"{name}: {' '.join(words) or 'says nothing'} (see: lab logs {name})"

    def check_running(self, node: Node) -> None:
        """Raise LabError, with its last words, when one of a node's programs has ended."""
        for service in nodes.services(self.layout, node):
            running = self.records.read(node.name, service.name)
            if running is None and service.needs_pod_range:
                continue
            if not processes.alive(running):
                log = self.layout.log(node.name, service.name)
                tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-2:])
                raise LabError(f"{service.name} on {node.name} has ended: {tail} (all of it: {log})")

    def _wait_deployment(self, api: Api, namespace: str, name: str, *, seconds: float = 120.0) -> None:
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"

        def look() -> bool:
            found = api.get(path)
            status, wanted = found.get("status", {}), found["spec"]["replicas"]
            seen = status.get("observedGeneration", 0) >= found["metadata"]["generation"]
            counts = [status.get(key, 0) for key in ("updatedReplicas", "availableReplicas", "replicas")]
            return seen and counts == [wanted] * 3

        wait_for(f"deployment {namespace}/{name}", look, seconds=seconds)

    def add_node(self, name: str, *, kind: Kind = "nodelet") -> None:
        """One more node, Ready."""
        api = self.api()
        binaries.ensure(self.layout, nodes.binaries_of(kind), self.progress)
        node = nodes.add(self.layout, name, kind=kind)
        self._start_node(node)
        self._wait_nodes(api, [node])

    def remove_node(self, name: str) -> None:
        """End a node and delete its Node object."""
        nodes.find(self.layout, name)
        machines.remove(self.layout, self.records, name)
        nodes.forget(self.layout, name)
        shutil.rmtree(self.layout.logs / name, ignore_errors=True)
        self.kubectl("delete", "node", name, "--ignore-not-found")

    def service(self, machine: str, name: str) -> Service:
        """One of a machine's services.

        Raises:
            LabError: it has none of that name.
        """
        if machine == CONTROL:
            there = controlplane.services(self.layout)
        else:
            there = nodes.services(self.layout, nodes.find(self.layout, machine))
        for service in there:
            if service.name == name:
                return service
        raise LabError(f"{machine} has no program {name}; it has {', '.join(each.name for each in there)}")

    def start(self, machine: str, name: str) -> None:
        """Start a program that was stopped or has died."""
        ensure_service(self.layout, self.records, self.machine(machine), self.service(machine, name))

    def stop(self, machine: str, name: str) -> None:
        """End a program with TERM, as a service manager would."""
        processes.stop(self.records.read(machine, name))

    def kill(self, machine: str, name: str) -> None:
        """End a program with KILL, as a crash would; returns when it is gone.

        Raises:
            LabError: it is not running.
        """
        self.pid(machine, name)
        processes.stop(self.records.read(machine, name), signals=processes.KILL)

    def pid(self, machine: str, name: str) -> int:
        """A running program's process id.

        Raises:
            LabError: it is not running.
        """
        found = self.records.read(machine, name)
        if found is None or not processes.alive(found):
            raise LabError(f"{name} on {machine} is not running")
        return found.pid

    def down(self) -> None:
        """End and remove everything; the cache stays. A lab that is not there is fine."""
        layout = self.layout
        names = [node.name for node in nodes.known(layout)]
        with self.progress.step(f"removing lab {layout.name}"):
            cgroups.kill(layout.cgroup)
            for name in [*names, CONTROL, SWITCH]:
                machines.remove(layout, self.records, name)
            cgroups.remove(layout.cgroup)
            shutil.rmtree(layout.state, ignore_errors=False) if layout.state.exists() else None
            shutil.rmtree(layout.run, ignore_errors=True)
            for parent in (layout.state_root, layout.run_root):
                _remove_if_empty(parent, layout.name)


def _remove_if_empty(folder: Path, name: str) -> None:
    (folder / f".{name}.lock").unlink(missing_ok=True)
    if folder.exists() and not os.listdir(folder):
        folder.rmdir()


def _condition(thing: dict[str, object], kind: str) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])  # type: ignore[attr-defined]
    return any(entry["type"] == kind and entry["status"] == "True" for entry in conditions)
