"""The documentation is up to date: links, computed figures, options, quoted messages, a plan."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks import macs
from mlx_llama4.cli.main import app
from mlx_llama4.planning.expert_weights import experts_in_bits
from mlx_llama4.planning.machine import GIB, mac
from mlx_llama4.planning.placement import place, tokens_per_second
from mlx_llama4.planning.planner import Usage, largest_context, packed_weights, tokens_name
from mlx_llama4.planning.releases import release_config
from tests.program_text import texts

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


def readme_row(memory: int) -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    return re.search(rf"^\| {memory} GB \|.*$", text, re.MULTILINE)[0]


@pytest.mark.parametrize(
    ("page", "table"),
    [("streaming", macs.streaming_table), ("performance", macs.memory_table)],
    ids=("streaming", "memory"),
)
def test_the_tables_of_macs_are_as_the_benchmark_prints_them(page: str, table) -> None:
    assert table() in (ROOT / "docs" / f"{page}.md").read_text("utf-8")


@pytest.mark.parametrize(("memory", "bits"), [(16, 4), (32, 4), (48, 4)])
def test_the_readme_streams_at_the_planner_s_rates(memory: int, bits: int) -> None:
    config = release_config("scout")
    experts = experts_in_bits(config, bits, 2)
    found = place(config, experts, Usage(macs.CONTEXT), mac(memory * GIB), prompt=macs.CONTEXT)
    rates = [f"{rate:.1f}" for rate in tokens_per_second(found.bytes_per_token).values()]
    row = readme_row(memory)
    assert f"Scout in {bits} bits" in row
    assert f"| {rates[0]} to {rates[-1]} |" in row
    if "%" in row:
        assert f"{found.kept:.0%} of the experts" in row


@pytest.mark.parametrize(("memory", "bits"), [(64, 3), (96, 4), (128, 6)])
def test_the_readme_holds_the_planner_s_contexts(memory: int, bits: int) -> None:
    config = release_config("scout")
    weights = sum(packed_weights(config, bits, 2).values())
    usage = Usage(macs.CONTEXT, tiles=(17,))
    context = largest_context(config, weights, usage, mac(memory * GIB).usable)
    row = readme_row(memory)
    assert f"Scout in {bits} bits, up to {tokens_name(context)} tokens" in row
    assert f" {400e9 / macs.decoded_bytes('scout', bits):.0f}" in row.rpartition("|")[0]


def synopsis(command: str) -> str:
    """The first block of a command's section of docs/using.md."""
    text = (ROOT / "docs" / "using.md").read_text("utf-8")
    section = text[re.search(rf"^## {command}$", text, re.MULTILINE).end() :]
    return BLOCK.search(section)[0]


@pytest.mark.parametrize(
    "command", ["convert", "ask", "cache", "plan", "models", "inspect", "compare"]
)
def test_a_synopsis_has_exactly_the_options_of_its_command(command: str) -> None:
    options = {
        name
        for parameter in get_command(app).commands[command].params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
    aliases = {"--temp", "--page-cache", "--out"}  # named in the text, or by their short form
    written = set(re.findall(r"--[a-z][a-z0-9-]*", synopsis(command)))
    assert written - options == set()
    assert options - written - aliases == set()


def test_the_plan_that_is_shown_is_what_plan_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "using.md").read_text("utf-8")
    typed, shown = re.search(
        r"^\$ mlx-llama4 (plan .*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ).groups()
    with pytest.raises(SystemExit):
        app(typed.split())
    assert capsys.readouterr().out == shown


def words(text: str) -> list[str]:
    return re.findall(r"[\w'./-]+|…", text)


def test_troubleshooting_quotes_messages_as_they_are_printed() -> None:
    """Half at least of a quotation's runs of four words are in the program: the rest may be names
    and figures, which the program puts in.
    """
    files = [*(ROOT / "mlx_llama4").rglob("*.py"), *(ROOT / "convert").rglob("*.py")]
    said = " | ".join(" ".join(words(text)) for file in files for text in texts(file.read_text()))
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "troubleshooting.md").read_text("utf-8"))
    quoted = re.findall(r"`((?:error: |… |\[)[^`]*|This takes[^`]*|Experts:[^`]*)`", page)
    assert len(quoted) > 30
    for quotation in quoted:
        runs = []
        for part in re.split(r"…|\d[\d,.]*", quotation.removeprefix("error: ")):
            found = words(part)
            runs += [" ".join(found[start : start + 4]) for start in range(len(found) - 3)]
        missing = [run for run in runs if run not in said]
        assert len(runs) < 3 or len(missing) <= len(runs) / 2, (quotation, missing)
