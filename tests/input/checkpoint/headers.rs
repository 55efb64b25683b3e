//! The header reader: every way in which a header can be wrong, by name; random headers against the safetensors crate.

use std::collections::HashMap;

use merganser::checkpoint::{Header, read_header};
use merganser::dtype::Dtype;
use proptest::prelude::*;
use safetensors::tensor::{SafeTensors, TensorView};

use super::file;
use crate::allocated;

/// Reads a header, and checks that it costs no more memory than a multiple of the file's length.
fn read(bytes: &[u8]) -> merganser::Result<Header> {
    let (out, cost) = allocated::during(|| read_header(bytes));
    assert!(cost <= 64 * bytes.len() + (64 << 10), "{cost} bytes allocated for a file of {}", bytes.len());
    out
}

/// A header of one tensor called `x`.
fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"x":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[track_caller]
fn refused(bytes: &[u8], fragments: &[&str]) {
    let error = read(bytes).expect_err("accepted");
    let message = error.to_string();
    for fragment in fragments {
        assert!(message.contains(fragment), "{fragment:?} is not in {message:?}");
    }
    assert_eq!(error.exit_code(), 1, "{message}");
    assert!(!error.hints().is_empty(), "no hint: {message}");
    assert!(message.len() < 2000 && !message.contains(char::is_control), "{message:?}");
    if bytes.len() < 1 << 20 {
        // What safetensors accepts and we do not has a test of its own.
        assert!(SafeTensors::read_metadata(bytes).is_err(), "safetensors accepts it: {message}");
    }
}

