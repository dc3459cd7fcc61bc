"""What CreateContainer begins and StartContainer waits for: a container's cgroup, namespaces and root.

CreateContainer answers as soon as the container is on record and everything that can be wrong with the
request has been looked at; the kubelet's next call is then on its way while the kernel works. A container
that cannot be prepared is one that has ended before it started (reason StartError), and StartContainer says
why.
"""

from __future__ import annotations

import errno
import logging

from cri.runtime.errors import StartFailed
from cri.runtime.placement import Placement
from cri.runtime.spec import ContainerExit
from cri.server.container_events import apply_exit
from cri.server.core import Core
from cri.state.records import ContainerState
from cri.state.store import Container
from host.errors import HostError
from host.failpoints import reach

log = logging.getLogger(__name__)

PREPARE = "prepare"
"""First word of the key of a preparation that is under way; the sandbox's and the container's id follow."""
START_FAILED_CODE = 128


def begin(core: Core, container: Container, place: Placement) -> None:
    """Let the runtime make a container that is on record."""
    key = (PREPARE, container.record.sandbox_id, container.id)
    core.joined.begin(key, lambda: _prepare(core, container, place))


async def _prepare(core: Core, container: Container, place: Placement) -> None:
    try:
        await core.runtime.make_container(place)
        reach("container_create.root")
    except (StartFailed, HostError) as exc:
        log.info("container %s of sandbox %s was not made: %s", container.id, place.sandbox_id, exc)
        apply_exit(
            core,
            container,
            ContainerExit(code=START_FAILED_CODE, finished_at=core.now(), error=str(exc)),
        )


async def settled(core: Core, container: Container) -> None:
    """Wait until nothing of a container is being prepared."""
    await core.joined.settle(PREPARE, container.record.sandbox_id, container.id)


def check_prepared(container: Container) -> None:
    """Say why a container could not be prepared.

    Raises:
        StartFailed: with the words that its status has.
    """
    record = container.record
    if record.state is ContainerState.EXITED and not record.started_at and record.message:
        raise StartFailed(errno.EIO, record.message, step="create")
