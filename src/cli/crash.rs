//! What is said when the program breaks: where, and nothing of what it was working on.
//!
//! The text of a panic may quote what was being handled: slicing a string at the wrong place puts
//! the string into it. Texts that are written out in the code are safe, and so are those of
//! arithmetic and bounds; others are withheld, and the place is enough to find them.

use std::panic::PanicHookInfo;

use super::{exit, terminal};

/// Beginnings of texts that hold numbers and nothing else.
const SAFE: [&str; 6] = [
    "attempt to ",
    "index out of bounds: ",
    "range end index ",
    "range start index ",
    "slice index starts at ",
    "copy_from_slice: source slice length",
];
/// What stands for a text that may quote something.
const WITHHELD: &str = "(text withheld)";

/// From now on a panic says where it was, on one line.
pub fn install() {
    std::panic::set_hook(Box::new(|info| terminal::note(line(info))));
}

fn line(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let formatted = payload.downcast_ref::<String>().map(String::as_str);
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.unwrap_or_else(|| safe(formatted.unwrap_or_default()));
    let place = info.location().map_or("somewhere".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    format!("panic in thread {} at {place}: {text}", thread.name().unwrap_or("without a name"))
}

/// The text if it can quote nothing.
fn safe(text: &str) -> &str {
    match SAFE.iter().any(|start| text.starts_with(start)) {
        true => text,
        false => WITHHELD,
    }
}

/// Ends the program because an engine broke. Its callers' streams end with the connections.
pub fn end(reason: String) {
    let reason = safe(&reason);
    terminal::note(format!(
        "error: the engine broke ({reason}); the program ends, so that its supervisor starts it \
         again"
    ));
    std::process::exit(i32::from(exit::BROKEN));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_told() {
        let bounds = "index out of bounds: the len is 3 but the index is 7";
        assert_eq!(safe(bounds), bounds);
        let quoting = "byte index 1 is not a char boundary; it is inside 'ä' of `äsecret`";
        assert_eq!(safe(quoting), WITHHELD);
    }
}
