"""Data sets in their published layouts; each module exports DATASET."""
