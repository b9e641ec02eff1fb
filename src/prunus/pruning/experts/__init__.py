"""Remove routed experts: what calibration shows of them, which are kept, and the model without the others."""
