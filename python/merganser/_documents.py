"""What merganser's commands return: made by scripts/python-types from docs/reference/documents.schema.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

__all__ = [
    "Adapter",
    "ComparedMismatched",
    "ComparedTensor",
    "ComparedTotals",
    "Comparison",
    "Devices",
    "DevicesBatchSystem",
    "DevicesCheck",
    "DevicesCheckOperation",
    "DevicesCpu",
    "DevicesCpuInstructionSet",
    "DevicesCuda",
    "DevicesCudaDevice",
    "DevicesCudaLibrary",
    "DevicesMemory",
    "Explained",
    "ExplainedElement",
    "ExplainedElementStep",
    "ExplainedOutput",
    "ExplainedPath",
    "ExplainedProgram",
    "ExplainedProgramMatrix",
    "ExplainedSource",
    "ExplainedSourcePart",
    "ExplainedStep",
    "Extracted",
    "ExtractedTask",
    "InspectedDtype",
    "InspectedFile",
    "InspectedLayer",
    "InspectedTensor",
    "InspectedTotals",
    "Inspection",
    "KnownMethod",
    "KnownMethodModels",
    "KnownMethodParameter",
    "Merged",
    "MergedDevice",
    "MergedDeviceAudit",
    "MergedFile",
    "MergedTimings",
    "MergedTimingsPhase",
    "MergedTotals",
    "MergedTotalsNonfinite",
    "Methods",
    "PartDone",
    "PartTotals",
    "Plan",
    "PlannedAuto",
    "PlannedDevices",
    "PlannedDevicesDevice",
    "PlannedFile",
    "PlannedMatrices",
    "PlannedMemory",
    "PlannedPrediction",
    "PlannedPredictionPath",
    "PlannedSource",
    "PlannedTensor",
    "PlannedTotals",
    "Saliency",
    "SaliencyChoice",
    "SaliencyLayer",
    "SaliencyLayerTensor",
    "SaliencyTotals",
    "SaliencyTotalsTask",
    "SaliencyTotalsTaskPruned",
    "SaliencyTotalsTaskScores",
    "Swept",
    "SweptPoint",
    "SweptTotals",
    "Verification",
    "VerifiedProblem",
    "VerifiedTotals",
]


@dataclass(frozen=True)
class MergedDeviceAudit:
    """What of the devices' work the CPU has done again, with the same result; null for the CPU."""

    segments: int
    """Segments of tensors that are merged element by element, compared bit for bit."""
    of_segments: int
    """How many there are."""
    elements: int
    """Elements of the compared ones."""
    matrices: int
    """Matrices that were decomposed again."""
    of_matrices: int
    """How many there are."""


@dataclass(frozen=True)
class MergedDevice:
    """What computed."""

    name: str
    """The device's own name."""
    backend: str
    """`cpu` or `cuda`."""
    memory_bytes: Optional[int]
    """Device memory taken, in bytes; null for the CPU."""
    instructions: Optional[str]
    """The instruction set of the loops that computed on the CPU: `portable`, `avx2` or `avx512`; null of outputs that do not state it."""
    check: Optional[str]
    """When `merganser devices --check` last found these devices right; null where it has not."""
    audit: Optional[MergedDeviceAudit]
    """What of the devices' work the CPU has done again, with the same result; null for the CPU."""
    left: Optional[str]
    """Why devices that were to do some of it did not; null where none failed."""


@dataclass(frozen=True)
class MergedTimingsPhase:
    """One part of a merge's time."""

    name: str
    """Its name."""
    seconds: float
    """Wall-clock seconds."""


@dataclass(frozen=True)
class MergedTimings:
    """How long a merge took, all of its runs' last one."""

    seconds: float
    """Wall-clock seconds."""
    bytes_read: int
    """Bytes read from sources."""
    bytes_written: int
    """Bytes written to the output."""
    gb_per_s: float
    """Bytes read and written per second, in 10⁹."""
    phases: List[MergedTimingsPhase]
    """Parts of it."""


@dataclass(frozen=True)
class MergedTotalsNonfinite:
    """Elements that are NaN or infinite."""

    output: int
    """In the output tensor."""
    introduced: int
    """Of those, where every source element was finite."""


