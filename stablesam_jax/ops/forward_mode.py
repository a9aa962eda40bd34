"""Operations whose gradient is written by hand, and forward-mode differentiation of them.

`jax.custom_vjp` knows the backward pass alone: `jax.jvp`, `jax.jacfwd` and `jax.hessian` refuse a function that holds
one. Within `forward_mode()` the derivatives that JAX derives of the same formulas are used instead, which hold in both
directions and are slower on a CPU. Values are equal, derivatives equal up to rounding.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax

_forward_mode = jax.make_user_context(False)  # part of the keys of jax.jit's caches


def forward_mode() -> AbstractContextManager[None]:
    """The context in which functions of the model have derivatives in both directions.

    with forward_mode():
        value, change = jax.jvp(loss, (plugin,), (direction,))
        second = jax.hessian(loss_along)(0.0)
    """
    return _forward_mode(True)


class WrittenGradient:
    """A function whose backward pass is written by hand, as `jax.custom_vjp`; outside `forward_mode` it is one."""

    def __init__(self, function: Callable[..., Any], nondiff_argnums: tuple[int, ...] = ()):
        """Takes the function itself; `defvjp` must follow."""
        functools.update_wrapper(self, function)
        self._vjp = jax.custom_vjp(function, nondiff_argnums=nondiff_argnums)
        self._derived = function
        self.defvjp = self._vjp.defvjp

    def derive_from(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Gives the form to derive in `forward_mode`, where it must be another: of equal value."""
        self._derived = function
        return function

    def __call__(self, *arguments: Any) -> Any:
        return (self._derived if _forward_mode.value else self._vjp)(*arguments)


def written_gradient(nondiff_argnums: tuple[int, ...] = ()) -> Callable[[Callable[..., Any]], WrittenGradient]:
    """The decorator that makes a `WrittenGradient`."""
    return functools.partial(WrittenGradient, nondiff_argnums=nondiff_argnums)
