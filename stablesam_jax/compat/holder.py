"""What `SamPredictor` and `SAM2ImagePredictor` share: a fixed model, and the pictures that each thread has set."""

import dataclasses
from typing import Any, Generic, Protocol, TypeVar

from stablesam_jax.errors import InputError
from stablesam_jax.predict.current import Current


class _HasDevice(Protocol):
    @property
    def device(self) -> Any: ...


class _Settable(Protocol):
    @property
    def is_image_set(self) -> bool: ...


Model = TypeVar("Model", bound=_HasDevice)
State = TypeVar("State", bound=_Settable)


class Holder(Generic[Model, State]):
    """A model, and an immutable state of each thread; see `predict.current.Current`."""

    def __init__(self, model: Model, empty: State):
        """Args: the model; `empty`, a frozen dataclass, the state before a picture is set."""
        self._model, self._empty = model, empty
        self._current: Current[State] = Current()

    @property
    def model(self) -> Model:
        """The model."""
        return self._model

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
        return self._current.read() or self._empty

    def _assign(self, **changes: Any) -> None:
        state: Any = self._current.own() or self._empty
        self._current.set(dataclasses.replace(state, **changes))
