"""Ensembles: a graph of model calls, run as data becomes ready, as Triton's ensemble scheduler does."""

from __future__ import annotations

from collections.abc import Mapping

from service.engines.base import Array, Tensors, TensorSpec
from service.engines.config import ENSEMBLE, ModelConfig, Report, Step, refuse
from service.engines.tensors import fits


class DataFlow:
    """Where one request to an ensemble stands: what has been written, and the steps that have not begun."""

    def __init__(self, config: ModelConfig, inputs: Tensors) -> None:
        """``config`` is an ensemble that :func:`check_ensembles` has passed, ``inputs`` are the request's."""
        self._outputs = [spec.name for spec in config.metadata.outputs]
        self._tensors: dict[str, Array] = dict(inputs)
        self._waiting = list(config.steps)
        self._running = 0

    def begin(self) -> list[tuple[Step, dict[str, Array]]]:
        """The steps that can begin now, each with its inputs by the step's names; each step is given out once."""
        tensors = self._tensors
        ready: list[Step] = []
        waiting: list[Step] = []
        for step in self._waiting:
            (ready if tensors.keys() >= set(step.inputs.values()) else waiting).append(step)
        self._waiting = waiting
        self._running += len(ready)
        return [(step, {name: tensors[tensor] for name, tensor in step.inputs.items()}) for step in ready]

    def end(self, step: Step, outputs: Tensors) -> None:
        """Note the outputs of a step that had begun."""
        self._running -= 1
        for name, tensor in step.outputs.items():
            self._tensors[tensor] = outputs[name]

    @property
    def finished(self) -> bool:
        """True when every step has ended."""
        return not self._waiting and not self._running

    def outputs(self) -> dict[str, Array]:
        """The ensemble's outputs, once it has :attr:`finished`."""
        return {name: self._tensors[name] for name in self._outputs}


def check_ensembles(models: Mapping[str, ModelConfig], report: Report = refuse) -> None:
    """Check every ensemble's wiring against its parts.

    Args:
        models: all of the repository.
        report: gets each fault; the default ends the check with the first.

    Raises:
        RepositoryError: an absent model or version, a tensor map that does not fit the model's tensors, a tensor
            written twice or never, types or shapes that do not fit, a cycle of steps or of ensembles.
    """
    for config in models.values():
        if config.metadata.platform == ENSEMBLE:
            whole = _Faults(report)
            _check_parts(config, models, whole)
            if not whole.found:
                _check_flow(config, models, report)
    for config in models.values():
        _check_nesting(config, models, (), report)


class _Faults:
    """Passes faults on and remembers that there was one."""

    def __init__(self, report: Report) -> None:
        self._report, self.found = report, False

    def __call__(self, fault: str) -> None:
        self.found = True
        self._report(fault)


def _check_parts(config: ModelConfig, models: Mapping[str, ModelConfig], report: Report) -> None:
    """Each step names a model that is there, all of its inputs and some of its outputs."""
    for number, step in enumerate(config.steps, 1):
        where = f"{config.source}: step {number}"
        part = models.get(step.model)
        if part is None:
            report(f"{where} names the model {step.model!r}, which is not in the repository")
            continue
        if step.version not in (-1, *part.metadata.versions):
            report(
                f"{where} asks for version {step.version} of {step.model!r}, served are {list(part.metadata.versions)}"
            )
        inputs, outputs = ({spec.name for spec in specs} for specs in (part.metadata.inputs, part.metadata.outputs))
        if set(step.inputs) != inputs:
            report(f"{where}: input_map {sorted(step.inputs)}, but {step.model!r} takes {sorted(inputs)}")
        if not step.outputs or not set(step.outputs) <= outputs:
            report(f"{where}: output_map {sorted(step.outputs)}, but {step.model!r} gives {sorted(outputs)}")
        limit = part.metadata.max_batch_size
        if 0 < limit < config.metadata.max_batch_size:  # Triton refuses this too
            report(
                f"{where}: max_batch_size {config.metadata.max_batch_size} is more than the {limit} of {step.model!r}"
            )


def _check_flow(config: ModelConfig, models: Mapping[str, ModelConfig], report: Report) -> None:
    """Each tensor is written once, before it is read, and fits where it is read."""
    written = {spec.name: _full(config, spec) for spec in config.metadata.inputs}
    waiting = list(enumerate(config.steps, 1))
    while waiting:
        ready = [item for item in waiting if all(tensor in written for tensor in item[1].inputs.values())]
        if not ready:
            missing = {number: sorted(set(step.inputs.values()) - set(written)) for number, step in waiting}
            report(f"{config.source}: a cycle, or tensors that no step writes: {missing} (by step)")
            return
        for number, step in ready:
            part = models[step.model]
            for spec in part.metadata.inputs:
                tensor = step.inputs[spec.name]
                _check_edge(f"{config.source}: step {number}: {tensor!r}", written[tensor], _full(part, spec), report)
            for spec in part.metadata.outputs:
                if (target := step.outputs.get(spec.name)) is None:
                    continue
                if target in written:
                    report(f"{config.source}: step {number}: {target!r} is written twice")
                written[target] = _full(part, spec)
        waiting = [item for item in waiting if item not in ready]
    for spec in config.metadata.outputs:
        if spec.name not in written:
            report(f"{config.source}: no step writes the output {spec.name!r}")
        else:
            _check_edge(f"{config.source}: output {spec.name!r}", written[spec.name], _full(config, spec), report)


def _check_nesting(
    config: ModelConfig, models: Mapping[str, ModelConfig], above: tuple[str, ...], report: Report
) -> None:
    name = config.metadata.name
    if name in above:
        report(f"{config.source}: ensembles contain each other: {' -> '.join((*above, name))}")
        return
    for step in config.steps:
        if step.model in models:
            _check_nesting(models[step.model], models, (*above, name), report)


def _full(config: ModelConfig, spec: TensorSpec) -> TensorSpec:
    """The tensor with its batch axis written out."""
    shape = (-1, *spec.shape) if config.metadata.max_batch_size else spec.shape
    return TensorSpec(spec.name, spec.dtype, shape)


def _check_edge(where: str, source: TensorSpec, target: TensorSpec, report: Report) -> None:
    known = [got if want == -1 else want for want, got in zip(target.shape, source.shape, strict=False)]
    if source.dtype != target.dtype or len(source.shape) != len(target.shape) or not fits(known, source.shape):
        report(f"{where} is {source.dtype} {list(source.shape)} but is read as {target.dtype} {list(target.shape)}")
