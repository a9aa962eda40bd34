"""Adam with learning-rate schedules, clipping and accumulation."""

from typing import Literal

import optax

Schedule = Literal["constant", "cosine", "step"]

WARM_UP = 0.02  # share of the steps before the cosine
LAST_SHARE = 0.01  # end of the cosine, as a share of the peak
DROP_AFTER, DROP = 10 / 12, 0.1  # HQ-SAM divides by ten after 10 of its 12 epochs (train/train.py)


def learning_rate(schedule: Schedule, peak: float, steps: int) -> optax.Schedule:
    """The learning rate of each update, counted from 0.

    Args:
        schedule: "constant", the paper's for one epoch; "cosine", with a warm-up; "step", HQ-SAM's.
        peak: its largest value.
        steps: updates of the run.
    """
    match schedule:
        case "constant":
            return optax.constant_schedule(peak)
        case "cosine":
            warm_up = max(round(WARM_UP * steps), 1)
            return optax.warmup_cosine_decay_schedule(0.0, peak, warm_up, max(steps, warm_up + 1), peak * LAST_SHARE)
        case "step":
            return optax.piecewise_constant_schedule(peak, {round(DROP_AFTER * steps): DROP})


def make_optimizer(
    schedule: Schedule, peak: float, steps: int, *, clip_norm: float | None = None, accumulate: int = 1
) -> optax.GradientTransformation:
    """Adam without weight decay (sec. 9).

    Args:
        schedule, peak: see `learning_rate`.
        steps: of the run, each a batch.
        clip_norm: largest global norm of the gradient; longer ones are scaled to it.
        accumulate: batches whose mean gradient makes one update; an incomplete group at the end makes none.
    """
    adam = optax.adam(learning_rate(schedule, peak, max(steps // accumulate, 1)))
    chain = adam if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), adam)
    return chain if accumulate == 1 else optax.MultiSteps(chain, every_k_schedule=accumulate).gradient_transformation()
