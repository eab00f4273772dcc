"""How `pilots.csv` and `curves.csv` were made: an MLP of 32 hidden units on Fashion-MNIST's 60,000
images, batch 16, AdamW with weight decay 0.01, warm-up 2 % of the steps, one CPU core, a minute.

    python tests/plans/data/make_runs.py

pilots.csv: cosine, five values of eta_ref = peak sqrt(T) at five horizons, at most one pass over
the data. A row has the mean training loss since the row before, and the loss on 2,000 test images.
curves.csv: three schedules with peak 0.004 over 30,000 steps, eight passes; mean training loss over
300 steps, written at the middle one.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from steelyard.data import load
from steelyard.plans.schedule_shapes import parse_shape
from steelyard.steps.schedules import schedule

FOLDER, BATCH = Path(__file__).parent, 16
REFERENCES, HORIZONS = (0.01, 0.03, 0.06, 0.1, 0.2), (235, 470, 940, 1880, 3750)


def train(x, y, test_x, test_y, kind: str, peak: float, steps: int, every: int):
    """(step, rate, mean training loss, test loss) every so many steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(784, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01)
    scheduler = schedule(optimizer, parse_shape(kind, 0.02), steps)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    losses: list[float] = []
    for step in range(1, steps + 1):
        batch = order[(torch.arange(BATCH) + BATCH * (step - 1)) % len(x)]
        rate = optimizer.param_groups[0]["lr"]
        loss = cross_entropy(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % every == 0 or step == steps:
            with torch.no_grad():
                test = cross_entropy(model(test_x), test_y).item()
            yield step, rate, float(np.mean(losses)), test
            losses = []


def main() -> None:
    torch.set_num_threads(1)
    table = load("fashion-mnist")
    x, test_x = (
        torch.from_numpy(a.copy()).float().flatten(1) / 127.5 - 1
        for a in (table.train_x, table.test_x[::5])
    )
    y, test_y = (torch.from_numpy(a.copy()) for a in (table.train_y, table.test_y[::5]))
    with (FOLDER / "pilots.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["run", "step", "lr", "loss", "test_loss"])
        for steps in HORIZONS:
            for reference in REFERENCES:
                peak = reference / math.sqrt(steps)
                for k, rate, loss, test in train(
                    x, y, test_x, test_y, "cosine", peak, steps, math.ceil(steps / 20)
                ):
                    name = f"{reference:g}-{steps}"
                    out.writerow([name, k, f"{rate:.6g}", f"{loss:.4f}", f"{test:.4f}"])
    with (FOLDER / "curves.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["run", "step", "loss"])
        for kind in ("cyclic:4", "cosine", "wsd:0.7"):
            for k, _, loss, _ in train(x, y, test_x, test_y, kind, 0.004, 30_000, 300):
                out.writerow([kind, k - 150, f"{loss:.4f}"])


if __name__ == "__main__":
    main()
