"""Profiles: the exact strings that open, cut and close the thinking of a model family.

A profile is one TOML file in this folder. profile.py reads them all, detection.py chooses one for a model by its chat
template (template.py), and markers.py encodes its strings with the model's tokenizer. control.py switches the thinking
off, or lets the engine or the model keep the budget. catalogue.py describes profiles for `prunus profiles`.
"""
