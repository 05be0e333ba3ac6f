"""What the processes of engines run: each file is passed as text to an engine's own Python.

So a file imports NumPy, MLX and, inside functions, one engine: nothing from its neighbours, which
that Python may not have. sys.argv[1] names the engine; the subject of the same name says the rest.
A file either prints one JSON value at the end or defines `answer(question)` for a process that
stays (harness/resident.py).
"""
