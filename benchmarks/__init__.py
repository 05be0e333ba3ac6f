"""Ours beside mlx-lm and mlx-vlm: the same files, fresh processes, taking turns, one table.

`python -m benchmarks NAME`, from the repository; not installed with the package. Every name here is
a subject (one file, or a folder whose command.py is the command), but for

    harness/     what subjects share:
        measuring.py  the frame of a comparison: shared options, engines, a folder, the report
        engines.py    who is compared: which Python runs each, what it weighs idle
        process.py    one process, measured; resident.py: one that stays and answers
        on_terminal.py  a command on a terminal, until it shows what is waited for
        rounds.py     whose turn it is; ratios.py: medians, and how sure their ratio is
        report.py     table and JSON; chart.py: the same as a picture; outputs.py: where they go
        limits.py     what memory and matmuls allow, whatever the program
        presets.py    random models of known sizes, and random_model.py, scaled_model.py, source.py:
                      of any size, of the releases' proportions, as checkpoints to convert
        demo_tasks.py, shares.py  questions to the demo model; how sure a share of right answers is
    programs/    what the engines' processes run, a file for a subject
"""
