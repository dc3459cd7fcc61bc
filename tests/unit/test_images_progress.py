"""Progress of pulls: what is counted, logged and told."""

import logging

from cri.images.cli import _bar
from cri.images.progress import Meter, PullBoard


def test_a_pull_is_counted_told_and_logged_now_and_then(caplog):
    caplog.set_level(logging.INFO)
    now, told = [0.0], []
    meter, board = Meter("r/app:1", told.append, clock=lambda: now[0]), PullBoard()
    board.begin(meter)
    meter.begin({1: 6 << 20, 2: 4 << 20}, 3)
    meter.received(1 << 20)
    assert len(told) == 1  # too little to speak of
    meter.received(4 << 20)
    meter.layer_done()
    assert [(item.layers_done, item.bytes_done) for item in told] == [(1, 0), (1, 5 << 20), (2, 5 << 20)]
    now[0] = 12.0
    meter.received(4 << 20)
    assert board.facts() == [
        {
            "image": "r/app:1",
            "seconds": 12.0,
            "layers": 3,
            "layersDone": 2,
            "bytes": 10 << 20,
            "bytesDone": 9 << 20,
        }
    ]
    assert _bar(board.facts()[0]) == f"[{'=' * 27}   ]  90 %  2/3 layers  9.4/10.5 MB"
    board.end(meter)
    assert board.facts() == []
    assert [record.getMessage() for record in caplog.records] == [
        "pulling r/app:1",
        "pulling r/app:1: 2 of 3 layers, 9.4 of 10.5 MB",
        "pulled r/app:1 in 12.0 s: 2 of 3 layers, 9.4 of 10.5 MB",
    ]


def test_a_download_that_begins_anew_counts_backwards():
    meter = Meter("r/app:1", clock=lambda: 0.0)
    meter.begin({0: 10}, 1)
    meter.received(8)
    meter.received(-8)
    meter.received(10)
    assert meter.progress.bytes_done == 10