@dataclass(frozen=True)
class MergedTotals:
    """Sums over an output."""

    tensors: int
    copied: int
    """Of those, copied as they are."""
    elements: int
    bytes: int
    """Bytes of tensors."""
    bytes_read: int
    """Bytes read of the sources, by this run."""
    bytes_written: int
    """Bytes written of tensors, by this run."""
    nonfinite: MergedTotalsNonfinite
    """Elements that are NaN or infinite."""


@dataclass(frozen=True)
class MergedFile:
    """One file of an output."""

    name: str
    """Its name."""
    bytes: int
    """Its size."""
    digest: Optional[str]
    """Its digest; null for files of tensors, whose tensors have their own in the manifest."""


@dataclass(frozen=True)
class Merged:
    """`merganser merge --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    out: str
    """The output's folder, absolute."""
    manifest: str
    """Its manifest, absolute."""
    already_done: bool
    """Whether it was finished before."""
    resumed_tensors: int
    """Tensors that an earlier run had finished."""
    device: MergedDevice
    """What computed."""
    reproducible: bool
    """Whether the same command gives the same bytes: not where matrices were merged elsewhere than planned."""
    threads: int
    memory_budget: int
    created: str
    fingerprint: str
    timings: MergedTimings
    """How long a merge took, all of its runs' last one."""
    totals: MergedTotals
    """Sums over an output."""
    files: List[MergedFile]
    method: str
    """The recipe's method."""
    seed: int


@dataclass(frozen=True)
class PartTotals:
    """Sums over a part."""

    tensors: int
    bytes_read: int
    """Bytes read of the sources, by this run."""
    bytes_written: int
    """Bytes written of tensors, by this run."""


@dataclass(frozen=True)
class PartDone:
    """`merganser merge --part --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    out: str
    """The output's folder, absolute; it is not there yet."""
    part: int
    """The part, from 1."""
    of: int
    """How many parts there are."""
    already_done: bool
    """Whether it was done before."""
    open_parts: List[int]
    """Parts that are not done, from 1; none where another process is finishing the output."""
    totals: PartTotals
    """Sums over a part."""


@dataclass(frozen=True)
class SweptPoint:
    """One combination of a sweep."""

    values: Dict[str, str]
    """What stands at each key, as YAML."""
    out: str
    """The output's folder, absolute."""
    score: Optional[float]
    """What --eval's command said of it; null without one, and where it failed."""
    kept: bool
    """Whether the output is there: with --eval only the best one is."""


@dataclass(frozen=True)
class SweptTotals:
    """Sums over a sweep."""

    outputs: int
    readings: int
    """How often the sources were read: once for all outputs that could share it."""
    bytes_read: int
    """Bytes read of the sources, by this run."""
    bytes_written: int
    """Bytes written of tensors, by this run."""


@dataclass(frozen=True)
class Swept:
    """`merganser sweep --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    out: str
    """The folder of the outputs, absolute."""
    best: Optional[str]
    """The best output's folder, absolute; null without --eval."""
    points: List[SweptPoint]
    """Every combination."""
    table: str
    """The table of all combinations, absolute."""
    plot: Optional[str]
    """The plot of their scores, absolute; null without --eval."""
    totals: SweptTotals
    """Sums over a sweep."""


@dataclass(frozen=True)
class ExtractedTask:
    """One task."""

    name: str
    """Its name: letters, digits, `-` and `_`, other than that of any other task."""
    model: str
    """Its model as the recipe wrote it."""


@dataclass(frozen=True)
class Extracted:
    """`merganser extract --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    out: str
    """The output's folder, absolute."""
    manifest: str
    """Its manifest, absolute."""
    already_done: bool
    """Whether it was finished before."""
    resumed_tensors: int
    """Tensors that an earlier run had finished."""
    device: MergedDevice
    """What computed."""
    reproducible: bool
    """Whether the same command gives the same bytes: not where matrices were merged elsewhere than planned."""
    threads: int
    memory_budget: int
    created: str
    fingerprint: str
    timings: MergedTimings
    """How long a merge took, all of its runs' last one."""
    totals: MergedTotals
    """Sums over an output."""
    files: List[MergedFile]
    task: str
    """The task that was rebuilt."""
    tasks: List[ExtractedTask]
    """All tasks that there are."""
    lambda_: float
    rebuilt_tensors: int
    """Tensors that were rebuilt from factors."""


