"""Profiles: the exact strings that open, cut and close the thinking of a model family.

A profile is one TOML file in this folder. profile.py reads them all, detection.py chooses one for a model by its chat
template, and markers.py renders that and encodes the profile's strings with the model's tokenizer. control.py switches
the thinking off, or lets the engine or the model keep the budget. catalogue.py is the content of `prunus profiles`.
"""
