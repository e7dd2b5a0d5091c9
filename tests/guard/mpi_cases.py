"""One case for each MPI call that writes to the program's memory.

A case is a function of a `Stage`. It makes the call write to ``stage.into`` (bytes inside a protected array), and
returns what should then be there. Every rank runs the same cases in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass
class Stage:
    """What a case works on.

    Attributes
    ----------
    comm : MPI.Intracomm
        All ranks.
    into : ndarray of uint8, shape (size * n,)
        Protected memory to receive into; its length is a multiple of the number of ranks.
    folder : Path
        For files; empty.
    """

    comm: MPI.Intracomm
    into: Bytes
    folder: Path

    @property
    def n(self) -> int:
        """Bytes for each rank."""
        return self.into.size // self.comm.size

    @property
    def left(self) -> int:
        """The rank that this one receives from."""
        return (self.comm.rank - 1) % self.comm.size

    @property
    def right(self) -> int:
        """The rank that this one sends to."""
        return (self.comm.rank + 1) % self.comm.size

    def message(self, sender: int, size: int, receiver: int = 0) -> Bytes:
        """What `sender` sends, which no receiver expects by chance."""
        turn = (np.arange(251) * 7 + 31 * sender + 11 * receiver + 5) % 251
        return np.tile(turn.astype(np.uint8), size // 251 + 1)[:size]

    def each(self, receiver: int = 0) -> Bytes:
        """What all ranks send, one after the other."""
        return np.concatenate([self.message(r, self.n, receiver) for r in range(self.comm.size)])


Case = Callable[[Stage], Bytes]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Register a case under the name of the call."""
    CASES[function.__name__] = function
    return function


def _byte(buffer: Bytes) -> Any:
    return [buffer, MPI.BYTE]


def _words(stage: Stage) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """This rank's operand of a reduction with BOR, and its result over all ranks."""
    size = stage.into.size
    operands = [stage.message(r, size) for r in range(stage.comm.size)]
    return operands[stage.comm.rank], np.bitwise_or.reduce(operands)


# -- messages between two ranks -----------------------------------------------------------------------------------


def _exchange(stage: Stage, receive: Callable[[], Any]) -> Bytes:
    size = stage.into.size
    request = stage.comm.Isend(_byte(stage.message(stage.comm.rank, size)), stage.right)
    receive()
    request.Wait()
    return stage.message(stage.left, size)


@case
def Recv(stage: Stage) -> Bytes:
    """A blocking receive."""
    return _exchange(stage, lambda: stage.comm.Recv(_byte(stage.into), stage.left))


@case
def Irecv(stage: Stage) -> Bytes:
    """A receive that is waited for."""
    return _exchange(stage, lambda: stage.comm.Irecv(_byte(stage.into), stage.left).Wait())


@case
def Irecv_waitall(stage: Stage) -> Bytes:
    """Two receives into the halves of the buffer, which meet within a block."""
    size = stage.into.size
    sent = stage.message(stage.comm.rank, size)
    half = size // 2
    requests = [stage.comm.Irecv(_byte(stage.into[:half]), stage.left, 1)]
    requests.append(stage.comm.Irecv(_byte(stage.into[half:]), stage.left, 2))
    requests.append(stage.comm.Isend(_byte(sent[:half]), stage.right, 1))
    requests.append(stage.comm.Isend(_byte(sent[half:]), stage.right, 2))
    MPI.Request.Waitall(requests)
    return stage.message(stage.left, size)


@case
def Recv_init(stage: Stage) -> Bytes:
    """A persistent receive."""
    request = stage.comm.Recv_init(_byte(stage.into), stage.left)

    def receive() -> None:
        request.Start()
        request.Wait()

    try:
        return _exchange(stage, receive)
    finally:
        request.Free()


@case
def Mrecv(stage: Stage) -> Bytes:
    """A matched receive."""
    return _exchange(stage, lambda: stage.comm.Mprobe(stage.left).Recv(_byte(stage.into)))


@case
def Imrecv(stage: Stage) -> Bytes:
    """A matched receive that is waited for."""
    return _exchange(stage, lambda: stage.comm.Mprobe(stage.left).Irecv(_byte(stage.into)).Wait())


