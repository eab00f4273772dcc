"""Two processes weigh the rows that one finds on both batches, and take the same step."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import sys
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard.rows.tasks import Tasks
from steelyard.weightings.blur import Blur
from steelyard.weightings.ngdiff import NGDiff
from steelyard.weightings.scalarize import LossNormalised

torch.set_num_threads(1)


def lottery(gram):
    return torch.rand(2, dtype=torch.float64)  # another one on every rank


def run(parts, *, seed=0):
    torch.manual_seed(0)
    x, y = torch.randn(60, 5).double(), torch.randint(3, (60,))
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    lonely = nn.Parameter(torch.ones(3).double())  # reached by the last part only
    torch.manual_seed(seed)
    found = {}
    for name, weighting in (
        ("ngdiff", NGDiff()), ("losses", LossNormalised()),
        ("blur", Blur(0.5, metric="optimizer")), ("lottery", lottery),
    ):
        ps = [*net.parameters(), lonely]
        optimizer = torch.optim.AdamW(ps, 1e-2)
        tasks = Tasks(ps, weighting, optimizer=optimizer)

        def losses(part, sign):
            extra = (lonely * 0.1).sum() if part.stop == 60 else 0.0
            each = cross_entropy(net(x[part]), y[part], reduction="none") + extra
            return sign * each

        for _ in range(3):
            record = tasks.backward(
                retain=[lambda p=p: losses(p, 1.0) for p in parts],
                forget=[lambda p=p: losses(p, -1.0) for p in parts[::-1] if p.start < 50],
            )
            optimizer.step()
        found[name] = (
            [p.detach().clone() for p in ps], record.weights, record.losses, record.norms,
        )
    return found


def work(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    mine = [[slice(0, 7)], [slice(7, 40), slice(50, 60)]][rank]  # of different sizes
    torch.save(run(mine, seed=rank), f"{folder}/rank{rank}")
    torch.manual_seed(0)
    net = nn.Linear(5, 3).double()
    x, y = torch.randn(2, 2, 9, 5).double(), torch.randint(3, (2, 2, 9))  # rank, task, sample
    losses = [lambda m, i=i, s=s: s * cross_entropy(m(x[:, i].flatten(0, 1)), y[:, i].flatten())
              for i, s in enumerate((1.0, -1.0))]
    rows = [torch.autograd.grad(loss(net), list(net.parameters())) for loss in losses]
    norms = [torch.cat([g.flatten() for g in row]).norm() for row in rows]
    for view in (False, True):  # the module wrapped after all: reduced twice, to the same numbers
        ddp = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=view)

        def part(i, sign, rows):
            return lambda: sign * cross_entropy(
                ddp(x[rank, i, rows]), y[rank, i, rows], reduction="none"
            )

        own = slice(0, 9), slice(0, 4 + rank), slice(4 + rank, 9)
        Tasks(net.parameters(), NGDiff()).backward(
            retain=[part(0, 1.0, one) for one in own[1:]], forget=part(1, -1.0, own[0])
        )
        for p, a, b in zip(net.parameters(), *rows):
            torch.testing.assert_close(p.grad, a / norms[0] + b / norms[1])
    p = nn.Parameter(torch.ones(2))
    empty = Tasks([p], NGDiff())
    empty.backward(one=[lambda: (p**2).sum()] if rank else [], two=(p**3).sum())  # one rank's
    torch.testing.assert_close(p.grad, torch.full((2,), 2 * 0.5**0.5))
    factor = 1.0 if rank else float("nan")  # on one rank; all of them say so, none waits for ever
    for bad, words in (((p**2).sum() * factor, "not finite"), ([], "no sample")):
        try:
            empty.backward(one=bad, two=(p**3).sum())
            raise SystemExit(f"not refused: {words}")
        except (FloatingPointError, ValueError) as error:
            assert words in str(error), error
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
    torch.save(run([slice(0, 7), slice(7, 40), slice(50, 60)]), f"{sys.argv[1]}/alone")
"""


@pytest.mark.slow
def test_two_gloo_ranks_equal_one_process(tmp_path):
    (tmp_path / "ranks.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "ranks.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other, alone = (torch.load(tmp_path / n) for n in ("rank0", "rank1", "alone"))
    for name, (parameters, *numbers) in one.items():
        assert all(torch.equal(a, b) for a, b in zip(parameters, other[name][0], strict=True))
        assert list(other[name][1:]) == numbers  # bit for bit
        if name == "lottery":
            continue
        for a, b in zip(parameters, alone[name][0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        for a, b in zip(numbers, alone[name][1:], strict=True):
            assert a == pytest.approx(b, rel=1e-9)
