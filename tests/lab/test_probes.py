"""Rows C01, C02, C03, readiness and startup probes: what is asked, and what follows."""

from kit import container, container_status, http_server, is_ready, pod, service, until

QUICK = {"periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 0}


def restarted(p):
    return container_status(p).get("restartCount", 0) >= 1


def assert_unhealthy_and_killed(ns, name, words):
    until("Unhealthy and Killing events", lambda: {"Unhealthy", "Killing"} <= ns.reasons(name))
    messages = " ".join(event["message"] for event in ns.events(name) if event["reason"] == "Unhealthy")
    assert words in messages


def test_c01_exec_probe(ns):
    probe = {"exec": {"command": ["cat", "/tmp/healthy"]}, **QUICK}
    ns.apply(
        pod("p", container("touch /tmp/healthy; sleep 3; rm /tmp/healthy; sleep 600", livenessProbe=probe))
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
    ns.apply(pod("p", container(script, livenessProbe=probe, ports=[{"name": "web", "containerPort": 8080}])))
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
