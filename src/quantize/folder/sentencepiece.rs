//! `tokenizer.model`: the pieces of a SentencePiece model, as far as GGUF keeps them.
//!
//! ```text
//! ModelProto     field 1, repeated: SentencePiece
//! SentencePiece  field 1: text   field 2: score, f32   field 3: kind, 1 to 6 as GGUF counts them
//! ```

/// A piece of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: i32,
}

/// Every piece in order; `None` if the bytes are something else. At most `n_max` are read.
pub(super) fn pieces(mut bytes: &[u8], n_max: usize) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Bytes(piece)) if pieces.len() < n_max => pieces.push(read_piece(piece)?),
            (1, _) => return None,
            _ => {}
        }
    }
    (!pieces.is_empty()).then_some(pieces)
}

fn read_piece(mut bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Four(bits)) => piece.score = f32::from_le_bytes(bits),
            (3, Field::Number(kind @ 1..=6)) => piece.kind = kind as i32,
            (1..=3, _) => return None,
            _ => {}
        }
    }
    Some(piece)
}

enum Field<'a> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'a [u8]),
    Eight,
}

/// The next field's number and value.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => Field::Number(varint(bytes)?),
        1 => take(bytes, 8).map(|_| Field::Eight)?,
        2 => {
            let n = usize::try_from(varint(bytes)?).ok()?;
            Field::Bytes(take(bytes, n)?)
        }
        5 => Field::Four(*take(bytes, 4)?.first_chunk()?),
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_by_hand() {
        // "<s>" of kind 3 with score 0, then "ab" with score -1.5, then a field to skip.
        let bytes = [
            &[0x0a, 12, 0x0a, 3, b'<', b's', b'>', 0x15, 0, 0, 0, 0, 0x18, 3][..],
            &[0x0a, 9, 0x0a, 2, b'a', b'b', 0x15, 0, 0, 0xc0, 0xbf],
            &[0x12, 2, 8, 1],
        ]
        .concat();
        let found = pieces(&bytes, 9).unwrap();
        let piece = |text: &str, score, kind| Piece { text: text.into(), score, kind };
        assert_eq!(found, [piece("<s>", 0.0, 3), piece("ab", -1.5, 1)]);
        for cut in 1..bytes.len() {
            let _ = pieces(&bytes[..cut], 9);
        }
        assert!(pieces(&bytes[..10], 9).is_none() && pieces(&[], 9).is_none());
        assert!(pieces(&bytes, 1).is_none(), "more than may be");
    }
}
