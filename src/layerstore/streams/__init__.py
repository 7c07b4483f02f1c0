"""Streams of a tar: what a caller gives, what a caller gets, and what is left out of it."""
