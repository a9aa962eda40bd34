"""What was set last, by whom it may be read: the rule of a predictor that several threads share."""

import contextvars
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from stablesam_jax.errors import InputError

T = TypeVar("T")


class Current(Generic[T]):
    """One value for each thread.

    - A thread reads what it has set itself.
    - A thread that has set none reads what the only thread that sets any has set last. Once several threads have set
      one, it is refused: nobody can know which is meant.
    - Of the asyncio tasks of a thread each reads what it has set itself, or what was set last before it began; it is
      refused where another task has set one since.

    So a value is never that of someone else who happened to be faster. Pickled, it keeps the value that is read there.
    """

    def __init__(self, value: T | None = None):
        self._lock = threading.Lock()
        self._of_thread = threading.local()  # .entry: what this thread has set last, as (value,)
        self._setter: threading.Thread | None = None  # the first thread that has set one
        self._several = False  # others have, too
        self._latest: tuple[T] | None = None  # what the first one has set last
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

    def clear(self) -> None:
        """This thread and task have no value from now on."""
        with self._lock:
            if self._setter is threading.current_thread():
                self._latest = None
        self._keep(None)

    def read(self) -> T | None:
        """The value for this thread and task, None if there is none.

        Raises:
            InputError: others have set values, and which one is meant cannot be known.
        """
        of_task = _SEEN.get().get(self, _NEVER)
        of_thread = getattr(self._of_thread, "entry", _NEVER)
        with self._lock:
            several, latest = self._several, self._latest
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
        seen = weakref.WeakKeyDictionary(_SEEN.get())  # a copy: tasks that have begun before share the old one
        seen[self] = entry
        _SEEN.set(seen)


_NEVER: Any = object()
# What each context has set of every `Current`. Asyncio copies the context for each task. One variable for all of them:
# a context keeps its variables alive for good, whereas entries of a weak dictionary go with their `Current`.
_SEEN: contextvars.ContextVar[Mapping[Current, Any]] = contextvars.ContextVar("seen", default={})  # noqa: B039