@dataclass(frozen=True)
class Adapter:
    """`merganser extract --lora --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    out: str
    """The output's folder, absolute."""
    manifest: str
    """Its manifest, absolute."""
    already_done: bool
    """Whether it was finished before."""
    resumed_tensors: int
    """Tensors that an earlier run had finished."""
    device: MergedDevice
    """What computed."""
    reproducible: bool
    """Whether the same command gives the same bytes: not where matrices were merged elsewhere than planned."""
    threads: int
    memory_budget: int
    created: str
    fingerprint: str
    timings: MergedTimings
    """How long a merge took, all of its runs' last one."""
    totals: MergedTotals
    """Sums over an output."""
    files: List[MergedFile]
    base: str
    """The base, as it was given."""
    model: str
    """The fine-tune, as it was given."""
    matrices: int
    """Matrices with factors."""
    rank: int
    """Their greatest rank."""
    whole_tensors: int
    """Tensors that are stored whole."""


@dataclass(frozen=True)
class PlannedSource:
    """A checkpoint that is read."""

    path: str
    """As the recipe writes it."""
    role: str
    """`base` or `model`."""
    tensors: int
    """How many tensors it has."""
    bytes: int
    """Their bytes."""
    files: int
    """How many files it has."""


@dataclass(frozen=True)
class PlannedTensor:
    """An output tensor."""

    name: str
    """Its name."""
    shape: List[int]
    """Its shape."""
    dtype: str
    """Its stored element type."""
    work: str
    """What is done, for people."""
    compute: Optional[str]
    """`f32` or `f64`; null where nothing is computed."""
    layer: str
    """Its layer."""
    passes: int
    """How often its sources are read."""
    bytes_read: int
    """Bytes read of its sources, in all passes."""
    bytes: int
    """Bytes written of it."""
    operations: float
    """Floating-point operations of its decomposition, about."""
    decomposition: Optional[str]
    """How it is decomposed, for people; null where it is not."""
    memory_bytes: int
    """Memory that its largest step takes."""
    file: str
    """The file that it goes to."""
    offset: int
    """Where its bytes begin in the file."""
    computed_on: Optional[str]
    """`cpu` or `cuda`; null where no device takes part."""
    why_there: Optional[str]
    """Why the CPU computes it beside devices."""
    batch: Optional[int]
    """The batch of matrices that it is decomposed in."""


@dataclass(frozen=True)
class PlannedFile:
    """An output file."""

    name: str
    """Its name."""
    bytes: int
    """Its size."""
    tensors: int
    """How many tensors it holds."""


@dataclass(frozen=True)
class PlannedTotals:
    """Sums over the tensors."""

    tensors: int
    """How many."""
    elements: int
    """Their elements."""
    bytes_read: int
    """Bytes read, in all passes."""
    bytes_read_most: int
    """Bytes read at most: more than `bytes_read` where float32 is not exact enough for a matrix."""
    bytes: int
    """Bytes written."""
    operations: float
    """Floating-point operations of decompositions."""
    steps: int
    """Steps of the merge."""


@dataclass(frozen=True)
class PlannedMemory:
    """What of the budget is taken for what."""

    total_bytes: int
    """All of it."""
    tables_bytes: int
    """Tables of tensors."""
    per_thread_bytes: int
    """What a thread takes."""
    buffers: int
    """How many buffers there are."""
    buffer_bytes: int
    """What one takes."""
    largest_step_bytes: int
    """The largest step."""


@dataclass(frozen=True)
class PlannedMatrices:
    """How much is merged as matrices; null for methods that take none."""

    matrices: int
    """Tensors merged as matrices."""
    matrix_parameters: int
    """Their elements."""
    averaged: int
    """Tensors that stayed average."""
    averaged_parameters: int
    """Their elements."""


@dataclass(frozen=True)
class PlannedDevicesDevice:
    """One CUDA device."""

    ordinal: int
    """Its number."""
    name: str
    """Its own name."""
    memory_bytes: int
    """Device memory taken."""


@dataclass(frozen=True)
class PlannedDevices:
    """What CUDA devices do of it; null where the CPU does everything."""

    devices: List[PlannedDevicesDevice]
    """Each, with the memory taken of it."""
    lanes: int
    """Lanes of each."""
    slot_bytes: int
    """Page-locked bytes of a slot."""
    host_bytes: int
    """Bytes on the host."""
    batches: int
    """Batches of matrices."""


@dataclass(frozen=True)
class PlannedAuto:
    """What `--device auto` chose, and why; null where there was nothing to choose."""

    devices: bool
    """Whether devices merge matrices."""
    cpu_seconds: float
    """Seconds that the merge is predicted to take on the CPU alone."""
    device_seconds: Optional[float]
    """The same with matrices on the devices; null where none are merged."""
    why: str
    """For people."""


