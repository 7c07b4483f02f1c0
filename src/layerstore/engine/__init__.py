"""The engine: what the store does, on records. It knows no face: store.py makes Layer and RWLayer."""
