"""Run a study on a Ray cluster: driver.py in the process that was started, worker.py on the nodes."""
