//! Any bytes in any pieces: the stream gives the lossy text of the whole, as early as it is known.
#![no_main]

use jetforge::inference::tokenizer::Utf8Stream;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte says how the rest is cut; pieces have 0 to 7 bytes.
    let Some((&seed, bytes)) = data.split_first() else { return };
    let (mut stream, mut text) = (Utf8Stream::new(), String::new());
    let (mut n_pushed, mut state) = (0, u32::from(seed) | 1);
    while n_pushed < bytes.len() {
        state = state.wrapping_mul(0x9e37_79b1).wrapping_add(1);
        let n = ((state >> 29) as usize).min(bytes.len() - n_pushed);
        text.push_str(&stream.push(&bytes[n_pushed..n_pushed + n]));
        n_pushed += n;
        is_all_that_is_certain(&text, &bytes[..n_pushed]);
    }
    text.push_str(&stream.finish());
    assert_eq!(text, String::from_utf8_lossy(bytes));
    assert_eq!(stream.finish(), "");
    if cfg!(feature = "canary") {
        assert!(!text.ends_with("\u{fffd}\u{7ff}"), "canary");
    }
});

/// Everything but the start of a character that may yet be finished.
fn is_all_that_is_certain(text: &str, pushed: &[u8]) {
    let n_certain = match std::str::from_utf8(pushed) {
        Ok(_) => pushed.len(),
        Err(_) => {
            let unfinished = |n: &usize| {
                let tail = &pushed[pushed.len() - n..];
                std::str::from_utf8(tail)
                    .is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
            };
            pushed.len() - (1..=pushed.len().min(3)).rev().find(unfinished).unwrap_or(0)
        }
    };
    assert_eq!(text, String::from_utf8_lossy(&pushed[..n_certain]));
}
