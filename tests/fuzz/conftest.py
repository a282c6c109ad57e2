collect_ignore = ["harness.py", "mutate.py", "run.py", "targets.py"]  # a program, not tests; no doctests