@dataclass(frozen=True)
class PlannedPredictionPath:
    """Seconds of one way that the data takes."""

    name: str
    """`read`, `host to device`, `element-wise`, `products`, `eigenvectors`, `device to host` or `write`."""
    seconds: float
    """Seconds that it takes by itself."""


@dataclass(frozen=True)
class PlannedPrediction:
    """What the merge is predicted to take on them, from published rates; null without devices, or for a card that is not known."""

    card: str
    """The card's name in the table."""
    seconds: float
    """Seconds of the whole merge where the sources are in the page cache. All ways are taken at once, so that the slowest counts; computing is one way, whatever its kinds."""
    cold_seconds: float
    """The same where the sources come from a disk."""
    open_seconds: float
    """Of those, seconds until the device is open."""
    compute_seconds: float
    """Seconds of the device's work of all kinds."""
    bottleneck: str
    """The slowest way, sources in the page cache: one of `paths`, of computing its largest kind."""
    paths: List[PlannedPredictionPath]
    """Seconds by way."""


@dataclass(frozen=True)
class Plan:
    """`merganser plan --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    recipe: Dict[str, Any]
    """The recipe as resolved; its keys are the recipe's."""
    output: Dict[str, Any]
    """What comes out: its `kind` is `merged`, `factors` or `lora`, and factors say more of themselves."""
    sources: List[PlannedSource]
    """What is read, the base first."""
    tensors: List[PlannedTensor]
    """What is written."""
    files: List[PlannedFile]
    """The files that they go to."""
    totals: PlannedTotals
    """Sums over the tensors."""
    memory_budget: int
    """Bound on the memory allocated, in bytes."""
    threads: int
    """CPU threads."""
    memory: PlannedMemory
    """What of the budget is taken for what."""
    seed: int
    """Seed of random masks."""
    matrices: Optional[PlannedMatrices]
    """How much is merged as matrices; null for methods that take none."""
    devices: Optional[PlannedDevices]
    """What CUDA devices do of it; null where the CPU does everything."""
    auto: Optional[PlannedAuto]
    """What `--device auto` chose, and why; null where there was nothing to choose."""
    prediction: Optional[PlannedPrediction]
    """What the merge is predicted to take on them, from published rates; null without devices, or for a card that is not known."""


@dataclass(frozen=True)
class ExplainedOutput:
    """Where it goes."""

    file: str
    """The output's file."""
    offset: int
    """Where its bytes begin, from the start of the file."""
    bytes: int
    """How many they are."""


@dataclass(frozen=True)
class ExplainedSourcePart:
    """A stored tensor that a source's is made of."""

    what: str
    """What it is there."""
    file: str
    """The file that holds it."""
    tensor: str
    """Its name there."""
    shape: List[int]
    """Its shape there."""
    dtype: str
    """Its stored element type."""
    offset: int
    """Where its bytes begin, from the start of the file."""
    bytes: int
    """How many they are."""


@dataclass(frozen=True)
class ExplainedSource:
    """A tensor of a source."""

    role: str
    """`base`, or `model` and its number among those that take part, from 1."""
    model: str
    """The model, as the recipe writes it."""
    tensor: str
    """Its tensor: with slices another than the output's."""
    shape: List[int]
    """Its shape there."""
    dtype: str
    """The element type that is read."""
    file: Optional[str]
    """The file that holds it; null where it is made as it is read."""
    offset: Optional[int]
    """Where its bytes begin, from the start of the file; null where it is made."""
    bytes: int
    """Its bytes, as they are read."""
    made: Optional[str]
    """How it is made, of the parts; null where a file holds it."""
    parts: List[ExplainedSourcePart]
    """What it is made of: an adapter's tensors beside the base's, or those whose rows are taken."""


@dataclass(frozen=True)
class ExplainedProgramMatrix:
    """What it is as a merge of a matrix; null elsewhere."""

    centre: Any
    """What task vectors are measured from: `average` or `base`."""
    rule: Any
    """How they become one."""
    decomposition: Optional[str]
    """How they are decomposed."""


