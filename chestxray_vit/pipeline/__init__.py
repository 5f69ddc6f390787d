"""Pipelined model parallelism: configuration, plan, schedule, stages."""
