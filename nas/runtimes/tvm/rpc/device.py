"""`RemoteDevice`: a board behind TVM RPC."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from numpy.typing import NDArray
from tvm import relax, rpc

from nas.errors import DeviceError, ExportError, MeasurementError
from nas.latency import timing
from nas.runtimes.boards import connection
from nas.runtimes.boards.address import BoardDescription
from nas.runtimes.boards.connection import Board, Connection
from nas.runtimes.tvm.device import Device
from nas.runtimes.tvm.rpc import board
from nas.runtimes.tvm.rpc.address import RpcTarget
from nas.runtimes.tvm.rpc.toolchain import CompiledCode, linker_for


class RemoteDevice(Board, Device):
    """A board behind TVM RPC, as a `Device`. See `Board` for its session.

    Args:
        target: target that names the board.
        code_target: target for which TVM compiles code for the board.
        threads: number of threads that run one kernel.
    """

    cache_bytes = 128 << 20  # Boards may have little memory.
    library_bytes = 64 << 10

    def __init__(self, target: RpcTarget, code_target: tvm.target.Target, threads: int) -> None:
        super().__init__(target)
        self._target, self._code_target, self._threads = target, code_target, threads
        self._linker = linker_for(target)
        self._library_numbers = itertools.count()
        self._read_speed: Callable[[], float] | None = None

    @property
    def tvm_device(self) -> tvm.runtime.Device:
        """See `Device.tvm_device`."""
        return self.connection().session.cpu(0)

    @property
    def device_count(self) -> int:
        """Number of equal boards, including busy ones. Raises BoardLostError."""
        return connection.count_boards(self._target)

    def load_library(self, library: tvm.runtime.Module) -> tvm.runtime.Module:
        """See `Device.load_library`."""
        session = self.connection().session
        with self.detecting_loss():
            return self._upload(session, library)

    def load_network(self, executable: relax.VMExecutable) -> relax.VirtualMachine:
        """See `Device.load_network`."""
        session = self.connection().session
        with self.detecting_loss():
            return relax.VirtualMachine(self._upload(session, executable), self.tvm_device)

    def export_network(self, executable: relax.VMExecutable, path: Path) -> None:
        """See `Device.export_network`."""
        if self._linker.command is None:
            raise ExportError(
                "No linker for the board is installed on this machine.",
                remedy="Install gcc-aarch64-linux-gnu or lld (names of Debian packages), or name "
                "one with cc= in the target.",
            )
        self._linker.export(executable, path)

    def to_device(self, array: NDArray[Any]) -> tvm.runtime.Tensor:
        """See `Device.to_device`."""
        self.connection()
        with self.detecting_loss():
            return super().to_device(array)

    @contextmanager
    def timing_context(self, threads: int) -> Iterator[None]:
        """See `Device.timing_context`. No thread of this machine is pinned: kernels run there.

        The speed of the board's core is read.
        """
        with self.detecting_loss():
            self.connection()
            with timing.reading(self._speed):
                yield

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """See `Device.processor`."""
        description = self.describe()
        return description.processor, description.features

    def recorded(self) -> Mapping[str, Any]:
        """See `Device.recorded`."""
        return self.describe().recorded

    def release(self) -> None:
        """See `Board.release`."""
        self._read_speed = None
        super().release()

    def set_up(self, connection: Connection) -> BoardDescription:
        """Configure a board and read its description.

        Raises:
            DeviceError: the board does not run what is compiled for it.
        """
        session = connection.session
        big_cores_first = 1
        session.get_function("runtime.config_threadpool")(big_cores_first, self._threads)
        compiled = tvm.tirx.build(board.board_module(), self._code_target, "tirx")
        try:
            library = self._upload(session, compiled)
        except MeasurementError as error:
            raise DeviceError(error.message, remedy=error.remedy) from error
        read = board.file_reader(library, session.cpu(0))
        description = board.describe(read, self._target)
        self._read_speed = board.speed_reader(library, session.cpu(0))
        return description

    def read_speed(self) -> float:
        """See `Board.read_speed`."""
        self.connection()
        assert self._read_speed is not None
        return self._read_speed()

    def _upload(self, session: rpc.RPCSession, compiled: CompiledCode) -> tvm.runtime.Module:
        """Link compiled code, send it to the board and load it there.

        Raises:
            MeasurementError: the code cannot be linked, or the board cannot load it.
        """
        # Loaders identify libraries by their names, so the names of a session must differ.
        name = f"nas{next(self._library_numbers)}{self._linker.suffix}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            self._linker.export(compiled, path)
            session.upload(str(path))
        try:
            return session.load_module(name)
        except RuntimeError as error:
            if not connection.is_alive(session):
                raise
            raise MeasurementError(
                f"{self._target.address} cannot load code for {self._target.triple}: "
                f"{connection.error_line(error)}",
                remedy=self._loading_remedy,
            ) from error
        finally:
            if connection.is_alive(session):
                session.remove(name)

    @property
    def _loading_remedy(self) -> str:
        correct = "Correct triple= in the target, if the board has another."
        if self._linker.command is not None:
            return correct
        return (
            f"{correct} No linker for the board is installed on this machine, so the board links: "
            "install gcc-aarch64-linux-gnu or lld (names of Debian packages) on this machine, or "
            "gcc on the board."
        )
