"""The processes that prune one model together: those of a ``torch.distributed`` group, or this one
alone.

Every exchange begins with a word from each rank: that it goes on, or that it has failed. So a rank
that raises ends all of them with its message, wherever the others wait, and one that dies is
noticed by the connection that it leaves open. Exchanges go over a gloo group of their own, whatever
the backend of the user's group: what is exchanged lies in main memory."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar
from weakref import ref
from zlib import crc32

import numpy as np

from irprune.errors import CheckFailed, IrpruneError, first_line, gist, option

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

__all__ = [
    "ALONE",
    "Ranks",
    "Several",
    "Statistic",
    "Sums",
    "by_itself",
    "current",
    "initialised",
    "launched_group",
    "speaks",
    "together",
]

A = TypeVar("A")
B = TypeVar("B")


class Statistic(Protocol):
    """What adds up over data: a sum, a mean, a Gram matrix."""

    def merged(self, other: Self) -> Self:
        """Over the data of both; ``self`` may be used up for it."""


S = TypeVar("S", bound=Statistic)


class Several(list[S]):
    """As many statistics, each of its own kind."""

    def merged(self, other: Several[S]) -> Several[S]:
        """Each with its like."""
        return Several(a.merged(b) for a, b in zip(self, other, strict=True))


class Sums(dict[Any, Any]):
    """Numbers or arrays by key."""

    def add(self, key: Any, value: Any) -> None:
        """Add ``value`` to what ``key`` has."""
        self[key] = self[key] + value if key in self else value

    def merged(self, other: Sums) -> Sums:
        """By key."""
        for key, value in other.items():
            self.add(key, value)
        return self


class Ranks:
    """A group of processes, of which this one has the number ``rank`` of ``size``.

    All ranks must call the methods in the same order: each waits for the others. Raises
    IrpruneError where a rank has failed or is gone.

    Args:
        group: A group whose backend takes tensors in main memory; None for this process alone.
    """

    def __init__(self, group: ProcessGroup | None = None) -> None:
        self._group = group
        self.rank, self.size = 0, 1
        self.ended = False  # a failure was told, or the connection is lost
        if group is not None:
            import torch.distributed as dist

            self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    @property
    def group(self) -> ProcessGroup | None:
        """The group of torch.distributed over which they talk; None for this process alone."""
        return self._group

    def leave(self) -> None:
        """Let go of the group: one that outlives ``destroy_process_group`` ends the process with an
        abort."""
        self._group = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that speaks and writes."""
        return self.rank == 0

    def gather(self, value: A) -> list[A]:
        """The value of every rank, in the order of ranks."""
        if self._group is None:
            return [value]
        told = pickle.dumps(value)  # what cannot be told fails before the others wait for it
        self._meet("gather")
        return [pickle.loads(t) for t in self._objects(told)]

    def first(self, value: A) -> A:
        """The value of the first rank, for all."""
        if self._group is None:
            return value
        message = _packed(value) if self.leads else []
        self._meet("first")
        with self._connected():
            made: A = self._message(message, self._broadcast)
        return value if self.leads else made

    def share(
        self,
        items: Sequence[A],
        work: Callable[[A], B],
        done: Callable[[A, B], object] = lambda item, result: None,
    ) -> list[B]:
        """``work`` of each item, in their order; every rank does its part of them and gets all.
        ``done`` is told each result as soon as it is here, in order."""
        if self._group is None:
            results = []
            for item in items:
                results.append(work(item))
                done(item, results[-1])
            return results
        each = self.gather([work(item) for item in items[self.rank :: self.size]])
        results = [each[i % self.size][i // self.size] for i in range(len(items))]
        for item, result in zip(items, results, strict=True):
            done(item, result)
        return results

    def collect(self, own: list[A], senders: Sequence[int]) -> Iterator[A]:
        """On the first rank what the others have, one after another; nothing on the others.

        Args:
            own: What this rank sends; it is let go of as it goes. Nothing of the first rank.
            senders: The rank of each value that is sent, in the order in which they come.
        """
        if self._group is None:
            return iter(())
        messages = [_packed(value) for value in own]  # what cannot be told fails before they wait
        own.clear()
        self._meet("collect")
        while messages:
            with self._connected():
                self._message(messages.pop(0), self._send)
        return self._received(senders if self.leads else ())

    def _received(self, senders: Sequence[int]) -> Iterator[Any]:
        for other in senders:
            with self._connected():
                value = self._message([], partial(self._receive, other))
            yield value

    def all_reduce(self, tensor: torch.Tensor) -> float:
        """Let ``tensor`` be the sum of those of all ranks, over the user's own group, whose backend
        takes it where it lies; in an order that is the backend's.

        Returns:
            The seconds that it took once all ranks were here.
        """
        if self._group is None:
            return 0.0
        import torch
        import torch.distributed as dist

        self._meet("all_reduce")
        began = time.perf_counter()
        with self._connected():
            dist.all_reduce(tensor)
            if tensor.is_cuda:
                torch.cuda.synchronize()
        return time.perf_counter() - began

    def end(self, failed: BaseException | None = None) -> None:
        """Wait for the others, and tell them of a failure. Raises IrpruneError where another rank
        has failed."""
        if self._group is not None and not self.ended:
            self._meet("end", failed)

    # -- what goes over the wire -------------------------------------------------------------------

    def _meet(self, what: str, failed: BaseException | None = None) -> None:
        """Wait until every rank is here. Raises IrpruneError where one of them has failed, or is
        somewhere else."""
        import torch
        import torch.distributed as dist

        own = torch.tensor([crc32(what.encode()), int(failed is not None)])
        said = [torch.empty_like(own) for _ in range(self.size)]
        with self._connected():
            dist.all_gather(said, own, group=self._group)
        if any(int(s[1]) for s in said):
            told = self._objects(None if failed is None else _error_text(failed))
            self.ended = True
            if failed is None:
                raise _first_error(told)
        elif any(int(s[0]) != int(own[0]) for s in said):
            self.ended = True
            raise IrpruneError(
                "the ranks do not do the same",
                f"rank {self.rank}: {what}",
                "call irprune with the same model, options and data on every rank",
            )

    def _objects(self, value: A) -> list[A]:
        import torch.distributed as dist

        made: list[Any] = [None] * self.size
        with self._connected():
            dist.all_gather_object(made, value, group=self._group)
        return made

    def _message(self, parts: list[torch.Tensor], move: Callable[[torch.Tensor], object]) -> Any:
        """Hand ``parts`` over by ``move``, or have them filled by it; what they say. Small ones go
        as one."""
        import torch

        head = torch.zeros(_HEAD, dtype=torch.int64)
        sizes = torch.tensor([len(p) for p in parts], dtype=torch.int64)
        head[0] = len(parts)
        head[1 : 1 + len(sizes)] = sizes[: _HEAD - 1]
        move(head)
        received, count = not parts, int(head[0])
        if count >= _HEAD:
            sizes = sizes if parts else torch.empty(count, dtype=torch.int64)
            move(sizes)
        else:
            sizes = head[1 : 1 + count]
        small = [i for i, n in enumerate(sizes.tolist()) if n < _SMALL]
        joined = torch.empty(sum(int(sizes[i]) for i in small), dtype=torch.uint8)
        if received:
            parts = [torch.empty(n, dtype=torch.uint8) for n in sizes.tolist()]
        elif small:
            torch.cat([parts[i] for i in small], out=joined)
        if len(joined):
            move(joined)
        if received:
            for i, part in zip(
                small, torch.split(joined, [int(sizes[i]) for i in small]), strict=True
            ):
                parts[i] = part.clone()  # begins where any type may
        for part in (p for p in parts if len(p) >= _SMALL):
            move(part)
        return _unpacked(parts) if received else None

    def _broadcast(self, tensor: torch.Tensor) -> None:
        import torch.distributed as dist

        dist.broadcast(tensor, group=self._group, group_src=0)

    def _send(self, tensor: torch.Tensor) -> None:
        import torch.distributed as dist

        dist.send(tensor, group=self._group, group_dst=0)

    def _receive(self, other: int, tensor: torch.Tensor) -> None:
        import torch.distributed as dist

        dist.recv(tensor, group=self._group, group_src=other)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as lost:  # what torch.distributed raises for a closed connection
            self.ended = True
            raise IrpruneError(
                f"a rank is gone: {_of_gloo(lost)}",
                f"rank {self.rank} of {self.size}",
                "see what that rank said last, and start all of them again",
            ) from lost


def _of_gloo(lost: RuntimeError) -> str:
    """The sentence of gloo's message that says what happened: before it stands a line of gloo's
    source, behind it general advice."""
    return re.sub(r"^\[\S+:\d+\] ", "", first_line(lost)).partition(". ")[0]


_HEAD = 64  # numbers of the first part of a message: how many parts follow, and their sizes
_SMALL = 1 << 16  # bytes of parts that go as one

ALONE = Ranks()
_current: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)
# The user's group and ours beside it; torch.distributed alone holds them, and destroys them
_groups: list[tuple[ref[Any], ref[Any]]] = []


def current() -> Ranks:
    """The ranks that work together here: those of the ``together`` around."""
    return _current.get()


@contextlib.contextmanager
def together(count: int | None = None) -> Iterator[Ranks]:
    """All ranks of the initialised process group work together inside; where there is none, this
    process alone. Inside another such block its ranks go on.

    Args:
        count: How many ranks there must be; 1 is this process alone in any group, None as many as
            there are.

    Raises:
        IrpruneError: Where there is another number of ranks; what any rank raises, on all of them.
    """
    if current() is not ALONE:
        yield current()
        return
    ranks = ALONE if count == 1 else Ranks(_group())
    if count is not None and ranks.size != count:
        raise IrpruneError(
            f"{count} ranks are asked for and there {'is' if ranks.size == 1 else 'are'} {ranks.size}",
            option("ranks"),
            f"start the program with torchrun --nproc-per-node {count}",
        )
    token = _current.set(ranks)
    try:
        yield ranks
        ranks.end()
    except Exception as error:
        with contextlib.suppress(IrpruneError):  # of others; ours is raised
            ranks.end(error)
        raise
    finally:
        _current.reset(token)
        ranks.leave()


@contextlib.contextmanager
def by_itself() -> Iterator[None]:
    """This process does what is inside alone, while the others of its ranks do something else."""
    token = _current.set(Ranks())
    try:
        yield
    finally:
        _current.reset(token)


def initialised() -> bool:
    """Whether this process belongs to a group of several ranks."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is not None
        and distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def launched() -> bool:
    """Whether ``torchrun`` started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def speaks() -> bool:
    """Whether what this process says is said once: it is alone, or the first that torchrun
    started."""
    return not launched() or os.environ.get("RANK") == "0"


@contextlib.contextmanager
def launched_group() -> Iterator[None]:
    """The processes that torchrun started are a group inside, and leave it together: an error is
    said by the first of them before another ends."""
    if not launched() or initialised():
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield
    finally:
        # A rank that is gone, or that does not come
        with contextlib.suppress(RuntimeError):
            dist.monitored_barrier(timeout=timedelta(seconds=10))
        dist.destroy_process_group()


def _group() -> ProcessGroup | None:
    """A gloo group of the ranks of the user's group, made once; None where there is no group."""
    if not initialised():
        return None
    import torch.distributed as dist

    users = dist.group.WORLD
    made: ProcessGroup | None = None
    if _groups and _groups[0][0]() is users:
        made = _groups[0][1]()
    if made is None:
        made = dist.new_group(backend="gloo")
        _groups[:] = [(ref(users), ref(made))]
    return made


# -- errors ----------------------------------------------------------------------------------------

ErrorText = tuple[bool, str, str, str]


def _error_text(error: BaseException) -> ErrorText:
    """Whether it is a failed check; what, where and hint."""
    if isinstance(error, IrpruneError):
        return isinstance(error, CheckFailed), error.what, error.where, error.hint
    return False, gist(error), "", "see the traceback of that rank"


def _first_error(told: Sequence[ErrorText | None]) -> IrpruneError:
    """The error of the first rank that has one."""
    rank, (check, what, where, hint) = next((r, t) for r, t in enumerate(told) if t is not None)
    kind = CheckFailed if check else IrpruneError
    return kind(what, f"{where}, rank {rank}" if where else f"rank {rank}", hint)


# -- messages --------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Tensors of any type go as arrays of bytes, which pickle hands out instead of copying them."""

    def reducer_override(self, obj: Any) -> Any:
        import torch

        if isinstance(obj, torch.Tensor):
            flat = obj.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            return _tensor, (flat.view(torch.uint8).numpy(), obj.dtype, tuple(obj.shape))
        return NotImplemented


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.from_numpy(data).view(dtype).reshape(shape)


def _packed(value: Any) -> list[torch.Tensor]:
    """``value`` as bytes: what it is made of, then the numbers of its arrays."""
    import torch

    buffers: list[pickle.PickleBuffer] = []
    out = io.BytesIO()
    _Pickler(out, protocol=5, buffer_callback=buffers.append).dump(value)
    arrays = [np.frombuffer(out.getvalue(), dtype=np.uint8)]
    arrays += [np.frombuffer(b.raw(), dtype=np.uint8) for b in buffers]
    return [torch.from_numpy(a if a.flags.writeable else a.copy()) for a in arrays]


def _unpacked(parts: Sequence[torch.Tensor]) -> Any:
    # From a rank of the same program, over a connection that torch.distributed has made
    return pickle.loads(parts[0].numpy().tobytes(), buffers=[p.numpy() for p in parts[1:]])
