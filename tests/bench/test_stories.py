"""The grammar of short stories: details are in the text, runs of words are not shared."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from steelyard.bench import stories, word_lists


@pytest.fixture(scope="module")
def told():
    rng = random.Random(0)
    return [stories.story(rng, rng.sample(word_lists.FIRST_NAMES, 3)) for _ in range(200)]


def runs(story: dict[str, str], length: int) -> set[tuple[str, ...]]:
    words = f"{story['start']} {story['rest']}".split()
    return {tuple(words[k : k + length]) for k in range(len(words) - length + 1)}


def test_hardly_two_stories_share_a_run_of_six_words(told):
    six = [runs(story, 6) for story in told]
    shared = [bool(a & b) for a, b in combinations(six, 2)]
    assert sum(shared) / len(shared) < 0.001
    two = [runs(story, 2) for story in told]
    assert sum(bool(a & b) for a, b in combinations(two, 2)) > 5_000  # the measure can tell


def test_answers_are_in_the_part_to_complete(told):
    for story in told:
        assert story["answer"] in story["rest"]
        assert story["answer"] not in story["start"]
        assert story["question"].endswith("?")


def test_questions_name_the_first_two_people(told):
    rng = random.Random(1)
    for _ in range(50):
        story = stories.story(rng, ("Ada", "Bo", "Cy"))
        assert "Ada" in story["question"]
        assert "Bo" in story["question"]
        assert "Ada" in story["start"]
        assert "Bo" in story["start"]
    assert len({story["question"] for story in told}) > 190


def test_every_template_is_used_and_filled(told):
    for story in told:
        text = " ".join(story.values())
        assert "{" not in text
        assert "}" not in text
        assert story["start"][0].isupper()
        assert story["rest"][0].isupper()
    slots = stories._slots(random.Random(0), ("Ada", "Bo", "Cy"))
    turns = [part for turn in stories.TURNS for part in turn]
    for template in (*stories.OPENINGS, *stories.MOTIVES, *turns, *stories.ENDINGS):
        assert "{" not in stories._fill(template, slots)


def test_articles_suit_their_nouns(told):
    text = " ".join(f"{story['start']} {story['rest']}" for story in told)
    words = text.split()
    for article, noun in pairwise(words):
        if article == "a":
            assert noun[0] not in "aeio"
        if article == "an":
            assert noun[0] in "aeiou"
