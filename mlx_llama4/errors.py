"""Errors a user sees: one line each, saying what is wrong, with which value, and what to do.

    Llama4Error                 exit code 1
    ├── RunError                failed while running: disk full, interrupted write
    └── InputError              exit code 2: what was given cannot be used
        ├── ConfigError         config.json
        ├── CheckpointError     the weights beside it
        ├── PromptError         messages and their tokens
        ├── ImageError          pictures
        ├── HubError            a repository of the Hugging Face hub
        └── OutputError         the place to write to

The library raises them; the command line turns them into that line and exit code. What a message
quotes may come from a stranger's file, so each is made safe to print where it is made.
"""

import re

MOST_CHARACTERS = 2000
# Characters that move a terminal's cursor, colour it or reorder its text: controls, marks of
# direction, and separators of lines and paragraphs. Halves of characters, which cannot be encoded,
# come from JSON and from names of files that are not UTF-8.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text of any origin as one line that is safe to print: line breaks become spaces, other
    control characters their escapes ("\\x1b"), and the middle of a long text is left out.
    """
    text = re.sub(r"[\t\n\v\f\r]+", " ", text)
    text = UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)
    if len(text) <= most:
        return text
    cut = f" [… {len(text) - most:,} characters left out …] "
    end = most // 4  # most messages end with what to do
    return text[: most - end - len(cut)] + cut + text[-end:]


class Llama4Error(Exception):
    """Its text is one printable line of a bounded length, whatever it was made of."""

    exit_code = 1

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


class RunError(Llama4Error):
    """Work that could be started failed on the way."""


class InputError(Llama4Error):
    """Something given by the user cannot be used; nothing was started."""

    exit_code = 2


class ConfigError(InputError):
    """A value of config.json is missing, of the wrong kind, or not supported."""


class CheckpointError(InputError):
    """The folder's weights are missing, damaged, or not those its config.json describes."""


class PromptError(InputError):
    """The messages cannot be turned into a prompt that this model takes."""


class ImageError(InputError):
    """A picture cannot be read."""


class HubError(InputError):
    """A repository of the hub does not exist, may not be used, or is named wrongly."""


class OutputError(InputError):
    """The place to write to cannot be used."""
