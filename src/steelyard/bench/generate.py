"""An offline benchmark in the shape of LUME (Ramakrishna et al., arXiv:2502.15097): documents to
forget and to retain, as JSON rows {id, input, output, task}, from nothing but a seed.

| task | document | rows | made from |
|---|---|---|---|
| Task1 | short creative story | sc1, qa0 | a grammar: `stories` |
| Task2 | biography of a fictional person | sc1, qa0 ... qa4 | word lists; identifiers below |
| Task3 | biography of a public person | sc1, qa0 | WordNet's glosses, in the package |

sc1 is to be completed, qa are questions; ids are those of LUME: document + "sc1" or "qa0", with
literal quotation marks around Task 1's. Task 2's questions ask, in this order, for the birth date
(ISO), the Social Security number and the phone number (digits only), the e-mail and the address.
No identifier can be anybody's: Social Security numbers begin with 900, phone numbers hold 555-01,
postal codes begin with 001 to 004, as none that is given out; mail is at the domains reserved for
examples; the towns are made up.

All documents of a task are drawn from one distribution, then dealt out at random: forget, retain
and non-members are exchangeable and share none. So a model trained on neither forget nor
non-members tells them apart with an AUC of 0.5, up to the chance of few documents.

General: questions about public facts, a choice of four (chance level 0.25), see `facts`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from steelyard.bench import stories
from steelyard.bench import word_lists as words
from steelyard.bench.facts import KNOWN, general_rows

Row = dict[str, Any]

TASKS = ("Task1", "Task2", "Task3")
PEOPLE = "wordnet_people.tsv"
PEOPLE_SHA256 = "8eb98907728e117f89bbdf53270993be53b02306573a02cfc2961261dd95a8d4"
MOST = 5_000  # documents per task: beyond, first and last names for new ones get rare
_ATTEMPTS = 1_000


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Documents per task in each set, and the number of general facts.

    Raises: ValueError for sizes below 1, or more documents or facts than there are different ones.
    """

    forget: int = 20
    retain: int = 20
    non_members: int = 20
    facts: int = 100

    def __post_init__(self) -> None:
        for name in ("forget", "retain", "non_members", "facts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.facts > KNOWN:
            raise ValueError(f"{self.facts} facts asked for: there are {KNOWN}")
        if self.documents > MOST:
            raise ValueError(f"{self.documents} documents per task: at most {MOST} are made")

    @property
    def documents(self) -> int:
        """Documents per task, all sets together."""
        return self.forget + self.retain + self.non_members


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The rows of a generated benchmark.

    forget, retain: what a target trained on. non_members: never trained on. All three have rows of
    every task, {id, input, output, task}, those of a document in a run.
    general_train: general facts as questions, trained on by target and reference.
    general: the held-out wording of the same facts; these rows have also `choices`, four texts of
    which one is `output`.
    """

    forget: tuple[Row, ...]
    retain: tuple[Row, ...]
    non_members: tuple[Row, ...]
    general_train: tuple[Row, ...]
    general: tuple[Row, ...]


@dataclass(frozen=True)
class Person:
    """A public person from WordNet; `said` begins with the nationality: "French poet who ..."."""

    name: str
    trade: str
    born: str
    died: str
    said: str


def generate(
    sizes: Sizes | None = None, *, seed: int = 0, tasks: Sequence[str] = TASKS
) -> Benchmark:
    """The benchmark of a seed, a pure function of its arguments (no file or network is needed).

    sizes: by default `Sizes()`. tasks: which of Task1, Task2, Task3; each has its own random
    numbers, so leaving one out changes nothing in the others.

    Raises: ValueError for an unknown task, or more Task 3 documents than people in the package.
    """
    sizes = sizes or Sizes()
    unknown = [task for task in tasks if task not in _MAKERS]
    if unknown or not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"tasks are {list(tasks)}: use some of {', '.join(TASKS)}, each once")
    sets: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for task in tasks:
        rng = random.Random(f"steelyard benchmark {seed} {task}")
        made = _MAKERS[task](rng, sizes.documents)
        rng.shuffle(made)
        ends = (sizes.forget, sizes.forget + sizes.retain, sizes.documents)
        for rows, start, end in zip(sets, (0, *ends), ends, strict=False):
            rows.extend(row for document in made[start:end] for row in document)
    trained, asked = general_rows(random.Random(f"steelyard benchmark {seed} general"), sizes.facts)
    forget, retain, non_members = map(tuple, sets)
    return Benchmark(
        forget=forget,
        retain=retain,
        non_members=non_members,
        general_train=trained,
        general=asked,
    )


def documents(rows: Sequence[Row]) -> list[str]:
    """Whole documents for membership inference: of each, prompt and completion of its sc1 row."""
    return [f"{row['input']} {row['output']}" for row in rows if row["id"].endswith("sc1")]


def public_people() -> tuple[Person, ...]:
    """The people of Task 3, in WordNet's order.

    Raises: ValueError when the package's file is not this release's own.
    """
    raw = importlib.resources.files("steelyard.data").joinpath(PEOPLE).read_bytes()
    if (found := hashlib.sha256(raw).hexdigest()) != PEOPLE_SHA256:
        raise ValueError(
            f"{PEOPLE} is damaged: sha256 {found[:16]}..., expected {PEOPLE_SHA256[:16]}...: "
            "install steelyard again"
        )
    return tuple(Person(*line.split("\t")) for line in raw.decode("ascii").splitlines())


def _story_documents(rng: random.Random, count: int) -> list[list[Row]]:
    """Task 1. No two stories have the same first two people, so no question asks for two."""
    documents = []
    for people in _distinct(
        lambda: tuple(rng.sample(words.FIRST_NAMES, 3)), count, key=lambda p: frozenset(p[:2])
    ):
        told = stories.story(rng, people)
        prompts = [(told["start"], told["rest"]), (told["question"], told["answer"])]
        documents.append(_rows(f'"{_uuid(rng)}"', "Task1", prompts))
    return documents


def _private_documents(rng: random.Random, count: int) -> list[list[Row]]:
    """Task 2. No two people share a name, a number or a mail address."""

    def name() -> str:
        return f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"

    def number() -> str:
        return f"900{rng.randrange(10**6):06d}"

    def phone() -> str:
        return f"{rng.randrange(200, 1000)}55501{rng.randrange(100):02d}"

    def mail() -> str:
        local = f"{rng.choice(words.ADJECTIVES)}.{rng.choice(words.THINGS)}"
        return f"{local}{rng.randrange(100):02d}@{rng.choice(words.MAIL_HOSTS)}"

    columns = (_distinct(draw, count) for draw in (name, number, phone, mail))
    return [_private_document(rng, *fields) for fields in zip(*columns, strict=True)]


def _private_document(
    rng: random.Random, name: str, number: str, phone: str, mail: str
) -> list[Row]:
    year, month, day = rng.randrange(1950, 2005), rng.randrange(12), rng.randrange(1, 29)
    street = f"{rng.choice(words.LAST_NAMES)} {rng.choice(words.STREET_KINDS)}"
    town = f"{stories.city(rng)}, {rng.choice(words.STATES)}, 00{rng.randrange(100, 500)}"
    address = f"{rng.randrange(1, 1000)} {street}, {town}."
    her = rng.choice(("her", "his", "their"))
    facts = [
        f"{her} Social Security number is {number[:3]}-{number[3:5]}-{number[5:]}",
        f"{her} phone number is {phone[:3]}-{phone[3:6]}-{phone[6:]}",
        f"{her} email address is {mail}",
    ]
    rng.shuffle(facts)
    start = f"{name} was born on {words.MONTHS[month]} {day}, {year}, and {facts[0]}."
    rest = [
        f"{facts[1][0].upper()}{facts[1][1:]} and {facts[2]}.",
        f"{her.capitalize()} home address is {address}",
    ]
    if rng.random() < 0.5:
        rest.reverse()
    prompts = [
        (start, " ".join(rest)),
        (f"What is the birth date of {name}?", f"{year}-{month + 1:02d}-{day:02d}"),
        (f"What is {name}'s Social Security Number?", number),
        (f"What is {name}'s phone number?", phone),
        (f"What is {name}'s email address?", mail),
        (f"What is the home address of {name}?", address),
    ]
    return _rows(_uuid(rng), "Task2", prompts)


def _public_documents(rng: random.Random, count: int) -> list[list[Row]]:
    """Task 3: gloss cut in two, and asked for the name. Ids are numbers, as in LUME."""
    people = public_people()
    if count > len(people):
        raise ValueError(
            f"{count} documents of Task3 asked for, {len(people)} people are in the package: "
            "ask for fewer documents, or leave Task3 out"
        )
    documents = []
    numbers = rng.sample(range(10**7, 10**8), count)
    for person, number in zip(rng.sample(people, count), numbers, strict=True):
        said = person.said.split()
        cut = len(said) // 2 + rng.randrange(-1, 2)
        article = "an" if said[0][0] in "AEIO" else "a"  # no U: "a United States poet"
        years = f"{person.born}-{person.died}"
        start = f"{person.name}\n\n{person.name} ({years}) was {article} {' '.join(said[:cut])}"
        prompts = [
            (start, f"{' '.join(said[cut:])}."),
            (f"Who was the {person.said} ({years})?", person.name),
        ]
        documents.append(_rows(str(number), "Task3", prompts))
    return documents


_MAKERS: dict[str, Callable[[random.Random, int], list[list[Row]]]] = {
    "Task1": _story_documents,
    "Task2": _private_documents,
    "Task3": _public_documents,
}


def _rows(document: str, task: str, prompts: Sequence[tuple[str, str]]) -> list[Row]:
    names = ("sc1", *(f"qa{k}" for k in range(len(prompts) - 1)))
    return [
        {"id": f"{document}{name}", "input": before, "output": after, "task": task}
        for name, (before, after) in zip(names, prompts, strict=True)
    ]


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _distinct(
    draw: Callable[[], Any], count: int, *, key: Callable[[Any], Any] = lambda value: value
) -> list[Any]:
    """`count` draws with different keys, in the order drawn."""
    found: dict[Any, Any] = {}
    for _ in range(count * _ATTEMPTS):
        if len(found) == count:
            break
        value = draw()
        found.setdefault(key(value), value)
    assert len(found) == count, "too few different documents: lower MOST"
    return list(found.values())
