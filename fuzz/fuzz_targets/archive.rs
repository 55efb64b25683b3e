//! The reader of PyTorch's files on arbitrary bytes: an error or tensors that lie inside the file, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = merganser::checkpoint::read_archive(bytes);
});
