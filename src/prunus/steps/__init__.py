"""One file for each kind of step (prunus.step), and chain.py, which carries out several."""
