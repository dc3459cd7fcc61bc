"""Rows C01 to C06: what is asked, and what follows."""

import sys

from kit import container, container_status, http_server, is_ready, pod, service, until

QUICK = {"periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 0}
IMPATIENT = {"terminationGracePeriodSeconds": 1}


def restarted(p):
    return container_status(p).get("restartCount", 0) >= 1


def assert_unhealthy_and_killed(ns, name, words):
    until("Unhealthy and Killing events", lambda: {"Unhealthy", "Killing"} <= ns.reasons(name))
    messages = " ".join(event["message"] for event in ns.events(name) if event["reason"] == "Unhealthy")
    assert words in messages


def test_c01_exec_probe(ns):
    probe = {"exec": {"command": ["cat", "/tmp/healthy"]}, **QUICK}
    ns.apply(
        pod(
            "p",
            container("touch /tmp/healthy; sleep 3; rm /tmp/healthy; sleep 600", livenessProbe=probe),
            **IMPATIENT,
        )
    )
    ns.wait_pod("p", "a restart after the file has gone", restarted)
    assert_unhealthy_and_killed(ns, "p", "Liveness probe failed")


def test_c02_http_probe(ns):
    script = (
        "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\n"
        'if [ -e /bad ]; then echo "Status: 500"; fi\\necho "X: $HTTP_X_PROBE" >> /seen\\n'
        "echo; echo hello\\n' > /www/cgi-bin/healthz; chmod +x /www/cgi-bin/healthz; "
        "exec httpd -f -p 8080 -h /www"
    )
    probe = {
        "httpGet": {
            "path": "/cgi-bin/healthz",
            "port": "web",
            "httpHeaders": [{"name": "X-Probe", "value": "yes"}],
        },
        **QUICK,
        "initialDelaySeconds": 1,
    }
    ports = [{"name": "web", "containerPort": 8080}]
    ns.apply(pod("p", container(script, livenessProbe=probe, ports=ports), **IMPATIENT))
    ns.wait_running("p")
    until("the probe's requests", lambda: "X:" in ns.sh("p", "cat /seen", check=False))
    assert container_status(ns.pod("p"))["restartCount"] == 0
    ns.sh("p", "touch /bad")
    ns.wait_pod("p", "a restart after status 500", restarted)
    assert_unhealthy_and_killed(ns, "p", "HTTP probe failed with statuscode: 500")


def test_c03_tcp_probe(ns):
    probe = {"tcpSocket": {"port": 8080}, **QUICK, "initialDelaySeconds": 1}
    ns.apply(
        pod("open", container(http_server("hi"), livenessProbe=probe)),
        pod("closed", container(livenessProbe=probe)),
    )
    ns.wait_pod("closed", "a restart", restarted)
    assert_unhealthy_and_killed(ns, "closed", "Liveness probe failed")
    assert container_status(ns.wait_running("open"))["restartCount"] == 0


def test_readiness_drives_endpoints(ns):
    probe = {"exec": {"command": ["test", "-e", "/ready"]}, **QUICK}
    ns.apply(service("s", "p"), pod("p", container(http_server("hi"), readinessProbe=probe)))
    ns.wait_pod("p", "Running, not Ready", lambda p: container_status(p).get("started") and not is_ready(p))

    def ready_addresses():
        path = "{.items[*].endpoints[?(@.conditions.ready==true)].addresses[*]}"
        label = "kubernetes.io/service-name=s"
        return ns.kubectl("get", "endpointslices", "-l", label, "-o", f"jsonpath={path}").split()

    assert ready_addresses() == []
    ns.sh("p", "touch /ready")
    ns.wait_running("p")
    until("its address among the endpoints", ready_addresses)
    ns.sh("p", "rm /ready")
    until("its address gone from the endpoints", lambda: not ready_addresses())


def test_c04_traffic_stops_and_comes_back_with_readiness(ns):
    probe = {"exec": {"command": ["test", "!", "-e", "/bad"]}, **QUICK}
    ns.apply(
        service("s", "web"),
        *(pod(n, container(http_server(n), readinessProbe=probe), labels={"app": "web"}) for n in ("a", "b")),
        pod("client", container(), node="n1"),
    )
    for name in ("a", "b", "client"):
        ns.wait_running(name)
    address = ns.get("service", "s")["spec"]["clusterIP"]

    def answers():
        ask = f"for i in $(seq 12); do wget -q -O- http://{address}/ || echo failed; done"
        return set(ns.sh("client", ask).split())

    until("answers of both", lambda: answers() == {"a", "b"})
    ns.sh("a", "touch /bad")
    until("answers of the ready one alone", lambda: answers() == {"b"})
    assert container_status(ns.pod("a"))["restartCount"] == 0
    ns.sh("a", "rm /bad")
    until("answers of both again", lambda: answers() == {"a", "b"})


def test_c06_counters_are_exact(ns):
    """Every probe writes when it ran, in hundredths of a second since the machine's start."""
    probe = "set -- $(cut -d' ' -f1 /proc/uptime); echo $1 >> /v/probes"
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    liveness = {
        "exec": {"command": ["sh", "-c", f"{probe}; false"]},
        "initialDelaySeconds": 3,
        "periodSeconds": 1,
        "failureThreshold": 3,
    }
    readiness = {
        "exec": {"command": ["sh", "-c", "echo x >> /v/ready; exit 0"]},
        "periodSeconds": 1,
        "successThreshold": 3,
    }
    starts = "cut -d' ' -f1 /proc/uptime >> /v/starts"
    script = f"{starts}; trap 'echo end >> /v/probes; exit 0' TERM; sleep 3600 & wait"
    volumes = [{"name": "v", "emptyDir": {}}]
    ns.apply(
        pod("p", container(script, livenessProbe=liveness, **mount), volumes=volumes),
        pod("late", container(readinessProbe=readiness, **mount), volumes=volumes),
    )
    ns.wait_running("late")
    assert len(ns.sh("late", "cat /v/ready").split()) >= 3
    ns.wait_pod("p", "a restart", restarted)
    lines = ns.sh("p", "cat /v/starts /v/probes").split()
    first_life = lines[lines.index("end") - 3 : lines.index("end")]
    assert lines.index("end") - len(ns.sh("p", "cat /v/starts").split()) == 3, lines
    assert float(first_life[0]) - float(lines[0]) >= 3 - 0.1


def test_a_startup_probe_holds_the_others_back(ns):
    ns.apply(
        pod(
            "p",
            container(
                "sleep 3; touch /started; sleep 600",
                startupProbe={
                    "exec": {"command": ["test", "-e", "/started"]},
                    "periodSeconds": 1,
                    "failureThreshold": 30,
                },
                livenessProbe={"exec": {"command": ["test", "-e", "/started"]}, **QUICK},
            ),
        )
    )
    found = ns.wait_running("p")
    assert container_status(found)["restartCount"] == 0
    assert ns.sh("p", "ls /started").strip() == "/started"


def test_the_probes_own_grace_wins_over_the_pods(ns):
    probe = {"exec": {"command": ["false"]}, **QUICK, "terminationGracePeriodSeconds": 1}
    deaf = "trap '' TERM; while :; do sleep 0.1; done"
    ns.apply(pod("p", container(deaf, livenessProbe=probe), terminationGracePeriodSeconds=600))
    found = ns.wait_pod("p", "a restart long before the pod's grace is over", restarted)
    assert container_status(found)["lastState"]["terminated"]["exitCode"] == 137


def test_a_timed_out_exec_probe_leaves_nothing_running(ns):
    """Not even what has left its session: the whole tree is in a cgroup of its own."""
    command = ["sh", "-c", "setsid sleep 7777 & sleep 7777"]
    probe = {"exec": {"command": command}, "periodSeconds": 10, "timeoutSeconds": 1}
    ns.apply(pod("p", container(readinessProbe=probe)))
    until(
        "a probe that ran out of time",
        lambda: any("timed out" in event["message"] for event in ns.events("p")),
    )
    until("its processes gone", lambda: "7777" not in ns.sh("p", "ps -o args | grep -v grep"))


GRPC_SERVER = """
import os, time
from concurrent import futures
import grpc

def check(request, context):
    good = request.endswith(b"web") and not os.path.exists("/mnt/bad")
    return bytes((8, 1 if good else 2))

handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),))
server.add_insecure_port("0.0.0.0:9000")
server.start()
time.sleep(3600)
"""


def test_grpc_probe(ns):
    """A real health server: the node's own Python, in a container that changes its root to the node's."""
    server = container(
        livenessProbe={"grpc": {"port": 9000, "service": "web"}, **QUICK, "failureThreshold": 3},
        startupProbe={"grpc": {"port": 9000, "service": "web"}, "periodSeconds": 1, "failureThreshold": 60},
        volumeMounts=[{"name": "node", "mountPath": "/host"}, {"name": "switch", "mountPath": "/host/mnt"}],
    )
    server["command"] = ["chroot", "/host", sys.executable, "-c", GRPC_SERVER]
    volumes = [{"name": "node", "hostPath": {"path": "/"}}, {"name": "switch", "emptyDir": {}}]
    ns.apply(pod("p", server, volumes=volumes, **IMPATIENT))
    assert container_status(ns.wait_running("p"))["restartCount"] == 0
    ns.sh("p", "touch /host/mnt/bad")
    ns.wait_pod("p", "a restart once it does not serve", restarted)
    assert_unhealthy_and_killed(ns, "p", 'service unhealthy (responded with "NOT_SERVING")')
