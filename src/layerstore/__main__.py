"""`python -m layerstore`: the command line."""

from layerstore.cli.main import program

program()
