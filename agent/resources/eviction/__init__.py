"""Eviction: what the node does before it runs out of memory, disk or process ids.

    measure ──> observations ──> plan ──> pressures (node conditions, admission)
                                  └─────> a threshold to act on ──> reclaim, or rank ──> one pod ends

`signals`, `plan`, `rank`, `message`, `storage` and `admission` are pure; `measure` and `usage` read the
machine, `manager` joins them in one loop.
"""
