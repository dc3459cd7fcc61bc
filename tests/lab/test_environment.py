"""Rows B21, B22, B23, B38: what a container finds in itself - names, variables, its account's token."""

import json
import sys

from kit import (
    config_map,
    container,
    container_status,
    pod,
    secret,
    service,
    until,
    waiting_message,
    waiting_reason,
)


def test_b21_hostname_and_subdomain(ns):
    ns.apply(
        service("default-subdomain", "busybox", clusterIP="None"),
        pod(
            "busybox1",
            container(),
            hostname="busybox-1",
            subdomain="default-subdomain",
            labels={"app": "busybox"},
            hostAliases=[{"ip": "10.1.2.3", "hostnames": ["foo.remote"]}],
        ),
        pod("plain", container()),
    )
    ns.wait_running("busybox1")
    ns.wait_running("plain")
    full = f"busybox-1.default-subdomain.{ns.name}.svc.cluster.local"
    assert ns.sh("busybox1", "hostname -f").strip() == full
    assert ns.sh("busybox1", "hostname").strip() == "busybox-1"
    hosts = ns.sh("busybox1", "cat /etc/hosts")
    assert full in hosts
    assert "foo.remote" in hosts
    assert ns.sh("plain", "hostname").strip() == "plain"


def test_b22_variables(ns):
    ns.apply(
        config_map("cm", color="blue", other="x"),
        secret("s", password="pa ss"),
        pod(
            "p",
            container(
                env=[
                    {"name": "PLAIN", "value": "1"},
                    {"name": "SUM", "value": "$(PLAIN)-$(COLOR)-$$(PLAIN)-$(NONE)"},
                    {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "color"}}},
                    {"name": "AFTER", "value": "$(PLAIN)-$(COLOR)-$$(PLAIN)-$(NONE)"},
                    {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                    {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {
                        "name": "OPT",
                        "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": True}},
                    },
                ],
                envFrom=[{"prefix": "CM_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}],
            ),
        ),
    )
    found = ns.wait_running("p")
    env = dict(
        line.split("=", 1) for line in ns.kubectl("exec", "p", "--", "env").splitlines() if "=" in line
    )
    expected = {
        "PLAIN": "1",
        "COLOR": "blue",
        "AFTER": "1-blue-$(PLAIN)-$(NONE)",
        "PASSWORD": "pa ss",
        "POD": "p",
        "IP": found["status"]["podIP"],
        "NODE": found["spec"]["nodeName"],
        "LABEL": "p",
        "CM_color": "blue",
        "CM_other": "x",
        "password": "pa ss",
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "HOSTNAME": "p",
    }
    assert {name: env.get(name) for name in expected} == expected
    assert env["SUM"] == "1-$(COLOR)-$(PLAIN)-$(NONE)"
    assert "OPT" not in env


