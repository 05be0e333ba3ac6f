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

The library raises them; the command line turns them into that line and exit code.
"""


class Llama4Error(Exception):
    exit_code = 1


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
