"""Rows B21, B22, B38: what a container finds in itself - names, variables, its account's token."""

from kit import config_map, container, pod, secret, service, waiting_message, waiting_reason


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


def test_b22_a_missing_key_is_named_and_waited_for(ns):
    reference = {"configMapKeyRef": {"name": "late", "key": "k"}}
    ns.apply(pod("p", container(env=[{"name": "A", "valueFrom": reference}])))
    blocked = ns.wait_pod("p", "config error", lambda p: waiting_reason(p) == "CreateContainerConfigError")
    assert 'configmap "late" not found' in waiting_message(blocked)
    ns.apply(config_map("late", k="v"))
    ns.wait_running("p")
    assert ns.sh("p", "echo $A").strip() == "v"


def test_b38_the_accounts_token_opens_the_api(ns):
    ns.apply(pod("p", container()))
    ns.wait_running("p")
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert ns.sh("p", f"cat {folder}/namespace") == ns.name
    assert "BEGIN CERTIFICATE" in ns.sh("p", f"cat {folder}/ca.crt")
    token = ns.sh("p", f"cat {folder}/token")
    who = ns.kubectl("--token", token, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
    assert who == f"system:serviceaccount:{ns.name}:default"
    call = (
        f'wget -q -O- --no-check-certificate --header "Authorization: Bearer $(cat {folder}/token)" '
        f"https://kubernetes.default/api/v1/namespaces/{ns.name}/pods 2>&1"
    )
    assert "403" in ns.sh("p", call, check=False)
    binding = ("create", "rolebinding", "read", "--clusterrole=view", f"--serviceaccount={ns.name}:default")
    ns.kubectl(*binding)
    assert '"PodList"' in ns.sh("p", call)
