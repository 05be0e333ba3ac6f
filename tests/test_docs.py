"""The links of the documentation lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "tests" / "golden" / "README.md"]
)
BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The ids that GitHub gives the headings of a page."""
    names = HEADING.findall(prose(page))
    return {re.sub(r"[^\w\- ]", "", name.lower()).strip().replace(" ", "-") for name in names}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(text):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page, prose(page)) == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, pages = set(), [ROOT / "README.md"]
    while pages:
        page = pages.pop().resolve()
        if page in reached:
            continue
        reached.add(page)
        files = (link.partition("#")[0] for link in LINK.findall(prose(page)))
        pages += [page.parent / file for file in files if file.endswith(".md")]
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} <= reached


def test_a_broken_link_is_found() -> None:
    page = ROOT / "docs" / "using.md"
    text = "[a](missing.md) [b](#no-such-heading) [c](using.md#ask) [d](https://example.com/x.md)"
    assert broken_links(page, text) == ["missing.md", "#no-such-heading"]
