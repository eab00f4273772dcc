"""General knowledge for the generated benchmark: public facts, each asked for in three wordings.

A model trains on two wordings of every fact and is asked in the third, with four answers of the
same kind to choose from: what it knows beside the documents, as MMLU measures it for large models.
"""

from __future__ import annotations

import random
from typing import Any


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """'France/Paris Italy/Rome' -> pairs; '_' stands for a space."""
    return tuple(
        (key.replace("_", " "), value.replace("_", " "))
        for key, value in (pair.split("/") for pair in text.split())
    )


# relation: (three phrasings of a question, its pairs); no two pairs of a relation share an answer
FACTS: dict[str, tuple[tuple[str, str, str], tuple[tuple[str, str], ...]]] = {
    "capital": (
        (
            "What is the capital of {}?",
            "The seat of government of {} is",
            "{} is governed from the city of",
        ),
        _pairs(
            """
            Albania/Tirana Algeria/Algiers Angola/Luanda Argentina/Buenos_Aires Austria/Vienna
            Bangladesh/Dhaka Belgium/Brussels Bulgaria/Sofia Cambodia/Phnom_Penh Canada/Ottawa
            Chile/Santiago China/Beijing Colombia/Bogota Croatia/Zagreb Cuba/Havana
            Denmark/Copenhagen Ecuador/Quito Egypt/Cairo Estonia/Tallinn Ethiopia/Addis_Ababa
            Finland/Helsinki France/Paris Germany/Berlin Ghana/Accra Greece/Athens Hungary/Budapest
            Iceland/Reykjavik India/New_Delhi Iran/Tehran Iraq/Baghdad Ireland/Dublin Italy/Rome
            Jamaica/Kingston Japan/Tokyo Jordan/Amman Kenya/Nairobi Latvia/Riga Lebanon/Beirut
            Libya/Tripoli Lithuania/Vilnius Mali/Bamako Mongolia/Ulaanbaatar Morocco/Rabat
            Nepal/Kathmandu Norway/Oslo Pakistan/Islamabad Peru/Lima Poland/Warsaw Portugal/Lisbon
            Qatar/Doha Romania/Bucharest Russia/Moscow Senegal/Dakar Serbia/Belgrade Spain/Madrid
            Sudan/Khartoum Sweden/Stockholm Syria/Damascus Thailand/Bangkok Tunisia/Tunis
            Turkey/Ankara Uganda/Kampala Ukraine/Kyiv Uruguay/Montevideo Vietnam/Hanoi
            Zambia/Lusaka Zimbabwe/Harare
            """
        ),
    ),
    "symbol": (
        (
            "What is the chemical symbol of {}?",
            "Chemists write {} as",
            "In the periodic table {} is marked",
        ),
        _pairs(
            """
            aluminium/Al argon/Ar arsenic/As barium/Ba beryllium/Be bismuth/Bi boron/B bromine/Br
            cadmium/Cd calcium/Ca carbon/C chlorine/Cl chromium/Cr cobalt/Co copper/Cu fluorine/F
            gallium/Ga germanium/Ge gold/Au helium/He hydrogen/H iodine/I iridium/Ir iron/Fe
            krypton/Kr lead/Pb lithium/Li magnesium/Mg manganese/Mn mercury/Hg neon/Ne nickel/Ni
            nitrogen/N oxygen/O phosphorus/P platinum/Pt potassium/K radium/Ra silicon/Si silver/Ag
            sodium/Na sulphur/S tin/Sn titanium/Ti tungsten/W uranium/U xenon/Xe zinc/Zn
            """
        ),
    ),
    "opposite": (
        (
            "What is the opposite of {}?",
            "Whoever is not {} may be called",
            "The contrary of the word {} is",
        ),
        _pairs(
            """
            absent/present asleep/awake bitter/sweet blunt/sharp brave/cowardly cheap/expensive
            clean/dirty cold/hot dark/bright deep/shallow dry/wet early/late easy/difficult
            false/true famous/unknown fast/slow full/empty generous/greedy guilty/innocent hard/soft
            heavy/light high/low hungry/sated large/small lazy/diligent long/short lost/found
            male/female modern/ancient narrow/wide noisy/quiet old/young poor/rich public/private
            rough/smooth sad/happy sick/healthy thick/thin tight/loose ugly/beautiful weak/strong
            """
        ),
    ),
}

CHOICES = 4
CHANCE = 1 / CHOICES  # accuracy of a guess
KNOWN = sum(len(pairs) for _, pairs in FACTS.values())


def general_rows(rng: random.Random, count: int) -> tuple[tuple[dict[str, Any], ...], ...]:
    """(rows to train on, questions): two wordings of each of `count` facts, and the third.

    Which wording is held out is drawn for every fact, so all three are learnt from other facts.
    Raises: ValueError for more facts than `KNOWN`.
    """
    if count > KNOWN:
        raise ValueError(f"{count} facts asked for: there are {KNOWN}")
    facts = [(kind, k) for kind, (_, pairs) in FACTS.items() for k in range(len(pairs))]
    trained, asked = [], []
    for kind, k in rng.sample(facts, count):
        wordings, pairs = FACTS[kind]
        key, answer = pairs[k]
        held_out = rng.randrange(len(wordings))
        for number, wording in enumerate(wordings):
            row = {
                "id": f"{kind}-{key.replace(' ', '_')}-qa{number}",
                "input": wording.format(key),
                "output": answer,
                "task": "General",
            }
            if number != held_out:
                trained.append(row)
                continue
            others = [value for _, value in pairs if value != answer]
            choices = [answer, *rng.sample(others, CHOICES - 1)]
            rng.shuffle(choices)
            asked.append({**row, "choices": choices})
    return tuple(trained), tuple(asked)
