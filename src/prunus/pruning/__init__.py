"""Steps that write a pruned, smaller, quantised or recovered copy of a checkpoint; inspection and perplexity."""
