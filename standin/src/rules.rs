//! The rules of NVIDIA's manuals that the stand-in holds programs to, each with the place where the manual has it. They are taken
//! from the manuals' text (the driver's is in `cuda.h`), not from what merganser does.
//!
//! A rule answers with the manual's code where it has one; where the manual leaves what happens undefined, the process ends at
//! once with the rule's name. Either way it is no correct program, so its exit status is 86, but for rules that programs may try:
//! those only answer. `tests/catches.rs` breaks every rule once; `docs/cuda-rules.md` lists them, and what is not modelled.

/// What breaking a rule brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This result, and the process fails at its end.
    Code(i32),
    /// This result; a program may try.
    Tried(i32),
    /// The manual leaves it undefined: the process ends.
    Stop,
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// By which it is told.
    pub name: &'static str,
    /// Where the manual has it.
    pub source: &'static str,
    /// What it demands, in our words.
    pub text: &'static str,
    /// What breaking it brings.
    pub answer: Answer,
}

macro_rules! rules {
    ($($constant:ident: $name:literal, $source:literal, $answer:expr, $text:literal;)*) => {
        $(#[doc = $text] #[allow(dead_code)] pub const $constant: Rule =
            Rule { name: $name, source: $source, text: $text, answer: $answer };)*

        /// All of them, for the tests and for the documentation.
        #[allow(dead_code)]
        pub const ALL: &[Rule] = &[$($constant),*];
    };
}

use Answer::{Code, Stop, Tried};

