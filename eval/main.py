"""`python -m eval.main PROTOCOL --system NAME... --data-dir DIR... --output DIR`: protocols on any data."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from eval.protocols.alpha import alpha
from eval.protocols.breps import breps
from eval.protocols.clicks import clicks
from eval.protocols.hq import hq
from eval.protocols.instances import coco, sginw
from eval.protocols.review import review
from eval.protocols.semantic import mess
from eval.protocols.wobble import wobble
from stablesam_jax.commands import called, check_choice, command_line
from stablesam_jax.errors import exit_on_input_error
from stablesam_jax.files.compilation_cache import keep_compiled_programs

PROTOCOLS: dict[str, Callable[..., Any]] = {
    "hq": hq, "coco": coco, "sginw": sginw, "mess": mess, "wobble": wobble, "breps": breps,
    "clicks": clicks, "review": review,
    "alpha": alpha,
}  # fmt: skip


def main() -> None:
    """Parses the protocol and its options, and runs it."""
    keep_compiled_programs()
    with exit_on_input_error():
        try:
            given = command_line()
            if not given or given[0].startswith("-"):
                tyro.extras.subcommand_cli_from_dict(PROTOCOLS, args=given, prog=called("eval"))
                return
            protocol, *options = given
            check_choice(protocol, PROTOCOLS, "protocol")
            # Not as a subcommand: with an option that is not known, tyro names the help of each, without the program.
            tyro.cli(PROTOCOLS[protocol], args=options, prog=f"{called('eval')} {protocol}")
        except KeyboardInterrupt:
            print("interrupted; run the same command to continue", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
