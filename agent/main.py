"""The `nodelet` program: reads the command line, starts the agent, says in one line what is wrong.

    nodelet run --config=FILE --kubeconfig=FILE [kubelet flags]
    nodelet run --standalone --manifests=DIR
    nodelet why POD, nodelet pods
    nodelet net ls, nodelet net peers, nodelet net trace FROM TO
    nodelet preflight
    nodelet --version

A call that begins with a flag means `run`, because that is how kubelet's service units are written. Importing
this module is cheap; the agent's parts are imported once the command line and the files have been found good.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from host.errors import HostError, InputError

if TYPE_CHECKING:
    from agent.api.client import ApiClient
    from agent.config.load import Settings
    from agent.node.places import Places
    from host.clocks import Clock

HELP = """\
nodelet: a Kubernetes node in Python

usage:
  nodelet [run] --kubeconfig=FILE [--config=FILE] [flags]   run a node of a cluster
  nodelet run --standalone --manifests=DIR [flags]          run a folder of pods without a cluster
  nodelet why [NAMESPACE/]POD                               what happened to a pod, what is in its way
  nodelet pods                                              every pod as the node itself sees it
  nodelet net ls | peers | trace FROM TO[:PORT]             the pod network in this node's kernel
  nodelet preflight                                         is this machine fit to be a node?
  nodelet --version

Needs root and a CRI runtime at its socket: start nodelet-cri too.

files:
  --kubeconfig=FILE                   how to reach the API server
  --bootstrap-kubeconfig=FILE         credentials for the first certificate request
  --config=FILE                       KubeletConfiguration (v1beta1), as kubeadm writes it
  --config-dir=DIR                    *.conf drop-ins for it
  --nodelet-config=FILE               NodeletConfiguration: overlay, service rules, CNI
  --manifests=DIR                     pods to run, one a file (with --standalone)

node:
  --hostname-override=NAME            name of the Node (the host name)
  --node-ip=ADDRESS[,ADDRESS]         addresses of the Node (the one towards the API server)
  --node-labels=KEY=VALUE,…           labels for registration
  --register-with-taints=KEY=VALUE:EFFECT,…
  --pod-cidr=NETWORK                  addresses of pods where no controller sets them
                                      (10.244.0.0/24 with --standalone)

machine:
  --container-runtime-endpoint=SOCKET CRI socket (unix:///run/nodelet/cri.sock)
  --root-dir=DIR                      state of pods (/var/lib/kubelet)
  --cert-dir=DIR                      our certificates (<root>/pki)
  --cgroup-root=PATH                  cgroup that all pods are below (/)
  -v=N                                0 warnings, 2 facts (default), 4 details

Any other flag of kubelet that sets a field of KubeletConfiguration may be given too, and wins over the file.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; answers its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] not in (["why"], ["pods"], ["net"], ["preflight"]) and (
        words[:1] == ["help"] or {"--help", "-h"} & set(words)
    ):
        print(HELP, end="")
        return 0
    if words[:1] in (["--version"], ["--version=true"], ["version"]):
        from agent import version

        print(f"Kubernetes {version.kubelet()}")
        return 0
    try:
        if words and words[0] in ("why", "pods"):
            from agent.explain import command

            return command.main(words)
        if words and words[0] == "preflight":
            from agent import checkup

            return checkup.main(words[1:])
        if words and words[0] == "net":
            from agent.explain import netcommand

            return netcommand.main(words[1:])
        if words and words[0] != "run" and not words[0].startswith("-"):
            raise InputError(
                f"unknown command {words[0]!r}: use run, why, pods, net, preflight, --version or --help"
            )
        return run(words[1:] if words[:1] == ["run"] else words)
    except (InputError, HostError) as exc:
        print(f"nodelet: {exc}", file=sys.stderr)
        return 1


def run(argv: Sequence[str]) -> int:
    """`nodelet run`. Raises InputError."""
    import logging

    from agent import logs, preflight
    from agent.config import flags, load

    logs.set_up(flags.Options().verbosity)
    options = flags.parse(argv)
    logs.set_up(options.verbosity)
    settings = load.load(options)
    preflight.check_machine(settings)
    try:
        asyncio.run(_run(settings))
    except KeyboardInterrupt:
        return 0
    except Moved as exc:
        logging.getLogger(__name__).warning("the node's address changed, starting anew: %s", exc)
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - ourselves, with the same words
    return 0


