"""The long proofs: `make prove SUBJECT` runs them, and docs/proofs.md has their figures.

A test that is a part of one is marked `@pytest.mark.prove(SUBJECT)` and takes its counts from
`scaled`, so that the ordinary runs (`make test`, `make test-slow`) do the same at a smaller scale.
"""

SUBJECTS = {
    "kills": "conversions killed at any moment, then finished",
    "damage": "damaged checkpoints: refused, or wrong only where they are damaged",
    "sequences": "prompt caches: any order of steps, rewinds, forks, saves and interruptions",
    "rows": "batches: rows of any length that join, leave and are cancelled at any time",
    "drafts": "drafted tokens are those without drafts, whatever is drafted",
    "draws": "drafted draws have the model's distribution (chi-square)",
    "streaming": "experts from the disk give the same logits, bit for bit, and after read errors",
    "positions": "attention is the same at any chunk, up to 10M tokens",
    "schemas": "answers to random JSON schemas are valid",
    "tools": "well-formed, hostile and damaged tool calls",
}

is_proving = False  # set by conftest.py, before the test modules are imported


def scaled(short: int, *, long: int) -> int:
    """`long` in `make prove`, `short` in every other run."""
    return long if is_proving else short


if __name__ == "__main__":
    print("make prove SUBJECT runs a long proof:\n")
    for subject, what in SUBJECTS.items():
        print(f"  {subject:12}{what}")
