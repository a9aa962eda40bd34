"""What the paper adds to SAM: deformable sampling (sec. 4.2) and dynamic routing (sec. 4.3)."""

from stablesam_jax.plugin.plugin import Plugin

__all__ = ["Plugin"]
