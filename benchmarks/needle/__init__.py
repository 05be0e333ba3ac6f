"""`python -m benchmarks needle`: recall of facts by depth and length of a document.

command.py asks; haystack.py draws documents; recall.py makes tables and heat_map.py a picture.
"""
