"""The run as data flows: prepare, choose, apply, step, loop, target, deliver; beside it inspect, check, scan."""
