"""The questions that packings are judged by."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.demo_tasks import ORDINALS, draw_tasks
from benchmarks.quality import _right_answers


def test_same_seed_same_questions() -> None:
    first, again, other = draw_tasks(3, 1), draw_tasks(3, 1), draw_tasks(3, 2)

    def said(tasks: list) -> list[tuple]:
        pixels = [[np.asarray(one).tobytes() for one in task.pictures] for task in tasks]
        return [
            (task.text, task.expected, *shown) for task, shown in zip(tasks, pixels, strict=True)
        ]

    assert said(first) == said(again) != said(other)
    kinds = [task.kind for task in first]
    assert len(kinds) == 18 and all(kinds.count(kind) == 3 for kind in kinds)


def test_answers_follow_from_the_questions() -> None:
    for task in draw_tasks(20, 3):
        if task.kind == "sum":
            first, second = map(int, re.findall(r"\d+", task.text))
            assert task.expected == f"{first} plus {second} is {first + second}."
        elif task.kind == "recall":
            assert task.expected in task.text
            assert task.expected.startswith(f"The code of {task.text.split()[-1][:-1]} is ")
        elif task.kind == "which image":
            assert len(task.pictures) == 2
            assert sum(f"{ordinal} image." in task.expected for ordinal in ORDINALS) == 1
        else:
            assert len(task.pictures) == 1


@pytest.mark.slow
def test_the_demo_knows_most(demo_folder: Path) -> None:
    right = _right_answers(demo_folder, draw_tasks(3, 1))
    assert len(right) == 6 and np.mean(list(right.values())) > 0.8
