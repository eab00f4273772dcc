"""One frame for all pages."""

from __future__ import annotations

import re

import jinja2
import pytest

from steelyard.report.templates import HERE, markup, rendered

PAGES = ("template.html", "unlearning.html", "unlearning_small.html")
SHARED = ("<html", "<head", "<style", "<footer", "Content-Security-Policy", "{% macro")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_no_frame_or_macros_of_its_own(name):
    text = (HERE / name).read_text(encoding="utf-8")
    assert text.startswith('{% extends "base.html" %}')
    assert not [part for part in SHARED if part in text]


def test_all_pages_are_known():
    extending = [
        p.name for p in HERE.glob("*.html") if "{% extends" in p.read_text(encoding="utf-8")
    ]
    assert sorted(extending) == sorted(PAGES)


def test_a_missing_value_is_an_error_and_not_a_blank():
    with pytest.raises(jinja2.UndefinedError):
        rendered("unlearning_small.html")


def test_markup_is_not_escaped_again():
    assert markup("<svg>") + "<" == "<svg>&lt;"


def test_links_have_a_colour_of_the_page():
    style = (HERE / "style.css").read_text(encoding="utf-8")
    assert re.search(r"^a \{ color: var\(--private\)", style, flags=re.MULTILINE)
