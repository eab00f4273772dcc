"""Everything at once: layer-wise clipping, public rows, DiSK, DOPPLER, AdamW, LoRA, micro-batches,
resume; epsilon as for plain DP-SGD, and every step as the papers' boxes in a row would take it.

    g_i   = w grad f(x + gamma u; i) + (1 - w) grad f(x; i)                DiSK, private and public
    ghat  = (sum_i concat_m clip_{R/sqrt(M)}(g_i^(m)) + sigma R z) / B     layer-wise clipping
    mix   = alpha gbar_pub + (1 - alpha) ghat                              coupling
    m     = (1 - kappa) m + kappa mix                                      DiSK
    v     = phi v + (1 - phi) m,  vhat = v / (1 - phi^(t+1))               DOPPLER
    x    <- AdamW(x, vhat)
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard.filters.attach import attach
from steelyard.filters.chain import chain
from steelyard.filters.disk import Disk
from steelyard.filters.doppler import Doppler
from steelyard.filters.gaussian import Gaussian
from steelyard.plans.privacy import plan_privacy
from steelyard.rows.groups import partition
from steelyard.rows.per_sample import PerSample
from steelyard.rows.sources import PublicRows
from steelyard.runs.ledger import Ledger
from steelyard.types import Clipped
from steelyard.weightings.clip import FlatClip
from steelyard.weightings.coupling import ConstantWeight

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

KAPPA, PHI, ALPHA, R, SEED = 0.6, 0.8, 0.3, 0.05, 11
LOOK = {"one evaluation": None, "two": 0.9}
STEPS, PUBLIC = 8, 3
PLAN = plan_privacy(n=40, batch=6, steps=STEPS, epsilon=5.0, delta=1e-3, accountant="rdp")


def lora() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=1,
        attn_implementation="sdpa", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    options: dict[str, Any] = {"init_lora_weights": False, "fan_in_fan_out": True}
    adapter = peft.LoraConfig(r=2, target_modules=["c_attn", "c_fc"], **options)
    return peft.get_peft_model(transformers.GPT2LMHeadModel(config), adapter).double()


def continued(model: nn.Module, tokens: Tensor) -> Tensor:  # [B]
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


def drawn(step: int, salt: int, most: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * salt + step)
    count = int(torch.randint(0 if salt else most, most + 1, (1,), generator=generator))
    return torch.randint(0, 20, (count, 6), generator=generator)


class Run:
    """The library's side."""

    def __init__(self, look_ahead: float | None):
        self.model = lora()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=0.02, weight_decay=0.1)
        self.rows = PerSample(
            self.model, FlatClip(R), expected_batch=PLAN.expected_batch, groups="layer"
        )
        self.public = PublicRows(self.rows, ConstantWeight(ALPHA), batch=PUBLIC)
        noise = Gaussian(PLAN.noise_multiplier, seed=SEED)
        disk, doppler = Disk(KAPPA, look_ahead), Doppler.first_order(PHI)
        self.chain = chain(noise, self.public, disk, doppler)
        self.ledger = Ledger(PLAN)
        attach(self.optimizer, self.rows, self.chain, ledger=self.ledger)

    def step(self, t: int) -> None:
        self.public.backward(lambda: continued(self.model, drawn(t, 0, PUBLIC)))
        batch = drawn(t, 1, 9)
        for piece in batch.split(4) if len(batch) else [batch]:  # micro-batches; some are empty
            self.rows.backward(
                lambda x=piece: continued(self.model, x) if len(x) else torch.zeros(0)
            )
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "chain": self.chain.state_dict(),
                "ledger": self.ledger.state_dict(),
            }
        )

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.chain.load_state_dict(state["chain"])
        self.ledger.load_state_dict(state["ledger"])

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters() if p.requires_grad]


