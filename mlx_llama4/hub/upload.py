"""Uploads a converted folder to the Hugging Face hub, only when asked to."""

from pathlib import Path
from typing import Any

from mlx_llama4.errors import HubError, Llama4Error
from mlx_llama4.hub.repository import LIBRARY_NAME, hub_errors, is_repository_name


def check_upload(repository: str, source: Path) -> None:
    """Checks, before hours of work, that an upload will be allowed. source: the unconverted folder.

    Raises HubError for a name that the hub or the licence does not allow, for a missing or
    read-only token, for another's account, and for a source without the licence, which must go
    along.
    """
    if not is_repository_name(repository):
        raise HubError(f"--upload {repository}: give OWNER/NAME")
    owner, name = repository.split("/")
    if not name.startswith("Llama"):
        raise HubError(
            f"--upload {repository}: Llama's licence wants the name to begin with “Llama”; "
            f"take {owner}/Llama-… instead"
        )
    if not any(path.is_file() for path in source.glob("LICENSE*")):
        raise HubError(
            f"{source} has no LICENSE, which the licence itself wants to go along; put it there"
        )
    account = _account(repository)
    owners = [account.get("name"), *(one.get("name") for one in account.get("orgs") or ())]
    if owner not in owners:
        raise HubError(
            f"--upload {repository}: your token is of {owners[0]}, who is not in {owner}; "
            "take a repository of your own"
        )
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise HubError("your token can only read; log in with one that can write: hf auth login")


def upload(folder: str | Path, repository: str) -> str:
    """Uploads all files of a folder; returns the address.

    A new repository is private: its owner can make it public, but nothing makes a published one
    unseen. Large files go in parts, and files that are there are not sent again.

    Raises HubError or RunError; the folder stays as it is.
    """
    try:
        with hub_errors(repository):
            from huggingface_hub import HfApi

            api = HfApi(library_name=LIBRARY_NAME)
            address = api.create_repo(repository, private=True, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message="Converted to MLX by mlx-llama4",
            )
    except Llama4Error as error:
        raise type(error)(
            f"{error}; {folder} is whole, upload it with: hf upload {repository} {folder}"
        ) from None
    return str(address)


def _account(repository: str) -> dict[str, Any]:
    """What the hub says of the token's owner."""
    with hub_errors(repository):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import LocalTokenNotFoundError

        try:
            return HfApi(library_name=LIBRARY_NAME).whoami()
        except LocalTokenNotFoundError:
            raise HubError(
                f"--upload {repository} needs a token that can write: hf auth login"
            ) from None
