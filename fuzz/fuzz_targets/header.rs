//! The header reader on arbitrary files: it never panics, and what it accepts the safetensors crate accepts and reads
//! the same.
//!
//! `cargo +nightly fuzz run header fuzz/corpus/header fuzz/seeds/header -- -dict=fuzz/header.dict -max_len=4096`
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use merganser::checkpoint::read_header;
use safetensors::SafeTensors;

fuzz_target!(|input: &[u8]| -> Corpus {
    // The first byte chooses whether the length before the header is the fuzzer's or made to fit: left to itself, it
    // would spend nearly all inputs on files whose length is wrong.
    let Some((&choice, rest)) = input.split_first() else { return Corpus::Reject };
    let file = if choice % 4 == 0 {
        rest.to_vec()
    } else {
        let header = rest.iter().rposition(|b| *b == b'}').map_or(rest.len(), |at| at + 1);
        [&(header as u64).to_le_bytes(), rest].concat()
    };
    let Ok(ours) = read_header(&file) else { return Corpus::Keep };
    let theirs = SafeTensors::deserialize(&file).expect("accepted by merganser, refused by safetensors");
    assert_eq!(theirs.len(), ours.tensors.len());
    for tensor in &ours.tensors {
        let view = theirs.tensor(&tensor.name).expect("a tensor is missing");
        assert_eq!(view.dtype(), tensor.dtype);
        assert!(view.shape().iter().map(|d| *d as u64).eq(tensor.shape.iter().copied()));
        let range = tensor.range();
        assert_eq!(view.data().as_ptr_range(), file[range.start as usize..range.end as usize].as_ptr_range());
    }
    Corpus::Keep
});
