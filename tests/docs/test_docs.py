"""Documentation runs: Python blocks, command lines, names, links, and the files that are named."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """(line number of the first line of code, code) of the fenced blocks in `languages`."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match[1] in languages:
            yield text.count("\n", 0, match.start(2)) + 1, match[2]


def with_blocks(*languages: str) -> list[Any]:
    return [pytest.param(page, id=name(page)) for page in PAGES if any(blocks(page, *languages))]


# -- Python ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    space: dict[str, Any] = {"__name__": "__main__"}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for line, code in blocks(page, "python"):
                padded = "\n" * (line - 1) + code  # errors point into the page
                exec(compile(padded, name(page), "exec"), space)
    finally:
        torch.set_num_threads(threads)


def test_every_fence_names_its_language():
    bare = [(name(page), line) for page in PAGES for line, _ in blocks(page, "")]
    assert not bare, f"blocks without a language are not tested: {bare}"
    assert sum(1 for page in PAGES for _ in blocks(page, "python")) >= 20


# -- command lines -----------------------------------------------------------------------------


def command_lines(page: Path) -> Iterator[tuple[int, list[str]]]:
    """The `steelyard ...` lines of a page's console blocks, as (line number, arguments)."""
    for line, code in blocks(page, "console", "bash", "sh", "shell"):
        joined = code.replace("\\\n", " ")
        for offset, text in enumerate(joined.splitlines()):
            words = shlex.split(text.removeprefix("$ "), comments=True)
            if words and words[0].endswith("steelyard"):
                yield line + offset, words[1:]


def parse(arguments: list[str]) -> None:
    """Parse with the real command line, without running it. Raises what it would raise."""
    import typer

    from steelyard.cli import app

    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while hasattr(command, "commands"):
        assert rest, f"{command.name} needs a command"
        assert rest[0] in command.commands, f"no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, [word for word in rest if word != "--help"])


def why_not(arguments: list[str]) -> str | None:
    """The reason for which the command line refuses the arguments, or None."""
    try:
        parse(arguments)
    except Exception as error:  # click's own, or the vendored copy's: there is no common class
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("page", with_blocks("console", "bash", "sh", "shell"))
def test_command_lines_parse(page):
    for line, arguments in command_lines(page):
        reason = why_not(arguments)
        assert reason is None, f"{name(page)}:{line}: steelyard {shlex.join(arguments)}: {reason}"


def test_command_lines_are_found_and_a_wrong_one_fails():
    assert sum(1 for page in PAGES for _ in command_lines(page)) >= 20
    for right in ([*["train", "--epsilon", "3", "--no-baseline"]], ["data", "list", "--json"]):
        assert why_not(right) is None
    for wrong in (["train", "--epsilom", "3"], ["trian"], ["train", "--steps", "many"], ["report"]):
        assert why_not(wrong)


def test_every_option_in_backticks_exists():
    """`--option` in running text is an option of some command of ours, or of a tool named here."""
    import typer

    from steelyard.cli import app

    def options(command: Any) -> set[str]:
        own = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        return own.union(*(options(sub) for sub in getattr(command, "commands", {}).values()))

    known = options(typer.main.get_command(app)) | {"--help"}
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for code in re.findall(r"`([^`\n]+)`", text):
            if code.startswith(("--", "steelyard ")):
                unknown = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", code)) - known
                assert not unknown, f"{name(page)}: `{code}` has {unknown}"


# -- names, links, files -----------------------------------------------------------------------


def test_every_public_name_is_in_the_api_page():
    import steelyard

    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| \[`(\w+)`\]", page, re.MULTILINE))
    assert rows == set(steelyard.__all__)
    for public in steelyard.__all__:
        value = getattr(steelyard, public)
        home = next(iter(re.findall(rf"^::: ([\w.]+\.{public})$", page, re.MULTILINE)), None)
        assert home is not None, f"docs/api.md has no ::: directive for {public}"
        assert home == f"{value.__module__}.{public}"


def test_api_directives_point_at_objects():
    import importlib

    for home in re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE):
        module, _, attribute = home.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), home


def slug(heading: str) -> str:
    """The anchor that Markdown's table of contents gives a heading."""
    plain = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain))


def targets(page: Path) -> Iterator[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (t for t in LINK.findall(text) if not re.match(r"https?://|mailto:", t))


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_relative_links_and_images_exist(page):
    for target in targets(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), f"{name(page)}: {target} does not exist"
        if page.parent.name == "docs":
            assert place.is_relative_to(ROOT / "docs"), f"{target} leaves the built documentation"
        if anchor and place.suffix == ".md" and not anchor.startswith("steelyard."):
            headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name(page)}: no heading for {target}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.name for page in ROOT.glob("docs/*.md")}


def test_paper_index_names_files_that_exist_and_no_method_is_missing():
    page = (ROOT / "docs/paper_index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:src|claims|benchmarks)/[\w/]+\.py)`", page))
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path
    folders = (
        "rows",
        "rules",
        "checks",
        "weightings",
        "filters",
        "steps",
        "surgery",
        "plans",
        "objectives",
        "dist",
    )
    methods = [p for f in folders for p in ROOT.glob(f"src/steelyard/{f}/*.py") if p.stat().st_size]
    methods = [p for p in [*methods, *ROOT.glob("claims/*.py")] if p.name != "__init__.py"]
    missing = {name(path) for path in methods} - named
    assert not missing, f"docs/paper_index.md has no row for {sorted(missing)}"


def test_paper_index_has_the_seventeen_papers():
    page = (ROOT / "docs/paper_index.md").read_text(encoding="utf-8")
    table = page.partition("## What is here")[0]
    rows = [row for row in table.splitlines() if row.startswith("|") and "arxiv.org" in row]
    assert len(rows) == 17
    assert len({re.findall(r"abs/(\d{4}\.\d{5})", row)[0] for row in rows}) == 17
    for shown, target in re.findall(r"\[[^\]]*?(\d{4}\.\d{5})\]\([^)]*?(\d{4}\.\d{5})\)", page):
        assert shown == target
    for row in rows:
        status = row.rstrip(" |").rpartition("|")[2].strip()
        assert status == "not yet" or status.startswith("**here**"), row[:60]


def test_readme_is_short_and_has_a_place_for_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 150
    start, end = "<!-- results:start -->", "<!-- results:end -->"
    assert start in readme
    assert end in readme.partition(start)[2]
    for word in ("make run", "make test", "docs/images/report.png", "docs/images/terminal.png"):
        assert word in readme


def test_versions_agree():
    import steelyard

    assert f"version: {steelyard.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f'version = "{steelyard.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert steelyard.__version__ in (ROOT / "CHANGELOG.md").read_text()