@case
def Sendrecv(stage: Stage) -> Bytes:
    """Sending and receiving at once."""
    size = stage.into.size
    stage.comm.Sendrecv(
        _byte(stage.message(stage.comm.rank, size)), stage.right, recvbuf=_byte(stage.into), source=stage.left
    )
    return stage.message(stage.left, size)


@case
def Sendrecv_replace(stage: Stage) -> Bytes:
    """The same in one buffer; what is sent is what the cut saw."""
    sent = stage.comm.allgather(stage.into.copy())
    stage.comm.Sendrecv_replace(_byte(stage.into), stage.right, source=stage.left)
    return sent[stage.left]


@case
def Isendrecv(stage: Stage) -> Bytes:
    """Sending and receiving at once, waited for."""
    size = stage.into.size
    sent = stage.message(stage.comm.rank, size)
    stage.comm.Isendrecv(_byte(sent), stage.right, recvbuf=_byte(stage.into), source=stage.left).Wait()
    return stage.message(stage.left, size)


@case
def Isendrecv_replace(stage: Stage) -> Bytes:
    """The same in one buffer."""
    sent = stage.comm.allgather(stage.into.copy())
    stage.comm.Isendrecv_replace(_byte(stage.into), stage.right, source=stage.left).Wait()
    return sent[stage.left]


