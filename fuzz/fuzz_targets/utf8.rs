//! Any bytes in any pieces: the stream gives the lossy text of the whole, and never waits long.
#![no_main]

use jetforge::inference::tokenizer::Utf8Stream;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte says how the rest is cut; each piece is 1 to 8 bytes.
    let Some((&seed, bytes)) = data.split_first() else { return };
    let (mut stream, mut text) = (Utf8Stream::new(), String::new());
    let (mut rest, mut state) = (bytes, u32::from(seed) | 1);
    while !rest.is_empty() {
        state = state.wrapping_mul(0x9e37_79b1);
        let n = (1 + (state >> 29) as usize).min(rest.len());
        text.push_str(&stream.push(&rest[..n]));
        rest = &rest[n..];
        // A character has at most four bytes, so at most three can be held back.
        let pushed = bytes.len() - rest.len();
        let n_out: usize = text.chars().map(|c| if c == '\u{fffd}' { 3 } else { c.len_utf8() }).sum();
        assert!(n_out + 3 >= pushed, "{pushed} bytes in, {n_out} accounted for");
    }
    text.push_str(&stream.finish());
    assert_eq!(text, String::from_utf8_lossy(bytes));
});
