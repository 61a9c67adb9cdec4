"""Further commands: compare, measure, check this machine, draw, and the PyTorch twin."""
