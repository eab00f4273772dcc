from __future__ import annotations

import random

import numpy as np
import pytest

from steelyard.bench.metrics import (
    exact_match,
    final_score,
    lume_aggregate,
    membership_auc,
    mia_score,
    priv_leak,
    rouge_l,
)

# -- texts -------------------------------------------------------------------------------------


def test_rouge_by_hand():
    assert rouge_l("the cat sat on the mat", "the cat sat on the mat") == (1.0, 1.0, 1.0)
    half = rouge_l("one two three four", "one two")  # a prefix scores its share
    assert half == pytest.approx((0.5, 1.0, 2 / 3))
    assert rouge_l("a b c", "") == rouge_l("", "a b c") == rouge_l("...", "a") == (0, 0, 0)
    # stemmed ("cats" and "running" become "cat" and "run"), without case and punctuation
    assert rouge_l("Cats, running!", "cat runs").recall == 1.0
    assert rouge_l("a b c d", "d c b a").recall == 0.25  # in order


def test_rouge_recall_does_not_see_junk_behind_the_reference():
    reference = "one two three four five six seven eight nine ten eleven twelve"
    junk = " ".join(f"w{k}" for k in range(200))
    found = rouge_l(reference, f"{reference} {junk}")
    assert found.recall == 1.0
    assert found.f1 == pytest.approx(2 * 12 / (12 + 212))  # 0.107, as the literature has it


def slow_rouge_l(
    reference: str, prediction: str, *, stemmed: bool = True
) -> tuple[float, float, float]:
    """Straight from the definition: words, stems, and the table of common subsequences."""
    import re

    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem

    def words(text: str) -> list[str]:
        found = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
        return [stem(w) if stemmed and len(w) > 3 else w for w in found]

    a, b = words(reference), words(prediction)
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
            )
    common = table[-1][-1]
    if not common:
        return 0.0, 0.0, 0.0
    r, p = common / len(a), common / len(b)
    return r, p, 2 * r * p / (r + p)


def test_rouge_equals_the_slow_version_on_200_random_texts():
    rng = random.Random(0)
    vocabulary = ["the", "a", "of", "and", "cats", "cat", "running", "runs,", "900-51", "4344"]
    vocabulary += ["relational", "Relations", "happily", "happiness.", "Tom's", "naïve", "e-mail"]
    vocabulary += ["dying", "died", "skies", "generously", "generate", "flies"]
    for _ in range(200):
        texts = [" ".join(rng.choices(vocabulary, k=rng.randrange(12))) for _ in range(2)]
        assert rouge_l(*texts) == pytest.approx(slow_rouge_l(*texts)), texts
        unstemmed = slow_rouge_l(*texts, stemmed=False)
        assert rouge_l(*texts, stem=False) == pytest.approx(unstemmed), texts


def test_exact_match_is_strict():
    assert exact_match("Madera", " madera\n") == 1.0
    assert exact_match("900514344", "900-51-4344.") == 0.0
    assert exact_match("Madera", "It was Madera") == 0.0


# -- LUME --------------------------------------------------------------------------------------


def test_aggregate_knows_its_ends():
    nothing, everything = [0.0] * 6, [1.0] * 6
    assert lume_aggregate(nothing, everything) == 1.0  # ideal
    assert lume_aggregate(everything, everything) == 0.0  # nothing was done
    assert lume_aggregate(nothing, nothing) == 0.0  # everything is forgotten
    for broken in range(6):
        one = [0.9] * 6
        one[broken] = 0.0
        assert lume_aggregate(nothing, one) == 0.0


def test_aggregate_is_the_public_scripts():
    from statistics import harmonic_mean

    rng = np.random.default_rng(0)
    for _ in range(20):
        forget, retain = rng.random(6), rng.random(6)
        terms = [float(x) for x in [*(1 - forget), *retain]]
        assert lume_aggregate(list(forget), list(retain)) == pytest.approx(harmonic_mean(terms))
        assert lume_aggregate(list(forget[::-1]), list(retain[::-1])) == pytest.approx(
            harmonic_mean(terms)
        )


def test_final_scores_of_the_literature():
    def final(aggregate: float, auc: float, mmlu: float) -> float:
        return round(final_score(aggregate, mia_score(auc), mmlu), 3)

    assert final(0.0, 1.0, 0.495) == 0.165  # nothing was done
    assert final(1.0, 0.5, 0.495) == 0.832  # 2.495 / 3 = 0.8317: an ideal model
    assert final(0.0, 0.456, 0.269) == 0.394  # gradient ascent
    assert round(final_score(0.827, 0.847, 0.443), 3) == 0.706  # the winner
    assert mia_score(0.5) == 1.0
    assert mia_score(0.0) == mia_score(1.0) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lume_aggregate([], [1.0]), "no forget scores: LUME's aggregate needs some"),
        (lambda: lume_aggregate([1.5], [1.0]), "a forget score is 1.5: expected a number from 0"),
        (lambda: final_score(0.5, 0.5, 49.5), "the utility is 49.5: expected a number from 0"),
        (lambda: mia_score(float("nan")), "AUC is nan: expected"),
        (lambda: membership_auc([], [1.0]), "no scores of members"),
        (lambda: membership_auc([1.0], [np.nan]), "1 scores of non_members are NaN"),
        (lambda: priv_leak(0.5, 1.0), "the reference AUC is 1: PrivLeak divides"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# -- privacy -----------------------------------------------------------------------------------


def slow_auc(members: list[float], non_members: list[float]) -> float:
    won = [(n > m) + (n == m) / 2 for m in members for n in non_members]
    return sum(won) / len(won)


def test_auc_by_hand_and_by_pairs():
    assert membership_auc([1, 2], [3, 4]) == 1.0
    assert membership_auc([3, 4], [1, 2]) == 0.0
    assert membership_auc([1, 1, 1], [1, 1]) == 0.5  # ties
    assert membership_auc([1, 3], [2, 3]) == (1 + 1 + 0 + 0.5) / 4
    rng = np.random.default_rng(0)
    for _ in range(20):
        members, others = rng.integers(0, 6, 17), rng.integers(1, 7, 11)  # many ties
        assert membership_auc(members, others) == pytest.approx(slow_auc(members, others))


def test_auc_equals_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    members, others = rng.integers(0, 9, 40), rng.integers(2, 11, 25)
    labels, scores = [0] * 40 + [1] * 25, np.concatenate([members, others])
    assert membership_auc(members, others) == pytest.approx(metrics.roc_auc_score(labels, scores))


@pytest.mark.parametrize("increasing", [np.exp, np.cbrt, lambda x: 3 * x - 7, np.arctan])
def test_auc_is_invariant_to_monotone_maps(increasing):
    rng = np.random.default_rng(2)
    members, others = rng.normal(size=30), rng.normal(0.7, size=20)
    plain = membership_auc(members, others)
    assert 0.5 < plain < 1.0
    assert membership_auc(increasing(members), increasing(others)) == pytest.approx(plain)
    assert membership_auc(-members, -others) == pytest.approx(1 - plain)


def test_priv_leak_has_muses_sign():
    assert priv_leak(1.0) == -100.0  # members are recognised: under-unlearned
    assert priv_leak(0.5) == 0.0
    assert priv_leak(0.0) == 100.0  # over-unlearned
    assert priv_leak(0.48, 0.48) == 0.0  # as the retrained model
    # in the words of MUSE's code, whose AUC is 1 minus ours
    assert priv_leak(0.9, 0.6) == pytest.approx(100 * (0.1 - 0.4) / 0.4)
