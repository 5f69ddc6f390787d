"""Checkpoints of a pipeline, which are ordinary ones: weights and optimizer of the whole model.

torch numbers an optimizer's parameters by their order in its groups; a stage has others than the whole model. So
states travel by the parameters' names in the whole model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import nn
from transformers import ViTForImageClassification

from chestxray_vit.errors import InputError
from chestxray_vit.models.vit import load_model
from chestxray_vit.pipeline.stages import Pipeline
from chestxray_vit.training.engines.base import BaseTrainer

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"

Groups = Sequence[Sequence[str]]  # parameters' names by group of the optimizer: those that decay, and the others


def parameter_names(model: nn.Module, decaying: Sequence[str]) -> List[List[str]]:
    """Return the names of a model's trained parameters by group of the optimizer, in its order.

    Args:
        model: whole, or a stage under the whole model's names.
        decaying: names of the parameters that decay.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    decay = set(decaying)
    return [[name for name in names if name in decay], [name for name in names if name not in decay]]


def by_name(state: Dict[int, Any], groups: Groups) -> Dict[str, Any]:
    """Return an optimizer's state by the parameters' names."""
    names = [name for group in groups for name in group]
    return {names[number]: value for number, value in state.items()}


def numbered(states: Dict[str, Any], param_groups: Sequence[Dict[str, Any]], groups: Groups) -> Dict[str, Any]:
    """Return the state dict of an optimizer whose groups have these names.

    Args:
        states: by name, of at least these parameters.
        param_groups: the optimizer's options by group.
        groups: names by group.
    """
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    return {
        "state": {number: states[name] for name, number in numbers.items() if name in states},
        "param_groups": [
            {**options, "params": [numbers[name] for name in group]} for options, group in zip(param_groups, groups)
        ],
    }


class StageCheckpoints(BaseTrainer):
    """Writes and restores the whole model from its stages; all processes take part.

    Attributes:
        pipeline: the stages, of which this process has one.
    """

    pipeline: Pipeline

    def trained_model(self) -> Optional[ViTForImageClassification]:
        """Return the whole model on the main process, else None; all processes must ask."""
        weights = self.pipeline.weights()
        if weights is None:
            return None
        vit = self._empty_model()
        vit.load_state_dict(weights, assign=True)
        return vit

    def _empty_model(self) -> ViTForImageClassification:
        with torch.device("meta"):
            return ViTForImageClassification(self.model.config)

    def save_model(self, output_dir: Optional[str] = None, _internal_call: bool = False) -> None:
        """Write the whole model, once."""
        vit = self.trained_model()
        if vit is not None:
            folder = self.args.output_dir if output_dir is None else output_dir
            assert folder is not None and self.processing_class is not None
            vit.save_pretrained(folder, safe_serialization=True)
            self.processing_class.save_pretrained(folder)
        torch.distributed.barrier()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        torch.distributed.barrier()  # none goes on, to be killed, while the first still writes

    def _save_rng_state(self, output_dir: str) -> None:
        if self.args.should_save:
            super()._save_rng_state(output_dir)

    def _names(self, model: Any) -> List[List[str]]:
        return parameter_names(model, self.get_decay_parameter_names(model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None and self.lr_scheduler is not None
        state = self.optimizer.state_dict()
        states = self.pipeline.gather(by_name(state["state"], self._names(self.model)))
        if states is None:
            return
        whole = numbered(states, state["param_groups"], self._names(self._empty_model()))
        torch.save(whole, os.path.join(output_dir, OPTIMIZER))
        torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER))

    def _load_optimizer_and_scheduler(self, checkpoint: Optional[str]) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        whole = torch.load(Path(checkpoint, OPTIMIZER), map_location="cpu", weights_only=True)
        states = by_name(whole["state"], self._names(self._empty_model()))
        stage = numbered(states, whole["param_groups"], self._names(self.model))
        self.optimizer.load_state_dict(stage)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER), weights_only=True))

    def _restore(self, folder: str, model: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            saved, _ = load_model(folder)
        weights = saved.state_dict()
        held = model.state_dict()
        wrong = [name for name in held if name not in weights or weights[name].shape != held[name].shape]
        if wrong:
            raise InputError(f"{folder}: a checkpoint of another size than this model (first: {wrong[0]}).")
        model.load_state_dict({name: weights[name] for name in held}, strict=True)