#[test]
fn a_file_too_short_for_its_header_says_how_many_bytes_it_has() {
    refused(b"", &["has 0 bytes, expected at least 8"]);
    refused(b"1234567", &["has 7 bytes, expected at least 8"]);
    refused(&40_u64.to_le_bytes(), &["truncated", "found 8 bytes, expected at least 48"]);
    // A length whose bytes look like the beginning of a pickle.
    refused(&0x0280_u64.to_le_bytes(), &["truncated", "found 8 bytes, expected at least 648"]);
    let whole = file(&one(r#""U8""#, "[4]", "[0,4]"), 4);
    for len in 0..whole.len() {
        assert!(read(&whole[..len]).is_err(), "cut at {len}");
    }
    assert!(read(&whole).is_ok());
}

#[test]
fn absurd_header_lengths_are_refused_before_anything_is_allocated() {
    for length in [100_000_001, 1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        let mut bytes = file("{}", 64);
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        refused(&bytes, &[&format!("would have {length} bytes, the most allowed is 100000000")]);
    }
}

#[test]
fn other_formats_are_named() {
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", &["Git LFS pointer"]);
    refused(b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00", &["pickle"]);
    refused(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", &["pickle"]);
    refused(b"GGUF\x03\x00\x00\x00\x01\x00\x00\x00", &["GGUF"]);
}

#[test]
fn a_header_that_is_not_the_expected_json_says_where() {
    let mut utf8 = file("{\"a\":0}", 0);
    utf8[10] = 0xff;
    refused(&utf8, &["not UTF-8", "byte 2"]);
    refused(&file("", 0), &["EOF while parsing"]);
    refused(&file("{", 0), &["EOF while parsing", "line 1, column 1"]);
    refused(&file("[]", 0), &["invalid type: sequence", "expected an object"]);
    refused(&file("7", 0), &["invalid type: integer"]);
    refused(&file("{} x", 0), &["trailing characters"]);
    refused(&file("{}\0", 0), &["trailing characters"]);
    refused(&file(r#"{"x":null}"#, 0), &["tensor `x`", "invalid type: null"]);
    refused(&file(r#"{"x":7}"#, 0), &["tensor `x`", "invalid type: integer"]);
    refused(&file(r#"{"\ud800":{}}"#, 0), &["unexpected end of hex escape"]);
    refused(&file(r#"{"x":{"shape":[],"data_offsets":[0,0]}}"#, 0), &["tensor `x`", "no dtype"]);
    refused(&file(r#"{"x":{"dtype":"U8","data_offsets":[0,0]}}"#, 0), &["tensor `x`", "no shape"]);
    refused(&file(r#"{"x":{"dtype":"U8","shape":[0]}}"#, 0), &["tensor `x`", "no data_offsets"]);
    refused(
        &file(r#"{"x":{"dtype":"U8","shape":[0],"shape":[0],"data_offsets":[0,0]}}"#, 0),
        &["tensor `x`", "`shape` stands twice"],
    );
}

#[test]
fn deep_json_is_refused_where_it_begins() {
    let deep = "[".repeat(200_000);
    refused(&file(&deep, 0), &["invalid type: sequence"]);
    refused(&file(&format!(r#"{{"x":{deep}"#), 0), &["tensor `x`", "invalid type: sequence"]);
    refused(&file(&one(r#""U8""#, &deep, "[0,0]"), 0), &["tensor `x`", "invalid type: sequence"]);
    refused(&file(&r#"{"dtype":"#.repeat(100_000), 0), &["tensor `dtype`", "invalid type: map"]);
    refused(&file(&format!(r#"{{"__metadata__":{{"a":{deep}"#), 0), &["`__metadata__`", "invalid type: sequence"]);
}

#[test]
fn metadata_is_strings_alone() {
    refused(&file(r#"{"__metadata__":{"format":1}}"#, 0), &["`__metadata__`", "invalid type: integer"]);
    refused(&file(r#"{"__metadata__":[]}"#, 0), &["`__metadata__`", "expected an object of strings"]);
    refused(&file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), &["`__metadata__`", "stands twice"]);
    let header = read(&file(r#"{"__metadata__":{"format":"pt","a":"b"}}"#, 0)).unwrap();
    assert_eq!(
        header.metadata.into_iter().collect::<Vec<_>>(),
        [("a", "b"), ("format", "pt")].map(|(a, b)| (a.into(), b.into()))
    );
    assert!(read(&file(r#"{"__metadata__":null}"#, 0)).unwrap().metadata.is_empty());
}

#[test]
fn unknown_dtypes_are_refused_with_the_known_ones() {
    refused(&file(&one(r#""F99""#, "[1]", "[0,4]"), 4), &["tensor `x`", "unknown dtype `F99`", "BF16, ", "F8_E4M3, "]);
    refused(&file(&one(r#""f32""#, "[1]", "[0,4]"), 4), &["unknown dtype `f32`"]);
    refused(&file(&one("7", "[1]", "[0,4]"), 4), &["tensor `x`", "expected the name of a dtype"]);
    let long = format!("\"{}\"", "\\u001b[2J".repeat(50_000));
    refused(&file(&one(&long, "[1]", "[0,4]"), 4), &["unknown dtype", "\\u{1b}"]);
}

#[test]
fn shapes_and_offsets_are_whole_numbers_that_fit_each_other() {
    for shape in ["[-1]", "[1.0]", "[1e3]", r#"["1"]"#, "[null]", "{}", "4", "[18446744073709551616]"] {
        refused(&file(&one(r#""U8""#, shape, "[0,4]"), 4), &["tensor `x`", "invalid "]);
    }
    for offsets in ["[0]", "[]", "[0,4,4]"] {
        refused(&file(&one(r#""U8""#, "[4]", offsets), 4), &["tensor `x`", "data_offsets are not two numbers"]);
    }
    refused(&file(&one(r#""U8""#, "[4]", "[4,0]"), 4), &["tensor `x`", "[4, 0] are reversed"]);
    let max = u64::MAX;
    refused(&file(&one(r#""U8""#, "[4]", &format!("[{max},3]")), 4), &["tensor `x`", "are reversed"]);
    refused(&file(&one(r#""F32""#, "[2,3]", "[0,20]"), 20), &["tensor `x`", "[2, 3] of F32 needs 24 bytes", "span 20"]);
    refused(&file(&one(r#""F32""#, "[]", "[0,0]"), 0), &["tensor `x`", "[] of F32 needs 4 bytes", "span 0"]);
    refused(&file(&one(r#""F4""#, "[3]", "[0,2]"), 2), &["tensor `x`", "12 bits", "not whole bytes"]);
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in
        ["[4294967296,4294967296]", "[2305843009213693952]", "[9007199254740992,2048,0]", "[18446744073709551615]"]
    {
        let error = read(&file(&one(r#""F64""#, shape, "[0,0]"), 0)).unwrap_err().to_string();
        assert!(error.contains("tensor `x`"), "{error}");
        assert!(error.contains("overflows") || error.contains("above the largest allowed"), "{error}");
    }
    // Whole and consistent, but larger than any file: refused for the file's size.
    let huge = 1_u64 << 52;
    let header = one(r#""U8""#, &format!("[{huge}]"), &format!("[0,{huge}]"));
    refused(&file(&header, 4), &["truncated", "first tensor cut off is `x`"]);
}

#[test]
fn sizes_that_add_up_beyond_64_bits_are_refused() {
    // Ten tensors, each of an allowed size, whose last ends at byte 2^64 - 1 of the data.
    let (unit, mut at, mut entries) = (1_u64 << 53, 0, Vec::new());
    for (i, (dim, times)) in [(unit, 255); 8].into_iter().chain([(unit, 7), (unit - 1, 1)]).enumerate() {
        let end = at + dim * times;
        entries.push(format!(r#""{i}":{{"dtype":"U8","shape":[{dim},{times}],"data_offsets":[{at},{end}]}}"#));
        at = end;
    }
    assert_eq!(at, u64::MAX);
    let error = read(&file(&format!("{{{}}}", entries.join(",")), 4)).unwrap_err();
    assert!(error.to_string().contains("sizes overflow"), "{error}");
}

/// A header of tensors `a`, `b`, … with these data_offsets, as U8.
fn spans(spans: &[(u64, u64)]) -> String {
    let entries: Vec<String> = spans
        .iter()
        .enumerate()
        .map(|(i, (begin, end))| {
            let name = (b'a' + i as u8) as char;
            format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
        })
        .collect();
    format!("{{{}}}", entries.join(","))
}

#[test]
fn tensors_may_neither_overlap_nor_leave_holes() {
    refused(&file(&spans(&[(0, 4), (2, 6)]), 6), &["tensors `a` and `b` overlap", "ends at byte 4", "begins at 2"]);
    refused(&file(&spans(&[(0, 4), (0, 4)]), 4), &["tensors `a` and `b` overlap"]);
    refused(&file(&spans(&[(4, 8), (0, 2)]), 8), &["bytes 2 to 4 of the data, before tensor `a`, belong to no tensor"]);
    refused(&file(&spans(&[(1, 4)]), 4), &["bytes 0 to 1 of the data, before tensor `a`"]);
    refused(&file(&spans(&[(0, 4), (2, 2)]), 4), &["tensors `a` and `b` overlap"]);
    let (far, max) = (u64::MAX - 4, u64::MAX);
    refused(&file(&spans(&[(far, max)]), 4), &["belong to no tensor"]);
}

#[test]
fn data_must_end_where_the_file_ends() {
    let header = spans(&[(0, 4), (4, 8)]);
    let expected = 8 + header.len() + 8;
    refused(
        &file(&header, 6),
        &["truncated", &format!("found {} bytes, expected {expected}", expected - 2), "cut off is `b`"],
    );
    refused(
        &file(&header, 11),
        &["has 3 bytes after its last tensor", &format!("found {} bytes, expected {expected}", expected + 3)],
    );
    refused(&file("{}", 1), &["has 1 bytes after its last tensor"]);
}

#[test]
fn the_reader_is_stricter_than_safetensors_where_a_file_would_be_ambiguous() {
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let rank_65 = format!("[{}]", ["1"; 65].join(","));
    for (header, data, fragments) in [
        (format!(r#"{{"x":{entry},"x":{entry}}}"#), 0, &["tensor `x` stands twice"][..]),
        (format!(r#"{{"":{entry}}}"#), 0, &["tensor ``", "name is empty"]),
        (format!(r#"{{"a\u0000b":{entry}}}"#), 0, &["`a\\u{0}b`", "control character U+0000"]),
        (format!(r#"{{"a\u009bb":{entry}}}"#), 0, &["control character U+009B"]),
        (format!(r#"{{"a\nb":{entry}}}"#), 0, &["control character U+000A"]),
        (one(r#""U8""#, "[9007199254740993,0]", "[0,0]"), 0, &["dimension 9007199254740993", "largest allowed"]),
        (one(r#""U8""#, &rank_65, "[0,1]"), 1, &["tensor `x`", "more than 64 dimensions"]),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(), 0, &["`__metadata__`", "a key stands twice"]),
        (
            r#"{"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"strides":[1]}}"#.into(),
            0,
            &["tensor `x`", "unknown key `strides`"],
        ),
        (r#"{"x":["U8",[0],[0,0]]}"#.into(), 0, &["tensor `x`", "invalid type: sequence"]),
    ] {
        let error = read(&file(&header, data)).expect_err(&header);
        for fragment in fragments {
            assert!(error.to_string().contains(fragment), "{fragment:?} is not in {error}");
        }
        assert_eq!((error.exit_code(), error.hints().len()), (1, 1));
    }
}

#[test]
fn scalars_empty_tensors_padding_and_any_order_are_read() {
    let header = r#" {"z":{"dtype":"F32","shape":[],"data_offsets":[3,7]},
        "empty":{"dtype":"F64","shape":[0,5],"data_offsets":[3,3]},
        "last":{"dtype":"I64","shape":[3,0],"data_offsets":[7,7]},
        "a":{"data_offsets":[0,3],"dtype":"BOOL","shape":[3]}}    "#;
    let read = read(&file(header, 7)).unwrap();
    let base = 8 + header.len() as u64;
    assert_eq!(read.bytes, base);
    let facts: Vec<_> = read.tensors.iter().map(|t| (t.name.as_str(), t.elems, t.begin - base, t.bytes)).collect();
    // `z` begins at an offset that is no multiple of its element's size.
    assert_eq!(facts, [("a", 3, 0, 3), ("empty", 0, 3, 0), ("z", 1, 3, 4), ("last", 0, 7, 0)]);
    assert!(self::read(&file("{}", 0)).unwrap().tensors.is_empty());
}

/// Asserts that safetensors reads the file, and reads the same from it.
fn agree(bytes: &[u8], ours: &Header) {
    let theirs = SafeTensors::deserialize(bytes).expect("accepted here, refused by safetensors");
    assert_eq!(theirs.len(), ours.tensors.len());
    for tensor in &ours.tensors {
        let view = theirs.tensor(&tensor.name).unwrap();
        assert_eq!(view.dtype(), tensor.dtype);
        assert_eq!(view.shape().iter().map(|d| *d as u64).collect::<Vec<_>>(), tensor.shape);
        let range = tensor.range();
        assert_eq!(view.data().as_ptr_range(), bytes[range.start as usize..range.end as usize].as_ptr_range());
        assert_eq!(tensor.elems, tensor.shape.iter().product::<u64>());
    }
}

const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

#[test]
fn every_dtype_that_safetensors_writes_is_read() {
    for dtype in DTYPES {
        let data = vec![1; dtype.bitsize()];
        let bytes = safetensors::serialize([("x", TensorView::new(dtype, vec![2, 4], &data).unwrap())], None).unwrap();
        let header = read(&bytes).unwrap();
        assert_eq!(header.tensors[0].dtype, dtype);
        agree(&bytes, &header);
    }
}

/// A file as safetensors writes it, of random tensors and metadata.
fn written() -> impl Strategy<Value = Vec<u8>> {
    let shape = prop::collection::vec(0_usize..5, 0..5);
    let tensor = (prop::sample::select(&DTYPES[..]), shape);
    let name = "[a-z\"\\\\é権 ./_]{1,12}";
    let metadata = prop::option::of(prop::collection::hash_map("\\PC{0,8}", any::<String>(), 0..4));
    (prop::collection::hash_map(name, tensor, 0..8), metadata).prop_map(|(tensors, metadata)| {
        let data = vec![7; 8 * 5_usize.pow(4)];
        let views: HashMap<String, TensorView<'_>> = tensors
            .into_iter()
            .filter_map(|(name, (dtype, shape))| {
                let bits = shape.iter().product::<usize>() * dtype.bitsize();
                Some((name, TensorView::new(dtype, shape, data.get(..bits / 8)?).ok()?))
            })
            .collect();
        // With neither tensors nor entries of metadata, safetensors 0.8.0 writes `{},"__metadata__":{}}`, which is not JSON.
        let metadata = metadata.filter(|metadata| !metadata.is_empty());
        safetensors::serialize(views, metadata).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_safetensors_writes_is_read_the_same(bytes in written()) {
        agree(&bytes, &read(&bytes).unwrap());
    }

    #[test]
    fn damaged_bytes_never_panic_and_what_is_accepted_safetensors_accepts(
        bytes in written(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..4),
    ) {
        let mut bytes = bytes;
        for (at, byte, how) in edits {
            // Aim at the header: a change in the data changes nothing that is read here.
            let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()).min(bytes.len() as u64 - 8) as usize;
            let at = at.index(header);
            match how {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                _ => bytes[at] = b"0123456789[]{},:\"\\"[byte as usize % 18],
            }
        }
        if let Ok(header) = read(&bytes) {
            agree(&bytes, &header);
        }
    }

    #[test]
    fn cut_files_are_refused(bytes in written(), at in any::<prop::sample::Index>()) {
        prop_assert!(read(&bytes[..at.index(bytes.len())]).is_err());
    }

    #[test]
    fn numbers_of_any_size_never_panic(
        dims in prop::collection::vec(prop_oneof![0_u64..6, any::<u64>()], 0..4),
        begin in prop_oneof![0_u64..3, any::<u64>()],
        end in prop_oneof![0_u64..40, any::<u64>()],
        dtype in prop::sample::select(&DTYPES[..]),
        data in 0_usize..40,
    ) {
        let bytes = file(&one(&format!("\"{dtype}\""), &format!("{dims:?}"), &format!("[{begin},{end}]")), data);
        match read(&bytes) {
            Ok(header) => agree(&bytes, &header),
            Err(error) => prop_assert_eq!(error.exit_code(), 1),
        }
    }

    #[test]
    fn noise_never_panics(header in "\\PC{0,40}|[\\[\\]{}:,\"0-9a-z_]{0,60}", data in 0_usize..4) {
        let bytes = file(&header, data);
        if let Ok(header) = read(&bytes) {
            agree(&bytes, &header);
        }
    }
}
