"""Putting a converted folder on the Hugging Face hub. Only ever done when asked for."""

from pathlib import Path

from mlx_llama4.errors import HubError, Llama4Error
from mlx_llama4.hub.repository import LIBRARY, hub_errors, is_repository_name


def check_upload(repository: str, source: Path) -> None:
    """Before hours of work: may this be uploaded there? `source` is the unconverted folder.

    Raises HubError for a name that the hub or the licence does not allow, for a missing or
    read-only token, another's account, and a source without the licence that must go along.
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
    """Upload all files of a folder; returns the address.

    A repository that does not exist is created, for your eyes only: what is private can be made
    public, and not the other way. Large files go in parts, and what is there is not sent again.

    Raises HubError or RunError; the folder stays as it is.
    """
    try:
        with hub_errors(repository):
            from huggingface_hub import HfApi

            api = HfApi(**LIBRARY)
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


def _account(repository: str) -> dict:
    with hub_errors(repository):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import LocalTokenNotFoundError

        try:
            return HfApi(**LIBRARY).whoami()
        except LocalTokenNotFoundError:
            raise HubError(
                f"--upload {repository} needs a token that can write: hf auth login"
            ) from None
