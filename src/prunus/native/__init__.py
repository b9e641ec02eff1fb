"""C++ code, compiled into the wheel or at first use, and the functions that load it."""
