"""The command line `layerstore`: one file per family of commands, and what they share.

main.py runs one command; commands.py has all of them, made of what is in parser.py; opening.py opens the store and
finds layers by name; screen.py prints; exits.py says how it ends.
"""
