"""Reward terms, one file each (`score.py` says what a file holds)."""
