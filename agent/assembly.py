"""Every component of the agent, made and joined. Nothing is decided here.

    API ──> informers ──> PodManager ──> CRI runtime
                     ├──> Overlay ──> kernel
                     ├──> PolicyAgent ──> kernel (and tells pods when they may start)
                     └──> ServiceProxy ──> kernel
    NodeManager ──> Node, Lease        KubeletServer <── API server, metrics-server

Each component's `run()` is supervised on its own: one that fails is logged and started again after a pause,
and the others go on. What a person must mend (InputError) ends the agent with that one line.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from agent import startup, startup_resources
from agent.api import resources
from agent.api.client import ApiClient, PatchKind
from agent.api.errors import ApiError
from agent.api.events import EventRecorder, node_reference
from agent.api.sources import ApiSources
from agent.api.structs import EndpointSlice, Node, Pod, Service
from agent.api.watch import Informer, Selection
from agent.config.load import Settings
from agent.devices.manager import DeviceManager
from agent.explain import names
from agent.explain.documents import SOCKET, Known
from agent.explain.service import ExplainService
from agent.node import addresses
from agent.node.bootstrap import Rotation
from agent.node.facts import Machine
from agent.node.manager import NodeManager
from agent.node.places import Places
from agent.node.runtime import CriProbe
from agent.node.shutdown import PROBLEM
from agent.overlay.component import Overlay
from agent.pods.manager import PodManager
from agent.pods.mirror import MirrorPods
from agent.pods.runtime import Runtime
from agent.pods.spec import is_mirror
from agent.pods.static import StaticPods
from agent.pods.status_writer import StatusWriter
from agent.probes.manager import ProbeManager
from agent.resources.admission import NodeFacts
from agent.server.server import KubeletServer
from agent.services.proxy import ServiceProxy
from agent.supervision import supervise_all
from agent.volumes.manager import VolumeManager
from host import notify
from host.cgroups import Cgroups
from host.clocks import SystemClock
from host.lsm import security_modules

log = logging.getLogger(__name__)


class Agent:
    """One node. `run()` until cancelled; containers are left running.

    Args:
        client: None in standalone mode.
        places: the node's addresses, and those it has in the pod network's underlay.
        cgroups: the machine's, under the runtime's driver.
    """

    def __init__(
        self, settings: Settings, *, client: ApiClient | None, places: Places, cgroups: Cgroups
    ) -> None:
        self._settings = settings
        self._client = client
        self._ips = places.node
        clock = self._clock = SystemClock()
        self._modules = security_modules()
        name = settings.node_name
        self._cgroups = cgroups
        machine = startup_resources.machine(settings, self._cgroups)
        self._runtime = Runtime(endpoint=startup.endpoint(settings.kubelet.container_runtime_endpoint))
        self.events = EventRecorder(client, host=name, clock=clock)
        self.devices = DeviceManager(
            root=settings.root,
            clock=clock,
            over=lambda uid: self.pods.over(uid),
            on_change=lambda: self.node.wake(),
        )
        self.node = self._make_node(machine)
        self._services: Informer[Service] | None = None
        self._slices: Informer[EndpointSlice] | None = None
        self._nodes: Informer[Node] | None = None
        self._pod_watch: Informer[Pod] | None = None
        self._mirrors: MirrorPods | None = None
        self._sources = (
            ApiSources(
                client,
                pods=lambda: self.pods.pods(),
                on_change=lambda pod: self._volumes.changed(pod),
            )
            if client
            else None
        )
        self.overlay = Overlay(
            node_name=name,
            node_ips=places.underlay,
            annotate=self._annotate,
            settings=startup.overlay_settings(settings, ips=self._ips),
            clock=clock,
            annotate_failures=(ApiError,),
            report=self._tell_about_node,
        )
        self.policies = startup.policy_agent(
            settings, client=client, pods=self._api_pods, report=self._tell_about_node, clock=clock
        )
        self.pods = self._make_pods()
        self._explain = self._make_explain()
        self._proxy: ServiceProxy | None = None
        if client is not None:
            self._make_informers(client)
        self._static = self._make_static()
        self._certificate = startup.serving_certificate(settings, client=client, ips=self._ips, clock=clock)
        self.server = self._make_server()

    def _tell_about_node(self, reason: str, message: str, *, kind: str = "Warning") -> None:
        reference = node_reference(self._settings.node_name)
        self.events.record(reference, type=kind, reason=reason, message=message)

    # --- making -------------------------------------------------------------------------------------------

    def _make_node(self, machine: Machine) -> NodeManager:
        settings, kubelet = self._settings, self._settings.kubelet
        return NodeManager(
            self._client,
            plan=startup.node_plan(settings, machine),
            root=settings.root,
            runtime=CriProbe(self._runtime),
            addresses=lambda: addresses.status_addresses(self._ips, settings.node_name),
            events=self.events,
            clock=self._clock,
            problems=self._problems,
            pressures=lambda: self.guards.eviction.pressures,
            devices=self.devices.resources,
            machine=machine,
            update_every=kubelet.node_status_update_frequency,
            report_every=kubelet.node_status_report_frequency,
            lease_seconds=kubelet.node_lease_duration_seconds,
        )

    def _make_pods(self) -> PodManager:
        settings = self._settings
        sources = self._sources or startup.NoSources()
        self._volumes = VolumeManager(
            root=settings.root,
            sources=sources,
            claims=self._sources,
            certificates=self._sources,
            clock=self._clock,
            allocatable=lambda: self.node.status.allocatable,
            image=lambda pod, reference, policy: self.pods.volume_image(pod, reference, policy),
        )
        machine = self.node.machine
        swap = startup_resources.swap_policy(settings, machine, self._cgroups)
        pods = startup.pod_settings(settings, ips=self._ips, machine=machine, swap=swap)
        self._pod_cgroups = startup_resources.pod_cgroups(settings, machine, self._cgroups)
        self._probes = ProbeManager(
            clock=self._clock,
            exec_sync=startup.exec_probe(self._runtime),
            on_result=lambda result: self.pods.on_probe_result(result),
            on_failure=lambda failure: self.pods.on_probe_failure(failure),
        )
        manager = PodManager(
            settings=pods,
            clock=self._clock,
            runtime=self._runtime,
            volumes=self._volumes,
            events=self.events,
            sources=sources,
            cgroups=self._pod_cgroups,
            services=self._known_services,
            node=self._node_facts,
            writer=StatusWriter(
                client=self._client, clock=self._clock, target=lambda pod: self.pods.status_target(pod)
            ),
            probes=self._probes,
            policies=self.policies,
            devices=self.devices,
            await_sources=startup.pod_sources(settings),
        )
        self.guards = startup_resources.guards(
            settings,
            pods,
            manager=manager,
            runtime=self._runtime,
            cgroups=self._cgroups,
            pod_cgroup=self._pod_cgroups.path,
            clock=self._clock,
            say=self._tell_about_node,
            on_change=self.node.wake,
        )
        return manager

    def _make_informers(self, client: ApiClient) -> None:
        name = self._settings.node_name
        self._pod_watch = Informer(
            client,
            Selection(resources.PODS, field_selector=f"spec.nodeName={name}"),
            self._pod_changed,
            on_synced=lambda: self.pods.complete("api"),
        )
        self._services = Informer(client, Selection(resources.SERVICES))
        self._nodes = Informer(
            client, Selection(resources.NODES), self._node_changed, on_synced=self._see_nodes
        )
        if self._settings.nodelet.proxy.mode == "none":
            return
        selection = Selection(resources.ENDPOINT_SLICES, label_selector="!service.kubernetes.io/headless")
        self._slices = Informer(client, selection)
        self._proxy = startup.service_proxy(
            self._settings, services=self._services, slices=self._slices, node_ip=self._ips[0]
        )
        self._proxy.on_sync = self.pods.services_changed
        self.pods.routed = self._proxy.routes_to

    def _make_static(self) -> StaticPods | None:
        folder, url = self._settings.static_pods, self._settings.kubelet.static_pod_url
        if self._client is not None and (folder is not None or url):
            self._mirrors = MirrorPods(
                client=self._client,
                clock=self._clock,
                node_name=self._settings.node_name,
                node_uid=lambda: self.node.node.metadata.uid if self.node.node else "",
                statics=self.pods.static_pods,
                mirrors=lambda: [pod for pod in self._api_pods() if is_mirror(pod)],
            )
            self.pods.on_static_change = self._mirrors.wake
        if folder is None:
            return None
        return StaticPods(
            folder=folder,
            node_name=self._settings.node_name,
            clock=self._clock,
            on_put=lambda pod: self._static_changed(self.pods.put, pod),
            on_remove=lambda pod: self._static_changed(self.pods.remove, pod),
            on_complete=lambda: self.pods.complete("file"),
        )

    def _make_explain(self) -> ExplainService:
        return ExplainService(
            path=self._settings.root / SOCKET,
            manager=self.pods,
            probes=self._probes,
            clock=self._clock,
            names=self._lookup,
        )

    def _make_server(self) -> KubeletServer | None:
        if not self._settings.kubelet.enable_server:
            return None
        return startup.kubelet_server(
            self._settings,
            client=self._client,
            pods=self.pods,
            runtime=self._runtime,
            certificate=self._certificate,
            clock=self._clock,
            measured=(self.pods, self.guards.eviction, self.overlay, self.policies, self._proxy),
        )

    # --- running ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run every component until cancelled. Raises InputError for what a person must mend."""
        startup_resources.enforce(self._settings, self._cgroups, self._pod_cgroups, self._tell_about_node)
        await self._runtime.open()
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            "node": self.node.run,
            "events": self.events.run,
            "pods": self.pods.run,
            "probes": self._probes.run,
            "volumes": self._volumes.run,
            "devices": self.devices.run,
            **self.guards.parts(),
            "overlay": self.overlay.run,
            "policies": self.policies.run,
            "explain": self._explain.run,
            "ready": self._tell_init_system,
        }
        optional = {
            "service-watch": self._services,
            "slice-watch": self._slices,
            "node-watch": self._nodes,
            "sources": self._sources,
            "service-proxy": self._proxy,
            "server": self.server,
            "serving-certificate": self._certificate if self.server is not None else None,
            "static-pods": self._static,
            "url-pods": startup.url_pods(
                self._settings,
                clock=self._clock,
                on_put=lambda pod: self._static_changed(self.pods.put, pod),
                on_remove=lambda pod: self._static_changed(self.pods.remove, pod),
                on_complete=lambda: self.pods.complete("http"),
            ),
            "mirror-pods": self._mirrors,
            "rotation": self._rotation(),
            "log-rotation": startup.log_rotation(
                self._settings, pods=self.pods, runtime=self._runtime, clock=self._clock
            ),
        }
        parts |= {name: part.run for name, part in optional.items() if part is not None}
        if self._pod_watch is not None:
            parts["pod-watch"] = partial(self._watch_pods, self._pod_watch)
        if self._client is None:
            self._stand_alone()
        try:
            await supervise_all(parts)
        finally:
            await self._runtime.close()

    async def _watch_pods(self, watch: Informer[Pod]) -> None:
        """Follow this node's pods once the Node is known: its labels and taints decide who is admitted."""
        await self.node.registered.wait()
        await watch.run()

    def _rotation(self) -> Rotation | None:
        options, kubelet = self._settings.options, self._settings.kubelet
        if self._client is None or not kubelet.rotate_certificates:
            return None
        cert_file = startup.client_certificate(Path(options.kubeconfig))
        if cert_file is None:
            return None
        return Rotation(
            self._client, node_name=self._settings.node_name, cert_file=cert_file, clock=self._clock
        )

    async def _tell_init_system(self) -> None:
        """READY=1 once the Node is registered (at once in standalone mode) and the port is open."""
        if self.server is not None:
            await self.server.started.wait()
        if self._client is not None:
            await self.node.registered.wait()
        if self._mirrors is not None:
            self._mirrors.wake()
        notify.ready()
        log.info("agent is up node=%s", self._settings.node_name)
        await asyncio.Event().wait()

    def _stand_alone(self) -> None:
        """Without an API the node is the only one, and its range is the configured one."""
        node = startup.lone_node(self._settings)
        self.overlay.update({node.metadata.name: node})

    # --- what the parts ask of each other -------------------------------------------------------------------

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        if new is not None:
            meta = new.metadata
            before = old or self.pods.find(meta.namespace, meta.name, meta.uid)
            self.pods.put(new)
            if before is not None:
                self._volumes.pod_changed(before, new)
        elif old is not None:
            self.pods.remove(old)
        changed = new or old
        if self._mirrors is not None and changed is not None and is_mirror(changed):
            self._mirrors.wake()

    def _static_changed(self, tell: Callable[[Pod], None], pod: Pod) -> None:
        tell(pod)
        if self._mirrors is not None:
            self._mirrors.wake()

    def _api_pods(self) -> Sequence[Pod]:
        return tuple(self._pod_watch.store.values()) if self._pod_watch is not None else ()

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        if self._nodes is not None and self._nodes.synced.is_set():
            self._see_nodes()

    def _see_nodes(self) -> None:
        if self._nodes is None:
            return
        known: Mapping[str, Node] = self._nodes.store
        self.overlay.update(startup.with_fallback_range(known, self._settings))
        own = known.get(self._settings.node_name)
        if own is not None and self._proxy is not None:
            self._proxy.set_node(startup.proxy_facts(own))

    def _known_services(self) -> Sequence[Service] | None:
        if self._services is None:
            return ()
        return tuple(self._services.store.values()) if self._services.synced.is_set() else None

    def _lookup(self, word: str) -> Sequence[Known]:
        return names.lookup(
            word,
            services=self._services.store.values() if self._services is not None else (),
            slices=self._slices.store.values() if self._slices is not None else (),
            pods=self.policies.pods,
            nodes=self._nodes.store if self._nodes is not None else {},
        )

    def _node_facts(self) -> NodeFacts:
        node = self.node.node
        informed = self._nodes.store.get(self._settings.node_name) if self._nodes is not None else None
        known = informed or node or startup.lone_node(self._settings)
        return NodeFacts(
            name=self._settings.node_name,
            labels=known.metadata.labels,
            taints=known.spec.taints,
            apparmor=self._modules.apparmor,
            allocatable=self.node.status.allocatable,
            max_pods=self.node.plan.max_pods,
            pressures=frozenset(self.guards.eviction.pressures),
            shutting_down=self.guards.shutdown.shutting_down,
        )

    def _problems(self) -> Sequence[str]:
        """Why the node is not ready although the runtime is."""
        blocked = self.overlay.blocked
        found = (blocked,) if blocked else ()
        return (*found, PROBLEM) if self.guards.shutdown.shutting_down else found

    async def _annotate(self, annotations: Mapping[str, str]) -> None:
        if self._client is not None:
            patch = {"metadata": {"annotations": dict(annotations)}}
            await self._client.patch(resources.NODES, self._settings.node_name, patch, kind=PatchKind.MERGE)
