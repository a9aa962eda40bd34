"""The current value of each thread and asyncio task, or of all of them, for predictors that several threads share."""

import abc
import contextlib
import contextvars
import dataclasses
import logging
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from stablesam_jax.errors import InputError

T = TypeVar("T")

# Not `warnings`: those may be errors, and whether threads overtake each other is a race.
_log = logging.getLogger("stablesam.predict")


class _Clearable(abc.ABC):
    """A value that can be removed."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Removes the value."""

    @contextlib.contextmanager
    def cleared_on_failure(self) -> Iterator[None]:
        """Clears the value if the context raises, so that the old one is not taken for the new."""
        try:
            yield
        except BaseException:
            self.clear()
            raise


class Shared(_Clearable, Generic[T]):
    """One value for all threads and tasks: the latest that any of them has set."""

    def __init__(self, value: T | None = None):
        self._value = value

    def set(self, value: T) -> None:
        """Sets the value of all."""
        self._value = value

    def clear(self) -> None:
        """Removes the value of all."""
        self._value = None

    def read(self) -> T | None:
        """The value of all, or None."""
        return self._value

    own = read


class Current(_Clearable, Generic[T]):
    """One value for each thread.

    - A thread reads the value that it has set.
    - A thread that has set none reads the latest value of the only thread that sets values. Once several threads have
      set values, this is an error, because the choice would be ambiguous.
    - An asyncio task reads the value that it has set, or the latest one from before it began. If another task of the
      thread has set a value since, this is an error.

    So a value never depends on a race. Pickling keeps the value that the pickling thread reads.

    A thread that reads its value a second time, after another thread has set one, may have meant that one. It still
    reads its own, but `warning` is logged, once.
    """

    def __init__(self, value: T | None = None, warning: str | None = None):
        self._lock = threading.Lock()
        self._of_thread = threading.local()  # .entry: latest value of this thread
        self._setter: threading.Thread | None = None  # the first thread that has set a value
        self._several = False  # whether other threads have set values too
        self._latest: _Entry[T] | None = None  # latest value of the first thread
        self._sets = 0  # number of values set by now
        self._warning = warning
        if value is not None:
            self.set(value)

    def __reduce__(self) -> Any:
        try:
            return Current, (self.read(), self._warning)
        except InputError:
            return Current, (None, self._warning)

    def set(self, value: T) -> None:
        """Sets the value of this thread and task."""
        entry, thread = _Entry(value), threading.current_thread()
        with self._lock:
            self._sets += 1
            self._setter = self._setter or thread
            self._several = self._several or self._setter is not thread
            if self._setter is thread:
                self._latest = entry
        self._keep(entry)

    def own(self) -> T | None:
        """The value that this thread and task has set, or None."""
        entry = getattr(self._of_thread, "entry", None)
        of_task = _SEEN.get().get(self, _NEVER)
        return entry.value if entry is not None and entry is of_task else None

    def clear(self) -> None:
        """Removes the value of this thread and task."""
        with self._lock:
            if self._setter is threading.current_thread():
                self._latest = None
        self._keep(None)

    def read(self) -> T | None:
        """The value for this thread and task, or None.

        Raises:
            InputError: the value is ambiguous, because several threads or tasks have set one.
        """
        of_task = _SEEN.get().get(self, _NEVER)
        of_thread = getattr(self._of_thread, "entry", _NEVER)
        with self._lock:
            several, latest, sets = self._several, self._latest, self._sets
        entry: _Entry[T] | None
        if of_task is of_thread and of_task is not _NEVER:
            entry = of_task
        elif not several and (of_task is _NEVER or of_task is latest):
            entry = latest
        else:
            raise InputError(
                "several threads or tasks have set pictures, this one none or not the last; "
                "set it here, or give each call its own: predict(..., picture=predictor.encode(image))."
            )
        if entry is None:
            return None
        self._note_read(entry, sets)
        return entry.value

    def _note_read(self, entry: "_Entry[T]", sets: int) -> None:
        """Notes that an entry is read after that many sets, and warns if another thread has set a value meanwhile."""
        if self._warning and entry.read_at not in (None, sets):
            _log.warning(self._warning)
            self._warning = None
        entry.read_at = sets

    def _keep(self, entry: "_Entry[T] | None") -> None:
        self._of_thread.entry = entry
        seen = weakref.WeakKeyDictionary(_SEEN.get())  # a copy, because earlier tasks share the old dictionary
        seen[self] = entry
        _SEEN.set(seen)


@dataclasses.dataclass(eq=False)
class _Entry(Generic[T]):
    value: T
    read_at: int | None = None  # number of values that had been set when it was read last


_NEVER: Any = object()
# Values that each context has set, by `Current`. Asyncio copies the context for each task. A single variable, because
# contexts never release their variables, whereas entries of a weak dictionary vanish with their `Current`.
_SEEN: contextvars.ContextVar[Mapping[Current, Any]] = contextvars.ContextVar("seen", default={})  # noqa: B039
