"""A grid of models, recipes and plans in one resumable command: file -> cells -> variants -> rows of a store."""
