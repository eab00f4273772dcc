"""An unlearning trial on a benchmark of a few documents: the library's run, and what is seen."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from steelyard.bench.metrics import exact_memorisation
from steelyard.bench.scoring import token_scores
from steelyard.runs.unlearn_config import UnlearnConfig
from steelyard.runs.unlearning import Unlearning
from steelyard.trials import forgetting
from steelyard.trials.forgetting import Watched, _ends, _rises, build, forget, qualities
from steelyard.trials.memorised import memorised

SIZES = {"forget": 2, "retain": 2, "non_members": 2, "facts": 4}
RECIPE = {"vocabulary": 300, "width": 32, "layers": 1, "heads": 2, "epochs": 24, "tokens": 400}


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    one = {"data": "small", "seed": 0, "sizes": SIZES, "recipe": RECIPE, "cache": cache}
    assert build(**one)["rows"] == 20
    return one


def trial(benchmark, method="graddiff", **changes):
    given = {"rate": 3e-3, "steps": 5, "batch": 4, "every": 2} | changes
    return forget(benchmark=benchmark, method=method, **given)


def config(**changes):
    names = dict.fromkeys(("model", "forget", "retain"), "x")
    given = {
        "method": "graddiff", "adapter": "full", "lr": 3e-3, "batch": 4, "micro_batch": 4,
        "length": 256, "tolerance": None, "evaluate_every": 2,
    }  # fmt: skip
    return UnlearnConfig(**names, **(given | changes))


def test_a_trial_starts_at_the_target_and_is_looked_at_until_its_end(benchmark):
    found = trial(benchmark)
    json.dumps(found)
    assert [row[0] for row in found["trajectory"]] == [0, 2, 4, 5]
    assert found["trajectory"][0][3:] == [0.0, 1.0]
    losses = [row[1] for row in found["trajectory"]]
    assert losses == sorted(losses)  # it forgets
    assert all(0 <= quality <= 1 for row in found["trajectory"] for quality in row[3:])
    assert not found["diverged"]
    assert found["raised"] == 0
    assert found["raised_first_order"] is None


def test_looking_on_changes_nothing(benchmark):
    """Against the loop without: the same weights, step by step."""
    base = memorised(**benchmark)
    mine = Watched(config(method="npo"), base, each=2, slopes=True, enough=9.0)
    plain = Unlearning(
        config(method="npo"), copy.deepcopy(base.target), base.tokenizer, base.forget,
        base.retain, run_id="x",
    )  # fmt: skip
    for _ in range(3):
        mine.evaluate()
        for run in (mine, plain):
            run._one_step()
            run.step += 1
        for a, b in zip(mine.parameters, plain.parameters, strict=True):
            assert torch.equal(a, b)


def test_qualities_are_nought_at_the_target_and_one_at_the_reference():
    ends = {
        "target": {"forget_memory": 1.0, "retain_memory": 0.8},
        "reference": {"forget_memory": 0.2, "retain_memory": 0.9},
    }

    def of(forget_memory, retain_memory):
        losses = {"forget_loss": 1.0, "retain_loss": 2.0}
        found = losses | {"forget_memory": forget_memory, "retain_memory": retain_memory}
        return qualities(found, ends)

    assert of(1.0, 0.8) == [1.0, 2.0, 0.0, 1.0]
    assert of(0.2, 0.9) == [1.0, 2.0, 1.0, 1.0]
    assert of(0.6, 0.4)[2:] == pytest.approx([0.5, 0.5])
    assert of(0.0, 0.0)[2:] == pytest.approx([0.75, 0.0])  # forgotten too hard
    with pytest.raises(ValueError, match="train longer"):
        qualities({}, {"target": ends["reference"], "reference": ends["target"]})


def test_memory_is_the_mean_over_cells_of_argmax_hits(benchmark):
    """Naively, from all rows of the set."""
    base = memorised(**benchmark)
    run = Watched(config(), base, each=99, slopes=False, enough=9.0)
    cells = {}
    for row, one in zip(base.forget, token_scores(base.reference, run.forget), strict=True):
        cells.setdefault((row["task"], row["id"][-3:-1]), []).append(one)
    means = [sum(exact_memorisation(s.right) for s in rows) / len(rows) for rows in cells.values()]
    ends = _ends(json.dumps(benchmark), 99)["reference"]
    assert len(means) == 6
    assert ends["forget_memory"] == pytest.approx(sum(means) / 6)
    tokens = torch.cat([torch.tensor(s.log_p) for rows in cells.values() for s in rows])
    assert ends["forget_loss"] == pytest.approx(-float(tokens.mean()), rel=1e-6)


def test_a_step_along_the_forget_gradient_rises_and_one_against_it_does_not():
    before, gradient = [torch.tensor([1.0, 1.0])], [torch.tensor([0.5, 0.0])]
    assert _rises(gradient, before, [torch.tensor([1.1, 0.0])])
    assert not _rises(gradient, before, [torch.tensor([0.9, 9.0])])
    assert not _rises(gradient, before, [torch.tensor([1.0, 2.0])])


def test_steps_that_raise_the_forget_objective_are_counted(benchmark):
    """A retain row that outweighs the forget row; BLUR on the same batches, which allows none."""
    given = {"optimizer": "sgd", "slopes": True, "steps": 6}
    pressed = trial(benchmark, "npo", rate=0.02, weight=3e3, **given)
    assert pressed["raised"] > 0
    assert pressed["raised_first_order"] > 0
    blur = trial(benchmark, "blur", rate=0.02, **given)
    assert blur["raised_first_order"] == 0


def test_the_state_at_which_one_would_have_stopped_is_kept(benchmark):
    run = Watched(config(), memorised(**benchmark), each=2, slopes=False, enough=0.0)
    start = [p.detach().clone() for p in run.parameters]
    run.steps = 4
    assert run.to_the_end()
    assert run.chosen_at == 0
    assert all(torch.equal(a, b) for a, b in zip(run.chosen, start, strict=True))
    never = Watched(config(), memorised(**benchmark), each=2, slopes=False, enough=1e9)
    never.steps = 4
    assert never.to_the_end()
    assert never.chosen_at is None
    assert all(torch.equal(a, b) for a, b in zip(never.chosen, never.parameters, strict=True))


def test_negation_is_looked_at_on_the_other_side(benchmark):
    found = trial(benchmark, "negation", rate=1e-3)
    assert found["trajectory"][-1][1] > found["trajectory"][0][1]  # it trained on these rows


def test_an_automatic_rate_moves(benchmark):
    found = trial(benchmark, "ngdiff", rate=1e-4, automatic=True)
    assert found["rate"] != 1e-4
    assert trial(benchmark, "ngdiff", rate=1e-4)["rate"] == 1e-4


def test_a_divergence_ends_with_finite_numbers(benchmark):
    found = trial(benchmark, "ga", optimizer="sgd", rate=1e30)
    json.dumps(found, allow_nan=False)
    assert found["diverged"]
    assert found["trajectory"][0][0] == 0


def test_texts_are_scored_where_asked(benchmark, monkeypatch):
    monkeypatch.setattr(forgetting, "NEW_TOKENS", 4)
    monkeypatch.setattr(forgetting, "GENERATED", 1)
    found = trial(benchmark, steps=2, generate=True)
    assert set(found["scores"]) >= {"auc", "utility", "aggregate", "forget knowledge"}
    assert all(0 <= value <= 1 for value in found["scores"].values())
    assert trial(benchmark, steps=2)["trajectory"] == found["trajectory"]
    ends = forgetting.reference(**benchmark)
    assert ends["target"].keys() == ends["reference"].keys() == found["scores"].keys()
