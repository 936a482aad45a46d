"""What the runners of this folder share. Each runs in its own environment, some on Python 3.9.

    python elephas_digits.py TASK DATA RESULT

``DATA`` is the folder that ``tests/benchmarks/related.py`` has prepared, ``RESULT`` the JSON file to write.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def answers(ask: Callable[[Any], list], everything: Any, test: Any) -> dict:
    """Accuracy on ``test`` and images/s over ``everything``.

    Args:
        ask: a frame of digits to its (label, answered class) pairs.
        everything: frame of all images, asked twice: the first time starts what has to be started and is not counted.
        test: frame of the test images.
    """
    pairs = ask(test)
    right = sum(int(label) == int(answer) for label, answer in pairs)
    ask(everything)
    started = time.perf_counter()
    number = len(ask(everything))
    return {
        "accuracy": round(right / len(pairs), 4),
        "test_images": len(pairs),
        "images": number,
        "images_per_second": round(number / (time.perf_counter() - started), 1),
    }


def timed(act: Callable[[], Any]) -> tuple:
    """(what ``act`` gives, seconds it took)."""
    started = time.perf_counter()
    given = act()
    return given, round(time.perf_counter() - started, 1)


def main(tasks: dict) -> None:
    """Run the task that the command line names, and write what it measured."""
    task, data, result = sys.argv[1:]
    found = tasks[task](Path(data))
    Path(result).write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
    print(task, found, flush=True)
