"""Studies: a grid of models, recipes and evaluation plans, run by a resumable command.

A TOML file defines cells (file.py, cells.py). Each cell needs a variant of a model (variants.py), and evaluating it
adds rows to a store (run.py).
"""
