"""C++ code, compiled when the wheel is built or at first use, and the functions that load it."""
