"""Do the related technologies still give what notebook 09 shows? ``make test-related`` runs again those that are built.

Not part of ``make test``: each needs an environment of its own, and minutes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import related

TASKS = [(name, task) for name, technology in related.TECHNOLOGIES.items() for task in technology.tasks]
# Two workers take turns as the system lets them, so training is not the same twice; a head hardly minds, a network that
# starts from nothing on forty images a class does.
TOLERANCE = {"images": 0.03, "head": 0.03, "cnn": 0.12}


@pytest.fixture(scope="session", autouse=True)
def prepared():
    related.prepare(related.DATA)


@pytest.mark.parametrize(("name", "task"), TASKS, ids=[f"{name}-{task}" for name, task in TASKS])
def test_the_accuracy_is_the_recorded_one(name: str, task: str):
    if not related.is_built(name):
        pytest.skip(f"its environment is not there, or is of another lock: type make related-{name}")
    recorded = json.loads((related.RUNNERS / f"{name}.json").read_text(encoding="utf8"))["tasks"][task]
    again = related.run(name, task)
    assert again["test_images"] == recorded["test_images"]
    assert again["accuracy"] == pytest.approx(recorded["accuracy"], abs=TOLERANCE[task])
