//! Tells a header block that cannot be decoded from one that holds a malformed field: the library says the same of both.
//! Does not decode Huffman texts and keeps no table: what it cannot see it takes for well-formed.

/// Says whether one of the literals (RFC 7541 §6.2) is malformed (RFC 9113 §8.2.1, §8.3).
pub(super) fn names_a_fault(block: &[u8]) -> bool {
    let mut rest = block;
    while let Some(first) = rest.first().copied() {
        let bits = match first {
            0x80.. => 7,
            0x40..0x80 => 6,
            0x20..0x40 => 5,
            _ => 4,
        };
        let Some(index) = integer(&mut rest, bits) else { return false };
        if first & 0x80 != 0 || bits == 5 {
            continue;
        }
        if index == 0 {
            match text(&mut rest) {
                None => return false,
                Some(Some(name)) if !is_name(name) => return true,
                Some(_) => {}
            }
        }
        match text(&mut rest) {
            None => return false,
            Some(Some(value)) if value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) => return true,
            Some(_) => {}
        }
    }
    false
}

/// An integer with a prefix of so many bits (RFC 7541 §5.1); `None` when it has no end or no use.
fn integer(rest: &mut &[u8], bits: u32) -> Option<usize> {
    let top = (1_usize << bits) - 1;
    let first = usize::from(take(rest)?) & top;
    if first < top {
        return Some(first);
    }
    let mut value = first;
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(take(rest)?);
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A text (RFC 7541 §5.2): the outer `None` when it is longer than its block, the inner one in Huffman coding.
fn text<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let huffman = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some((!huffman).then_some(text))
}

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    Some(*first)
}

fn is_name(name: &[u8]) -> bool {
    const PSEUDO: [&[u8]; 4] = [b":method", b":scheme", b":authority", b":path"];
    if name.starts_with(b":") {
        return PSEUDO.contains(&name);
    }
    let mark = |b: u8| matches!(b, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
    !name.is_empty() && name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || mark(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_fields_are_told_from_broken_blocks() {
        let faults: [&[u8]; 6] = [
            b"\x82\x00\x01x\x03a\rb",
            b"\x00\x01X\x01y",
            b"\x00\x00\x01y",
            b"\x40\x05:test\x01x",
            b"\x10\x03a b\x01x",
            b"\x0f\x00\x02\n\n",
        ];
        for block in faults {
            assert!(names_a_fault(block), "{block:?}");
        }
        let others: [&[u8]; 7] = [
            b"",
            b"\x80",
            b"\x82\x84\x00\x01x\x01y",
            b"\x00\x01x\x7f\x01y",
            b"\x3f\xff\xff\xff\xff\xff\x0f",
            b"\x40\x7f",
            b"\x00\x81\xff\x01y",
        ];
        for block in others {
            assert!(!names_a_fault(block), "{block:?}");
        }
    }
}
