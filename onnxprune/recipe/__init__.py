"""The whole run as validated data: fields, granularity, requirements, schedules, training, file."""
