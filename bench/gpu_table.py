"""`python -m bench.gpu_table OUT`: one page of what bench/gpu.sh has measured so far."""

import json
import pathlib
import sys

from bench.output import markdown
from stablesam_jax.files.disk import write_text

PARITY = "parity"


def page(folder: pathlib.Path) -> str:
    """The results of all stages, in the order in which they were measured."""
    parts = ["# Speed on this device, stage by stage\n"]
    for path in sorted(folder.glob("*.json"), key=lambda one: one.stat().st_mtime):
        found = json.loads(path.read_text())
        if path.stem == PARITY:
            verdict = "every stage is within its bound" if found["ok"] else "a bound is exceeded, see parity.json"
            parts.append(f"## {PARITY} with the official code\n\n{verdict}.\n")
            continue
        limits = found["limits"]
        rates = f"{limits['flops_per_second'] / 1e12:.3g} TFLOP/s, {limits['bytes_per_second'] / 1e9:.3g} GB/s"
        about = f"{found['device']}, load {found['load']:.1f} at the start, medians of {found['repeats']}; {rates}."
        parts.append(f"## {path.stem}\n\n{about}\n\n{markdown(found['rows'])}")
    return "\n".join(parts)


def main() -> None:
    """Writes OUT/table.md."""
    folder = pathlib.Path(sys.argv[1])
    write_text(folder / "table.md", page(folder))
    print(f"written: {folder / 'table.md'}")


if __name__ == "__main__":
    main()
