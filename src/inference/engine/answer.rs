//! The text of an answer as it grows: whole characters, stop strings, indentation.

use super::event::Finish;
use super::stop::StopStrings;
use crate::inference::tokenizer::Utf8Stream;

/// Bytes of tokens in, text to show out.
pub(super) struct Answer {
    utf8: Utf8Stream,
    stop: StopStrings,
    indent: Indent,
    has_newline: bool,
}

impl Answer {
    /// Watches for `stop` strings, and for a line indented less than `n_indent` (0: for none).
    pub fn new(stop: &[String], n_indent: usize) -> Answer {
        Answer {
            utf8: Utf8Stream::new(),
            stop: StopStrings::new(stop),
            indent: Indent { n_min: n_indent, line: None },
            has_newline: false,
        }
    }

    /// Takes the bytes of a token; what can be shown, and whether that was the end.
    pub fn push(&mut self, bytes: &[u8]) -> (String, Option<Finish>) {
        let text = self.utf8.push(bytes);
        self.take(&text)
    }

    /// What was held back, for an answer that no stop string ended.
    pub fn finish(&mut self) -> (String, Option<Finish>) {
        let rest = self.utf8.finish();
        let (mut text, end) = self.take(&rest);
        if end.is_none() {
            text += &self.stop.finish();
        }
        (text, end)
    }

    /// Whether a line has ended.
    pub fn has_newline(&self) -> bool {
        self.has_newline
    }

    fn take(&mut self, text: &str) -> (String, Option<Finish>) {
        let (mut text, stopped) = self.stop.push(text);
        self.has_newline |= text.contains('\n');
        if let Some(at) = self.indent.cut(&text) {
            text.truncate(at);
            return (text, Some(Finish::Indent));
        }
        (text, stopped.map(Finish::Stop))
    }
}

/// Finds the first line after the first whose indentation is too small.
struct Indent {
    n_min: usize,
    /// Blanks at the start of the current line, while there is nothing else in it.
    line: Option<usize>,
}

impl Indent {
    /// Where in `text` the line's first letter stands.
    fn cut(&mut self, text: &str) -> Option<usize> {
        if self.n_min == 0 {
            return None;
        }
        for (at, c) in text.char_indices() {
            self.line = match (c, self.line) {
                ('\n', _) => Some(0),
                (' ' | '\t', Some(n)) => Some(n + 1),
                (_, Some(n)) if n < self.n_min => return Some(at),
                _ => None,
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_indented_less_ends_the_answer() {
        let mut answer = Answer::new(&[], 4);
        assert_eq!(answer.push(b"a\n   "), ("a\n   ".into(), None));
        assert_eq!(answer.push(b" b\n\n  c"), (" b\n\n  ".into(), Some(Finish::Indent)));
        assert!(answer.has_newline());
        let mut first = Answer::new(&[], 4);
        assert_eq!(first.push(b"b\n"), ("b\n".into(), None), "the first line is the cursor's own");
    }

    #[test]
    fn held_bytes_come_at_the_end() {
        let mut answer = Answer::new(&["xyz".into()], 0);
        assert_eq!(answer.push(b"ax"), ("a".into(), None));
        assert_eq!(answer.push(&[0xe6]), (String::new(), None));
        assert_eq!(answer.finish(), ("x\u{fffd}".into(), None));
    }
}
