"""Inputs made up from the model alone, to take the place of calibration data: second best, far better than none."""
