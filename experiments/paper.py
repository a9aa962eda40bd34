"""`python -m experiments.paper --weights DIR --data DIR --output DIR`: all tables of the paper, planned, then made."""

import shlex
import sys

import jax
import tyro

from experiments.full_size import evaluations
from experiments.inputs import weights_of
from experiments.options import PaperConfig
from experiments.plan import make_plan
from experiments.plan_text import text
from experiments.steps import Stopped, about, carry_out, keep_options
from stablesam_jax import parallel
from stablesam_jax.commands import called, command_line
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.compilation_cache import keep_compiled_programs
from stablesam_jax.files.disk import write_text


def paper(config: PaperConfig) -> bool:
    """Shows the plan and carries it out, unless it is a dry run.

    Returns:
        whether every step could be done.

    Raises:
        InputError: an option cannot be used, or no weights are there.
        Stopped: by a signal; the same command continues.
    """
    config.check()
    if config.miniature:  # nearly all of its time is compilation
        jax.config.update("jax_disable_most_optimizations", True)
    plan = make_plan(config)
    first_host = jax.process_index() == 0
    if first_host:
        print(text(plan), flush=True)
    if config.dry_run:
        return True
    if config.weights is not None:
        backbones = {model.backbone for model in evaluations(config.tables)}
        weights = [weights_of(config.weights, backbone) for backbone in sorted(backbones)]
        if not any(one.there for one in weights):
            raise InputError("; ".join(one.line for one in weights) + ".")
    if first_host:
        config.output.mkdir(parents=True, exist_ok=True)
        write_text(config.output / "plan.md", text(plan))
    keep_options(config, first_host)
    left_out = carry_out(plan, about(config), f"{called('paper')} {shlex.join(sys.argv[1:])}")
    if first_host:
        print(f"written: {config.output / 'tables.md'}")
        for name, why in left_out.items():
            print(f"left out: {name}: {why}", file=sys.stderr)
    return not left_out


def main() -> int:
    """Parses the options and makes the tables; exit status 1 if something was left out."""
    with exit_on_input_error():
        config = tyro.cli(PaperConfig, args=command_line(), prog=called("paper"))
        if config.coordinator is None:
            parallel.split_cpu(config.scale.batch_size)
        parallel.join_hosts(config.coordinator, config.hosts, config.host)
        keep_compiled_programs()
        try:
            return 0 if paper(config) else 1
        except (KeyboardInterrupt, Stopped):
            print("stopped; the same command continues", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
