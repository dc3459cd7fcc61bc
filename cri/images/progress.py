"""How far pulls are: counted as bytes arrive, logged now and then, and shown to whoever asks.

CRI has no call for this. It goes where every client of a runtime can look already: the verbose Status
(`crictl info`) has it as `imagePulls`, and `nodelet-cri image pull` draws its bar from there.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from cri.images.model import Progress, PullProgress

_LOG = logging.getLogger(__name__)
_REPORT_BYTES = 4 << 20
_LOG_SECONDS = 10.0


class Meter:
    """Counts one pull; reports at most once for every few MiB and once a layer."""

    def __init__(
        self, ref: str, report: Progress | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is known yet.

        Args:
            ref: the full name, for the log.
            report: is told beside the log.
            clock: seconds from any start.
        """
        self.ref = ref
        self._report = report
        self._clock = clock
        self._began = self._logged = clock()
        self._layers = self._done = self._total = self._bytes = self._reported = 0

    @property
    def progress(self) -> PullProgress:
        """How far it is."""
        return PullProgress(
            layers=self._layers,
            layers_done=self._done,
            bytes_total=self._total,
            bytes_done=min(self._bytes, self._total),
        )

    @property
    def seconds(self) -> float:
        """Since the pull began."""
        return self._clock() - self._began

    def begin(self, sizes: dict[int, int], layers: int) -> None:
        """The manifest is known: bytes of each layer to fetch, and the number of layers in all."""
        self._layers, self._done, self._total = layers, layers - len(sizes), sum(sizes.values())
        self._tell()

    def received(self, count: int) -> None:
        """So many bytes more; negative when a download begins anew."""
        self._bytes += count
        if abs(self._bytes - self._reported) >= _REPORT_BYTES:
            self._tell()

    def layer_done(self) -> None:
        """A layer is unpacked."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        self._reported = self._bytes
        if self._report is not None:
            self._report(self.progress)
        if self._clock() - self._logged >= _LOG_SECONDS:
            self._logged = self._clock()
            _LOG.info("pulling %s: %s", self.ref, words(self.progress))


class PullBoard:
    """The pulls under way."""

    def __init__(self) -> None:
        """None."""
        self._meters: list[Meter] = []

    def begin(self, meter: Meter) -> None:
        """A pull starts."""
        self._meters.append(meter)
        _LOG.info("pulling %s", meter.ref)

    def end(self, meter: Meter, *, failure: str = "") -> None:
        """A pull is over, well or with a reason."""
        self._meters.remove(meter)
        if failure:
            _LOG.warning("pull of %s failed after %.1f s: %s", meter.ref, meter.seconds, failure)
        else:
            _LOG.info("pulled %s in %.1f s: %s", meter.ref, meter.seconds, words(meter.progress))

    def facts(self) -> list[dict[str, Any]]:
        """What Status shows, oldest pull first."""
        return [
            {
                "image": meter.ref,
                "seconds": round(meter.seconds, 1),
                "layers": meter.progress.layers,
                "layersDone": meter.progress.layers_done,
                "bytes": meter.progress.bytes_total,
                "bytesDone": meter.progress.bytes_done,
            }
            for meter in self._meters
        ]


def words(progress: PullProgress) -> str:
    """`2 of 5 layers, 12.3 of 45.6 MB`."""
    done, total = progress.bytes_done / 1e6, progress.bytes_total / 1e6
    return f"{progress.layers_done} of {progress.layers} layers, {done:.1f} of {total:.1f} MB"
