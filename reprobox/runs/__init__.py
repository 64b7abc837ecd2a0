"""Runs: planned, carried out, recorded, found again."""
