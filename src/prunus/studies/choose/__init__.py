"""`prunus choose`: the most accurate model, form, budget and number of votes within limits of memory and time."""
