"""U8: two processes find the rate that one finds on both batches."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from steelyard import Gaussian
from steelyard.steps.gen import GeN
from steelyard.steps.private_probe import PrivateProbe

torch.set_num_threads(1)


def rates(parts):
    torch.manual_seed(0)
    x, y = torch.randn(240, 5).double(), torch.randint(3, (240,))
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    rate = GeN(optimizer, model=net, bootstrap=2, every=2)
    for t in range(6):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()  # the same everywhere
        rate.step([
            lambda part=part: cross_entropy(net(x[part]), y[part], reduction="none")
            for part in parts
        ])
    assert sum(d.accepted for d in rate.log) >= 2, rate.log
    return rate.rates[0].hex()


def work(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    mine = slice(0, 100) if rank == 0 else slice(100, 240)  # of different sizes
    found = rates([mine])
    with open(f"{folder}/rank{rank}", "w") as file:
        file.write(found)
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    private = PrivateProbe(
        Gaussian(1.0), bound=1.0, expected_batch=4, sampling_probability=1.0, ledger=None
    )
    try:
        GeN(torch.optim.SGD([p], 0.1), private=private).step(lambda: p.expand(2))
        raise SystemExit("private probes in two processes were not refused")
    except ValueError as error:
        assert "one process" in str(error)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
    with open(f"{sys.argv[1]}/alone", "w") as file:
        file.write(rates([slice(0, 100), slice(100, 240)]))
"""


@pytest.mark.slow
def test_two_gloo_ranks_equal_one_process(tmp_path):
    (tmp_path / "ranks.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "ranks.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, other, alone = ((tmp_path / n).read_text() for n in ("rank0", "rank1", "alone"))
    assert one == other  # bit for bit
    assert float.fromhex(one) == pytest.approx(float.fromhex(alone), rel=1e-10)
    assert float.fromhex(alone) > 2e-3  # it did grow
