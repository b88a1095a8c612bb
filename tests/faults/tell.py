"""``python -m tests.faults.tell SEED ...``: tells the whole story of seeds."""

from __future__ import annotations

import sys

from tests.faults.playing import Failure, story
from tests.faults.scenario import draw

if __name__ == "__main__":
    for seed in sys.argv[1:]:
        print(story(Failure(draw(int(seed)), f"the end of seed {seed}")))  # noqa: T201 - its purpose
