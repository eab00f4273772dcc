"""From what the user gave to complete settings: sensible where nothing was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.data import Table
from steelyard.runs.config import TrainConfig
from steelyard.runs.problem import read_table

# Tuned once for each side with equal effort (docs/experiments.md); the cost of tuning is not
# charged.
DEFAULT = TrainConfig(
    model="cnn",
    data="fashion-mnist-small",
    epsilon=3.0,
    delta=1e-5,
    epochs=60,
    batch=2048,
    micro_batch=512,
    clip="auto-s",
    optimizer="sgd",
    lr=0.25,
    momentum=0.9,
)
DEFAULT_BASELINE = DEFAULT.replace(epsilon=None, delta=None, batch=128, lr=0.02, epochs=15)

# Where only a model is named: settings that are sensible for its kind.
_TRANSFORMER = DEFAULT.replace(optimizer="adamw", lr=1e-3, batch=512, micro_batch=64, epochs=10)
BY_MODEL = {
    "cnn": DEFAULT,
    "mlp": DEFAULT.replace(model="mlp", lr=0.25),
    "vit": _TRANSFORMER.replace(model="vit"),
    "gpt": _TRANSFORMER.replace(model="gpt", micro_batch=32),
}
BY_KIND = {"image": "cnn", "features": "mlp", "text": "minilm"}
DATA_OF = {"gpt": "shakespeare", "minilm": "rotten-tomatoes", "smollm2": "shakespeare"}
SMALLEST_PART = 5  # a batch that nobody chose is at most this part of the data


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The settings of a run and of its twin without privacy, and the data they are for."""

    config: TrainConfig
    twin: TrainConfig
    table: Table


def settle(settings: Mapping[str, Any], *, private: bool) -> Settled:
    """Complete what the user gave, a dict of `TrainConfig` fields; reads the data.

    Raises ValueError (one line) for a value out of range, and for data that cannot be read.
    """
    given = dict(settings)
    if not private:
        given |= {"epsilon": None, "delta": None}
    if "steps" in given:
        given.setdefault("epochs", None)
    model = given.get("model")
    if model is not None and "data" not in given:
        given["data"] = DATA_OF.get(model, DEFAULT.data)
    start = BY_MODEL.get(model or DEFAULT.model, _TRANSFORMER.replace(model=model))
    if given.get("data", DEFAULT.data) != DEFAULT.data:
        start = start.replace(delta=None)  # chosen from n
    table = read_table(start.replace(**given))  # what is wrong with the options is said first
    if model is None:
        labelled = table.train_y is not None
        given["model"] = BY_KIND[table.kind] if labelled else "gpt"
        start = BY_MODEL.get(given["model"], _TRANSFORMER).replace(delta=start.delta)
    config = start.replace(**given)
    _refuse_unused(given)
    if "batch" not in given:
        config = config.replace(batch=_fitting(config, table))
    unprotected = {"epsilon": None, "delta": None, "noise": "gaussian", "noise_seed": None}
    unprotected |= {"filters": (), "public_weight": None}
    twin = config.replace(**unprotected)
    if config.model == DEFAULT.model:  # its own tuned settings, unless the user chose
        twin = _tuned(twin, given, table)
    if not private:
        config = twin
    return Settled(config=config, twin=twin, table=table)


def _tuned(twin: TrainConfig, given: Mapping[str, Any], table: Table) -> TrainConfig:
    names = [name for name in ("batch", "lr", "epochs") if name not in given]
    tuned = twin.replace(**{name: getattr(DEFAULT_BASELINE, name) for name in names})
    if "batch" in given:
        return tuned
    tuned = tuned.replace(batch=_fitting(tuned, table))
    if tuned.steps is None:
        return tuned
    # as many samples as the private run sees in its steps, in smaller batches
    return tuned.replace(steps=-(-tuned.steps * twin.batch // tuned.batch))


def _refuse_unused(given: Mapping[str, Any]) -> None:
    """Options about public samples that would change nothing."""
    public = {"public_data", "public_part"} & given.keys()
    about = {"public_batch", "public_lr", "public_stop", "at_switch", "reschedule"} & given.keys()
    used = {"public_weight", "public_first"} & given.keys()
    probed = given.get("step", "fixed") != "fixed"  # on public samples, under privacy
    if about and not used:
        flag = sorted(about)[0].replace("_", "-")
        raise ValueError(
            f"--{flag} is about public samples in training: give --public-weight or --public-first"
        )
    if public and not used and not probed:
        flag = sorted(public)[0].replace("_", "-")
        raise ValueError(
            f"--{flag} names public samples and nothing uses them: give --public-weight (beside "
            "the private ones), --public-first (before them) or --step gen (to find the rate)"
        )


def _fitting(config: TrainConfig, table: Table) -> int:
    """The batch of these settings, or a smaller one where there is little data."""
    return min(config.batch, max(1, _samples(config, table) // SMALLEST_PART))


def _samples(config: TrainConfig, table: Table) -> int:
    """How many training samples there will be, roughly for a language model's chunks."""
    if table.kind != "text" or (table.train_y is not None and config.model != "gpt"):
        return round(table.n * (1 - (config.public_part or 0)))
    characters = config.length * (1 if config.model == "gpt" else 4)  # a token has about four
    return sum(-(-max(len(text), 1) // characters) for text in table.train_x)
