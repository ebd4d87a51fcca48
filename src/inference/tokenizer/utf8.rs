//! Bytes of tokens to text as it streams: whole characters as soon as they are whole.
//!
//! A token may end inside a character, so at most three bytes wait for the next push. Bytes that
//! can no longer become a character turn into U+FFFD at once, one for each maximal run as Unicode
//! recommends (and as `String::from_utf8_lossy` does), so a bad byte never holds text back.

/// Turns pieces of a byte string into pieces of text.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The start of a character whose end has not come yet.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// An empty stream.
    pub fn new() -> Utf8Stream {
        Utf8Stream::default()
    }

    /// The text that is certain after these bytes.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.pending);
        all.extend_from_slice(bytes);
        let mut text = String::with_capacity(all.len());
        let mut rest = &all[..];
        while !rest.is_empty() {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    break;
                }
                Err(error) => error,
            };
            let (valid, bad) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                Some(n_bad) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[n_bad..];
                }
                None => {
                    self.pending = bad.to_vec();
                    break;
                }
            }
        }
        text
    }

    /// The end: a character that was never finished becomes one U+FFFD.
    pub fn finish(&mut self) -> String {
        match std::mem::take(&mut self.pending).is_empty() {
            true => String::new(),
            false => char::REPLACEMENT_CHARACTER.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_comes_when_it_is_whole() {
        let mut stream = Utf8Stream::new();
        let pushed: Vec<String> = "é🦀!".bytes().map(|b| stream.push(&[b])).collect();
        assert_eq!(pushed, ["", "é", "", "", "", "🦀", "!"]);
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn bad_bytes_do_not_hold_text_back() {
        let mut stream = Utf8Stream::new();
        assert_eq!(stream.push(b"\xff\xfe"), "\u{fffd}\u{fffd}");
        assert_eq!(stream.push(b"\xf0\x9f"), "");
        assert_eq!(stream.push(b"ok"), "\u{fffd}ok");
        assert_eq!(stream.push(b"\xe2\x82"), "");
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    proptest! {
        #[test]
        fn any_split_gives_the_lossy_text(
            bytes in proptest::collection::vec(
                prop_oneof![Just(0xe2u8), Just(0x82), Just(0xf0), Just(0x9f), any::<u8>()],
                0..64,
            ),
            cuts in proptest::collection::vec(1usize..5, 64),
        ) {
            let (mut stream, mut text, mut rest) = (Utf8Stream::new(), String::new(), &bytes[..]);
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                text.push_str(&stream.push(head));
                prop_assert!(stream.pending.len() <= 3);
                rest = tail;
            }
            text.push_str(&stream.push(rest));
            text.push_str(&stream.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
