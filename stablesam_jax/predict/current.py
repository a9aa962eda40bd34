"""The current value of each thread and asyncio task, for predictors that several threads share."""

import contextlib
import contextvars
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from stablesam_jax.errors import InputError

T = TypeVar("T")


class Current(Generic[T]):
    """One value for each thread.

    - A thread reads the value that it has set.
    - A thread that has set none reads the latest value of the only thread that sets values. Once several threads have
      set values, this is an error, because the choice would be ambiguous.
    - An asyncio task reads the value that it has set, or the latest one from before it began. If another task of the
      thread has set a value since, this is an error.

    So a value never depends on a race. Pickling keeps the value that the pickling thread reads.
    """

    def __init__(self, value: T | None = None):
        self._lock = threading.Lock()
        self._of_thread = threading.local()  # .entry: latest value of this thread, as (value,)
        self._setter: threading.Thread | None = None  # the first thread that has set a value
        self._several = False  # whether other threads have set values too
        self._latest: tuple[T] | None = None  # latest value of the first thread
        if value is not None:
            self.set(value)

    def __reduce__(self) -> Any:
        try:
            return Current, (self.read(),)
        except InputError:
            return Current, ()

    def set(self, value: T) -> None:
        """Sets the value of this thread and task."""
        entry, thread = (value,), threading.current_thread()
        with self._lock:
            self._setter = self._setter or thread
            self._several = self._several or self._setter is not thread
            if self._setter is thread:
                self._latest = entry
        self._keep(entry)

    @contextlib.contextmanager
    def cleared_on_failure(self) -> Iterator[None]:
        """Clears the value if the context raises, so that the old one is not taken for the new."""
        try:
            yield
        except BaseException:
            self.clear()
            raise

    def own(self) -> T | None:
        """The value that this thread and task has set, or None."""
        entry = getattr(self._of_thread, "entry", None)
        of_task = _SEEN.get().get(self, _NEVER)
        return entry[0] if entry is not None and entry is of_task else None

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
            several, latest = self._several, self._latest
        entry: Any
        if of_task is of_thread and of_task is not _NEVER:
            entry = of_task
        elif not several and (of_task is _NEVER or of_task is latest):
            entry = latest
        else:
            raise InputError(
                "several threads or tasks have set pictures, this one none or not the last; "
                "set it here, or give each call its own: predict(..., picture=predictor.encode(image))."
            )
        return None if entry is None else entry[0]

    def _keep(self, entry: tuple[T] | None) -> None:
        self._of_thread.entry = entry
        seen = weakref.WeakKeyDictionary(_SEEN.get())  # a copy, because earlier tasks share the old dictionary
        seen[self] = entry
        _SEEN.set(seen)


_NEVER: Any = object()
# Values that each context has set, by `Current`. Asyncio copies the context for each task. A single variable, because
# contexts never release their variables, whereas entries of a weak dictionary vanish with their `Current`.
_SEEN: contextvars.ContextVar[Mapping[Current, Any]] = contextvars.ContextVar("seen", default={})  # noqa: B039
