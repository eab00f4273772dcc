"""The self-check passes on sound models, and names what is wrong with each that breaks a claim.

Every unsound model here passes the proof on the first batches, or is refused by it; the check must
find it in either case, and say so in words that point at the cause.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelyard import models
from steelyard.checks.self_check import SelfCheck, check
from steelyard.rows.per_sample import PerSample
from steelyard.weightings.clip import AutoClip, FlatClip, GlobalClip, NormalizedClip

B, CLASSES, WORDS, LENGTH = 6, 3, 11, 7
CLIP = FlatClip(0.5)
NAMES = ("coverage", "exactness", "sensitivity", "influence", "buffers")


def run(model: nn.Module, losses_of, *batch, weighting=CLIP, samples=4, **options) -> SelfCheck:
    groups = options.pop("groups", "all")
    with PerSample(model, weighting, expected_batch=4, groups=groups) as rows:
        return check(rows, model, losses_of, batch, samples=samples, **options)


def finding(result: SelfCheck, name: str):
    (found,) = [f for f in result.findings if f.name == name]
    return found


def failed(result: SelfCheck) -> set[str]:
    return {f.name for f in result.findings if not f.passed}


def mlp(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *inner, nn.Linear(8, CLASSES))


def points(count: int = B) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 4), torch.randint(0, CLASSES, (count,))


def classified(model: nn.Module):
    return lambda x, y: F.cross_entropy(model(x), y, reduction="none")


def texts() -> dict[str, Tensor]:
    """Token ids, and targets of different lengths: -100 is no target."""
    tokens = torch.randint(0, WORDS, (B, LENGTH + 1))
    targets = tokens[:, 1:].clone()
    for i in range(B):
        targets[i, i + 2 :] = -100
    return {"tokens": tokens[:, :-1].contiguous(), "targets": targets}


def token_losses(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Losses [B, T], zero where there is no target, and whether there is one."""
    logits = model(batch["tokens"]).transpose(1, 2)
    losses = F.cross_entropy(logits, batch["targets"], reduction="none", ignore_index=-100)
    return losses, batch["targets"] != -100


def continued(model: nn.Module):
    def losses_of(batch: dict[str, Tensor]) -> Tensor:  # [B], each divided by its own tokens
        losses, real = token_losses(model, batch)
        return losses.sum(1) / real.sum(1)

    return losses_of


class TinyGPT(nn.Module):
    """Tied weights, and position ids [1, T] that are broadcast over the batch."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(WORDS, 8), nn.Embedding(LENGTH, 8)
        self.block = models.Block(8, 2, causal=True)
        self.head = nn.Linear(8, WORDS, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])[None]
        return self.head(self.block(self.token(tokens) + self.position(positions)))


def half(model: nn.Module):
    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(x), y, reduction="none")

    return losses_of


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(mlp(nn.Linear(8, 8)), LoraConfig(r=2, target_modules=["0", "2", "3"]))


def image_model() -> nn.Module:
    return models.build("cnn", models.Task(kind="image", shape=(14, 14, 1), classes=3), seed=0)


# -- sound models -----------------------------------------------------------------------------

SOUND = {
    "mlp": (mlp, classified, points),
    "mlp in float64": (lambda: mlp().double(), classified, lambda: (torch.randn(B, 4).double(),
                                                                    points()[1])),
    "mlp in bfloat16": (lambda: mlp().bfloat16(), classified, lambda: (torch.randn(B, 4).bfloat16(),
                                                                       points()[1])),
    "autocast": (mlp, half, points),
    "cnn": (image_model, classified, lambda: (torch.randn(B, 1, 14, 14), points()[1])),
    "tied gpt": (TinyGPT, continued, lambda: (texts(),)),
    "lora": (lora, classified, points),
    "dropout": (lambda: mlp(nn.Dropout(0.4)), classified, points),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_sound_models_pass(name):
    build, loss, batch = SOUND[name]
    model = build()
    result = run(model, loss(model), *batch(), groups="layer")
    assert result.passed, str(result)
    assert [f.name for f in result.findings] == list(NAMES)
    result.raise_if_failed()
    assert "[FAILED]" not in str(result)
    assert finding(result, "coverage").figures["error"] < 1e-2
    assert finding(result, "influence").figures["influenced"] == 0
    assert 0.5 < finding(result, "sensitivity").figures["ratio"] <= 1.05
    assert name != "lora" or "lora_A" in finding(result, "coverage").text  # zero at the start


@pytest.mark.parametrize("weighting", [AutoClip(2.0), NormalizedClip(), GlobalClip()], ids=repr)
def test_every_rule_passes(weighting):
    model = TinyGPT()
    result = run(model, continued(model), texts(), weighting=weighting)
    assert result.passed, str(result)


@pytest.mark.filterwarnings("ignore:.*takes over")
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_parameter_used_past_its_layer_is_not_unsound(engine):
    """The rows notice it and change their ways, so what they sum is the gradient all the same."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.body(x)), self.body.weight)

    model = Functional()
    with PerSample(model, CLIP, expected_batch=4, engine=engine) as rows:
        assert check(rows, model, classified(model), points()).passed


# -- unsound ones -----------------------------------------------------------------------------


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x - x.mean(0))


def batch_tokens(model: nn.Module):
    def losses_of(batch: dict[str, Tensor]) -> Tensor:
        losses, real = token_losses(model, batch)
        return losses.sum(1) / real.sum() * len(losses)

    return losses_of


def batch_token_mean(model: nn.Module):
    def losses_of(batch: dict[str, Tensor]) -> Tensor:
        losses, real = token_losses(model, batch)
        return (losses.sum() / real.sum()).expand(len(losses))

    return losses_of


def class_weights(model: nn.Module):
    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        counts = torch.bincount(y, minlength=CLASSES).clamp(min=1)
        return F.cross_entropy(model(x), y, reduction="none") / counts[y]

    return losses_of


def detached_mean(model: nn.Module):
    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(model(x), y, reduction="none")
        return losses / losses.detach().mean()

    return losses_of


def batch_size(model: nn.Module):
    return lambda x, y: F.cross_entropy(model(x), y, reduction="none") / len(x)


UNSOUND = {  # model, losses, batch, findings that must fail, words in the influence finding
    "tokens of the whole batch": (TinyGPT, batch_tokens, lambda: (texts(),),
                                  {"influence"}, "dividing by all its target tokens"),
    "mean over all tokens": (TinyGPT, batch_token_mean, lambda: (texts(),),
                             {"coverage", "influence"}, "depends on other samples"),
    "class weights of the batch": (mlp, class_weights, points,
                                   {"influence"}, "class weights counted in it"),
    "detached mean": (mlp, detached_mean, points, {"influence"}, "a detached average"),
    "batch size": (mlp, batch_size, points, {"influence"}, "how many others there are"),
    "centred inputs": (Centred, classified, points,
                       {"sensitivity", "influence"}, "x - x.mean(0)"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSOUND)
def test_a_sample_in_another_samples_loss_is_found(name):
    build, loss, batch, expected, words = UNSOUND[name]
    model = build()
    result = run(model, loss(model), *batch())
    assert expected <= failed(result), str(result)
    assert failed(result) <= expected | {"coverage", "exactness", "sensitivity"}
    assert words in finding(result, "influence").text
    assert "buffers" not in failed(result)
    with pytest.raises(ValueError, match=r"^self-check, \w+: [^\n]+$"):
        result.raise_if_failed()
    assert str(result).startswith("Self-check FAILED: ")
