"""GPU memory as counted by the driver, read through NVML: the server process has no CUDA context and no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)


class GpuCollector(Collector):
    """Used and total memory of every GPU visible to this process."""

    def __init__(self, nvml: ModuleType) -> None:
        self._nvml = nvml

    @classmethod
    def add_to(cls, registry: CollectorRegistry) -> None:
        """Register a collector if the package ``nvidia-ml-py`` and a driver are installed."""
        try:
            import pynvml  # noqa: PLC0415  the extra `gpu`
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.info("no GPU metrics: %s", error)
            return
        registry.register(cls(pynvml))

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the memory of every GPU."""
        memory = GaugeMetricFamily(
            "model_factory_gpu_memory_bytes", "GPU memory of all processes.", labels=["gpu", "state"]
        )
        try:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                info = self._nvml.nvmlDeviceGetMemoryInfo(self._nvml.nvmlDeviceGetHandleByIndex(index))
                memory.add_metric([str(index), "used"], info.used)
                memory.add_metric([str(index), "total"], info.total)
        except self._nvml.NVMLError as error:
            log.warning("cannot read the GPUs' memory: %s", error)
        yield memory
