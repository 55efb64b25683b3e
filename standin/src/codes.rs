//! Results of the driver's functions: number, name and what they mean, as the driver's manual has them.

/// A result other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub i32);

macro_rules! codes {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl Code {
            $(#[allow(missing_docs, dead_code)] pub const $name: Code = Code($number);)*

            /// Name and text of a result, both ended by a zero byte.
            pub fn describe(number: i32) -> Option<(&'static str, &'static str)> {
                match number {
                    0 => Some(("CUDA_SUCCESS\0", "no error\0")),
                    $($number => Some((concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($text, "\0"))),)*
                    _ => None,
                }
            }
        }
    };
}

codes! {
    INVALID_VALUE = 1, "invalid argument (stand-in)";
    OUT_OF_MEMORY = 2, "out of memory (stand-in)";
    DEVICE_UNAVAILABLE = 46, "CUDA-capable device(s) is/are busy or unavailable (stand-in)";
    NO_DEVICE = 100, "no CUDA-capable device is detected (stand-in)";
    INVALID_DEVICE = 101, "invalid device ordinal (stand-in)";
    INVALID_IMAGE = 200, "device kernel image is invalid (stand-in)";
    INVALID_CONTEXT = 201, "invalid device context (stand-in)";
    NO_BINARY_FOR_GPU = 209, "no kernel image is available for execution on the device (stand-in)";
    UNSUPPORTED_PTX_VERSION = 222, "the provided PTX was compiled with an unsupported toolchain (stand-in)";
    INVALID_HANDLE = 400, "invalid resource handle (stand-in)";
    NOT_FOUND = 500, "named symbol not found (stand-in)";
    NOT_READY = 600, "device not ready (stand-in)";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered (stand-in)";
    LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch (stand-in)";
    HOST_MEMORY_ALREADY_REGISTERED = 712, "part or all of the requested memory range is already mapped (stand-in)";
    HOST_MEMORY_NOT_REGISTERED = 713, "pointer does not correspond to a registered memory region (stand-in)";
    LAUNCH_FAILED = 719, "unspecified launch failure (stand-in)";
    NOT_SUPPORTED = 801, "operation not supported (stand-in)";
    UNKNOWN = 999, "unknown error (stand-in)";
}
