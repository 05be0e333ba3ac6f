"""Runs after an engine's imports: says that they are done, waits, then prints versions as JSON.

sys.argv[1:]: packages.
"""

import sys


def main(packages: list[str]) -> None:
    print("imported", flush=True)
    sys.stdin.readline()
    # Only now: these modules take memory too, which is measured while this process waits.
    import contextlib
    import importlib.metadata
    import json
    import platform

    versions = {"Python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    print(json.dumps(versions))


main(sys.argv[1:])
