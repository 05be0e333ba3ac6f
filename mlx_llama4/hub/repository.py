"""Takes repositories of the Hugging Face hub wherever a model folder is accepted.

Downloads go to the hub's own cache (HF_HOME) and are found there the next time, even offline.
Nothing is downloaded that cannot be used: config.json and the index come first.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mlx_llama4.errors import CheckpointError, ConfigError, HubError, InputError, RunError
from mlx_llama4.hub.released import RELEASES, Purpose, full_name

# Everything but the weights, from the repository's top folder only.
SIDE_FILES = ("*.json", "*.jinja", "tokenizer.model", "LICENSE*", "NOTICE*", "USE_POLICY*")
ORIGINAL_WEIGHTS = "*.pth"  # of Meta's own layout, which has no config.json
UNCONVERTED_SHARE = 2  # one part in so many of the memory may be weights that are not packed
LIBRARY_NAME = "mlx-llama4"  # what we tell the hub


def find_folder(name: str | Path, revision: str | None = None, purpose: Purpose = "run") -> Path:
    """The folder that `name` means: a path, or OWNER/NAME on the hub, which is downloaded. "scout",
    "maverick" and "guard" are short for repositories (hub/released.py).

    An existing path wins over a repository. The purpose "convert" accepts Meta's own layout too;
    "inspect" does not download weights.

    Raises InputError for a name that is neither, for a gated repository, and for one that cannot
    serve the purpose; RunError if the hub cannot be reached or the disk is full.
    """
    if revision is None:  # a release is whatever its repository holds today
        name = full_name(name, purpose)
    if not is_repository(name):
        if revision is not None:
            raise HubError(f"--revision is for repositories of the hub, and {name} is not one")
        if _exists(Path(name)):
            return Path(name)
        near = difflib.get_close_matches(str(name), RELEASES, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise HubError(
            f"{name} does not exist; give a model folder, or a repository of the hub as OWNER/NAME"
            f"{meant}"
        )
    repository = str(name)
    folder = download_side_files(repository, revision)
    if purpose != "inspect":
        _download_weights(repository, folder, purpose)
    return folder


def is_repository(name: str | Path) -> bool:
    """Does `name` mean a repository of the hub? An existing path of that name wins."""
    return is_repository_name(str(name)) and not _exists(Path(name))


def is_repository_name(name: str) -> bool:
    """Is it of the form OWNER/NAME that the hub allows?"""
    if re.search(r"--|\.\.|[.-]/|[.-]$|\.git$", name):
        return False
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]{0,95}", name, re.ASCII))


def download_side_files(repository: str, revision: str | None) -> Path:
    """Downloads everything but the weights; returns the snapshot's folder in the hub's cache, whose
    name is the commit.

    Without a network, it returns what the cache has.
    """
    with hub_errors(repository, revision):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import tqdm

        class Silent(tqdm):
            """Shows nothing: these files are small, and the bar would show without a terminal."""

            def __init__(self, *arguments: object, **options: object):
                super().__init__(*arguments, **(options | {"disable": True}))

        folder = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(SIDE_FILES),
            ignore_patterns=["*/*"],
            tqdm_class=Silent,
            library_name=LIBRARY_NAME,
        )
    return Path(folder)


@contextlib.contextmanager
def hub_errors(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turns errors of huggingface_hub into ours, of one line.

    The order matters, since these errors derive from one another.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{repository} is gated: accept its licence at {page}, then log in: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{repository}: there is no such folder, and the hub has no such repository or does "
            "not show it to you; check the name or, if it is private, log in: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{repository} has no revision {revision!r}; {page}/commits lists them"
        ) from None
    except errors.LocalEntryNotFoundError as failure:
        offline = isinstance(failure.__cause__, errors.OfflineModeIsEnabled)
        reason = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise RunError(
            f"{repository}: there is no such folder, {reason}, and not all of the repository is in "
            "the cache; check the name and the network"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise RunError(
            f"HF_HUB_OFFLINE is set, so the hub cannot be asked about {repository}; unset it"
        ) from None
    except errors.HfHubHTTPError as failure:
        raise _refusal(repository, failure.response.status_code) from None
    except errors.HFValidationError:
        raise HubError(f"{repository} is not the name of a repository; give OWNER/NAME") from None
    except (errors.HTTPError, errors.XetDownloadError, RuntimeError, OSError) as failure:
        raise RunError(
            f"the transfer of {repository} broke off: {_reason(failure)}; "
            "files that came whole are kept; the same command again fetches the others"
        ) from None


def _refusal(repository: str, status: int) -> InputError | RunError:
    if status == 401:
        return HubError("the hub does not know your token; log in again: hf auth login")
    if status == 403:
        return HubError(f"your token does not allow this for {repository}; see: hf auth login")
    if status == 404:
        return HubError(f"{repository} lacks a file that it should have; report it there")
    return RunError(f"the hub answers with error {status} for {repository}; try again later")


def _reason(failure: Exception) -> str:
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]


def _download_weights(repository: str, folder: Path, purpose: Purpose) -> None:
    """Downloads one file after another: at Ctrl-C, a pool would first complete its files."""
    from mlx_llama4.hub.broken_off import clear_broken_off

    clear_broken_off(folder)
    if (folder / "config.json").is_file():
        _check_config(repository, folder, purpose)
        names = shard_names(folder)
        _check_room(repository, folder, names, purpose)
    elif purpose == "convert" and (folder / "params.json").is_file():
        names = _original_names(repository, folder)
    else:
        raise HubError(f"{repository} has no config.json, so it is not a model repository")
    from huggingface_hub import hf_hub_download

    from mlx_llama4.hub.sums import check_fresh

    for name in names:
        is_new = not (folder / name).is_file()
        with hub_errors(repository):
            hf_hub_download(repository, name, revision=folder.name, library_name=LIBRARY_NAME)
        if is_new:  # and in the system's cache still, so that nothing is read from the disk
            check_fresh(folder / name)


def shard_names(folder: Path) -> list[str]:
    """The files of weights that a snapshot needs, whether or not they are here."""
    from mlx_llama4.checkpoint.safetensors import indexed_shards

    return indexed_shards(folder) or ["model.safetensors"]


def _check_config(repository: str, folder: Path, purpose: Purpose) -> None:
    """Raises InputError for a model that could be downloaded but not used."""
    from mlx_llama4.checkpoint.safetensors import INDEX_NAME
    from mlx_llama4.config import parse_config, read_config

    try:
        config = parse_config(read_config(folder))
    except ConfigError as error:
        raise ConfigError(f"{repository}: {error}") from None
    index = folder / INDEX_NAME
    is_source = config.foreign_quantization is not None or (
        # In MLX's layout experts, stacked or single, have a separate gate_proj.
        index.is_file() and "experts.gate_up_proj" in index.read_text(errors="replace")
    )
    if config.foreign_quantization is None and _fits_unconverted(folder):
        return
    if purpose == "run" and is_source:
        raise CheckpointError(
            f"{repository} is not converted yet; run: mlx-llama4 convert {repository} OUTPUT_FOLDER"
        )


def _fits_unconverted(folder: Path) -> bool:
    """Is the whole so small that it runs without being converted? What is loaded decides again."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0 < (_total_bytes(folder) or 0) < memory // UNCONVERTED_SHARE


