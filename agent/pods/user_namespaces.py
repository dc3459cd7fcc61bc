"""Which ids of the node a pod with `hostUsers: false` has: a range of its own as long as it lives (KEP-127).

Two pods never share a range, so a process that breaks out of one owns no file of the other. The range is in
the pod's directory in kubelet's own format, so an agent that starts finds every range in use there, and a
node changes hands between kubelet and this agent with its pods running.

Source: pkg/kubelet/userns/userns_manager.go and kubelet_getters.go (getKubeletMappings), v1.37.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from agent.api.structs import Pod
from agent.pods.id_pool import IdPool
from agent.pods.security import SpecError
from host.errors import HostError
from host.files import write_atomic
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)


def free_range(pool: IdPool, used: Collection[int]) -> int:
    """The first id of the lowest range nobody has. Raises SpecError."""
    for first in range(pool.first, pool.first + pool.count, pool.length):
        if first not in used:
            return first
    raise SpecError("hostUsers: false: every range of user ids of this node is in use")


class UserNamespaces:
    """The ranges of all pods; `root` is the agent's."""

    def __init__(self, pool: IdPool, root: Path) -> None:
        self._pool = pool
        self._root = root
        self._used: dict[str, int] | None = None

    def of(self, pod: Pod) -> pb.UserNamespace:
        """The pod's user namespace: the node's, or one with a range of its own, given at the first question.

        Raises:
            SpecError: no range is left, or it cannot be recorded.
        """
        if pod.spec.host_users is not False:
            return pb.UserNamespace(mode=pb.NODE)
        if self._used is None:
            self._used = self._recorded()
        uid = pod.metadata.uid
        if uid not in self._used:
            first = free_range(self._pool, self._used.values())
            self._record(uid, first)
            self._used[uid] = first
        mapping = pb.IDMapping(host_id=self._used[uid], container_id=0, length=self._pool.length)
        return pb.UserNamespace(mode=pb.POD, uids=[mapping], gids=[mapping])

    def release(self, uid: str) -> None:
        """The pod is gone, with its processes and its directory."""
        if self._used is not None:
            self._used.pop(uid, None)

    def _path(self, uid: str) -> Path:
        return self._root / "pods" / uid / "userns"

    def _record(self, uid: str, first: int) -> None:
        maps = [{"hostId": first, "containerId": 0, "length": self._pool.length}]
        path = self._path(uid)
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            text = json.dumps({"uidMappings": maps, "gidMappings": maps})
            write_atomic(path, text.encode(), mode=0o644)
        except (HostError, OSError) as exc:
            raise SpecError(f"hostUsers: false: the range of user ids cannot be recorded: {exc}") from exc

    def _recorded(self) -> dict[str, int]:
        """The ranges on disk. One that cannot be read belongs to a pod that must not run with another."""
        used = {}
        for path in (self._root / "pods").glob("*/userns"):
            try:
                used[path.parent.name] = int(json.loads(path.read_bytes())["uidMappings"][0]["hostId"])
            except (OSError, ValueError, LookupError, TypeError) as exc:
                log.warning("range of user ids not readable, it is given anew path=%s error=%s", path, exc)
        return used
