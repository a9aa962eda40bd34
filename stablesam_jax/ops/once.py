"""Keeps XLA on the CPU from computing an array again for each of its uses."""

import jax
import jax.numpy as jnp

from stablesam_jax.ops.layers import computes_on_cpu


def computed_once(x: jax.Array) -> jax.Array:
    """x itself, to the bit, and with its gradient.

    XLA fuses an elementwise array, such as a convolution as a sum of shifted products, into each reduction that reads
    it, and then computes the whole sum inside of the reduction. An `optimization_barrier` is removed before that on the
    CPU. A loop is not: what it takes is computed before it. On other devices this is the barrier.

    Args:
        x: (...) of any floating dtype, at least one element.

    Returns:
        (...), x.
    """
    return _through_a_loop(x) if computes_on_cpu() else jax.lax.optimization_barrier(x)


@jax.custom_jvp
def _through_a_loop(x: jax.Array) -> jax.Array:
    # One turn or none, which the compiler cannot know, and which does not matter: a turn changes nothing.
    turns = (x[(0,) * x.ndim] > 0).astype(jnp.int32)

    def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        done, kept = carry
        return done + 1, jnp.where(done < 2, kept, jnp.zeros_like(kept))  # always kept; the compiler does not see that

    return jax.lax.while_loop(lambda carry: carry[0] < turns, turn, (jnp.zeros((), jnp.int32), x))[1]


@_through_a_loop.defjvp
def _derivative(primals, tangents):
    return _through_a_loop(*primals), tangents[0]
