"""`python -m benchmarks positions`: how far attention drifts as positions grow."""
def positions() -> None: pass
