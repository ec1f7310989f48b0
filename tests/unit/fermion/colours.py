"""
Makes the client's blocking faces from those of asyncio, so that both are one.

    python -m tests.unit.fermion.colours        write fermion/{instances,…}.py anew
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).parents[3] / "fermion"
FACES: Final = ("instances", "projects", "scheduler", "executor", "billing", "journals")
RULES: Final = (
    (r"fermion\.aio\.", "fermion."),
    (r"\bAsyncLine\b", "Line"),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\baclosing\b", "closing"),
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\(await (self\.[^\n]*\))\)\.", r"\1."),
    (r"\bawait ", ""),
    (r"for (\w+) in ([\w.]+):\n +yield \1\n", r"yield from \2\n"),
)


def blocking(text: str) -> str:
    """The same face without `await`."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text)
    return text


def main() -> int:
    """Write every blocking face."""
    written = []
    for face in FACES:
        path = CLIENT / f"{face}.py"
        path.write_text(blocking((CLIENT / "aio" / f"{face}.py").read_text()))
        written.append(str(path))
    subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--fix", "--quiet", *written], check=True
    )
    return subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", *written]).returncode


if __name__ == "__main__":
    sys.exit(main())