def _total_bytes(folder: Path) -> int | None:
    """Bytes of all weights, as the index says; None if it does not."""
    from mlx_llama4.checkpoint.safetensors import INDEX_NAME
    from mlx_llama4.files.json_file import read_json

    if not (folder / INDEX_NAME).is_file():
        return None
    metadata = read_json(folder / INDEX_NAME, CheckpointError).get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if isinstance(total, int) else None


def _check_room(repository: str, folder: Path, names: list[str], purpose: Purpose) -> None:
    """Raises HubError if the disk has no room. The hub's own check only warns, file by file."""
    from mlx_llama4.files.disk import free_bytes, shortage

    if (total := _total_bytes(folder)) is None:
        return
    files = [folder / name for name in names if (folder / name).is_file()]
    needed = total - sum(file.stat().st_size for file in files)
    if (problem := shortage(repository, needed, free_bytes(folder))) is not None:
        advice = "set HF_HOME to a folder on another disk"
        if purpose == "convert":
            advice += ", or convert with --while-downloading"
        raise HubError(f"{problem}; {advice}")


def _original_names(repository: str, folder: Path) -> list[str]:
    """Files of weights in Meta's own layout, which only the hub's list of files names."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(repository):
            names = HfApi(library_name=LIBRARY_NAME).list_repo_files(
                repository, revision=folder.name
            )
    except RunError:
        if names := [path.name for path in folder.glob(ORIGINAL_WEIGHTS)]:
            return sorted(names)
        raise
    return sorted(name for name in names if Path(name).match(ORIGINAL_WEIGHTS) and "/" not in name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long a name, or a folder that may not be entered: reading it will say so
        return True