class Twin:
    """The same from the box above: one sample and one point at a time, every state by hand."""

    def __init__(self, oracle: Any, look_ahead: float | None):
        self.oracle, self.model = oracle, lora()
        self.named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.named.values(), lr=0.02, weight_decay=0.1)
        self.gamma = (1 - KAPPA) / KAPPA if look_ahead is None else look_ahead
        self.w = (1 - KAPPA) / (KAPPA * self.gamma)
        self.moved: list[Tensor] | None = None
        self.m: dict[str, Tensor] = {}
        self.v = {n: torch.zeros_like(p) for n, p in self.named.items()}
        # the noise is replayed: what the seeded mechanism adds to zeros
        self.noise = Gaussian(PLAN.noise_multiplier, seed=SEED)

    def mean(self, batch: Tensor, divisor: float) -> dict[str, Tensor]:
        rows: list[dict[str, Tensor]] = []
        for weight, gamma in ((self.w, self.gamma), (1 - self.w, 0.0)):
            if self.moved is None:  # the first step: at x alone
                weight, gamma = (1.0, 0.0) if gamma else (0.0, 0.0)
            own = [p.detach().clone() for p in self.named.values()]
            with torch.no_grad():
                for p, u in zip(self.named.values(), self.moved or [], strict=False):
                    p.add_(u, alpha=gamma)
            found = self.oracle.per_sample(self.model, continued, batch) if len(batch) else []
            with torch.no_grad():
                for p, old in zip(self.named.values(), own, strict=True):
                    p.copy_(old)
            found = [{n: weight * g for n, g in row.items()} for row in found]
            rows = found if not rows else [
                {n: a[n] + b[n] for n in a} for a, b in zip(rows, found, strict=True)
            ]  # fmt: skip
        if not rows:
            return {n: torch.zeros_like(p) for n, p in self.named.items()}
        total = self.oracle.clipped_sum(rows, partition(self.named, "layer"), "flat", R)
        return {n: t / divisor for n, t in total.items()}

    def step(self, t: int) -> None:
        public = self.mean(drawn(t, 0, PUBLIC), PUBLIC)
        private = self.mean(drawn(t, 1, 9), PLAN.expected_batch)
        zeros = [torch.zeros_like(p) for p in self.named.values()]
        noise = self.noise.privatise(Clipped(zeros, R / PLAN.expected_batch)).tensors
        for (n, p), z in zip(self.named.items(), noise, strict=True):
            mix = ALPHA * public[n] + (1 - ALPHA) * (private[n] + z)
            self.m[n] = mix if t == 0 else (1 - KAPPA) * self.m[n] + KAPPA * mix
            self.v[n] = PHI * self.v[n] + (1 - PHI) * self.m[n]
            p.grad = self.v[n] / (1 - PHI ** (t + 1))
        before = [p.detach().clone() for p in self.named.values()]
        self.optimizer.step()
        after = [p.detach() for p in self.named.values()]
        self.moved = [new - old for new, old in zip(after, before, strict=True)]


@pytest.mark.parametrize("look_ahead", LOOK)
def test_as_the_boxes_in_a_row(oracle, look_ahead):
    run, twin = Run(LOOK[look_ahead]), Twin(oracle, LOOK[look_ahead])
    start = run.weights()
    for t in range(STEPS):
        run.step(t)
        twin.step(t)
        for a, b in zip(run.weights(), twin.named.values(), strict=True):
            torch.testing.assert_close(a, b.detach(), rtol=1e-8, atol=1e-10)
    assert max(float((a - b).abs().max()) for a, b in zip(start, run.weights(), strict=True)) > 0.02


@pytest.mark.parametrize("look_ahead", LOOK)
def test_epsilon_is_that_of_plain_dp_sgd(look_ahead):
    run = Run(LOOK[look_ahead])
    plain = Ledger(PLAN)
    for t in range(STEPS):
        run.step(t)
        plain.charge(
            noise_multiplier=PLAN.noise_multiplier, sampling_probability=PLAN.sampling_probability
        )
        assert run.ledger.epsilon() == plain.epsilon()
    assert run.ledger.report()["history"] == plain.report()["history"]
    assert 4.9 < run.ledger.epsilon() <= 5.0
    assert not math.isinf(PLAN.epsilon)


@pytest.mark.parametrize("look_ahead", LOOK)
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_resume_is_bit_for_bit(look_ahead, stop):
    whole = Run(LOOK[look_ahead])
    for t in range(stop):
        whole.step(t)
    saved = whole.state()
    resumed = Run(LOOK[look_ahead])
    resumed.load(saved)
    for t in range(stop, STEPS):
        whole.step(t)
        resumed.step(t)
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert torch.equal(a, b)
    assert whole.ledger.state_dict() == resumed.ledger.state_dict()
