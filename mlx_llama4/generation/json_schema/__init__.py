"""JSON schemas as strangers write them, checked and put into the form that llguidance enforces.

limits      depth, size and kinds of values, before anything else looks at the schema
keywords    what each keyword must hold; misspelt ones are named
prepare     the schema without its wrappers, with bounds and formats as llguidance takes them
"""