@case
def Precv_init(stage: Stage) -> Bytes:
    """A receive in partitions."""
    size = stage.into.size
    sent = stage.message(stage.comm.rank, size)
    parts = stage.comm.size
    out = stage.comm.Psend_init([sent, size // parts, MPI.BYTE], parts, stage.right, 0)
    back = stage.comm.Precv_init([stage.into, size // parts, MPI.BYTE], parts, stage.left, 0)
    MPI.Prequest.Startall([out, back])
    out.Pready_range(0, parts - 1)
    MPI.Request.Waitall([out, back])
    out.Free()
    back.Free()
    return stage.message(stage.left, size)


@case
def derived_types(stage: Stage) -> Bytes:
    """A strided type, an element that begins before its address, and absolute addresses from MPI_BOTTOM."""
    size = stage.into.size
    expected = stage.into.copy()
    if size < 16:
        return expected
    half = size // 2
    kinds = [
        MPI.BYTE.Create_vector(half // 2, 1, 2),  # every other byte of the first half
        MPI.BYTE.Create_hindexed([half - half // 2], [MPI.Get_address(stage.into) + half]),
    ]
    sent = stage.message(stage.comm.rank, half)
    got = stage.message(stage.left, half)
    for tag, kind in enumerate(kinds):
        kind.Commit()
        where = [stage.into, 1, kind] if tag == 0 else [MPI.BOTTOM, 1, kind]
        count = kind.Get_size()
        request = stage.comm.Isend(_byte(sent[:count]), stage.right, tag)
        stage.comm.Recv(where, stage.left, tag)
        request.Wait()
        kind.Free()
    expected[: 2 * (half // 2) : 2] = got[: half // 2]
    expected[half : half + half - half // 2] = got[: half - half // 2]
    return expected


# -- collectives: blocking, not blocking, persistent -----------------------------------------------------------------


def _collective(name: str, arguments: Callable[[Stage], tuple[tuple[Any, ...], Bytes]], where: str = "comm") -> None:
    """Register the three forms of a collective; `arguments` gives those of the call, and what it writes."""

    def run(stage: Stage, form: str) -> Bytes:
        values, expected = arguments(stage)
        comm = stage.comm if where == "comm" else _ring(stage)
        try:
            result = getattr(comm, form)(*values)
            if form.endswith("_init"):
                result.Start()
            if result is not None:
                result.Wait()
            if form.endswith("_init"):
                result.Free()
        finally:
            if where != "comm":
                comm.Free()
        return expected

    for form in (name, f"I{name.lower()}", f"{name}_init"):
        CASES[form] = lambda stage, form=form: run(stage, form)  # type: ignore[misc]


def _ring(stage: Stage) -> Any:
    """A communicator in which each rank hears from all ranks, in order."""
    everybody = list(range(stage.comm.size))
    return stage.comm.Create_dist_graph_adjacent(everybody, everybody)


def _mine(stage: Stage) -> Bytes:
    return stage.message(stage.comm.rank, stage.n)


def _for_each(stage: Stage) -> Bytes:
    """What this rank sends to each rank in an exchange of all with all."""
    return np.concatenate([stage.message(stage.comm.rank, stage.n, r) for r in range(stage.comm.size)])


def _counts(stage: Stage) -> tuple[list[int], list[int]]:
    return [stage.n] * stage.comm.size, [stage.n * r for r in range(stage.comm.size)]


def _at_root(stage: Stage, expected: Bytes) -> tuple[Any, Bytes]:
    """Receive buffer of the root; elsewhere nothing is received."""
    if stage.comm.rank == 0:
        return stage.into, expected
    return None, stage.into.copy()


def _bcast(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    size = stage.into.size
    mine = stage.message(0, size) if stage.comm.rank == 0 else stage.into
    return ([mine, MPI.BYTE],), stage.into.copy() if stage.comm.rank == 0 else stage.message(0, size)


def _gather(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    buffer, expected = _at_root(stage, stage.each())
    return (_byte(_mine(stage)), None if buffer is None else [buffer, stage.n, MPI.BYTE]), expected


def _gatherv(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    buffer, expected = _at_root(stage, stage.each())
    return (_byte(_mine(stage)), None if buffer is None else [buffer, _counts(stage), MPI.BYTE]), expected


def _scatter(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    expected = stage.into.copy()
    expected[: stage.n] = stage.message(stage.comm.rank, stage.n)
    source = [stage.each(), stage.n, MPI.BYTE] if stage.comm.rank == 0 else None
    return (source, [stage.into, stage.n, MPI.BYTE]), expected


def _scatterv(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    expected = stage.into.copy()
    expected[: stage.n] = stage.message(stage.comm.rank, stage.n)
    source = [stage.each(), _counts(stage), MPI.BYTE] if stage.comm.rank == 0 else None
    return (source, [stage.into, stage.n, MPI.BYTE]), expected


def _allgather(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    return (_byte(_mine(stage)), [stage.into, stage.n, MPI.BYTE]), stage.each()


def _allgatherv(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    return (_byte(_mine(stage)), [stage.into, _counts(stage), MPI.BYTE]), stage.each()


def _alltoall(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    return ([_for_each(stage), stage.n, MPI.BYTE], [stage.into, stage.n, MPI.BYTE]), stage.each(stage.comm.rank)


def _alltoallv(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    both = _counts(stage)
    return ([_for_each(stage), both, MPI.BYTE], [stage.into, both, MPI.BYTE]), stage.each(stage.comm.rank)


def _alltoallw(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    counts, displacements = _counts(stage)
    kinds = [MPI.BYTE] * stage.comm.size
    send = [_for_each(stage), (counts, displacements), kinds]
    return (send, [stage.into, (counts, displacements), kinds]), stage.each(stage.comm.rank)


def _reduce(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    mine, expected = _words(stage)
    buffer, expected = _at_root(stage, expected)
    return ([mine, MPI.UINT8_T], None if buffer is None else [buffer, MPI.UINT8_T], MPI.BOR), expected


def _allreduce(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    mine, expected = _words(stage)
    return ([mine, MPI.UINT8_T], [stage.into, MPI.UINT8_T], MPI.BOR), expected


def _reduce_scatter(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    mine, everything = _words(stage)
    expected = stage.into.copy()
    at = stage.n * stage.comm.rank
    expected[: stage.n] = everything[at : at + stage.n]
    target = [stage.into, stage.n, MPI.UINT8_T]
    return ([mine, MPI.UINT8_T], target, [stage.n] * stage.comm.size, MPI.BOR), expected


def _reduce_scatter_block(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    (send, target, _, op), expected = _reduce_scatter(stage)
    return (send, target, op), expected


def _scan(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    size = stage.into.size
    operands = [stage.message(r, size) for r in range(stage.comm.rank + 1)]
    return ([operands[-1], MPI.UINT8_T], [stage.into, MPI.UINT8_T], MPI.BOR), np.bitwise_or.reduce(operands)


def _exscan(stage: Stage) -> tuple[tuple[Any, ...], Bytes]:
    size = stage.into.size
    operands = [stage.message(r, size) for r in range(stage.comm.rank)]
    expected = np.bitwise_or.reduce(operands) if operands else stage.into.copy()
    mine = stage.message(stage.comm.rank, size)
    return ([mine, MPI.UINT8_T], [stage.into, MPI.UINT8_T], MPI.BOR), expected


_collective("Bcast", _bcast)
_collective("Gather", _gather)
_collective("Gatherv", _gatherv)
_collective("Scatter", _scatter)
_collective("Scatterv", _scatterv)
_collective("Allgather", _allgather)
_collective("Allgatherv", _allgatherv)
_collective("Alltoall", _alltoall)
_collective("Alltoallv", _alltoallv)
_collective("Alltoallw", _alltoallw)
_collective("Reduce", _reduce)
_collective("Allreduce", _allreduce)
_collective("Reduce_scatter", _reduce_scatter)
_collective("Reduce_scatter_block", _reduce_scatter_block)
_collective("Scan", _scan)
_collective("Exscan", _exscan)
_collective("Neighbor_allgather", _allgather, "ring")
_collective("Neighbor_allgatherv", _allgatherv, "ring")
_collective("Neighbor_alltoall", _alltoall, "ring")
_collective("Neighbor_alltoallv", _alltoallv, "ring")
_collective("Neighbor_alltoallw", _alltoallw, "ring")


@case
def Allgather_in_place(stage: Stage) -> Bytes:
    """Each rank's own share lies in the protected buffer already."""
    own = slice(stage.n * stage.comm.rank, stage.n * (stage.comm.rank + 1))
    shares = stage.comm.allgather(stage.into[own].copy())
    stage.comm.Allgather(MPI.IN_PLACE, [stage.into, stage.n, MPI.BYTE])
    return np.concatenate(shares)


@case
def Neighbor_alltoall_on_a_grid(stage: Stage) -> Bytes:
    """The neighbours of a cartesian topology: two of each rank on a ring.

    Both get the same, because libraries differ in what comes first where both are one and the same rank.
    """
    grid = stage.comm.Create_cart([stage.comm.size], periods=[True])
    n = stage.into.size // 2
    low, high = grid.Shift(0, 1)
    mine = np.tile(stage.message(stage.comm.rank, n), 2)
    grid.Neighbor_alltoall([mine, n, MPI.BYTE], [stage.into[: 2 * n], n, MPI.BYTE])
    grid.Free()
    expected = stage.into.copy()
    expected[:n] = stage.message(low, n)
    expected[n : 2 * n] = stage.message(high, n)
    return expected


# -- one-sided ------------------------------------------------------------------------------------------------------


def _get(stage: Stage, fetch: Callable[[MPI.Win, int], Any]) -> Bytes:
    size = stage.into.size
    shown = stage.message(stage.comm.rank, size)
    window = MPI.Win.Create(shown, comm=stage.comm)
    window.Lock(stage.left, MPI.LOCK_SHARED)
    request = fetch(window, stage.left)
    if request is not None:
        request.Wait()
    window.Unlock(stage.left)
    stage.comm.Barrier()
    window.Free()
    return stage.message(stage.left, size)


@case
def Get(stage: Stage) -> Bytes:
    """Reading from another rank's window."""
    return _get(stage, lambda window, rank: window.Get(_byte(stage.into), rank))


@case
def Rget(stage: Stage) -> Bytes:
    """The same with a request."""
    return _get(stage, lambda window, rank: window.Rget(_byte(stage.into), rank))


@case
def Get_accumulate(stage: Stage) -> Bytes:
    """Reading and adding nothing."""
    none = np.zeros(stage.into.size, np.uint8)
    return _get(
        stage,
        lambda window, rank: window.Get_accumulate([none, MPI.UINT8_T], [stage.into, MPI.UINT8_T], rank, op=MPI.NO_OP),
    )


@case
def Rget_accumulate(stage: Stage) -> Bytes:
    """The same with a request."""
    none = np.zeros(stage.into.size, np.uint8)
    return _get(
        stage,
        lambda window, rank: window.Rget_accumulate([none, MPI.UINT8_T], [stage.into, MPI.UINT8_T], rank, op=MPI.NO_OP),
    )


@case
def Fetch_and_op(stage: Stage) -> Bytes:
    """One element is fetched."""
    expected = stage.into.copy()
    expected[0] = _get(
        stage,
        lambda window, rank: window.Fetch_and_op(
            [np.zeros(1, np.uint8), MPI.UINT8_T], [stage.into[:1], MPI.UINT8_T], rank, op=MPI.NO_OP
        ),
    )[0]
    return expected


@case
def Compare_and_swap(stage: Stage) -> Bytes:
    """One element is compared."""
    expected = stage.into.copy()
    other = np.full(1, 255, np.uint8)  # no message holds it: nothing is swapped
    expected[0] = _get(
        stage,
        lambda window, rank: window.Compare_and_swap(
            [other, MPI.UINT8_T], [other, MPI.UINT8_T], [stage.into[:1], MPI.UINT8_T], rank
        ),
    )[0]
    return expected


@case
def Win_create(stage: Stage) -> Bytes:
    """A peer puts into this rank's window, which is protected memory."""
    size = stage.into.size
    window = MPI.Win.Create(stage.into, comm=stage.comm)
    sent = stage.message(stage.comm.rank, size)  # in use until the fence
    window.Fence()
    window.Put(_byte(sent), stage.right)
    window.Fence()
    window.Free()
    return stage.message(stage.left, size)


@case
def Win_attach(stage: Stage) -> Bytes:
    """The same in a window that memory is attached to."""
    size = stage.into.size
    window = MPI.Win.Create_dynamic(comm=stage.comm)
    window.Attach(stage.into)
    addresses = stage.comm.allgather(MPI.Get_address(stage.into))
    sent = stage.message(stage.comm.rank, size)
    window.Fence()
    window.Put(_byte(sent), stage.right, [addresses[stage.right], size, MPI.BYTE])
    window.Fence()
    window.Detach(stage.into)
    window.Free()
    return stage.message(stage.left, size)


# -- files ----------------------------------------------------------------------------------------------------------


def _file(name: str, offset: bool, finish: str | None = None, shared: bool = False) -> None:
    """Register a call that reads a file of all ranks' messages."""

    def run(stage: Stage) -> Bytes:
        size = stage.into.size
        path = stage.folder / "messages"
        if stage.comm.rank == 0:
            path.write_bytes(b"".join(stage.message(r, size).tobytes() for r in range(stage.comm.size)))
        stage.comm.Barrier()
        file = MPI.File.Open(stage.comm, str(path), MPI.MODE_RDONLY)
        rank = stage.comm.rank
        arguments: tuple[Any, ...] = (rank * size, _byte(stage.into)) if offset else (_byte(stage.into),)
        if not offset and not shared:
            file.Seek(rank * size)
        result = getattr(file, name)(*arguments)
        if finish is not None:
            getattr(file, finish)(_byte(stage.into))
        elif result is not None:
            result.Wait()
        file.Close()
        if name.endswith("shared"):  # in any order: each message was read by somebody
            heads = [stage.message(r, size) for r in range(stage.comm.size)]
            return next(h for h in heads if h[0] == stage.into[0])
        return stage.message(rank, size)

    CASES[f"File_{name}"] = run


_file("Read", offset=False)
_file("Read_all", offset=False)
_file("Read_shared", offset=False, shared=True)
_file("Read_ordered", offset=False, shared=True)
_file("Read_at", offset=True)
_file("Read_at_all", offset=True)
_file("Iread", offset=False)
_file("Iread_all", offset=False)
_file("Iread_shared", offset=False, shared=True)
_file("Iread_at", offset=True)
_file("Iread_at_all", offset=True)
_file("Read_all_begin", offset=False, finish="Read_all_end")
_file("Read_at_all_begin", offset=True, finish="Read_at_all_end")
_file("Read_ordered_begin", offset=False, finish="Read_ordered_end", shared=True)
