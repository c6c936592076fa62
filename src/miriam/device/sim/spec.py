"""The GPUs that the model knows, and how they are named."""

from __future__ import annotations

from dataclasses import dataclass, replace

from miriam.device.base import Geometry
from miriam.errors import DeviceError

__all__ = ["KNOWN", "MEASURED", "Spec", "parse"]

PREFIX = "sim:"
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything about a GPU that the model uses.

    Attributes
    ----------
    name
        As users write it, without ``sim:``.
    geometry
        What its SMs hold.
    whole_sms
        SMs of the whole GPU, of which ``geometry.sms`` are used.
    clock_mhz
        Clock of the SMs under load.
    fp32_lanes
        FP32 units of one SM: issue width for everything that is not tensor work.
    tensor_flops_per_us
        Peak of one SM, fp16 inputs, fp32 sums.
    dram_bytes_per_us, l2_bytes_per_us
        Bandwidths of the whole device.
    l2_bytes
        Size of the L2 cache.
    launch_gap_us
        From the end of a launch to the first block of the next one in the same queue.
    first_use_us
        For the first launch of a kernel whose code and arguments the caches have lost.
    skip_us
        For each launch that a pass only walks over: those behind the one that was left, and those that
        are complete when it goes on.
    span_us
        Of each span but the first of a run that is cut (:mod:`miriam.elastic.pauses`): its gate, its step, its loop.
    host_launch_us
        What the one host thread spends on a command of one launch, or a limit.
    host_graph_us, host_node_us
        On a run of several launches as one graph: once, and for each launch.
    host_notice_us
        From something happening on the device to the coordinator seeing it.
    host_event_us, host_step_us
        What the host thread spends on an event before the policy's first command: once, and for each
        launch of a request that arrived, of a run that finished.
    run_us
        Of each run on the device, beside its launches: the start of a graph, and the kernel at its end that
        lets others go and tells the host.
    elastic_run_us
        Of each elastic run, besides: its gate, the step that ends a pass, its loop.
    company_gap_us
        What is added to the gap before a launch while other lanes have work.
    carveouts_kib
        How much of the memory that an SM shares between L1 and shared memory the latter can have.
    elastic_overhead
        Factor on the duration of a block that an elastic worker runs.
    measured
        Whether profiles were taken on it; otherwise they are scaled from :data:`MEASURED`.
    notes
        What a reader of results has to know.
    """

    name: str
    geometry: Geometry
    whole_sms: int
    clock_mhz: float
    fp32_lanes: int
    tensor_flops_per_us: float
    dram_bytes_per_us: float
    l2_bytes_per_us: float
    l2_bytes: int
    launch_gap_us: float
    first_use_us: float
    skip_us: float
    span_us: float
    host_launch_us: float
    host_graph_us: float
    host_notice_us: float
    host_node_us: float
    host_event_us: float
    host_step_us: float
    run_us: float
    elastic_run_us: float
    company_gap_us: float
    carveouts_kib: tuple[int, ...]
    elastic_overhead: float = 1.02
    measured: bool = False
    notes: tuple[str, ...] = ()

    @property
    def conditional(self) -> bool:
        """Whether runs go on by themselves after a pause; in slices, as in partitions, the host launches each pass."""
        return self.geometry.sms == self.whole_sms

    def run_cost_us(self, launches: int) -> float:
        """What the host spends on a run of so many launches."""
        return self.host_graph_us + launches * self.host_node_us if launches > 1 else self.host_launch_us

    def carveout_bytes(self, shared_bytes: int) -> int:
        """Shared memory of an SM whose blocks need so much of it all together: the least that suffices."""
        fits = [kib * _KIB for kib in self.carveouts_kib if kib * _KIB >= shared_bytes]
        return min(fits, default=self.geometry.shared_per_sm_bytes)


_SCALED = (
    "times are scaled from an H200, not measured: latency by the clock, arithmetic by the peak of an SM, "
    "memory by bandwidth and cache size; kernels are those tuned for the H200"
)

H200 = Spec(
    name="h200",
    geometry=Geometry(132, 2048, 32, 65536, 228 * _KIB, 227 * _KIB, 1 * _KIB),
    whole_sms=132,
    clock_mhz=1830.0,
    fp32_lanes=128,
    tensor_flops_per_us=989.4e6 / 132,
    dram_bytes_per_us=4.8e6,
    l2_bytes_per_us=9.5e6,
    l2_bytes=50 * _KIB * _KIB,
    launch_gap_us=0.52,
    first_use_us=0.3,
    skip_us=1.5,
    span_us=11.0,
    host_launch_us=4.2,
    host_graph_us=1.0,
    host_notice_us=1.0,
    host_node_us=0.2,
    host_event_us=6.2,
    host_step_us=0.19,
    run_us=3.5,
    elastic_run_us=12.0,
    company_gap_us=0.8,
    carveouts_kib=(0, 8, 16, 32, 64, 100, 132, 164, 196, 228),
    measured=True,
)
"""H200 SXM. SMs, bandwidth, tensor peak (989.4 TFLOPS dense at 1.83 GHz): NVIDIA H200 datasheet and
Hopper architecture white paper. Limits of an SM: CUDA C++ Programming Guide, compute capability 9.0.
L2: 50 MB by the white paper, the API of an H200 reports 60 MB. L2 bandwidth is not published; 9.5 TB/s
foretells launches on 132 SMs from those on 16 about as well as anything between 7 and 10 does
(benchmarks/wave_fit.py). Launch gap: empty kernels in a graph, from the zoo's profiles. The
host's cost of a launch, and what reading 512 MB between two requests costs (ResNet-34 4 to 12 %,
ResNet-50 1 to 7 %, MobileNetV3 12 to 18 %; the time of a first use is chosen for that):
benchmarks/records/first-experiment.json. The elastic overhead is the median of the zoo on the whole GPU,
of programs alone (benchmarks/records/elastic-cost.json). Walking over a launch: from workers gone to the
pass gone in benchmarks/records/interruptions.json, 1 to 2 us a launch. A span: as long as a
condition around a stretch of launches took in a single try (docs/results.md).

