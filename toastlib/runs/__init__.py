"""Notebook runs: parameters checked, one notebook or a grid executed, results stored and collected."""
