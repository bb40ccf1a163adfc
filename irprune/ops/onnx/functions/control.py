"""Branches, loops and functions in torch: ``then``, ``other`` and ``body`` are callables that give
a list of results."""

# mypy: ignore-errors
from __future__ import annotations

import torch


def branch(cond, *, then, other, count):
    made = then() if cond else other()
    return made[0] if count == 1 else made[:count]


def choice(cond, *given, count):
    """``given`` are the results of one branch, then those of the other; None for what did not
    run."""
    half = len(given) // 2
    made = given[:half] if cond else given[half:]
    return made[0] if count == 1 else made[:count]


def stacked(rows, dim, dtype, shape, device):
    return torch.stack(rows, dim) if rows else torch.empty(shape, dtype=dtype, device=device)


def loop(trips, cond=None, *given, body, states, empty, count):
    now, rows, k = list(given), [[] for _ in empty], 0
    device = next((t.device for t in (trips, cond, *given) if isinstance(t, torch.Tensor)), None)
    going = True if cond is None else bool(cond)
    while going and (trips is None or k < int(trips)):
        going, *made = body(torch.tensor(k, device=device), torch.tensor(True, device=device), *now)
        going, now, k = bool(going), made[:states], k + 1
        for row, y in zip(rows, made[states:], strict=True):
            row.append(y)
    made = [*now, *(stacked(row, 0, *kind, device) for row, kind in zip(rows, empty, strict=True))]
    return made[0] if count == 1 else made[:count]


def scan(*given, body, states, dims, backwards, places, flipped, empty, count):
    now, streams = list(given[:states]), given[states:]
    length = streams[0].shape[dims[0]]
    rows = [[] for _ in places]
    for k in range(length):
        slices = [
            x.select(d, length - 1 - k if back else k)
            for x, d, back in zip(streams, dims, backwards, strict=True)
        ]
        made = body(*now, *slices)
        now = list(made[:states])
        for row, y in zip(rows, made[states:], strict=True):
            row.append(y)
    many = zip(rows, places, flipped, empty, strict=True)
    made = [
        *now,
        *(
            stacked(row[::-1] if back else row, d, *kind, streams[0].device)
            for row, d, back, kind in many
        ),
    ]
    return made[0] if count == 1 else made[:count]


def called(*, target, body, count):
    made = body()
    return made[0] if count == 1 else made[:count]