@dataclass(frozen=True)
class ExplainedProgram:
    """What is done."""

    kind: str
    """`copy`, `elementwise`, `matrix` or `factor`."""
    method: str
    """The recipe's method."""
    work: str
    """In a few words."""
    stages: List[Dict[str, Any]]
    """Stages that change its task vectors, with their values here."""
    drop: Optional[Dict[str, Any]]
    """What the method drops of task vectors; null where it drops nothing."""
    rule: Optional[str]
    """The element-wise rule; null elsewhere."""
    weights: List[float]
    """Weights, by model; none where the rule has none, or measures them."""
    numbers: Dict[str, Any]
    """The rule's other numbers."""
    fit: Optional[str]
    """What weights and numbers are measured from: products of the vectors, or what they change together; null where all are known."""
    matrix: Optional[ExplainedProgramMatrix]
    """What it is as a merge of a matrix; null elsewhere."""


@dataclass(frozen=True)
class ExplainedStep:
    """A step."""

    step: str
    """What it does."""
    stage: Optional[int]
    """The stage that it is for, as its place among the recipe's; null where it is for none."""
    of_all: bool
    """Whether all tensors or layers have a part in it."""
    units: int
    """Parts that may run at the same time."""
    memory_bytes: int
    """Memory that it takes, in bytes."""


@dataclass(frozen=True)
class ExplainedPath:
    """What computes it."""

    computed_by: Optional[str]
    """`portable`, `avx2` or `avx512` on the CPU; the devices that may take it, as `cuda:0`; null where it is copied."""
    why_there: Optional[str]
    """Why the CPU computes it beside devices; null elsewhere."""
    computed_in: Optional[str]
    """`float32` or `float64`; null where it is copied."""


@dataclass(frozen=True)
class ExplainedElementStep:
    """Values behind a step, by model."""

    step: str
    """The step."""
    values: List[Any]
    """By model."""


@dataclass(frozen=True)
class ExplainedElement:
    """What becomes of the element that was asked for; null where none was."""

    index: List[int]
    """Its place along each dimension, from 0."""
    flat: int
    """Its place in the order in which elements are stored, from 0."""
    stored: List[Any]
    """What each source stores, in the order of `sources`. Here and below, what is no finite number is a word: `NaN`, `inf`."""
    steps: List[ExplainedElementStep]
    """What becomes of it, step by step."""
    weights: List[float]
    """Weights, by model, as measured."""
    numbers: Dict[str, Any]
    """The rule's other numbers, as measured, and what was done to a matrix."""
    merged: Any
    """The merged element before it is rounded to what is stored, in the type that computes; null where it is copied."""
    merged_in_float64: Any
    """The same where every operation is done in float64, on what the masks leave; null where it is copied."""
    result: Any
    """What is stored."""


@dataclass(frozen=True)
class Explained:
    """`merganser explain --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    tensor: str
    """Its name."""
    shape: List[int]
    """Its shape."""
    dtype: str
    """Its stored element type."""
    layer: str
    """Its layer."""
    output: ExplainedOutput
    """Where it goes."""
    sources: List[ExplainedSource]
    """What it is made of: the base first, then the models that take part, in their order."""
    program: ExplainedProgram
    """What is done."""
    steps: List[ExplainedStep]
    """The steps that its merge waits for and the merge, in their order; those of other tensors are left out."""
    passes: int
    """How often its sources are read."""
    bytes_read: int
    """Bytes read of them, in all passes."""
    path: ExplainedPath
    """What computes it."""
    element: Optional[ExplainedElement]
    """What becomes of the element that was asked for; null where none was."""


@dataclass(frozen=True)
class SaliencyChoice:
    """A question to a stage: what would it prune?"""

    stage: int
    """The stage's place in the recipe, from 0."""
    name: str
    """Its name."""
    of_recipe: bool
    """Whether it is what a merge of the recipe does; else the share was asked for."""
    score: Optional[str]
    """The saliency score."""
    granularity: Optional[str]
    """What is kept or pruned as one."""
    keep: Optional[float]
    """Share kept."""
    order: Optional[str]
    """Which end of the scores is kept."""
    rescale: Optional[str]
    """The norm that is restored."""


@dataclass(frozen=True)
class SaliencyTotalsTaskScores:
    """Scores of the whole tensor or layer."""

    magnitude: Optional[float]
    """The root mean square of τ_t."""
    relative: Optional[float]
    """‖τ_t‖ / ‖θ₀‖"""
    deviation: Optional[float]
    """‖τ_t − mean τ‖ / ‖θ₀‖"""
    agreement: Optional[float]
    """(1 + cosine with R) / 2"""
    tall: Optional[float]
    """‖τ_t‖ / (‖τ_t‖ + ‖R‖)"""


