"""What a server accepts."""

import dataclasses

from stablesam_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of requests and of memory; what exceeds them is refused with status 4xx or 503."""

    max_pixels: int = 50_000_000
    """Largest number of pixels of a picture."""
    max_megabytes: int = 64
    """Largest size of a request, and of a picture that is fetched or read."""
    max_points: int = 64
    """Largest number of points of a prompt."""
    pictures: int = 32
    """Number of encoded pictures that are kept in memory; the least recently used are dropped."""
    queue: int = 64
    """Number of requests that may wait; further ones get status 503."""
    threads: int = 4
    """Number of requests that are computed at the same time."""

    @property
    def max_bytes(self) -> int:
        """Largest request in bytes."""
        return self.max_megabytes << 20

    def check(self) -> None:
        """Raises InputError where a limit is below 1."""
        for name, value in dataclasses.asdict(self).items():
            if value < (least := 0 if name == "queue" else 1):
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}.")