class Moved(Exception):
    """The machine's addresses are not those that this agent was started with."""


async def _run(settings: Settings) -> None:
    """The agent until SIGTERM or SIGINT; pods go on running."""
    loop = asyncio.get_running_loop()
    me = asyncio.current_task()
    if me is None:
        raise RuntimeError("no current task")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, me.cancel)
    try:
        await _start(settings)
    except asyncio.CancelledError:
        from host import notify

        notify.stopping()


async def _start(settings: Settings) -> None:
    import gc
    import logging

    from agent.assembly import Agent
    from agent.startup_resources import load_cgroups
    from host.clocks import SystemClock

    client = await _client(settings)
    try:
        clock = SystemClock()
        look = _look(settings)
        places = await _places(settings, look)
        cgroups = await load_cgroups(settings, clock)
        agent = Agent(settings, client=client, places=places, cgroups=cgroups)
        # What is imported and built by now lives as long as we do: keep the collector away from it.
        gc.collect()
        gc.freeze()
        logging.getLogger(__name__).info(
            "agent starts node=%s addresses=%s", settings.node_name, ",".join(places.node)
        )
        if settings.options.standalone:
            await agent.run()
        else:
            await _run_until_moved(agent.run(), look, places, clock)
    finally:
        if client is not None:
            await client.close()


async def _client(settings: Settings) -> ApiClient | None:
    """The API client, after a bootstrap where one is needed. Raises InputError."""
    import time

    from agent import preflight
    from agent.api.client import ApiClient
    from agent.api.kubeconfig import load
    from agent.api.transport import HttpTransport
    from agent.node import bootstrap

    options = settings.options
    if options.standalone:
        return None
    path = Path(options.kubeconfig)
    if options.bootstrap_kubeconfig:
        reason = bootstrap.needed(path, now=time.time())
        if reason:
            await bootstrap.bootstrap(
                bootstrap_file=Path(options.bootstrap_kubeconfig),
                target=path,
                pki=settings.pki,
                node_name=settings.node_name,
            )
    transport = HttpTransport(load(path))
    try:
        await preflight.check_server(transport)
    except BaseException:
        await transport.close()
        raise
    return ApiClient(transport)


def _look(settings: Settings) -> Callable[[], Places]:
    """What tells our addresses now. It raises InputError, or OSError where there is no route."""
    from agent.api.kubeconfig import load
    from agent.node import places

    options = settings.options
    server = load(Path(options.kubeconfig)).server if not options.standalone else "https://192.0.2.1"
    return partial(places.find, settings.nodelet.overlay, node_ips=options.node_ips, server=server)


async def _places(settings: Settings, look: Callable[[], Places]) -> Places:
    """Our addresses; waits for a route to the API server. Raises InputError."""
    import logging

    from agent.node import addresses, places

    log = logging.getLogger(__name__)
    said = ""
    while True:
        try:
            found = look()
            break
        except OSError as exc:
            if settings.options.standalone:
                return places.Places(("127.0.0.1",), ("127.0.0.1",))
            if str(exc) != said:
                said = str(exc)
                log.warning("no address of this node yet error=%s", exc)
            await asyncio.sleep(2.0)
    overlay = settings.nodelet.overlay
    wished = overlay.iface or overlay.iface_regex or overlay.iface_can_reach
    hint = addresses.warning(found.node, settings.options.node_ips or ((wished,) if wished else ()))
    if hint:
        log.warning("%s", hint)
    return found


async def _run_until_moved(
    agent: Awaitable[None], look: Callable[[], Places], now: Places, clock: Clock
) -> None:
    """Run the agent. Raises Moved when the machine's addresses have become others."""
    from agent.node import places

    running = asyncio.ensure_future(agent)
    watching = asyncio.create_task(places.moved(look, now, clock=clock))
    try:
        await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise Moved(f"{','.join(now.node)} is now {','.join(watching.result().node)}")
        await running
    finally:
        for task in (running, watching):
            task.cancel()
        await asyncio.wait((running, watching))


if __name__ == "__main__":
    sys.exit(main())
