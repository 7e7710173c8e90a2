"""Detectors: what stands in their outputs, their detections, and pictures with box labels."""
