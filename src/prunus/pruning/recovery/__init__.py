"""Recovery: training the weights that pruning kept, one block at a time, with its zeros left where they are."""
