"""What `SamPredictor` and `SAM2ImagePredictor` share: a fixed model, and the pictures that threads have set."""

import abc
import dataclasses
from typing import Any, Generic, Protocol, Self, TypeVar

from stablesam_jax.errors import InputError
from stablesam_jax.predict.current import Current, Shared


class _Model(Protocol):
    @property
    def device(self) -> Any: ...

    @property
    def shared_picture(self) -> bool: ...


class _Settable(Protocol):
    @property
    def is_image_set(self) -> bool: ...


Model = TypeVar("Model", bound=_Model)
State = TypeVar("State", bound=_Settable)

_OVERTAKEN = (
    "{name}: another thread has set a picture since this one prompted its own, which still is the one that it had set. "
    "If it is the latest that is meant, as with a pool of threads, build the model with shared_picture=True."
)


class Holder(abc.ABC, Generic[Model, State]):
    """A model, and an immutable state of each thread, see `predict.current.Current`; or one of all threads."""

    _model: Model
    _current: Current[State] | Shared[State]

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Subclasses of clients assign `model` and `transform` by themselves instead of calling `__init__`."""
        made = super().__new__(cls)
        made._current = Current(warning=_OVERTAKEN.format(name=cls.__name__))
        return made

    @property
    def model(self) -> Model:
        """The model. It is assigned once."""
        return self._model

    @model.setter
    def model(self, value: Model) -> None:
        if hasattr(self, "_model"):
            raise AttributeError(f"{type(self).__name__}.model is fixed; make another {type(self).__name__}.")
        self._model = value
        if value.shared_picture:
            self._current = Shared()

    @abc.abstractmethod
    def _empty(self) -> State:
        """The state before a picture is set, a frozen dataclass."""

    @property
    def device(self) -> Any:
        """The device of returned tensors: the CPU."""
        return self.model.device

    @property
    def _has_picture(self) -> bool:
        try:
            return self._state.is_image_set
        except InputError:  # those of several other threads
            return False

    @property
    def _state(self) -> State:
        return self._current.read() or self._empty()

    def _assign(self, **changes: Any) -> None:
        state: Any = self._current.own() or self._empty()
        self._current.set(dataclasses.replace(state, **changes))
