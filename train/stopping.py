"""Stops a run by Ctrl-C or SIGTERM between two steps."""

import dataclasses
import signal
import types


@dataclasses.dataclass
class StopRequest:
    """Whether a signal has requested a stop."""

    requested: bool = False


class stop_signals:
    """While open, SIGTERM and Ctrl-C request a stop after the current step; a second Ctrl-C ends the program."""

    def __enter__(self) -> StopRequest:
        request = StopRequest()

        def handle(number: int, frame: types.FrameType | None) -> None:
            if request.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            request.requested = True

        self.before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return request

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