rules! {
    INITIALIZED: "initialized", "Driver API, Initialization, cuInit", Code(3),
        "no function but those that tell versions and errors is called before cuInit";
    CONTEXT_CURRENT: "context-current", "Driver API, Context Management", Code(201),
        "what works on a context is called with one current";
    CONTEXT_RELEASED: "context-released", "Driver API, Primary Context, cuDevicePrimaryCtxRelease", Code(201),
        "a primary context is released as often as it was retained";
    SHARED_OPT_IN: "shared-opt-in", "Driver API, Execution Control, cuFuncSetAttribute", Tried(1),
        "dynamic shared memory that is asked for, with what the function declares, is no more than a block can opt into";
    SHARED_LAUNCH: "shared-launch", "Driver API, Execution Control, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", Code(1),
        "a launch takes no more dynamic shared memory than the function may: 48 KiB less what it declares, or what was asked for";
    BLOCK_THREADS: "block-threads", "Driver API, Execution Control, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK", Code(1),
        "a block has no more threads than launch bounds and device allow";
    BLOCK_REGISTERS: "block-registers", "Driver API, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", Code(701),
        "a block has no more threads than its registers allow";
    GRID_SIZE: "grid-size", "Programming Guide, Technical Specifications per Compute Capability", Code(1),
        "a grid has 1 to 2³¹ − 1 blocks along x, 1 to 65535 along y and z";
    LAUNCH_ARGUMENTS: "launch-arguments", "Driver API, Execution Control, cuLaunchKernel", Code(1),
        "a kernel gets one pointer a parameter";
    LAUNCH_CONTEXT: "launch-context", "Driver API, Execution Control, cuLaunchKernel", Code(400),
        "function, stream and current context are of one context";
    FUNCTION_HANDLE: "function-handle", "Driver API, Execution Control", Code(400),
        "functions are those that a loaded module gave";
    MODULE_HANDLE: "module-handle", "Driver API, Module Management", Code(400),
        "modules are loaded, and unloaded once";
    MODULE_BUSY: "module-busy", "Driver API, Module Management, cuModuleUnload (use of a destroyed object)", Stop,
        "a module is unloaded only when none of its kernels is under way";
    PTX_VERSION: "ptx-version", "Driver API, CUDA_ERROR_UNSUPPORTED_PTX_VERSION", Tried(222),
        "PTX is of no newer version than the driver's CUDA";
    BINARY_FOR_GPU: "binary-for-gpu", "Driver API, CUDA_ERROR_NO_BINARY_FOR_GPU", Tried(209),
        "an image is for the card's generation, or PTX for an older one";
    STREAM_HANDLE: "stream-handle", "Driver API, Stream Management (use of a destroyed object)", Stop,
        "streams are used and destroyed only while they are";
    STREAM_FLAGS: "stream-flags", "Driver API, Stream Management, cuStreamCreate", Code(1),
        "a stream is made with the flags that there are";
    EVENT_HANDLE: "event-handle", "Driver API, Event Management (use of a destroyed object)", Stop,
        "events are used and destroyed only while they are";
    EVENT_FLAGS: "event-flags", "Driver API, Event Management, cuEventCreate", Code(1),
        "an event is made with the flags that there are; one between processes has no clock";
    EVENT_CONTEXT: "event-context", "Driver API, Event Management, cuEventRecord", Code(400),
        "an event is recorded in a stream of its own context";
    EVENT_CLOCK: "event-clock", "Driver API, Event Management, cuEventElapsedTime", Code(400),
        "the time between events is asked of events with a clock that were recorded";
    WAIT_FLAGS: "wait-flags", "Driver API, Stream Management, cuStreamWaitEvent", Code(1),
        "outside of captures a stream waits with the flags 0";
    ALLOCATION_SIZE: "allocation-size", "Driver API, Memory Management, cuMemAlloc", Tried(1),
        "an allocation has a size";
    FREE_KNOWN: "free-known", "Driver API, Memory Management, cuMemFree", Code(1),
        "what is freed was allocated, and was not freed yet";
    FREE_BUSY: "free-busy", "Driver API, Memory Management, cuMemFree (it may synchronize, and need not)", Stop,
        "device memory is freed only when nothing that is under way uses it";
    PINNED_KNOWN: "pinned-known", "Driver API, Memory Management, cuMemFreeHost", Code(1),
        "page-locked memory is freed that the driver gave, once";
    PINNED_BUSY: "pinned-busy", "Driver API, Memory Management, cuMemFreeHost (undefined)", Stop,
        "page-locked memory is freed only when no copy needs it";
    COPY_RANGE: "copy-range", "Driver API, Memory Management, cuMemcpyHtoDAsync and its like", Code(1),
        "copies and fills stay inside of one allocation";
    COPY_CONTEXT: "copy-context", "Driver API, Memory Management, cuMemcpyHtoDAsync and its like", Code(1),
        "a copy goes in a stream of the device whose memory it touches";
    SET_ALIGNMENT: "set-alignment", "Driver API, Memory Management, cuMemsetD32Async", Code(1),
        "memory that is set word by word begins at a multiple of 4 bytes";
    KERNEL_ALIGNMENT: "kernel-alignment", "Programming Guide, Size and Alignment Requirement (CUDA_ERROR_MISALIGNED_ADDRESS)", Stop,
        "a kernel's access of 16 bytes is at a multiple of 16";
    KERNEL_BARRIER: "kernel-barrier", "Programming Guide, Synchronization Functions", Code(719),
        "all threads of a block come to a barrier, or none";
    KERNEL_SHARED: "kernel-shared", "Programming Guide, Shared Memory (CUDA_ERROR_ILLEGAL_ADDRESS)", Code(719),
        "a kernel stays inside of its dynamic shared memory";
    LIBRARY_HANDLE: "library-handle", "cuBLAS, CUBLAS_STATUS_NOT_INITIALIZED; cuSOLVER, CUSOLVER_STATUS_NOT_INITIALIZED", Code(1),
        "handles of cuBLAS and cuSOLVER are made, and destroyed once";
    LIBRARY_DEVICE: "library-device", "cuBLAS, cuBLAS Context: a handle is tied to the device that was current", Stop,
        "a handle is used while its device is current";
    LIBRARY_STREAM: "library-stream", "cuBLAS, cublasSetStream", Stop,
        "a handle's stream is of the handle's device";
    LIBRARY_OPERAND: "library-operand", "cuBLAS, Data Layout", Stop,
        "operands, workspaces and infos lie inside of an allocation of the handle's device";
    WORKSPACE_ALIGNMENT: "workspace-alignment", "cuBLAS, cublasSetWorkspace", Tried(7),
        "a workspace that is lent to cuBLAS begins at a multiple of 256 bytes";
    PRODUCT_LEADING: "product-leading", "cuBLAS, cublas<t>gemmStridedBatched", Tried(7),
        "sides are not negative, and a leading dimension is no less than a column";
    PRODUCT_OVERLAP: "product-overlap", "cuBLAS, cublas<t>gemmStridedBatched: matrices C must not overlap", Stop,
        "results of a batch do not overlap";
    TRANSPOSE_OVERLAP: "transpose-overlap", "cuBLAS, cublas<t>geam: in place only without transposing", Tried(7),
        "a transpose does not lie where its matrix does";
    EIGEN_SHAPE: "eigen-shape", "cuSOLVER, cusolverDnXsyevd", Tried(3),
        "a matrix's leading dimension is no less than its side, its types are supported together";
    EIGEN_BATCH: "eigen-batch", "cuSOLVER, cusolverDnXsyevBatched: n·lda·batchSize ≤ 2³¹ − 1", Tried(3),
        "a batch is no larger than cuSOLVER can count";
    EIGEN_WORKSPACE: "eigen-workspace", "cuSOLVER, cusolverDnXsyevd and _bufferSize", Stop,
        "a decomposition gets as much workspace, on the device and on the host, as the library asks for";
    EIGEN_HOST: "eigen-host", "cuSOLVER, 64-bit API: bufferOnHost is the routine's until it is done", Stop,
        "the host's part of a workspace is not used again before the decomposition that it was lent to has run";
    SVD_SHAPE: "svd-shape", "cuSOLVER, cusolverDnXgesvd: only m ≥ n", Tried(3),
        "a matrix whose singular values are asked for has at least as many rows as columns";
    COMPILER_ARCHITECTURE: "compiler-architecture", "NVRTC, --gpu-architecture", Tried(5),
        "NVRTC is asked for an architecture that it tells of";
}
