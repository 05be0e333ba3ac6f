"""Find the pictures named in a message: typed, pasted, or dropped into the terminal.

A URL is a picture's if the caller has fetched it.

Terminals type the path of a dropped file, each in its own way: with backslashes before spaces and
shell characters (macOS Terminal, iTerm2), in quotes, as a file:// URL, or unchanged. Only the name
of an existing file with a picture's suffix is taken; everything else stays as typed. What looks
like such a name but leads nowhere is reported, since the model would invent what it shows.

A path with plain spaces must begin with /, ~, ./ or ../, since nothing else marks its start. A bare
name such as star.png must be a word of its own, and the file must be in the current folder.
"""

import os
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mlx_llama4.cli.talk.pasted_urls import spans_of_urls
from mlx_llama4.prompt.picture_source import SUFFIXES, path_of

# A path ends with its suffix, followed by nothing that could continue a name.
END = re.compile(
    rf"\.(?:{'|'.join(SUFFIXES)})(?![A-Za-z0-9_/\\%~@=&+#$-])(?!\.[A-Za-z0-9])", re.IGNORECASE
)
# What a picture can be called; ".png" or "*.png" is no name.
NAME = re.compile(r"[^*?<>|\n]*[\w)\]]\.\w+", re.DOTALL)
# A path can begin where no letter precedes it, except in scripts that write no spaces.
BEGIN = re.compile(
    r"(?:^|(?<=[\s(\[{<:=,;`«“‘\"'])|(?<=[\u2e80-\U0010ffff]))(?=[/~'\"]|\.{1,2}/|file:/)"
)
# A narrow no-break space is part of a name, since terminals put no backslash before it.
WORD = re.compile(r"[(\[{<`«“‘\"']*+(?P<word>(?:\\.|[^ \t\r\n\\])++)", re.DOTALL)
SHELL_WORD = re.compile(r"""(?:'[^']*+'|"(?:[^"\\]|\\.)*+"|\\.|[^ \t\r\n'"\\])++""", re.DOTALL)
SHELL_PART = re.compile(
    r"""'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|\\(?P<escaped>.)""", re.DOTALL
)
# macOS names screenshots "… at 3.04.05 PM.png" with a narrow no-break space; pasting may lose it.
NARROW = "\u202f"
BEFORE_PM = re.compile(r"[ \u00a0](?=[AaPp]\.?[Mm]\b)")

LONGEST = 4096  # characters of a path on one line
MOST_BEGINNINGS = 12  # to try for one suffix; each costs a look at the disk

