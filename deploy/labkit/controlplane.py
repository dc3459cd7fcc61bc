"""The lab's control plane: certificates by kubeadm, then etcd, kube-apiserver, controller-manager, scheduler.

etcd runs without fsync: a lab that loses power loses nothing of worth, and everything is twice as fast.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.labkit import layout, processes, versions
from deploy.labkit.api import Api, connect, wait_for
from deploy.labkit.layout import CONTROL, CONTROL_ADDRESS, Layout
from deploy.labkit.machines import Machine
from deploy.labkit.processes import Records
from deploy.labkit.services import Service, ensure_service

_KUBEADM = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: {address}, bindPort: {port}}}
nodeRegistration: {{name: {control}, criSocket: "unix:///run/nodelet/cri.sock"}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v{version}
certificatesDir: {pki}
controlPlaneEndpoint: {address}:{port}
encryptionAlgorithm: ECDSA-P256
networking: {{podSubnet: {pods}, serviceSubnet: {services}, dnsDomain: {domain}}}
apiServer: {{certSANs: [localhost, 127.0.0.1, {control}]}}
"""


def _kubeadm(lab: Layout, machine: Machine, *phase: str) -> None:
    config = lab.state / "kubeadm.yaml"
    kubeadm = lab.binary(versions.CONTROL_PLANE, "kubeadm")
    enter = machine.enter(network_only=True)
    processes.run([*enter, str(kubeadm), "init", "phase", *phase, "--config", str(config)])


def ensure_certificates(lab: Layout, machine: Machine) -> None:
    """Certificates and the control plane's kubeconfigs; made once in a lab's life.

    Args:
        machine: the control machine: kubeadm looks at the network it runs in.
    """
    if (lab.kubeconfigs / "scheduler.conf").exists():
        return
    lab.state.mkdir(parents=True, exist_ok=True)
    (lab.state / "kubeadm.yaml").write_text(
        _KUBEADM.format(
            address=CONTROL_ADDRESS,
            port=layout.API_PORT,
            control=CONTROL,
            version=versions.KUBERNETES,
            pki=lab.pki,
            pods=layout.POD_NETWORK,
            services=layout.SERVICE_NETWORK,
            domain=layout.DOMAIN,
        )
    )
    _kubeadm(lab, machine, "certs", "all")
    for user in ("super-admin", "admin", "controller-manager", "scheduler"):
        _kubeadm(lab, machine, "kubeconfig", user, "--kubeconfig-dir", str(lab.kubeconfigs))


def node_kubeconfig(lab: Layout, machine: Machine, node: str, folder: Path) -> None:
    """Write `kubelet.conf` with a client certificate of a node's name into a folder."""
    if not (folder / "kubelet.conf").exists():
        _kubeadm(lab, machine, "kubeconfig", "kubelet", "--node-name", node, "--kubeconfig-dir", str(folder))


def _registry(lab: Layout) -> Service:
    listen = f"{CONTROL_ADDRESS}:{layout.REGISTRY_PORT}"
    module = ["-P", "-m", "deploy.labkit.registry", "--root", str(lab.registry), "--listen", listen]
    return Service(name="registry", argv=(sys.executable, *module), env=(("PYTHONPATH", str(lab.checkout)),))


def _etcd(lab: Layout) -> Service:
    return Service(
        name="etcd",
        argv=(
            str(lab.binary(versions.ETCD_SERVER)),
            f"--data-dir={lab.state}/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
    )


def _apiserver(lab: Layout) -> Service:
    pki = lab.pki
    return Service(
        name="kube-apiserver",
        argv=(
            str(lab.binary(versions.CONTROL_PLANE, "kube-apiserver")),
            f"--advertise-address={CONTROL_ADDRESS}",
            f"--secure-port={layout.API_PORT}",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={layout.SERVICE_NETWORK}",
            "--allow-privileged=true",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--enable-bootstrap-token-auth=true",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
            f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP,Hostname",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            f"--service-account-issuer=https://kubernetes.default.svc.{layout.DOMAIN}",
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
            f"--proxy-client-key-file={pki}/front-proxy-client.key",
            "--enable-aggregator-routing=true",
        ),
    )


def _controller_manager(lab: Layout) -> Service:
    config = lab.kubeconfigs / "controller-manager.conf"
    return Service(
        name="kube-controller-manager",
        argv=(
            str(lab.binary(versions.CONTROL_PLANE, "kube-controller-manager")),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={layout.POD_NETWORK}",
            f"--service-cluster-ip-range={layout.SERVICE_NETWORK}",
            f"--client-ca-file={lab.pki}/ca.crt",
            f"--requestheader-client-ca-file={lab.pki}/front-proxy-ca.crt",
            f"--cluster-signing-cert-file={lab.pki}/ca.crt",
            f"--cluster-signing-key-file={lab.pki}/ca.key",
            f"--root-ca-file={lab.pki}/ca.crt",
            f"--service-account-private-key-file={lab.pki}/sa.key",
            "--use-service-account-credentials=true",
            "--controllers=*,bootstrapsigner,tokencleaner",
        ),
    )


def _scheduler(lab: Layout) -> Service:
    config = lab.kubeconfigs / "scheduler.conf"
    return Service(
        name="kube-scheduler",
        argv=(
            str(lab.binary(versions.CONTROL_PLANE, "kube-scheduler")),
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ),
    )


def services(lab: Layout) -> Sequence[Service]:
    """Everything the control machine runs, in starting order."""
    return (_registry(lab), _etcd(lab), _apiserver(lab), _controller_manager(lab), _scheduler(lab))


def admin(lab: Layout, machine: Machine, *, keep: bool = False) -> Api:
    """A client with all rights (see `Api`)."""
    return Api(machine.netns, lab.kubeconfigs / "super-admin.conf", keep=keep)


def ensure(lab: Layout, records: Records, machine: Machine) -> Api:
    """The control plane running and ready; a client with all rights."""
    ensure_certificates(lab, machine)
    registry, etcd, apiserver, *rest = services(lab)
    ensure_service(lab, records, machine, registry)
    if ensure_service(lab, records, machine, etcd):
        _wait_port(machine, 2379, host="127.0.0.1")
    ensure_service(lab, records, machine, apiserver)
    api = admin(lab, machine)
    wait_for("kube-apiserver ready", lambda: api.get("/readyz")["text"] == "ok", seconds=90)
    for service in rest:
        ensure_service(lab, records, machine, service)
    return api


def _wait_port(machine: Machine, port: int, *, host: str) -> None:
    def answers() -> bool:
        connect(machine.netns, (host, port)).close()
        return True

    wait_for(f"port {port} of {machine.name}", answers, seconds=30, every=0.05)
