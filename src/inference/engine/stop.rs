//! Stop strings in a stream: found across any borders of tokens, and never shown in part.

/// Watches a stream of text for strings that end it.
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl StopStrings {
    /// Watches for `stops`; empty ones are ignored.
    pub fn new(stops: &[String]) -> StopStrings {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        StopStrings { stops, held: String::new() }
    }

    /// Takes new text and gives what can be shown, and the stop string that ended it, if one did.
    pub fn push(&mut self, text: &str) -> (String, Option<String>) {
        self.held.push_str(text);
        // The earliest match ends the text; of two at one place, the longer.
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at, s)));
        if let Some((at, stop)) = found.min_by_key(|(at, s)| (*at, usize::MAX - s.len())) {
            let (at, stop) = (at, stop.clone());
            let shown = self.held[..at].to_owned();
            self.held.clear();
            return (shown, Some(stop));
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The text that was held back: it was no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(i, _)| i).rev();
    ends.into_iter().find(|&n| n <= text.len() && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(pieces: &[&str], stops: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut watch = StopStrings::new(&stops);
        let mut shown = String::new();
        for piece in pieces {
            let (text, stop) = watch.push(piece);
            shown += &text;
            if stop.is_some() {
                return (shown, stop);
            }
        }
        (shown + &watch.finish(), None)
    }

    #[test]
    fn a_stop_string_is_found_across_tokens_and_not_shown() {
        assert_eq!(run(&["ab", "c<", "/s", ">d"], &["</s>"]), ("abc".into(), Some("</s>".into())));
        assert_eq!(run(&["ab", "<", "/x"], &["</s>"]), ("ab</x".into(), None));
        assert_eq!(run(&["aab"], &["ab", "aab"]), ("".into(), Some("aab".into())));
        assert_eq!(run(&["日", "本"], &["本"]), ("日".into(), Some("本".into())));
        assert_eq!(run(&["x"], &[""]), ("x".into(), None));
    }

    proptest! {
        #[test]
        fn any_cut_of_a_text_gives_what_the_whole_gives(
            text in "[ab<]{0,40}",
            stop in "[ab<]{1,5}",
            cuts in proptest::collection::vec(0usize..40, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            let whole = match text.find(&stop) {
                Some(at) => (text[..at].to_owned(), Some(stop.clone())),
                None => (text.clone(), None),
            };
            prop_assert_eq!(run(&pieces, &[&stop]), whole);
        }
    }
}
