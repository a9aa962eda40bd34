"""Requests that are refused, with their HTTP status."""

from stablesam_jax.errors import InputError


class Refusal(InputError):
    """A request that is refused for another reason than its content, which is status 400."""

    def __init__(self, status: int, message: str):
        """Takes the HTTP status, and one line: what is wrong, where, and what to do."""
        super().__init__(message)
        self.status = status
