"""`python -m benchmarks streaming`: tokens with experts on the disk, beside all in memory.

command.py runs it; disk.py reads files plainly and reader.py as streaming does; report.py makes
tables and JSON. The processes run programs/streaming.py.
"""
