"""How far a run is: a bar on the screen, and progress.json for other processes."""

import time
from pathlib import Path

from tqdm.auto import tqdm

from lib.runs import store

SECONDS_BETWEEN_WRITES = 1


class Progress:
    """Progress of one run of ``steps`` steps, of which ``done`` were done in earlier sittings.

    path: the progress.json, written at most once a second; None: no file and no bar.
    batch_size: images a step. show: whether to draw the bar.
    """

    def __init__(
        self, path: Path | None, run: str, steps: int, done: int, batch_size: int, show: bool
    ):
        self.path = path
        self.run = run
        self.steps = steps
        self.batch_size = batch_size
        self.start = time.perf_counter()
        self.done_at_start = done
        self.written = 0.0
        self.bar = tqdm(
            total=steps, initial=done, desc=run, unit="step", disable=not show, leave=False
        )

    def update(self, step: int, loss: float | None) -> None:
        """Say that ``step`` steps are done; loss: the last known one."""
        now = time.perf_counter()
        is_due = now - self.written >= SECONDS_BETWEEN_WRITES or step >= self.steps
        if self.path is None or not is_due:
            return
        steps_per_second = (step - self.done_at_start) / max(1e-9, now - self.start)
        images_per_second = steps_per_second * self.batch_size
        seconds_left = (self.steps - step) / max(steps_per_second, 1e-9)
        state = {
            "run": self.run,
            "step": step,
            "steps": self.steps,
            "images_per_second": round(images_per_second, 1),
            "loss": loss,
            "seconds_left": round(seconds_left, 1),
        }
        store.write_json(self.path, state)
        self.bar.set_postfix({"images/s": round(images_per_second), "loss": loss}, refresh=False)
        self.bar.update(step - self.bar.n)
        self.written = now

    def close(self) -> None:
        """Remove the bar and the file."""
        self.bar.close()
        if self.path:
            self.path.unlink(missing_ok=True)
