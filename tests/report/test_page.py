from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from steelyard.report import write_report
from steelyard.report.page import html
from steelyard.report.read import read_run

EMPTY = {"meta", "link", "br", "hr", "img", "input"}
CLIP = {"time": 1.0, "kind": "clip_statistics", "step": 7, "fraction_clipped": 0.123456}
KINDS = {
    "private with baseline": {"baseline": True},
    "private alone": {},
    "not private": {"private": False},
    "incomplete": {"complete": False},
    "language": {"language": True, "baseline": True},
}


class Page(HTMLParser):
    """What a browser would find: the elements, the text outside of style, the open elements."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += " ".join(data.replace("\u202f", " ").split(" "))

    def values(self, *names: str) -> list[str]:
        return [
            value
            for _, found in self.elements
            for n, value in found.items()
            if n in names and value
        ]


def _page(folder: Path) -> Page:
    page = Page(write_report(folder).read_text(encoding="utf-8").replace("\u00a0", " "))
    assert page.open == []
    return page


@pytest.fixture(params=KINDS, ids=str)
def any_run(request, make_run) -> Path:
    return make_run(**KINDS[request.param])


def test_files_are_written_whole_and_again(any_run):
    for _ in range(2):
        assert write_report(any_run) == any_run / "report.html"
    assert (any_run / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (any_run / "curves.csv").read_text().startswith("run,kind,step,epoch,")
    assert not list(any_run.glob("*.tmp")) + list(any_run.glob(".*"))


def test_a_run_that_cannot_be_read_leaves_nothing_behind(make_run):
    folder = make_run()
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config"):
        write_report(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "curves.png").exists()


def test_the_page_fetches_nothing(any_run):
    text = write_report(any_run).read_text(encoding="utf-8")
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object"}
    links = page.values("src", "srcset", "href", "xlink:href", "data", "action", "poster")
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]+\.", text)
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]


def test_ids_are_unique_and_every_reference_resolves(any_run):
    page = _page(any_run)
    ids = page.values("id")
    assert len(set(ids)) == len(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert {link[1:] for link in page.values("href", "xlink:href")} <= set(ids)


def test_the_page_can_be_heard(any_run):
    page = _page(any_run)
    assert ("html", {"lang": "en"}) in page.elements
    drawings = [found for _, found in page.elements if found.get("role") == "img"]
    assert len(drawings) >= 2
    assert all(found.get("aria-label") for found in drawings)
    assert all("scope" in found for tag, found in page.elements if tag == "th")
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_the_page_is_a_function_of_the_run(make_run):
    run = read_run(make_run(baseline=True))
    assert html(run) == html(run)


def test_private_with_baseline(make_run):
    text = _page(make_run(baseline=True)).text
    for found in ("trained privately", "83.0", "89.9", "2.993", "of a budget of 3", "0.823",
                  "add or remove one sample", "Each batch is a Poisson sample",
                  "the number of classes", "The test set", "The search for settings",
                  "The run without privacy", "AMD EPYC", "steelyard train --epsilon 3 --seed 0",
                  "operating system's entropy", "Glossary", "9 October 2025"):  # fmt: skip
        assert found in text
    assert "Nothing is protected" not in text
    assert "not finished" not in text


def test_a_run_without_privacy_says_that_nothing_is_protected(make_run):
    text = _page(make_run(private=False)).text
    assert "trained without privacy" in text
    assert "Nothing is protected." in text
    for claim in ("trained privately", "What was protected", "ε spent", "system's entropy"):
        assert claim not in text


def test_an_incomplete_run_says_so_and_shows_what_is_there(make_run):
    text = _page(make_run(complete=False)).text
    assert "This run is not finished." in text
    assert "step 176 of 352" in text
    assert "80.8" in text
    assert "private training, unfinished" in text


def test_a_run_that_has_just_begun_has_a_page(make_run):
    folder = make_run(complete=False)
    (folder / "ledger.json").unlink()
    path = folder / "events.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    text = _page(folder).text
    assert "It has not been evaluated yet." in text
    assert "There is no ledger yet." in text
    path.write_text("")
    assert "not finished" in _page(folder).text


def test_seeded_noise_is_a_visible_warning(make_run):
    page = _page(make_run(change={"ledger": {"noise_seeded_by_user": True}}))
    assert "The noise was seeded by the user: treat this run as not private." in page.text
    assert ("p", {"class": "notice danger", "role": "note"}) in page.elements
    for claim in ("trained privately", "What was protected", "operating system's entropy"):
        assert claim not in page.text


def test_hostile_strings_are_text(make_run):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"
    folder = make_run(
        baseline=True,
        extra=[{**CLIP, "protection": "public", evil: 1.5}],
        change={
            "config": {"model": evil, "data": evil, "command": evil, "clip": evil, evil: [evil]},
            "result": {"model": evil, "data": evil},
            "environment": {"cpu": evil, evil: evil, "steelyard": evil},
            "ledger": dict.fromkeys(("neighbouring_relation", "sampling", "accountant"), evil)
            | {key: [evil, {"a": evil}] for key in ("public", "unprotected", "assumptions")},
        },
    )  # fmt: skip
    page = _page(folder)
    assert not {tag for tag, _ in page.elements} & {"script", "img"}
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    assert page.text.count(evil) > 8


@pytest.mark.parametrize("value", [None, "text", 3, {"a": 1}, [], True, 1e308, -1])
def test_any_json_in_the_ledger_and_the_result_gives_a_page(make_run, value):
    keys = ("epsilon", "delta", "sigma", "public", "assumptions", "sampling", "steps",
            "target", "accountant", "q", "history", "n")  # fmt: skip
    results = ("test_accuracy", "steps", "seconds", "parameters", "samples_per_s", "model")
    ledger, result = dict.fromkeys(keys, value), dict.fromkeys(results, value)
    _page(make_run(baseline=True, change={"ledger": ledger, "result": result}))


def test_clip_statistics_that_are_not_protected_never_appear(make_run):
    folder = make_run(
        extra=[
            {**CLIP, "protection": "noised", "fraction_clipped": 0.654321},
            {**CLIP, "protection": "none"},
            CLIP,
        ]
    )
    page = _page(folder)
    assert "0.65432" in page.text
    assert "2 records of clip statistics not shown." in page.text
    assert "0.1234" not in page.text
    assert "0.1234" not in (folder / "curves.csv").read_text()


def test_a_private_training_loss_never_appears(make_run):
    leaked = {"time": 5.0, "kind": "train", "step": 3, "loss": 0.987654}
    folder = make_run(extra=[leaked])
    assert "0.9876" not in _page(folder).text
    assert "0.9876" not in (folder / "curves.csv").read_text()


def test_a_truncated_event_log_gives_a_page(make_run):
    folder = make_run(complete=False)
    path = folder / "events.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert "not finished" in _page(folder).text


def test_a_list_as_command_is_quoted(make_run):
    change = {"config": {"command": ["steelyard", "train", "--data", "my file.csv"]}}
    assert "steelyard train --data 'my file.csv'" in _page(make_run(change=change)).text


def _palettes() -> dict[str, dict[str, str]]:
    style = (
        Path(sys.modules["steelyard.report.page"].__file__ or "").parent / "style.css"
    ).read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    names = ("light", "dark")
    return {
        n: dict(re.findall(r"--([\w-]+): (#\w{6})", b)) for n, b in zip(names, blocks, strict=True)
    }


def _luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(mode):
    palette = _palettes()[mode]
    pairs = [(ink, paper) for ink in ("ink", "muted", "private", "plain", "brass")
             for paper in ("paper", "card")]  # fmt: skip
    pairs += [("ink", "note-paper"), ("ink", "danger-paper"), ("danger", "danger-paper")]
    for ink, paper in pairs:
        one, two = sorted((_luminance(palette[ink]), _luminance(palette[paper])))
        assert (two + 0.05) / (one + 0.05) >= 4.5, (ink, paper)


def test_the_png_has_the_light_colours_of_the_page():
    from steelyard.report.plots import LIGHT

    assert {role: _palettes()["light"][role] for role in LIGHT} == LIGHT


def test_importing_the_report_loads_nothing_heavy():
    code = (
        "import sys, steelyard.report; "
        "print(sorted({'matplotlib', 'jinja2', 'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