@dataclass(frozen=True)
class SaliencyTotalsTaskPruned:
    """What a stage would prune."""

    kept: int
    """Elements that it keeps."""
    share: Optional[float]
    """Share of the elements that it drops."""
    energy_share: Optional[float]
    """Share of ‖τ_t‖², of the task vector that enters the stage, that goes with them."""


@dataclass(frozen=True)
class SaliencyTotalsTask:
    """One task's numbers."""

    norm: Optional[float]
    """‖τ_t‖ here."""
    energy_share: Optional[float]
    """‖τ_t‖² here over that of the whole task vector."""
    changed: int
    """Elements that the task changed."""
    nonfinite: int
    """Elements whose change is NaN or infinite."""
    scores: SaliencyTotalsTaskScores
    """Scores of the whole tensor or layer."""
    cosine_with_others: Optional[float]
    """The cosine with R, the sum of the other tasks."""
    sign_agreement_with_others: Optional[float]
    """The share of equal signs among the elements where neither the task nor R is 0."""
    pruned: List[SaliencyTotalsTaskPruned]
    """Answers to `Report::choices`."""


@dataclass(frozen=True)
class SaliencyTotals:
    """Over all tensors."""

    elements: int
    """Elements of a task vector."""
    tasks: List[SaliencyTotalsTask]
    """By task."""
    cosine: List[List[Optional[float]]]
    """⟨τ_s, τ_t⟩ / (‖τ_s‖ ‖τ_t‖), by tasks s and t."""
    sign_agreement: List[List[Optional[float]]]
    """The share of equal signs among the elements that neither task left as they were, by tasks s and t."""


@dataclass(frozen=True)
class SaliencyLayerTensor:
    """One tensor."""

    name: str
    """Its name."""
    shape: List[int]
    """Its shape."""
    elements: int
    """Elements of a task vector."""
    tasks: List[SaliencyTotalsTask]
    """By task."""
    cosine: List[List[Optional[float]]]
    """⟨τ_s, τ_t⟩ / (‖τ_s‖ ‖τ_t‖), by tasks s and t."""
    sign_agreement: List[List[Optional[float]]]
    """The share of equal signs among the elements that neither task left as they were, by tasks s and t."""


@dataclass(frozen=True)
class SaliencyLayer:
    """One layer."""

    name: str
    """Its name."""
    elements: int
    """Elements of a task vector."""
    tasks: List[SaliencyTotalsTask]
    """By task."""
    cosine: List[List[Optional[float]]]
    """⟨τ_s, τ_t⟩ / (‖τ_s‖ ‖τ_t‖), by tasks s and t."""
    sign_agreement: List[List[Optional[float]]]
    """The share of equal signs among the elements that neither task left as they were, by tasks s and t."""
    tensors: List[SaliencyLayerTensor]
    """Its tensors."""


@dataclass(frozen=True)
class Saliency:
    """`merganser saliency --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    out: str
    """The report's file, absolute."""
    format: str
    """`html` or `json`."""
    threads: int
    memory_budget: int
    bytes_read: int
    seconds: float
    recipe: str
    method: str
    """The recipe's, which nothing here depends on."""
    base: str
    tasks: List[str]
    """Every list and matrix below is in their order."""
    compared_tensors: int
    """Tensors with task vectors."""
    copied_tensors: int
    """Tensors that have none."""
    choices: List[SaliencyChoice]
    """What stages were asked; every `pruned` below answers in this order."""
    totals: SaliencyTotals
    """Over all tensors."""
    layers: List[SaliencyLayer]


@dataclass(frozen=True)
class InspectedTotals:
    """Tensors of one kind, summed."""

    files: int
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class InspectedFile:
    """`InspectedFile`."""

    name: str
    bytes: int
    header_bytes: int
    metadata: Dict[str, str]
    """The file's own, a text by key."""


@dataclass(frozen=True)
class InspectedDtype:
    """Tensors of one kind, summed."""

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class InspectedLayer:
    """Tensors of one kind, summed."""

    name: str
    index: Optional[int]
    """Its number in its list of blocks; null outside them."""
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class InspectedTensor:
    """`InspectedTensor`."""

    name: str
    dtype: str
    shape: List[int]
    elements: int
    bytes: int
    file: str
    offset: int
    """Where its bytes begin behind the header."""


