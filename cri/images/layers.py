"""Unpacked layers on disk: `layers/<chain id hex>/diff`, shared by every image that starts with them.

A layer is made in `tmp/` and renamed when it is whole and its DiffID is verified. The directory also holds
`layer.json`, a record of what the layer occupies, so that usage needs no walk over the disk.
"""

import os
import secrets
from dataclasses import asdict
from pathlib import Path

from cri.images.apply import Applied
from cri.images.blobs import disk_error
from cri.images.reference import parse_digest
from host import helpers
from host.errors import HostError
from host.failpoints import reach
from host.files import NewerRecord, read_record, write_record

_KIND = "image-layer"
_VERSION = 1


class LayerStore:
    """Layers below `root`, by chain ID. Methods block and are quick, except `sweep`."""

    def __init__(self, root: Path) -> None:
        self._dir = root / "layers"
        self._tmp = root / "tmp"
        self._layers: dict[str, Applied] = {}
        self.import_lock = root / "import.lock"
        """Held while another process imports: nothing is swept then, it would not know what is under way."""

    def load(self) -> None:
        """Make the directories and learn what is there; layers without a readable record are moved away."""
        self._dir.mkdir(mode=0o700, exist_ok=True)
        self._tmp.mkdir(mode=0o700, exist_ok=True)
        for entry in list(self._dir.iterdir()):
            try:
                chain_id = parse_digest(f"sha256:{entry.name}")
                record = read_record(entry / "layer.json", kind=_KIND, version=_VERSION)
                self._layers[chain_id] = Applied(**record)
            except NewerRecord:
                raise
            except (HostError, ValueError, TypeError):
                entry.rename(self._tmp / f"bad-{secrets.token_hex(8)}")

    def adopt(self, chain_id: str) -> bool:
        """Learn of a layer that another process has put in place; whether it is there and sound."""
        try:
            record = read_record(self.path(chain_id).parent / "layer.json", kind=_KIND, version=_VERSION)
            self._layers[chain_id] = Applied(**record)
        except (HostError, TypeError):
            return False
        return True

    def __contains__(self, chain_id: str) -> bool:
        return chain_id in self._layers

    @property
    def facts(self) -> dict[str, Applied]:
        """Chain ID -> what the layer occupies."""
        return self._layers

    def path(self, chain_id: str) -> Path:
        """The overlay lower directory of a layer, existing or not."""
        return self._dir / parse_digest(chain_id).removeprefix("sha256:") / "diff"

    def begin(self) -> Path:
        """A directory for a layer under way, with `diff` and `trash` in it."""
        work = self._tmp / f"layer-{secrets.token_hex(8)}"
        try:
            work.mkdir(mode=0o700)
            for name in ("diff", "trash"):
                (work / name).mkdir()
            (work / "diff").chmod(0o755)
        except OSError as exc:
            raise disk_error(exc, f"make {work}") from exc
        return work

    def commit(self, chain_id: str, work: Path, applied: Applied) -> None:
        """Put a finished layer in its place; a layer that is there already wins."""
        if chain_id in self._layers:
            return
        try:
            reach("image_pull.layer_unpacked")
            self._move_trash(work / "trash")
            write_record(work / "layer.json", asdict(applied), kind=_KIND, version=_VERSION, sync=False)
            reach("image_pull.layer_recorded")
            os.rename(work, self.path(chain_id).parent)
        except OSError as exc:
            raise disk_error(exc, f"layer {chain_id}") from exc
        self._layers[chain_id] = applied
        reach("image_pull.layer_placed")

    def remove(self, chain_id: str) -> None:
        """Take a layer away; its files go with the next `sweep`."""
        if self._layers.pop(chain_id, None) is not None:
            os.rename(self.path(chain_id).parent, self._tmp / f"gone-{secrets.token_hex(8)}")

    def _move_trash(self, trash: Path) -> None:
        try:
            trash.rmdir()
        except OSError:
            trash.rename(self._tmp / f"gone-{secrets.token_hex(8)}")

    async def sweep(self, *, keep: frozenset[Path] = frozenset(), everything: bool = False) -> None:
        """Delete removed layers and abandoned work; the caller holds `import_lock`.

        Args:
            keep: work that is still under way.
            everything: at start, when nothing can be under way, half-done downloads too.
        """
        await self.discard(
            *(
                path
                for path in self._tmp.iterdir()
                if path not in keep and (everything or path.name.startswith(("gone-", "bad-", "layer-")))
            )
        )

    async def discard(self, *rubbish: Path) -> None:
        """Delete directories in a process of its own: trees of strangers may be deep and large."""
        if rubbish:
            await helpers.run_async(["rm", "-rf", "--", *map(str, rubbish)], timeout=600.0)
