"""The engines: transformers' Trainer, a pipeline of processes, Graphcore IPUs."""