def test_b22_variables_of_a_file_that_an_init_container_wrote(ns):
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    reference = {"fileKeyRef": {"volumeName": "v", "path": "made/env", "key": "TOKEN"}}
    absent = {"fileKeyRef": {**reference["fileKeyRef"], "key": "NONE", "optional": True}}
    write = container("mkdir /v/made; echo \"TOKEN='s3 cret'\" > /v/made/env", name="write", **mount)
    sees = container(env=[{"name": "A", "valueFrom": reference}, {"name": "B", "valueFrom": absent}])
    needs = container(
        env=[{"name": "A", "valueFrom": {"fileKeyRef": {**absent["fileKeyRef"], "optional": False}}}]
    )
    spec = {"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [write]}
    ns.apply(pod("sees", sees, **spec), pod("needs", needs, **spec))
    ns.wait_running("sees")
    assert ns.sh("sees", "echo $A; env | grep -c ^B=", check=False).splitlines() == ["s3 cret", "0"]
    blocked = ns.wait_pod("needs", "blocked", lambda p: waiting_reason(p) == "CreateContainerConfigError")
    assert "NONE" in waiting_message(blocked) and "made/env" in waiting_message(blocked)


def test_b23_every_service_of_the_namespace_has_its_variables(ns):
    web = service("web-app", "x")
    web["spec"]["ports"] = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "dns", "port": 53, "protocol": "UDP"},
    ]
    ns.apply(web, service("headless", "x", clusterIP="None"))
    address = ns.get("service", "web-app")["spec"]["clusterIP"]
    # A node hears of a service a moment later than the API; pods know those that exist when they start.
    rule = f"-d {address}/32"
    until("the service on the node", lambda: rule in ns.cluster.node("n1", "iptables-save"))
    ns.apply(
        pod("links", container(), node="n1"), pod("none", container(), node="n1", enableServiceLinks=False)
    )

    def variables(name):
        ns.wait_running(name)
        lines = ns.kubectl("exec", name, "--", "env").splitlines()
        env = dict(line.split("=", 1) for line in lines if "=" in line)
        return {
            key: value
            for key, value in env.items()
            if key.startswith(("WEB_APP_", "HEADLESS", "KUBERNETES_"))
        }

    master = {
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "KUBERNETES_SERVICE_PORT_HTTPS": "443",
        "KUBERNETES_PORT": "tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP": "tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
        "KUBERNETES_PORT_443_TCP_PORT": "443",
        "KUBERNETES_PORT_443_TCP_ADDR": "10.96.0.1",
    }
    assert variables("none") == master
    assert variables("links") == master | {
        "WEB_APP_SERVICE_HOST": address,
        "WEB_APP_SERVICE_PORT": "80",
        "WEB_APP_SERVICE_PORT_HTTP": "80",
        "WEB_APP_SERVICE_PORT_DNS": "53",
        "WEB_APP_PORT": f"tcp://{address}:80",
        "WEB_APP_PORT_80_TCP": f"tcp://{address}:80",
        "WEB_APP_PORT_80_TCP_PROTO": "tcp",
        "WEB_APP_PORT_80_TCP_PORT": "80",
        "WEB_APP_PORT_80_TCP_ADDR": address,
        "WEB_APP_PORT_53_UDP": f"udp://{address}:53",
        "WEB_APP_PORT_53_UDP_PROTO": "udp",
        "WEB_APP_PORT_53_UDP_PORT": "53",
        "WEB_APP_PORT_53_UDP_ADDR": address,
    }


def test_b22_a_missing_key_is_named_and_waited_for(ns):
    reference = {"configMapKeyRef": {"name": "late", "key": "k"}}
    ns.apply(pod("p", container(env=[{"name": "A", "valueFrom": reference}])))
    blocked = ns.wait_pod("p", "config error", lambda p: waiting_reason(p) == "CreateContainerConfigError")
    assert 'configmap "late" not found' in waiting_message(blocked)
    ns.apply(config_map("late", k="v"))
    ns.wait_running("p")
    assert ns.sh("p", "echo $A").strip() == "v"


def test_b38_the_accounts_token_opens_the_api(ns):
    ns.apply(pod("p", container(), node="n1"))
    found = ns.wait_running("p")
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert ns.sh("p", f"cat {folder}/namespace") == ns.name
    assert "BEGIN CERTIFICATE" in ns.sh("p", f"cat {folder}/ca.crt")
    token = ns.sh("p", f"cat {folder}/token")
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    answer = json.loads(ns.kubectl("create", "-o", "json", "-f", "-", input=json.dumps(review)))
    assert answer["status"]["user"]["username"] == f"system:serviceaccount:{ns.name}:default"
    assert answer["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
    ask = (
        "import ssl, sys, urllib.request as u; "
        "context = ssl.create_default_context(cadata=sys.argv[3]); "
        "r = u.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]}); "
        "print(u.urlopen(r, context=context, timeout=10).status)"
    )
    url = f"https://10.96.0.1/api/v1/namespaces/{ns.name}/pods"
    pid = str(ns.cluster.pid_of(container_status(found)["containerID"], node="n1"))
    authority = ns.sh("p", f"cat {folder}/ca.crt")
    call = ("nsenter", "-t", pid, "-n", sys.executable, "-c", ask, url, token, authority)
    assert "403" in ns.cluster.node("n1", "sh", "-c", 'exec "$@" 2>&1', "sh", *call, check=False)
    ns.kubectl("create", "rolebinding", "read", "--clusterrole=view", f"--serviceaccount={ns.name}:default")
    until("allowed with one", lambda: ns.cluster.node("n1", *call, check=False).strip() == "200")
