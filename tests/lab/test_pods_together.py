"""Rows B03, B04, B12: what the containers of a pod share, what the node shows of it, who waits for whom."""

from kit import container, container_status, http_server, pod, service, until


def test_b03_containers_share_address_and_memory_and_not_processes(ns):
    ns.apply(
        pod("p", container(http_server("hi", port=80), name="a"), container(name="b"), node="n1"),
        pod("shared", container(name="a"), container(name="b"), node="n1", shareProcessNamespace=True),
    )
    ns.wait_running("p")
    until("an answer", lambda: ns.sh("p", "wget -qO- localhost", container="b", check=False) == "hi\n")
    ns.sh("p", "echo seen > /dev/shm/file", container="a")
    assert ns.sh("p", "cat /dev/shm/file", container="b") == "seen\n"
    kinds = ("net", "ipc", "uts", "pid", "mnt")
    look = f"for kind in {' '.join(kinds)}; do readlink /proc/self/ns/$kind; done"

    def common(name):
        sides = [ns.sh(name, look, container=each).split() for each in "ab"]
        return {kind for kind, a, b in zip(kinds, *sides, strict=True) if a == b}

    assert common("p") == {"net", "ipc", "uts"}
    ns.wait_running("shared")
    assert common("shared") == {"net", "ipc", "uts", "pid"}
    assert ns.sh("shared", "ps", container="a").count("sleep 3600") >= 2


def test_b04_namespaces_cgroups_and_layers_are_there_to_be_seen(ns):
    ns.apply(pod("p", container(), node="n1"))
    found = ns.wait_running("p")
    process = str(ns.cluster.pid_of(container_status(found)["containerID"], node="n1"))
    listed = ns.cluster.node("n1", "ip", "netns").split("\n")
    addresses = [
        ns.cluster.node("n1", "ip", "netns", "exec", line.split()[0], "ip", "-4", "-o", "addr", check=False)
        for line in listed
        if line.strip()
    ]
    assert any(f" {found['status']['podIP']}/" in text for text in addresses)
    kinds = ns.cluster.node("n1", "lsns", "-n", "-o", "TYPE", "-p", process).split()
    assert {"mnt", "net", "ipc", "uts", "pid"} <= set(kinds)
    cgroups = ns.cluster.node("n1", "cat", f"/proc/{process}/cgroup")
    assert f"kubepods/besteffort/pod{found['metadata']['uid']}/" in cgroups
    mounts = ns.cluster.node("n1", "cat", f"/proc/{process}/mountinfo").splitlines()
    root = next(line for line in mounts if line.split()[4] == "/")
    assert " - overlay " in root and "upperdir=" in root
    ns.sh("p", "echo changed > /etc/passwd")
    other = pod("q", container("cat /etc/passwd"), node="n1", restartPolicy="Never")
    ns.apply(other)
    ns.wait_phase("q", "Succeeded")
    assert "changed" not in ns.kubectl("logs", "q")


def test_b12_init_containers_wait_for_services_and_fetch_a_page(ns):
    domain = f"{ns.name}.svc.cluster.local"
    # The first look-up waits for the services: DNS servers remember for half a minute that a name is missing.
    waits = [
        container(f"until {go} && nslookup {name}.{domain}; do sleep 0.1; done", name=f"init-{name}")
        for name, go in (("myservice", "[ -e /go ]"), ("mydb", "true"))
    ]
    page = [{"name": "page", "mountPath": "/usr/share/nginx/html"}]
    fetch = container(
        "until wget -q -O /work/index.html http://$MYSERVICE_SERVICE_HOST/; do sleep 0.2; done",
        name="fetch",
        volumeMounts=[{"name": "page", "mountPath": "/work"}],
    )
    web = {"name": "web", "image": "nginx", "volumeMounts": page}
    volumes = [{"name": "page", "emptyDir": {}}]
    source = pod("source", container(http_server("fetched")), labels={"app": "myservice"})
    first = pod("first", web, node="n1", volumes=volumes, initContainers=waits)
    ns.apply(source, first)
    waiting = ns.wait_pod(
        "first",
        "the first init container running",
        lambda p: "running" in (p["status"].get("initContainerStatuses") or [{}])[0].get("state", {}),
    )
    assert waiting["status"]["phase"] == "Pending"
    assert "Init:0/2" in ns.kubectl("get", "pod", "first")
    ns.apply(service("myservice", "myservice"), service("mydb", "mydb"))
    ns.sh("first", "touch /go", container="init-myservice")
    ns.wait_running("first")
    assert "1/1" in ns.kubectl("get", "pod", "first")
    ns.apply(pod("second", web, node="n1", volumes=volumes, initContainers=[fetch]))
    address = ns.wait_running("second")["status"]["podIP"]
    assert ns.cluster.node("n1", "busybox", "wget", "-qO-", f"http://{address}/") == "fetched\n"
