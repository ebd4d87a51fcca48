//! A number for bytes that nobody chose to make two of them alike, and bytes as people read them.

/// FNV-1a of 64 bits.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, add)
}

/// Bytes, such as those of a digest, in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for, as a `Vec` or as an array of that length. Capitals
/// are digits too; a sign, a space, half a byte or another length make it nothing.
pub fn unhex<T: TryFrom<Vec<u8>>>(text: &str) -> Option<T> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let byte = |&[high, low]: &[u8; 2]| u8::try_from(digit(high)? << 4 | digit(low)?).ok();
    pairs.iter().map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_that_others_know() {
        assert_eq!(fnv1a(*b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(*b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(*b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(hex(&[0, 0x0a, 0xff]), "000aff");
    }

    #[test]
    fn digits_alone_are_bytes() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)), Some(all.clone()));
        assert_eq!(unhex(&hex(&all).to_uppercase()), Some(all));
        assert_eq!(unhex::<Vec<u8>>(""), Some(Vec::new()));
        for other in ["0", "00a", "+f", "-1", " f", "f ", "0x", "0g", "é", "0é0", "٣", "\0\0"] {
            assert_eq!(unhex::<Vec<u8>>(other), None, "{other:?}");
        }
        let two = ["00", "0aFf", "000000"].map(unhex::<[u8; 2]>);
        assert_eq!(two, [None, Some([0x0a, 0xff]), None]);
    }
}
