"""Tasks on real shapes of models: LoRA, checkpointed blocks, tied weights, half precision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from steelyard.models import Task, build
from steelyard.rows.tasks import Tasks
from steelyard.weightings.blur import Blur
from steelyard.weightings.ngdiff import NGDiff

TOKENS = torch.randint(0, 11, (6, 8), generator=torch.Generator().manual_seed(0))


def gpt(seed=0):
    task = Task(kind="language", shape=(8,), vocabulary=11)
    return build("gpt", task, seed=seed, layers=2, width=8, heads=2)


def ce(model, rows):
    logits = model(TOKENS[rows, :-1])
    return cross_entropy(logits.flatten(0, 1), TOKENS[rows, 1:].flatten())


def naive(model, sign=-1.0):
    """NGDiff by plain autograd."""
    ps = [p for p in model.parameters() if p.requires_grad]
    rows = [
        torch.autograd.grad(s * ce(model, part), ps)
        for s, part in ((1.0, slice(0, 3)), (sign, slice(3, 6)))
    ]
    norms = [torch.sqrt(sum(g.double().square().sum() for g in row)) for row in rows]
    return [a / norms[0] + b / norms[1] for a, b in zip(*rows, strict=True)]


def step(model, **options):
    tasks = Tasks(model.parameters(), NGDiff(), **options)
    return tasks.backward(
        retain=lambda: ce(model, slice(0, 3)), forget=lambda: -ce(model, slice(3, 6))
    )


def check(model, rtol=1e-4, atol=1e-5):
    expected = naive(model)
    step(model)
    found = [p.grad for p in model.parameters() if p.requires_grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=rtol, atol=atol)


def test_a_language_model():
    check(gpt())


def test_lora_trains_the_adapters_alone():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11))
    base = copy.deepcopy(net.state_dict())
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["1", "3"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)  # at 0 the other half has no gradient
    tasks = Tasks(model.parameters(), Blur(), optimizer=None)
    assert sum(p.numel() for p in tasks.parameters) == 2 * (8 + 8) + 2 * (8 + 11)
    check(model)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    for name, p in model.named_parameters():
        assert ("lora" in name) == p.requires_grad
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    optimizer.step()
    with model.disable_adapter():
        torch.testing.assert_close(model(TOKENS), _plain(base)(TOKENS))


def _plain(state):
    net = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 11))
    net.load_state_dict(state)
    return net


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 11)
        self.reentrant = reentrant

    def forward(self, x):
        h = self.table(x)
        for block in self.blocks:
            if self.reentrant is None:
                h = h + block(h).tanh()
            else:
                h = h + checkpoint(block, h, use_reentrant=self.reentrant).tanh()
        return self.head(h)


def test_checkpointed_blocks():
    check(Checkpointed(False))
    plain, kept = Checkpointed(None), Checkpointed(False)
    assert step(plain).norms == step(kept).norms
    for a, b in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        step(Checkpointed(True))


def test_tied_weights_count_once():
    model = Checkpointed(None)
    model.head.weight = model.table.weight
    check(model)


def test_bfloat16_gradients_are_weighed_in_float32():
    model = gpt().to(torch.bfloat16)
    expected = naive(model)
    record = step(model)
    found = [p.grad for p in model.parameters()]
    assert all(g.dtype == torch.bfloat16 for g in found)
    off = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, expected))  # noqa: B905
    assert off**0.5 < 0.01 * record.norm


@pytest.mark.parametrize("view", [False, True])
def test_inside_ddp_whose_gradients_are_views_of_its_buckets(view, tmp_path):
    """With gradient_as_bucket_view the second task's backward is written over the first's row."""
    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        model = Checkpointed(None)
        expected = naive(model)
        wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=view)
        for _ in range(2):  # the second time, buckets are in use
            record = step(wrapped)
            for p, g in zip(model.parameters(), expected, strict=True):
                torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-5)
            assert abs(record.cosines["retain", "forget"]) < 0.99
    finally:
        torch.distributed.destroy_process_group()


def test_the_scale_of_a_gradscaler():
    """NGDiff takes it out, so a scaler's step would divide by it again; BLUR hands it on."""
    model, found = gpt(), {}
    for scale in (1.0, 2.0**16):
        for weighting in (NGDiff(), Blur()):
            Tasks(model.parameters(), weighting).backward(
                retain=scale * ce(model, slice(0, 3)), forget=-scale * ce(model, slice(3, 6))
            )
            grads = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            found[type(weighting), scale] = grads
    torch.testing.assert_close(found[NGDiff, 2.0**16], found[NGDiff, 1.0])
    torch.testing.assert_close(found[Blur, 2.0**16] / 2.0**16, found[Blur, 1.0])


def test_under_autocast():
    model = gpt()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        record = step(model)
    assert record.norm == pytest.approx(
        float(torch.sqrt(sum(p.grad.double().square().sum() for p in model.parameters()))),
        rel=1e-5,
    )
