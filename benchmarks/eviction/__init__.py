"""`python -m benchmarks eviction`: which experts to keep in memory, by what tokens chose.

command.py counts hits on traces; policies.py holds the policies.
"""
