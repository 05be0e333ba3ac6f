"""Ours beside mlx-lm and mlx-vlm: the same files, fresh processes, taking turns, one table.

`python -m benchmarks NAME`, from the repository. A subject is one file with one function,
named in __main__.py; the rest is here for it to call. Not installed with the package.

    engines.py     who is compared: which Python runs each, what it weighs idle
    process.py     one process, measured
    rounds.py      whose turn it is
    ratios.py      medians, and how sure their ratio is
    report.py      table and JSON;  chart.py: the same as a picture
    source.py      random checkpoints to work on
    haystack.py    documents with facts to ask for
    policies.py    which experts a bank of slots keeps
    shares.py      right answers, and how sure their share is;  heat_map.py: as a picture
"""
