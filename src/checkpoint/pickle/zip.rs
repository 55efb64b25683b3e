//! The directory of a zip archive: where each stored member's bytes lie in the file. Nothing is unpacked.

use super::super::text::quoted;

/// Most members: above what any checkpoint holds.
const MOST_MEMBERS: u64 = 1 << 20;
/// Largest directory.
const MOST_BYTES: u64 = 1 << 28;
/// The end record with its longest comment.
const END_BYTES: u64 = 22 + 65_535;

const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const ENTRY: [u8; 4] = *b"PK\x01\x02";
const LOCAL: [u8; 4] = *b"PK\x03\x04";

/// One member that is stored as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub name: String,
    /// Where its bytes begin in the file.
    pub begin: u64,
    pub bytes: u64,
}

/// Reads parts of a file; the error is a text.
pub(super) type ReadAt<'a> = &'a dyn Fn(u64, u64) -> Result<Vec<u8>, String>;

/// The members of an archive of `size` bytes.
pub(super) fn members(size: u64, read: ReadAt<'_>) -> Result<Vec<Member>, String> {
    let (start, length, count) = directory(size, read)?;
    if count > MOST_MEMBERS || length > MOST_BYTES {
        return Err(format!("its directory has {count} members in {length} bytes, too many"));
    }
    if start.checked_add(length).is_none_or(|end| end > size) {
        return Err("its directory lies outside the file".into());
    }
    let bytes = read(start, length)?;
    let mut rest = &bytes[..];
    let mut members = Vec::new();
    for _ in 0..count {
        let (member, after) = member(rest, size, read)?;
        members.push(member);
        rest = after;
    }
    Ok(members)
}

/// Where the directory begins, its bytes and its members.
fn directory(size: u64, read: ReadAt<'_>) -> Result<(u64, u64, u64), String> {
    let tail_bytes = END_BYTES.min(size);
    let tail = read(size - tail_bytes, tail_bytes)?;
    let at = (0..tail.len().saturating_sub(21))
        .rev()
        .find(|at| tail[*at..].starts_with(&END))
        .ok_or("it has no directory: it was cut off")?;
    let end = &tail[at..];
    let (count, length, start) = (u64::from(u16_at(end, 10)), u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
    if count != 0xffff && length != 0xffff_ffff && start != 0xffff_ffff {
        return Ok((start, length, count));
    }
    // Large archives have a second record, which a locator before the first one points to.
    let locator = at.checked_sub(20).map(|at| &tail[at..]).filter(|bytes| bytes.starts_with(&LOCATOR_64));
    let record = u64_at(locator.ok_or("its directory has no 64-bit record")?, 8);
    if record.checked_add(56).is_none_or(|end| end > size) {
        return Err("its 64-bit record lies outside the file".into());
    }
    let record = read(record, 56)?;
    if !record.starts_with(&END_64) {
        return Err("its 64-bit record is damaged".into());
    }
    Ok((u64_at(&record, 48), u64_at(&record, 40), u64_at(&record, 32)))
}

/// One entry of the directory, and what comes after it.
fn member<'a>(bytes: &'a [u8], size: u64, read: ReadAt<'_>) -> Result<(Member, &'a [u8]), String> {
    const FIXED: usize = 46;
    if bytes.len() < FIXED || !bytes.starts_with(&ENTRY) {
        return Err("its directory is damaged".into());
    }
    let (name_bytes, extra_bytes, comment_bytes) = (u16_at(bytes, 28), u16_at(bytes, 30), u16_at(bytes, 32));
    let [name_bytes, extra_bytes, comment_bytes] = [name_bytes, extra_bytes, comment_bytes].map(usize::from);
    let all = FIXED + name_bytes + extra_bytes + comment_bytes;
    if bytes.len() < all {
        return Err("its directory is cut off".into());
    }
    let name = std::str::from_utf8(&bytes[FIXED..FIXED + name_bytes])
        .map_err(|_| "a member's name is not UTF-8 text")?
        .to_owned();
    let (flags, method) = (u16_at(bytes, 8), u16_at(bytes, 10));
    let [mut packed, mut whole, mut offset] = [20, 24, 42].map(|at| u64::from(u32_at(bytes, at)));
    // Numbers that do not fit stand in a 64-bit field of their own, in this order.
    let mut wide = field_64(&bytes[FIXED + name_bytes..FIXED + name_bytes + extra_bytes]);
    for number in [&mut whole, &mut packed, &mut offset] {
        if *number == 0xffff_ffff {
            let (first, rest) = wide.split_at_checked(8).ok_or("a 64-bit field is cut off")?;
            (*number, wide) = (u64_at(first, 0), rest);
        }
    }
    if method != 0 || packed != whole {
        return Err(format!("its member {} is compressed, and only stored ones are read", quoted(&name)));
    }
    if flags & 1 != 0 {
        return Err(format!("its member {} is encrypted", quoted(&name)));
    }
    let outside = || format!("its member {} lies outside the file", quoted(&name));
    if offset.checked_add(30).is_none_or(|end| end > size) {
        return Err(outside());
    }
    let local = read(offset, 30)?;
    if !local.starts_with(&LOCAL) {
        return Err(format!("its member {} is damaged", quoted(&name)));
    }
    let begin = offset + 30 + u64::from(u16_at(&local, 26)) + u64::from(u16_at(&local, 28));
    if begin.checked_add(whole).is_none_or(|end| end > size) {
        return Err(outside());
    }
    Ok((Member { name, begin, bytes: whole }, &bytes[all..]))
}

/// The content of the 64-bit field among the extra fields of an entry.
fn field_64(mut extra: &[u8]) -> &[u8] {
    while extra.len() >= 4 {
        let (id, length) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let Some(content) = extra.get(4..4 + length) else { return &[] };
        if id == 1 {
            return content;
        }
        extra = &extra[4 + length..];
    }
    &[]
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