@dataclass(frozen=True)
class Inspection:
    """`merganser inspect --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    path: str
    """The checkpoint, absolute."""
    totals: InspectedTotals
    """Tensors of one kind, summed."""
    files: List[InspectedFile]
    dtypes: List[InspectedDtype]
    layers: List[InspectedLayer]
    tensors: List[InspectedTensor]


@dataclass(frozen=True)
class ComparedMismatched:
    """A tensor whose shapes differ, or whose dtypes have no values in common to compare."""

    name: str
    """Its name."""
    dtype_a: str
    """Its dtype in A."""
    dtype_b: str
    """Its dtype in B."""
    shape_a: List[int]
    """Its shape in A."""
    shape_b: List[int]
    """Its shape in B."""


@dataclass(frozen=True)
class ComparedTensor:
    """One tensor that both have."""

    name: str
    """Its name."""
    dtype_a: str
    """Its dtype in A."""
    dtype_b: str
    """Its dtype in B."""
    shape: List[int]
    """Its shape."""
    compared_as: str
    """How its elements were compared."""
    elements: int
    """Elements of each side."""
    differing: int
    """Elements whose values differ. NaN differs from everything, as no number tells how far."""
    max_difference: Optional[float]
    """max |a − b|."""
    relative_error: Optional[float]
    """‖A − B‖_F / ‖A‖_F; 0 where both are all zeros, undefined where only A is."""
    cosine: Optional[float]
    """⟨A, B⟩ / (‖A‖_F ‖B‖_F); undefined where one is all zeros."""
    nan_a: int
    """NaN in A."""
    nan_b: int
    """NaN in B."""
    inf_a: int
    """Infinities in A."""
    inf_b: int
    """Infinities in B."""


@dataclass(frozen=True)
class ComparedTotals:
    """All of these together."""

    elements: int
    """Elements of each side."""
    differing: int
    """Elements whose values differ. NaN differs from everything, as no number tells how far."""
    max_difference: Optional[float]
    """max |a − b|."""
    relative_error: Optional[float]
    """‖A − B‖_F / ‖A‖_F; 0 where both are all zeros, undefined where only A is."""
    cosine: Optional[float]
    """⟨A, B⟩ / (‖A‖_F ‖B‖_F); undefined where one is all zeros."""
    nan_a: int
    """NaN in A."""
    nan_b: int
    """NaN in B."""
    inf_a: int
    """Infinities in A."""
    inf_b: int
    """Infinities in B."""


@dataclass(frozen=True)
class Comparison:
    """`merganser compare --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    a: str
    """A's path."""
    b: str
    """B's path."""
    same_layout: bool
    """Whether both have tensors of the same names and shapes, of dtypes that can be compared."""
    identical: bool
    """Whether, beyond that, every dtype is the same and no element differs."""
    only_in_a: List[str]
    """Names of tensors that only A has."""
    only_in_b: List[str]
    """Names of tensors that only B has."""
    mismatched: List[ComparedMismatched]
    """Tensors that both have and that cannot be compared."""
    tensors: List[ComparedTensor]
    """Tensors that were compared, in A's order."""
    totals: ComparedTotals
    """All of these together."""


@dataclass(frozen=True)
class VerifiedProblem:
    """One thing that is wrong."""

    file: Optional[str]
    """The file, if it is about one."""
    tensor: Optional[str]
    """The tensor, if it is about one."""
    message: str
    """What is wrong, in a sentence that names both."""


@dataclass(frozen=True)
class VerifiedTotals:
    """What was checked."""

    files: int
    """Without the manifest itself."""
    tensors: int
    """Whose bytes were read."""
    bytes_read: int
    """Bytes of tensors."""
    nonfinite: MergedTotalsNonfinite
    """Elements that are NaN or infinite."""


@dataclass(frozen=True)
class Verification:
    """`merganser verify --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    out: str
    """The output, absolute."""
    ok: bool
    """Whether everything is as the manifest says."""
    problems: List[VerifiedProblem]
    totals: VerifiedTotals
    """What was checked."""


@dataclass(frozen=True)
class KnownMethodModels:
    """`KnownMethodModels`."""

    min: int
    max: int


