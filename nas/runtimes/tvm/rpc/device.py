"""`Remote`: a board behind TVM RPC, as a `Place`."""

from __future__ import annotations

import gc
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, rpc

from nas.errors import BoardLostError, DeviceError, MeasurementError, NasError
from nas.runtimes.tvm.rpc import board, connection
from nas.runtimes.tvm.rpc.address import RpcTarget
from nas.runtimes.tvm.rpc.board import Board
from nas.runtimes.tvm.rpc.connection import Connection
from nas.runtimes.tvm.rpc.linking import Compiled, linker_for


class Remote:
    """A board that is connected to when it is first needed. See `nas.runtimes.tvm.device`.

    A server has one session at a time, and a tracker gives a board to one session: `release` it for
    others. Whatever needs the board raises BoardLostError where it does not answer, or no longer.

    Args:
        target: the board.
        code: what kernels for it are compiled for.
        threads: that share the loops of one kernel.
    """

    kept_bytes = 128 << 20  # Memory may be scarce there.
    copies_inputs = True

    def __init__(self, target: RpcTarget, code: tvm.target.Target, threads: int) -> None:
        self._target, self._code, self._threads = target, code, threads
        self._linker = linker_for(target)
        self._connected: Connection | None = None
        self._known: Board | None = None
        self._names = itertools.count()

    @property
    def device(self) -> tvm.runtime.Device:
        """See `Place.device`."""
        return self._session().cpu(0)

    @property
    def boards(self) -> int:
        """How many equal boards there are. Raises BoardLostError as `connection.count` does."""
        return connection.count(self._target)

    def module(self, library: tvm.runtime.Module) -> tvm.runtime.Module:
        """See `Place.module`."""
        session = self._session()
        with self._watched():
            return self._loaded(session, library)

    def virtual_machine(self, executable: relax.VMExecutable) -> relax.VirtualMachine:
        """See `Place.virtual_machine`."""
        session = self._session()
        with self._watched():
            return relax.VirtualMachine(self._loaded(session, executable), self.device)

    def tensor(self, array: NDArray[Any]) -> tvm.runtime.Tensor:
        """See `Place.tensor`."""
        device = self.device
        with self._watched():
            return tvm.runtime.tensor(np.ascontiguousarray(array), device)

    def timing(self, threads: int) -> AbstractContextManager[None]:
        """See `Place.timing`. The board's cores are the board's matter: nothing here is pinned."""
        return self._watched()

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """See `Place.processor`."""
        known = self._board()
        return known.processor, known.features

    def recorded(self) -> Mapping[str, Any]:
        """See `Place.recorded`."""
        return self._board().recorded

    def release(self) -> None:
        """Ends the session as soon as nothing that came from it is left; the next use opens one."""
        self._connected = None
        # Networks and their tensors hold on to it in circles.
        gc.collect()

    def _session(self) -> rpc.RPCSession:
        if self._connected is None:
            self._connected = connection.connect(self._target)
            try:
                with self._watched():
                    self._meet(*self._connected)
            except BaseException:
                self.release()
                raise
        return self._connected.session

    def _meet(self, session: rpc.RPCSession, where: str) -> None:
        """Sets a board up and finds out what it is.

        Raises DeviceError for another than before, or one that does not run what is compiled.
        """
        big_cores_first = 1
        session.get_function("runtime.config_threadpool")(big_cores_first, self._threads)
        compiled = tvm.tirx.build(board.reader(), self._code, "tirx")
        try:
            library = self._loaded(session, compiled)
        except MeasurementError as error:
            raise DeviceError(error.message, remedy=error.remedy) from error
        read = board.read_with(library, session.cpu(0))
        found = board.describe(read, self._target)
        known = self._known or found
        if (known.processor, known.features) != (found.processor, found.features):
            raise DeviceError(
                f"{where} is a {found.processor}, and the board before was a {known.processor}, "
                "or their features differ.",
                remedy="Boards behind one address or tracker key are equal; give others another.",
            )
        self._known = found

    def _board(self) -> Board:
        if self._known is None:
            self._session()
        assert self._known is not None
        return self._known

    def _loaded(self, session: rpc.RPCSession, compiled: Compiled) -> tvm.runtime.Module:
        """Compiled code, linked, sent and loaded.

        Raises MeasurementError where it cannot be linked, or the board cannot load it.
        """
        # Loaders tell libraries by their names, so no two of a session have the same.
        name = f"nas{next(self._names)}{self._linker.suffix}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            self._linker.export(compiled, path)
            session.upload(str(path))
        try:
            return session.load_module(name)
        except RuntimeError as error:
            if not connection.answers(session):
                raise
            raise MeasurementError(
                f"{self._target.address} cannot load what is compiled for {self._target.triple}: "
                f"{_telling_line(error)}",
                remedy=self._advice,
            ) from error
        finally:
            if connection.answers(session):
                session.remove(name)

    @property
    def _advice(self) -> str:
        correct = "Correct triple= in the target, if that is not what the board is."
        if self._linker.command is not None:
            return correct
        return (
            f"{correct} Nothing here links for it, so it was to do that itself: install "
            "gcc-aarch64-linux-gnu or lld here (Debian's names), or gcc on the board."
        )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Makes an error inside a BoardLostError if the board does not answer any more."""
        try:
            yield
        except NasError:
            raise
        except Exception as error:
            connected = self._connected
            if connected is not None and not connection.answers(connected.session):
                self.release()
                raise BoardLostError(
                    f"The board {connected.where} was lost ({_telling_line(error)}).",
                    remedy="See that it has power and network and that its RPC server runs.",
                ) from error
            raise


def _telling_line(error: Exception) -> str:
    """Of an error from afar, which may be a compiler's: the last line that speaks of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or [repr(error)]
    return telling[-1][:300]
