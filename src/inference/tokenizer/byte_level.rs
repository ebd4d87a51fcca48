//! The byte alphabet of GPT-2: every byte as one printable character, so that BPE sees text.
//!
//! Printable Latin-1 bytes stand for themselves; the other 68, in order, are U+0100 to U+0143
//! (space is `Ġ`, newline `Ċ`).

const fn stands_for_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// `ALPHABET[byte]` is the byte's character.
static ALPHABET: [char; 256] = {
    let mut alphabet = ['\0'; 256];
    let mut n_moved = 0u8;
    let mut byte = 0usize;
    while byte < 256 {
        if stands_for_itself(byte as u8) {
            alphabet[byte] = byte as u8 as char;
        } else {
            // 68 bytes are moved, so the sum stays far below the surrogates.
            alphabet[byte] = match char::from_u32(256 + n_moved as u32) {
                Some(c) => c,
                None => unreachable!(),
            };
            n_moved += 1;
        }
        byte += 1;
    }
    alphabet
};

/// The bytes that U+0100 and the characters after it stand for.
static MOVED: [u8; 68] = {
    let mut moved = [0; 68];
    let mut n_moved = 0;
    let mut byte = 0usize;
    while byte < 256 {
        if !stands_for_itself(byte as u8) {
            moved[n_moved] = byte as u8;
            n_moved += 1;
        }
        byte += 1;
    }
    moved
};

/// Writes the characters of `bytes` to `out`.
pub(super) fn encode(bytes: &[u8], out: &mut String) {
    out.extend(bytes.iter().map(|&byte| ALPHABET[byte as usize]));
}

/// Writes the bytes that `text` stands for to `out`.
///
/// A character outside the alphabet is written as its UTF-8: some converters mark added tokens
/// such as `你好` as normal ones. llama.cpp writes `[UNK_BYTE_0x…]` there, which helps nobody.
pub(super) fn decode(text: &str, out: &mut Vec<u8>) {
    for c in text.chars() {
        match c as u32 {
            code @ 0..256 if stands_for_itself(code as u8) => out.push(code as u8),
            code @ 256..324 => out.push(MOVED[code as usize - 256]),
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        let (mut text, mut back) = (String::new(), Vec::new());
        encode(&bytes, &mut text);
        decode(&text, &mut back);
        assert_eq!(back, bytes);
        assert_eq!(text.chars().count(), 256);
        assert!(!text.contains(' '));
    }

    #[test]
    fn the_letters_are_those_of_gpt2() {
        let mut text = String::new();
        encode(b" a\n\t\xc3\xa9", &mut text);
        assert_eq!(text, "ĠaĊĉÃ©");
    }
}
