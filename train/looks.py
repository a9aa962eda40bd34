"""Short evaluations of held-out pictures during training, by which the best step may be kept and a run end early."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eval.loop import Protocol, Segmenter, Summary
from stablesam_jax import parallel
from stablesam_jax.data.readers import Pictures
from stablesam_jax.params import Params
from train.best import Best
from train.comparison import Comparison
from train.console import Console
from train.presets import TrainConfig
from train.run import Run

SHORT_LOOK_PROMPTS = 4  # of each kind


def score_of(summary: Summary) -> float:
    """The score by which the best step is chosen: the mean of mIoU over the kinds of prompts."""
    return float(np.mean([values["miou"] for values in summary.values()]))


class Looks:
    """Evaluates held-out pictures after some steps: a line, a record, curves and a picture."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        console: Console,
        *,
        before: Segmenter,
        segmenter: Callable[[Params], Segmenter],
        pictures: Pictures,
        steps: int,
    ):
        """Computes nothing.

        Args:
            config: of the run.
            run, console: get what is found.
            before: the system before training.
            segmenter: trained parameters -> the system.
            pictures: held out.
            steps: of the whole run.
        """
        self.run, self.console, self.segmenter, self.steps = run, console, segmenter, steps
        self.every, self.patience = config.eval_every, config.patience
        self.comparison = Comparison(before, pictures, Protocol(prompts=SHORT_LOOK_PROMPTS, seed=config.seed))
        self.best = Best(run.folder / "best") if config.keep == "best" else None

    def due(self, step: int) -> bool:
        """Whether pictures are evaluated after a step. The last one is in the report, so that only `best` needs it."""
        if not self.every or not len(self.comparison.pictures):
            return False
        return self.best is not None if step == self.steps else step > 0 and step % self.every == 0

    def resume(self, step: int, trained: Params) -> None:
        """Continues after a step, and does its evaluation if the run was stopped before it."""
        if self.best is not None and self.run.first_host:
            self.best.resume(step)
        if parallel.gather(self.due(step) and not self.run.evaluated(step))[0]:
            self(step, trained)

    def __call__(self, step: int, trained: Params) -> None:
        """Evaluates the parameters after a step."""
        rows, figure = self.comparison(self.segmenter(trained))
        summary = rows["after"]
        if self.best is not None and self.run.first_host:
            self.best.offer(step, score_of(summary), trained)  # before the record, which says that it is done
        changes = [
            f"{kind} {100 * values['miou']:.1f} ({100 * (values['miou'] - rows['before'][kind]['miou']):+.1f})"
            for kind, values in summary.items()
        ]
        message = f"step {step}, {len(self.comparison.pictures)} held-out pictures, mIoU: {', '.join(changes)}"
        if self.best is not None and self.best.step is not None:
            message += (
                f"; mean {100 * score_of(summary):.1f}, best {100 * self.best.score:.1f} at step {self.best.step}"
            )
        self.console.say("evaluation", message, step=step, held_out=summary)
        self.run.log({"step": step, "held_out": summary})
        curves = {f"held_out/{kind}/{name}": value for kind, row in summary.items() for name, value in row.items()}
        self.run.board(step, curves, figure)

    def saved(self) -> None:
        """Removes what no checkpoint needs, after one was written."""
        if self.best is not None and self.run.first_host:
            self.best.prune(self.run.oldest_checkpoint())

    def over(self, step: int) -> bool:
        """Whether the run ends after a step, since `patience` evaluations have not improved on the best."""
        if self.patience is None:
            return False
        best = None if self.best is None else self.best.step  # of the first host
        return parallel.gather(best is not None and step // self.every - best // self.every >= self.patience)[0]

    def result(self, last: Params, step: int) -> tuple[Params, dict[str, Any]]:
        """The parameters that the run results in, on every host.

        Args:
            last: those of the last step.
            step: its number.

        Returns:
            parameters, and which they are, for the report and the plugin's file; nothing of the last step.

        Raises:
            InputError: the best are damaged.
        """
        if self.best is None:
            return last, {}
        chosen = parallel.gather((self.best.step, self.best.score))[0]
        trained = parallel.from_first_host(self.best.load(last) if self.run.first_host else last)
        best, score = chosen
        message = (
            f"the result is step {best} of {step}, best in mean mIoU of the held-out pictures: {100 * score:.1f} %"
        )
        self.console.say("best", message, step=best, score=score)
        return trained, {"best_step": best, "best_score": score, "last_step": step}