@dataclass(frozen=True)
class KnownMethodParameter:
    """A parameter; what does not apply to its kind is null."""

    name: str
    kind: str
    """`float`, `int`, `bool`, `choice` or `patterns`."""
    min: Any
    """The least value, a number."""
    max: Any
    """The greatest value, a number."""
    choices: Optional[List[str]]
    default: Any
    required: bool
    scope: str
    """`global` or `per_model`."""
    help: str


@dataclass(frozen=True)
class KnownMethod:
    """A method or stage."""

    name: str
    role: str
    """`method` or `stage`."""
    summary: str
    source: str
    base_model: str
    """`required` or `optional`."""
    models: KnownMethodModels
    takes_stages: bool
    parameters: List[KnownMethodParameter]
    exclusive: List[List[str]]
    """Groups of parameters of which at most one may be given."""
    tolerance: float
    notes: str
    recipe: str
    """A recipe to copy."""


@dataclass(frozen=True)
class Methods:
    """`merganser methods --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    methods: List[KnownMethod]


@dataclass(frozen=True)
class DevicesCpuInstructionSet:
    """`DevicesCpuInstructionSet`."""

    name: str
    present: bool


@dataclass(frozen=True)
class DevicesCpu:
    """`DevicesCpu`."""

    name: str
    architecture: str
    threads: int
    """Threads that this process may use."""
    vector_loops: str
    """What the compiler's loops run on."""
    instructions: str
    """What the loops run on that are written out for it: `portable`, `avx2` or `avx512`."""
    possible_instructions: List[str]
    """What MERGANSER_CPU can name here."""
    instruction_sets: List[DevicesCpuInstructionSet]


@dataclass(frozen=True)
class DevicesMemory:
    """`DevicesMemory`."""

    ram_bytes: int
    control_group_limit_bytes: Optional[int]


@dataclass(frozen=True)
class DevicesBatchSystem:
    """What a batch system grants this job."""

    threads: Optional[int]
    threads_by: Optional[str]
    memory_bytes: Optional[int]
    memory_by: Optional[str]


@dataclass(frozen=True)
class DevicesCudaLibrary:
    """`DevicesCudaLibrary`."""

    name: str
    present: bool
    version: Optional[str]
    path: Optional[str]
    """Where it was found."""
    problem: Optional[str]
    needed_for: str


@dataclass(frozen=True)
class DevicesCudaDevice:
    """`DevicesCudaDevice`."""

    ordinal: int
    name: str
    compute_capability: str
    memory_bytes: int
    free_bytes: Optional[int]
    multiprocessors: int
    usable: bool
    problem: Optional[str]


@dataclass(frozen=True)
class DevicesCuda:
    """`DevicesCuda`."""

    usable: bool
    reason: Optional[str]
    """Why not."""
    remedy: Optional[str]
    """What to do about it."""
    driver: Optional[str]
    """The kernel's driver."""
    driver_supports: Optional[str]
    """The newest CUDA that it supports."""
    libraries: List[DevicesCudaLibrary]
    devices: List[DevicesCudaDevice]


@dataclass(frozen=True)
class DevicesCheckOperation:
    """What one merge came to."""

    name: str
    """The method or stage, and the parameters in which it differs from the others of its name."""
    same_bits: int
    """Tensors that came out the same to the last bit."""
    within_bound: int
    """Matrices that are within the bound."""
    furthest: float
    """The largest distance of a matrix from the CPU's, relative to what its merge changes."""
    problem: Optional[str]
    """What differs, or why the device could not do it; null if nothing does."""


@dataclass(frozen=True)
class DevicesCheck:
    """A device beside the CPU."""

    device: str
    """`cuda:0 (NAME)`."""
    passed: bool
    """Whether every operation came out right."""
    seconds: float
    """Seconds that it took."""
    operations: List[DevicesCheckOperation]
    """Every operation that was tried."""
    left_out: List[str]
    """Methods that were not, and why."""


@dataclass(frozen=True)
class Devices:
    """`merganser devices --json`."""

    schema: int
    command: str
    merganser: str
    """The version of merganser."""
    warnings: List[str]
    """What the user should know, as on stderr."""
    cpu: DevicesCpu
    memory: DevicesMemory
    threads: int
    """Threads where no `--threads` is given."""
    memory_budget: int
    """Bytes where no `--memory-budget` is given."""
    batch_system: DevicesBatchSystem
    """What a batch system grants this job."""
    cuda: DevicesCuda
    checks: Optional[List[DevicesCheck]]
    """What `--check` found of each device; null without it."""
