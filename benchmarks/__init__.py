"""Ours beside mlx-lm and mlx-vlm: the same files, fresh processes, taking turns, one table.

`python -m benchmarks NAME`, from the repository. A subject is one file with one function,
named in __main__.py; the rest is here for it to call. Not installed with the package.

    engines.py     who is compared: which Python runs each, what it weighs idle
    process.py     one process, measured;  resident.py: one that stays and is asked
    on_terminal.py  a command on a terminal, until it shows what is waited for
    limits.py      what memory and matmuls allow, whatever the program
    rounds.py      whose turn it is
    ratios.py      medians, and how sure their ratio is
    report.py      table and JSON;  chart.py: the same as a picture
    source.py      random checkpoints to work on
    random_model.py  random model folders, packed, of any size;  random_tokenizer.py: theirs
    presets.py     … of known sizes, for all subjects that run a model
    disk.py        plain reads of a model's files;  reader.py: experts as streaming reads them
    streaming_ways.py  what the processes of `streaming` run;  streaming_report.py: its tables
    haystack.py    documents with facts to ask for
    policies.py    which experts a bank of slots keeps
    shares.py      right answers, and how sure their share is;  heat_map.py: as a picture
"""
