"""One of several processes of a job: what it shares with the others, and how the first process leads them."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from mirabelle.errors import UserError, first_line, is_out_of_memory
from mirabelle.run.launch import Launch, meeting_point

if TYPE_CHECKING:
    from torch import Tensor

_MEETING, _COMPUTING, _WAITING = timedelta(minutes=30), timedelta(hours=6), timedelta(days=60)  # before one gives up
_REPORTS = timedelta(seconds=20)  # within which the first process ends a call in which another has failed
_LOST = ("/gloo/", "gloo::", "connection closed by peer", "connection reset by peer")  # in what torch says of a lost process
_LARGE = 1 << 20  # bytes of memory behind a tensor
T = TypeVar("T")


class LedElsewhereError(UserError):
    """The first process has ended with an error, of which it tells the user; the others end with it."""


class Group:
    """The processes of a job, seen from one of them.

    Args:
        launch: its place.

    Attributes:
        launch: as given.
        together: whether all processes compute the same call now.
        has_followers: whether this is the first process, and the others take part in what it calls.
        reductions: torch's process group for sums over the processes.
    """

    def __init__(self, launch: Launch) -> None:
        import torch
        from torch import distributed

        self.launch, self.together, self.has_followers = launch, False, False
        self._names: dict[int, str] = {}
        self._kept: list[object] = []  # so that no other object gets the identity of a named one
        self._calls, self._broken = 0, False
        self._pending: tuple[str, Any] | None = None
        for name, value in meeting_point(os.environ).items():
            os.environ.setdefault(name, value)
        local = {"LOCAL_RANK": str(launch.local_rank), "LOCAL_WORLD_SIZE": str(launch.local_count)}
        os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.count), **local)
        try:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            if not distributed.is_initialized():
                distributed.init_process_group(backend, timeout=_MEETING)
                atexit.register(self.close)
            self._store = distributed.PrefixStore("mirabelle", distributed.distributed_c10d._get_default_store())  # type: ignore[attr-defined]
            self.reductions = distributed.new_group(backend=backend, timeout=_COMPUTING)
            self._messages = distributed.new_group(backend="gloo", timeout=_WAITING)
        except (RuntimeError, ValueError, OSError) as error:
            message = f"process {launch.rank} of {launch.count} cannot reach the others: {first_line(error)}"
            raise UserError("E204", message, "start all of them by torchrun, accelerate launch or srun") from error
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // launch.local_count))

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.launch.rank == 0

    # What all processes do within a call -------------------------------------------------------------------------------------

    def share(self, value: T | None = None) -> T:
        """The value of the first process, in every process."""
        kind, content = self._exchanged(("value", value) if self.leads else None)
        if kind != "value":
            self._pending = (kind, content)
            raise LedElsewhereError("E204", "the first process has ended what was computed together", "see its message")
        found: T = content
        return found

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order, in the first process; an empty list in the others."""
        from torch import distributed

        values: list[Any] = [None] * self.launch.count
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        distributed.gather_object(data, values if self.leads else None, dst=0, group=self._messages)
        return [pickle.loads(one) for one in values] if self.leads else []  # noqa: S301 (of processes of this job)

    def any(self, here: bool) -> bool:  # noqa: FBT001 (a value, not an option)
        """Whether something is so in any process."""
        found = self.gather(here)
        return bool(self.share(any(found)))

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums of some numbers over all processes."""
        import torch
        from torch import distributed

        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, group=self._messages)
        return tensor.tolist()

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, written into it."""
        from torch import distributed

        distributed.all_reduce(tensor, group=self.reductions)
        return tensor

    # The first process -------------------------------------------------------------------------------------------------------

    def lead(self, objects: Mapping[str, object], work: Callable[[], T]) -> T:
        """The result of `work`, which the others get, too.

        Args:
            objects: that every process has, by names which are the same in all of them: they are not sent.
            work: may call functions in all processes.
        """
        self._names = {id(one): name for name, one in objects.items()}
        self._kept, self.has_followers = list(objects.values()), True
        try:
            result = work()
            self._tell(self._end_of(result))
        except BaseException as error:
            code = error.code if isinstance(error, UserError) else "E204"
            if self._broken:  # the others wait for this process within a call
                self.close()
            else:
                self._tell(("failed", (code, first_line(error))))
            raise
        finally:
            self.has_followers = False
        return result

    def _end_of(self, result: Any) -> tuple[str, Any]:
        try:
            return "end", self._packed(result)
        except UserError:
            return "end", self._packed(None)

    def packed(self, function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]) -> bytes:
        """A call, to be sent by `call`.

        Raises:
            UserError: E121 if it cannot be pickled.
        """
        return self._packed((function, arguments, named))

    def call(self, content: bytes, function: Callable[..., T], arguments: Sequence[Any], named: Mapping[str, Any]) -> T:
        """The result of a function in the first process, while the others call it with copies of the arguments.

        Args:
            content: the call, as `packed` gives it.
            function: as there.
            arguments: as there.
            named: as there.
        """
        self._calls += 1
        try:
            self._exchanged(("call", (self._calls, content)))
            self.together = True
            result = function(*arguments, **named)
        except BaseException as error:
            self._broken = True  # until it is known that the others have ended the call, too
            self._end_call()
            if not isinstance(error, Exception):
                raise
            if (explained := self._explained(error)) is not error:
                raise explained from error
            self._broken = not self._all_have_ended_call()
            raise
        self._end_call()
        return result

    def _end_call(self) -> None:
        self.together = False
        with contextlib.suppress(RuntimeError):
            self._store.set(f"ended/{self._calls}", "ended")

    def _all_have_ended_call(self) -> bool:
        try:
            self._store.wait([f"out/{self._calls}/{rank}" for rank in range(1, self.launch.count)], _REPORTS)
        except RuntimeError:
            return False
        return True

    def _packed(self, value: Any) -> bytes:
        file = io.BytesIO()
        try:
            _Pickler(file, self._names).dump(value)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            message = f"the model or a setting cannot be sent to the other processes: {first_line(error)}"
            raise UserError("E121", message, "define its classes and functions at the top of a module") from error
        return file.getvalue()

    def _tell(self, message: tuple[str, Any]) -> None:
        with contextlib.suppress(RuntimeError, UserError):  # nobody is there any more
            self._exchanged(message)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """A context in which the end of another process is told as such."""
        try:
            yield
        except RuntimeError as error:
            if not self.leads and _is_lost(error):
                raise LedElsewhereError("E204", "another process has ended", "see its message") from error
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> Exception:
        """What another process has told of its end, if an error comes from that; else the error itself."""
        if isinstance(error, UserError) or not isinstance(error, RuntimeError) or not _is_lost(error):
            return error
        for rank in range(1, self.launch.count):
            with contextlib.suppress(RuntimeError):
                if self._store.check([f"failed/{rank}"]):
                    code, message, remedy = json.loads(self._store.get(f"failed/{rank}"))
                    return UserError(code, f"process {rank}: {message}", remedy)
        message = f"one of the {self.launch.count} processes has ended"
        return UserError("E204", message, "run the same command again to continue from the last checkpoint")

    # The other processes -----------------------------------------------------------------------------------------------------

    def follow(self, objects: Mapping[str, object]) -> Any:
        """Take part in what the first process calls, until it has its result, which is returned.

        Args:
            objects: as those of the first process, by the same names.

        Raises:
            LedElsewhereError: if the first process has failed, or is gone.
            UserError: if this process has failed; the first one is told.
        """
        while True:
            try:
                kind, content = self._exchanged(None)
            except RuntimeError as error:
                raise LedElsewhereError("E204", "the first process has ended", "see its message") from error
            if kind == "failed":
                code, text = content
                raise LedElsewhereError(code, text, "see the message of the first process")
            if kind == "end":
                return _Unpickler(io.BytesIO(content), objects).load()
            number, call = content
            self._take_part(number, call, objects)

    def _take_part(self, number: int, content: bytes, objects: Mapping[str, object]) -> None:
        """Compute a call; an error that the first process has as well is left to it."""
        self.together = True
        try:
            function, arguments, named = _Unpickler(io.BytesIO(content), objects).load()
            function(*arguments, **named)
        except LedElsewhereError:
            return
        except Exception as error:
            if self._ends_for_all(error, number):
                return
            if isinstance(error, UserError):  # which the first process tells the user
                raise LedElsewhereError(error.code, error.message, error.remedy) from error
            raise
        finally:
            self.together = False
            with contextlib.suppress(RuntimeError):
                self._store.set(f"out/{number}/{self.launch.rank}", "out")

    def _ends_for_all(self, error: Exception, number: int) -> bool:
        """Tell the first process of an error; return whether it has ended the call, too, so that the job may go on."""
        told = error if isinstance(error, UserError) else UserError("E204", f"{type(error).__name__}: {first_line(error)}")
        try:
            self._store.set(f"failed/{self.launch.rank}", json.dumps([told.code, told.message, told.remedy]))
            self._store.wait([f"ended/{number}"], _REPORTS)
            self._store.delete_key(f"failed/{self.launch.rank}")
        except RuntimeError:
            if _is_lost(error):
                raise LedElsewhereError("E204", "another process has ended", "see its message") from error
            return False
        return True

    def _exchanged(self, message: Any) -> tuple[str, Any]:
        """A message of the first process to all others, in each of them."""
        import torch
        from torch import distributed

        if self._pending is not None:
            found, self._pending = self._pending, None
            return found
        data = bytearray(pickle.dumps(message, pickle.HIGHEST_PROTOCOL)) if self.leads else bytearray()
        size = torch.tensor([len(data)])
        distributed.broadcast(size, 0, group=self._messages)
        content = torch.frombuffer(data, dtype=torch.uint8) if self.leads else torch.empty(int(size), dtype=torch.uint8)
        distributed.broadcast(content, 0, group=self._messages)
        if self.leads:
            return message  # type: ignore[no-any-return]
        kind, given = pickle.loads(content.numpy().data)  # noqa: S301 (of the first process of this job)
        return kind, given

    def close(self) -> None:
        """Leave the group."""
        from torch import distributed

        if distributed.is_initialized():
            with contextlib.suppress(RuntimeError):
                distributed.destroy_process_group()


class _Pickler(pickle.Pickler):
    """Writes names in the place of objects that every process has."""

    def __init__(self, file: io.BytesIO, names: Mapping[int, str]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._names = names

    def reducer_override(self, obj: Any) -> Any:
        """A tensor that is a part of a much larger one is written alone: torch writes the whole memory behind it."""
        import torch

        if type(obj) is torch.Tensor and obj.is_leaf and obj.layout == torch.strided and not obj.is_meta:
            whole = obj.untyped_storage().nbytes()
            if whole > _LARGE and whole > 2 * obj.nbytes:
                alone: Any = obj.detach().clone()
                return alone.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return NotImplemented

    def persistent_id(self, obj: object) -> str | None:
        return self._names.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: Mapping[str, object]) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, pid: str) -> object:
        return self._objects[pid]


def _is_lost(error: Exception) -> bool:
    """Whether an error comes from torch, because another process is gone."""
    from torch import distributed

    text = str(error).lower()
    return isinstance(error, distributed.DistError) or any(part in text for part in _LOST)
