"""Find URLs in a message, and tell those of pictures."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from mlx_llama4.prompt.picture_source import SUFFIXES

URL = re.compile(
    r"(?i:https?://)[^\s<>\"'`“”‘’«»\u2e80-\U0010ffff]+"
    r"|(?i:data:image/)[a-zA-Z0-9.+-]+;(?i:base64),[A-Za-z0-9+/=%_-]+"
)
AT_THE_END = ".,;:!?*_…"  # of a URL, this belongs to the sentence
OPENED_BY = {")": "(", "]": "[", "}": "{"}


def spans_of_urls(text: str) -> Iterator[tuple[int, int]]:
    """Where the URLs are, without the punctuation of the sentence around them."""
    for match in URL.finditer(text):
        url = match[0]
        while url[-1] in AT_THE_END or (
            (opening := OPENED_BY.get(url[-1])) and url.count(url[-1]) > url.count(opening)
        ):
            url = url[:-1]
        if not url.endswith(("/", ":")) or url.count("/") > 2:  # "https://" alone
            yield match.start(), match.start() + len(url)


def urls_in(text: str) -> list[str]:
    """Each URL of a message once, in order."""
    return list(dict.fromkeys(text[start:end] for start, end in spans_of_urls(text)))


def is_of_a_picture(url: str) -> bool:
    """Does the URL say that it leads to a picture?"""
    if url[:5].lower() == "data:":
        return True
    try:
        name = urlsplit(url).path
    except ValueError:
        return False
    return name.rpartition(".")[2].lower() in SUFFIXES
