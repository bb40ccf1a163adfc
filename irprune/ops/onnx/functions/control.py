"""Branches, loops and functions in torch: ``then``, ``other`` and ``body`` are callables that give a list of results."""

# mypy: ignore-errors
from __future__ import annotations

import torch


def branch(cond, *, then, other):
    made = then() if cond else other()
    return made[0] if len(made) == 1 else made


def loop(trips, cond=None, *given, body, states):
    now, scans, k = list(given), None, 0
    device = next((t.device for t in (trips, cond, *given) if isinstance(t, torch.Tensor)), None)
    going = True if cond is None else bool(cond)
    while going and (trips is None or k < int(trips)):
        going, *made = body(torch.tensor(k, device=device), torch.tensor(True, device=device), *now)
        going = bool(going)
        now, scans, k = made[:states], [[*a, b] for a, b in zip(scans or [[]] * (len(made) - states), made[states:], strict=True)], k + 1
    made = [*now, *(torch.stack(rows) for rows in scans or [])]
    return made[0] if len(made) == 1 else made


def scan(*given, body, states, dims, backwards, places, flipped):
    now, streams = list(given[:states]), given[states:]
    length = streams[0].shape[dims[0]]
    rows = [[] for _ in places]
    for k in range(length):
        slices = [x.select(d, length - 1 - k if back else k) for x, d, back in zip(streams, dims, backwards, strict=True)]
        made = body(*now, *slices)
        now = list(made[:states])
        for row, y in zip(rows, made[states:], strict=True):
            row.append(y)
    stacked = [torch.stack(row[::-1] if back else row, d) for row, d, back in zip(rows, places, flipped, strict=True)]
    made = [*now, *stacked]
    return made[0] if len(made) == 1 else made


def called(*, target, body):
    made = body()
    return made[0] if len(made) == 1 else made