PAIRS = {"`": "`", "<": ">", "“": "”", "‘": "’", "«": "»"}
ENDS_A_SENTENCE = re.compile(r"[.?!:;。？！：；]\s*$|\n[^\S\n]*$")
# After a path at the beginning, these continue a sentence whose subject it is.
GOES_ON = re.compile(
    r"\s*(?:and|or|is|are|was|were|vs|versus|with|against|has|have|shows?|looks?|contains?|to|in|"
    r"on|&|\+)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Found:
    """The pictures found in a message."""

    text: str  # the message, with `image N` (counted from 1) for each path inside a sentence
    # Each file, or the URL of each fetched picture, once, in the order of first mention.
    paths: tuple[Path | str, ...]
    lost: tuple[str, ...] = ()  # names of pictures that lead nowhere


@dataclass(frozen=True)
class Mention:
    start: int
    end: int
    path: Path | str


def find_images(
    text: str, attached: Sequence[Path | str] = (), urls: Collection[str] = ()
) -> Found:
    """Remove the paths of pictures from a message. Returns the text, and the paths that are not
    `attached` already; the attached ones are counted first. urls: of fetched pictures, which are
    removed in the same way.

    A path at the very beginning or end that is no part of a sentence disappears ("What is this?
    /a.png"). Others become `image 1`, `image 2` and so on ("compare image 1 with image 2"). Names
    with line breaks in them are not found.
    """
    mentions, lost = _mentions(text, urls)
    if not mentions:
        return Found(text, (), lost)
    named = dict.fromkeys(mention.path for mention in mentions)
    paths = [*attached, *(path for path in named if path not in attached)]
    first, last = _kept(text, mentions)
    begin = mentions[first - 1].end if first else 0
    end = mentions[last].start if last < len(mentions) else len(text)
    parts, at = [], begin
    for mention in mentions[first:last]:
        parts += [text[at : mention.start], f"image {paths.index(mention.path) + 1}"]
        at = mention.end
    result = "".join([*parts, text[at:end]]) if begin <= end else ""
    if first:
        result = re.sub(r"^[.?!,;:]*(?:\s+|$)", "", result)
    if last < len(mentions):
        result = result.rstrip()
    return Found(result, tuple(paths[len(attached) :]), lost)


def _kept(text: str, mentions: list[Mention]) -> tuple[int, int]:
    """Which mentions stay in the text, as a half-open range."""
    joined = [
        re.fullmatch(r"[\s,;]*", text[one.end : other.start]) is not None
        for one, other in pairwise(mentions)
    ]
    first, last = 0, len(mentions)
    if not text[: mentions[0].start].strip():
        first = 1 + next((i for i, near in enumerate(joined) if not near), len(joined))
        following = mentions[first].start if first < len(mentions) else len(text)
        if _goes_on(text[mentions[first - 1].end : following], first < len(mentions)):
            first = 0
    if first < last and not text[mentions[-1].end :].strip():
        tail = len(mentions) - 1
        while tail > first and joined[tail - 1]:
            tail -= 1
        if ENDS_A_SENTENCE.search(text[: mentions[tail].start]):
            last = tail
    return first, last


def _goes_on(after: str, another_path: bool) -> bool:
    """Whether the text after the first paths refers to them: "/a.png and /b.png: which …"."""
    if GOES_ON.match(after):
        return True
    return another_path and len(after.split()) <= 2 and not re.search(r"[.?!:;\n]", after)


def _mentions(text: str, urls: Collection[str]) -> tuple[list[Mention], tuple[str, ...]]:
    """Where pictures are named, and the names that lead nowhere."""
    spans = list(spans_of_urls(text))
    mentions = [
        _with_brackets(text, start, end, text[start:end])
        for start, end in spans
        if text[start:end] in urls
    ]
    url_begins = [start for start, _ in spans]
    begins = [match.start() for match in BEGIN.finditer(text)]
    words = [match.start("word") for match in WORD.finditer(text)]
    done, lost = 0, dict[int, str]()  # by where they end
    for suffix in END.finditer(text):
        end = suffix.end()
        before = bisect_left(url_begins, end)
        done = max(done, spans[before - 1][1] if before else 0)
        if suffix.start() < done:  # inside a URL, or of the path before
            continue
        line = max(text.rfind("\n", 0, end) + 1, end - LONGEST, done)
        last = bisect_left(begins, end)
        starts = {start for start in begins[max(last - MOST_BEGINNINGS, 0) : last] if start >= line}
        word = words[bisect_left(words, end) - 1] if words else end
        if line <= word < end:
            starts.add(word)
        mention = _mention(text, sorted(starts), end)
        if mention is not None:
            mentions.append(mention)
            done = mention.end
            lost = {at: name for at, name in lost.items() if at <= mention.start}
        elif name := _lost(text, max(word, line), line, end):
            lost[end] = name
    mentions.sort(key=lambda mention: mention.start)
    return mentions, tuple(dict.fromkeys(lost.values()))


def _lost(text: str, word: int, line: int, end: int) -> str | None:
    """The name that ends at `end`, where no file is: in quotes, or the word from `word` on."""
    quote = text[end : end + 1]
    opening = text.rfind(quote, line, end) if quote in {"'", '"'} else -1
    name = text[opening + 1 if opening >= 0 else word : end]
    return name if NAME.fullmatch(name) else None


def _mention(text: str, starts: list[int], end: int) -> Mention | None:
    """The longest path from one of `starts` to `end`, or to the quote after it."""
    ends = [end + 1, end] if text[end : end + 1] in {"'", '"'} else [end]
    for start in starts:
        if text.startswith("//", start) and text[start - 1 : start] == ":":  # a URL's
            continue
        for stop in ends:
            path = _existing(text[start:stop])
            if path is not None:
                return _with_brackets(text, start, stop, path)
    return None


def _with_brackets(text: str, start: int, end: int, path: Path | str) -> Mention:
    if start and PAIRS.get(text[start - 1]) == text[end : end + 1]:
        return Mention(start - 1, end + 1, path)
    return Mention(start, end, path)


def _existing(typed: str) -> Path | None:
    """The existing file that a typed path means, if any."""
    readings = []
    if local := path_of(typed):
        readings.append(local)
    if SHELL_WORD.fullmatch(typed):
        readings.append(SHELL_PART.sub(_unescaped, typed))
    readings.append(typed)
    for reading in dict.fromkeys(readings):
        for name in _spellings(reading):
            path = os.path.expanduser(name)  # noqa: PTH111 - never raises
            if os.path.isfile(path):  # noqa: PTH113 - nor does this
                return Path(path)
    return None


def _unescaped(part: re.Match[str]) -> str:
    if part["single"] is not None:
        return part["single"]
    if part["double"] is not None:
        return re.sub(r'\\(["\\$`])', r"\1", part["double"])
    return part["escaped"]


def _spellings(name: str) -> list[str]:
    """Variants of a name: as typed, with macOS's spaces, and with accents composed or not."""
    spaced = [name, BEFORE_PM.sub(NARROW, name), name.replace(NARROW, " ")]
    forms = [form for one in spaced for form in (one, *_normalized(one))]
    return list(dict.fromkeys(forms))


def _normalized(name: str) -> tuple[str, ...]:
    if name.isascii():
        return ()
    return unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)
