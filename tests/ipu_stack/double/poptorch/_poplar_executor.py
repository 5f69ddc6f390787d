"""The place where optimum-graphcore looks for the class of the executors."""

from __future__ import annotations

from poptorch.executor import PoplarExecutor

__all__ = ["PoplarExecutor"]
