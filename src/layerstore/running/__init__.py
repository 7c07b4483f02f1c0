"""A command in a sandbox over a mounted directory, by bubblewrap. Nothing here knows layers or stores.

A command (command.Command) is checked first; bubblewrap.find() says whether it can run here; sandbox.run_in() runs it.
"""
