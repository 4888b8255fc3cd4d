"""A command for tests of sweeps: notes that it ran, perhaps sleeps or fails, writes a score."""

import json
import sys
import time
from pathlib import Path


def main(folder: str, score: str, seconds: str = "0", needs: str = "") -> None:
    here = Path(folder)
    with (here / "ran.txt").open("a") as file:
        file.write("started\n")
    if needs:
        json.loads(Path(needs).read_text())
    time.sleep(float(seconds))
    if score == "fail":
        sys.exit(3)
    overall = {"exact": float(score), "exact_low": 0.0, "exact_high": 1.0}
    (here / "scores.json").write_text(json.dumps({"overall": overall}))
    with (here / "ran.txt").open("a") as file:
        file.write("finished\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
