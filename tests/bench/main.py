"""`tests/bench/run NAME [--lab LAB]`: bring up a lab with one nodelet and one stock node, measure, show.

A lab that is up already is used and kept; one that was brought up for the run is taken down after it.
The others need no lab: they run both sides by themselves, in namespaces of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from deploy.labkit import cli, nodes
from deploy.labkit.errors import LabError
from deploy.labkit.lab import Lab
from deploy.labkit.layout import Layout
from deploy.labkit.progress import Progress
from tests.bench import images, logs, network, node, overlay, pods, policy, probes, report, runtime, traffic

OURS, STOCK = "n1", "stock"
Benchmark = Callable[..., list[report.Figure]]
BENCHMARKS: dict[str, Benchmark] = {
    "node": node.run,
    "pods": pods.run,
    "probes": probes.run,
    "traffic": traffic.run,
}
WITHOUT_LAB: dict[str, Benchmark] = {
    "images": images.run,
    "logs": logs.run,
    "network": network.run,
    "overlay": overlay.run,
    "policy": policy.run,
    "runtime": runtime.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark; its figures go to standard output, everything else to standard error."""
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", description="Figures of nodelet and a stock node."
    )
    parser.add_argument("benchmark", choices=sorted({**BENCHMARKS, **WITHOUT_LAB}))
    parser.add_argument("--lab", type=cli.lab_name, default="bench", help="which lab to use or make (bench)")
    args = parser.parse_args(argv)
    progress = Progress()
    if args.benchmark in WITHOUT_LAB:
        return _show(lambda: WITHOUT_LAB[args.benchmark](Layout(name=args.lab), say=progress.say))
    lab = Lab(Layout(name=args.lab), progress)
    ours_before = bool(nodes.known(lab.layout))
    try:
        with lab.locked():
            lab.up(count=1, app=False)
            lab.add_node(STOCK, kind="stock")
        return _show(lambda: BENCHMARKS[args.benchmark](lab, ours=OURS, stock=STOCK, say=progress.say))
    except LabError as exc:
        print(f"tests/bench/run: {exc}", file=sys.stderr)
        return 1
    finally:
        if not ours_before:
            with lab.locked():
                lab.down()


def _show(measure: Callable[[], list[report.Figure]]) -> int:
    """Measure and print; the exit status."""
    try:
        for figure in measure():
            print(report.line(figure), flush=True)
    except LabError as exc:
        print(f"tests/bench/run: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