From closed loops of 12 to 74 launches in benchmarks/records/mdtb-h200-gpu.json and pair-h200.json: events
(response less service time is 17, 20, 28 and 41 us for 12, 17, 49 and 74 launches, of which an arrival
is half), a graph (service less the launches alone is 6 to 32 us for them), a run (ResNet-18 one behind
another, 3.5 us more than its launches), an elastic run (11 to 18 us more than an original one). The gap
in company is what short programs lose to each other (17 to 43 us for 12 to 50 launches, beside programs
that hardly load the GPU). The time to notice is that of a loop that polls. Carveouts: CUDA C++ Programming
Guide, compute capability 9.0; that the driver takes the least one that holds as many blocks as fit is
assumed."""

XAVIER = Spec(
    name="xavier",
    geometry=Geometry(8, 2048, 32, 65536, 96 * _KIB, 96 * _KIB, partition_sms=2),
    whole_sms=8,
    clock_mhz=1377.0,
    fp32_lanes=64,
    tensor_flops_per_us=1024 * 1377.0,
    dram_bytes_per_us=136.5e3,
    l2_bytes_per_us=8 * 20 * 1377.0,
    l2_bytes=512 * _KIB,
    launch_gap_us=2.0,
    first_use_us=0.4,
    skip_us=3.0,
    span_us=22.0,
    host_launch_us=10.0,
    host_graph_us=2.0,
    host_notice_us=2.0,
    host_node_us=0.4,
    host_event_us=12.0,
    host_step_us=0.4,
    run_us=7.0,
    elastic_run_us=24.0,
    company_gap_us=1.6,
    carveouts_kib=(0, 8, 16, 32, 64, 96),
    notes=(_SCALED,),
)
"""Jetson AGX Xavier, MAXN. 512 cores in 8 Volta SMs, 11 TFLOPS fp16 on tensor cores (8 of them x 64
FMA a clock in each SM), 136.5 GB/s: Jetson AGX Xavier data sheet; 1,377 MHz and 512 KB L2 as its CUDA
deviceQuery reports. Limits of an SM: CUDA C++ Programming Guide, compute capability 7.2. L2
bandwidth follows from about 20 bytes a clock and SM (Jia et al., microbenchmarks of V100 and T4).
Launch gaps, first use, walking, what a run and a span take and host costs are assumed."""

ORIN = Spec(
    name="orin",
    geometry=Geometry(16, 1536, 16, 65536, 164 * _KIB, 163 * _KIB, 1 * _KIB, partition_sms=4),
    whole_sms=16,
    clock_mhz=1300.0,
    fp32_lanes=128,
    tensor_flops_per_us=2048 * 1300.0,
    dram_bytes_per_us=204.8e3,
    l2_bytes_per_us=16 * 32 * 1300.0,
    l2_bytes=4096 * _KIB,
    launch_gap_us=1.8,
    first_use_us=0.4,
    skip_us=3.0,
    span_us=22.0,
    host_launch_us=8.0,
    host_graph_us=2.0,
    host_notice_us=2.0,
    host_node_us=0.4,
    host_event_us=12.0,
    host_step_us=0.4,
    run_us=7.0,
    elastic_run_us=24.0,
    company_gap_us=1.6,
    carveouts_kib=(0, 8, 16, 32, 64, 100, 132, 164),
    notes=(_SCALED,),
)
"""Jetson AGX Orin 64 GB, MAXN. 2,048 cores in 16 Ampere SMs, 1.3 GHz, 64 tensor cores with 170 sparse
INT8 TOPS (42.5 TFLOPS dense fp16), 4 MB L2, 204.8 GB/s: Jetson AGX Orin Series technical brief.
Limits of an SM: CUDA C++ Programming Guide, compute capability 8.7. L2 bandwidth (32 bytes a clock
and SM), launch gaps, first use, walking, what a run and a span take and host costs are assumed."""

RTX2060 = Spec(
    name="rtx2060",
    geometry=Geometry(30, 1024, 16, 65536, 64 * _KIB, 64 * _KIB, partition_sms=2),
    whole_sms=30,
    clock_mhz=1680.0,
    fp32_lanes=64,
    tensor_flops_per_us=512 * 1680.0,
    dram_bytes_per_us=336e3,
    l2_bytes_per_us=30 * 20 * 1680.0,
    l2_bytes=3072 * _KIB,
    launch_gap_us=1.5,
    first_use_us=0.3,
    skip_us=1.5,
    span_us=11.0,
    host_launch_us=4.2,
    host_graph_us=1.0,
    host_notice_us=1.0,
    host_node_us=0.2,
    host_event_us=6.2,
    host_step_us=0.19,
    run_us=3.5,
    elastic_run_us=12.0,
    company_gap_us=0.8,
    carveouts_kib=(32, 64),
    notes=(_SCALED,),
)
"""GeForce RTX 2060. 30 Turing SMs (TU106), boost 1,680 MHz, 336 GB/s, 3 MB L2: GeForce RTX 2060
specifications and Turing architecture white paper, which gives GeForce tensor cores half rate with
fp32 sums (25.8 TFLOPS). Limits of an SM: CUDA C++ Programming Guide, compute capability 7.5. L2
bandwidth as for Xavier; launch gap, first use and walking assumed, the rest as measured on and
beside the H200."""

KNOWN = {spec.name: spec for spec in (H200, XAVIER, ORIN, RTX2060)}
MEASURED = H200
"""The GPU on which profiles are taken."""


def parse(name: str) -> Spec:
    """The GPU that a user named: ``sim:h200``, or ``sim:h200/16`` for 16 of its SMs.

    Raises
    ------
    DeviceError
        Unknown name, or a slice that the GPU does not have.
    """
    known = ", ".join(PREFIX + n for n in KNOWN) + f", and slices such as {PREFIX}h200/16"
    base, slash, part = name.removeprefix(PREFIX).partition("/")
    if not name.startswith(PREFIX) or base not in KNOWN:
        raise DeviceError(f"there is no simulated device {name!r}; known are {known}")
    spec = KNOWN[base]
    if not slash:
        return spec
    if not part.isascii() or not part.isdigit() or not 1 <= int(part) <= spec.whole_sms:
        raise DeviceError(f"{name!r} asks for {part or 'no'} SMs: {PREFIX}{base} has 1 to {spec.whole_sms}; {known}")
    sms = int(part)
    if sms == spec.whole_sms:
        return spec
    note = (
        f"{sms} of {spec.whole_sms} SMs, with clocks, L2 and memory bandwidth of the whole GPU, "
        "as a partition of SMs (green context) has them"
    )
    return replace(spec, name=f"{base}/{sms}", geometry=replace(spec.geometry, sms=sms), notes=(note, *spec.notes))
