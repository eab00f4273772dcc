"""Short stories from a small grammar, for Task 1 of the generated benchmark.

    story = opening  motive | turn  ending        (what follows the bar is the part to complete)

Every sentence is drawn from its own list of templates, and every slot of a template from a list of
`word_lists`. Slots lie so close that a run of six words nearly always holds two of them: fewer than
one pair of stories in a thousand shares such a run (measured: 3 of 19,900 pairs).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from steelyard.bench import word_lists as words

OPENINGS = (
    "{A}, {trade_a}, came to {city} with {object}.",
    "In {city} lived {trade_a} named {A}, owner of {object}.",
    "{A} left {city} carrying {object} after the {season} {event}.",
    "Since the {event}, {trade_a} called {A} guarded {object} in {city}.",
    "{City} mourned its {event} when {A}, {trade_a}, inherited {object}.",
    "The {season} {event} brought {A}, {trade_a}, and {object} to {city}.",
    "Nobody in {city} envied {A}, {trade_a} with {object}.",
    "Out of {feeling}, {A} bought {object} from {trade_a} in {city}.",
)
MOTIVES = (
    "{B}, {trade_b}, watched {manner} from the {place}.",
    "Beside the {place} waited {B}, {trade_b} full of {feeling_b}.",
    "{Feeling_b} drove {B}, {trade_b}, to the {place}.",
    "Only {B} from the {place}, {trade_b}, felt {feeling_b}.",
    "Its twin belonged to {B}, {trade_b} near the {place}.",
    "{Manner}, {trade_b} named {B} followed past the {place}.",
    "Behind the {place}, {B} told {trade_b} about {feeling_b}.",
    "Then {trade_b}, {B}, spoke {manner} of the {place}.",
)
# each with a question about a detail that this sentence alone names
TURNS = (
    ("At {hour} {B} {deed} {other} in the {spot}.", "What did {B} have when {A} came?", "{thing}"),
    ("Under the {spot}, {B} {deed} {other} at {hour}.", "What did {A} see {B} with?", "{thing}"),
    (
        "Before {hour}, {A} met {B} {manner_b} at the {spot}.",
        "Where did {A} and {B} meet?",
        "the {spot}",
    ),
    (
        "{Manner_b}, {A} led {B} into the {spot} by {hour}.",
        "Where did {A} take {B}?",
        "the {spot}",
    ),
    (
        "{C}, {trade_c}, {deed} {other} behind the {spot}.",
        "Who came between {A} and {B}?",
        "{C}",
    ),
    ("From the {spot} {manner_b} stepped {C}, {trade_c}.", "Who surprised {A} and {B}?", "{C}"),
    (
        "Until {hour} {A} and {C}, {trade_c}, searched the {spot}.",
        "Who helped {A} against {B}?",
        "{C}",
    ),
    (
        "{B} offered {other} {manner_b}, and {A} {deed} it at {hour}.",
        "What did {B} offer {A}?",
        "{thing}",
    ),
)
ENDINGS = (
    "{Feeling_c} and {feeling_d} stayed in {city} until the {event_b}.",
    "After the {event_b}, {B} chose {feeling_c} over {feeling_d}.",
    "{A} remembered that {season_b} with {feeling_c}, {B} with {feeling_d}.",
    "By {season_b}, {feeling_c} had turned to {feeling_d}.",
    "What {A} called {feeling_c}, {B} called {feeling_d}.",
    "The {event_b} of {season_b} ended {feeling_c} and {feeling_d}.",
    "{Manner_c}, {A} forgave {B} before the {event_b}.",
    "{City} spoke {manner_c} of {feeling_c} each {season_b}.",
)


def city(rng: random.Random) -> str:
    """The name of a city that does not exist."""
    return rng.choice(words.CITY_STARTS) + rng.choice(words.CITY_ENDS)


def story(rng: random.Random, people: Sequence[str]) -> dict[str, str]:
    """One story about `people` (three first names): "start", "rest", "question", "answer".

    The question names the first two of them, the answer is words of "rest".
    """
    slots = _slots(rng, people)
    turn, question, answer = rng.choice(TURNS)
    return {
        "start": _fill(f"{rng.choice(OPENINGS)} {rng.choice(MOTIVES)}", slots),
        "rest": _fill(f"{turn} {rng.choice(ENDINGS)}", slots),
        "question": _fill(question, slots),
        "answer": _fill(answer, slots),
    }


def _slots(rng: random.Random, people: Sequence[str]) -> dict[str, str]:
    A, B, C = people
    trades = rng.sample(words.TRADES, 3)
    adjectives = rng.sample(words.ADJECTIVES, 2)
    things = rng.sample(words.THINGS, 2)
    place, spot = rng.sample(words.PLACES, 2)
    event, event_b = rng.sample(words.EVENTS, 2)
    season, season_b = rng.sample(words.SEASONS, 2)
    manners = rng.sample(words.MANNERS, 3)
    feelings = rng.sample(words.FEELINGS, 4)
    return {
        "A": A,
        "B": B,
        "C": C,
        "city": city(rng),
        **{f"trade_{k}": _article(v) for k, v in zip("abc", trades, strict=True)},
        "object": _article(f"{adjectives[0]} {things[0]}"),
        "other": _article(f"{adjectives[1]} {things[1]}"),
        "thing": _article(f"{adjectives[1]} {things[1]}"),
        "place": place,
        "spot": spot,
        "event": event,
        "event_b": event_b,
        "season": season,
        "season_b": season_b,
        "hour": rng.choice(words.HOURS),
        "deed": rng.choice(words.DEEDS),
        **dict(zip(("manner", "manner_b", "manner_c"), manners, strict=True)),
        **dict(zip(("feeling", "feeling_b", "feeling_c", "feeling_d"), feelings, strict=True)),
    }


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _fill(template: str, slots: Mapping[str, str]) -> str:
    """`{feeling}` is the slot's text; `{Feeling}` the same text with a capital letter."""
    capitals = {k.capitalize(): v[0].upper() + v[1:] for k, v in slots.items() if len(k) > 1}
    return template.format_map({**capitals, **slots})
