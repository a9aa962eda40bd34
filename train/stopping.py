"""Ctrl-C and SIGTERM end a run at a step's end, not in it."""

import dataclasses
import signal
import types


@dataclasses.dataclass
class StopRequest:
    """Whether someone has asked the run to end."""

    asked: bool = False


class stop_signals:
    """While open, SIGTERM and Ctrl-C ask for a stop after the running step; a second Ctrl-C ends the program."""

    def __enter__(self) -> StopRequest:
        request = StopRequest()

        def handle(number: int, frame: types.FrameType | None) -> None:
            if request.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            request.asked = True

        self.before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return request

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
