//! JSON as it comes, one character at a time: where a value ends, what an object's keys are, what
//! a string says. Lenient where nothing depends on it: the values are passed on as they are.

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the value, more is to come.
    Inside,
    /// It belongs to the value and ends it.
    End,
    /// The value ended before it.
    Past,
    /// This is no JSON.
    Bad,
}

/// Follows one value to its end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ValueScan {
    kind: Kind,
    depth: u32,
    in_string: bool,
    is_escaped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    #[default]
    Start,
    String,
    Compound,
    Scalar,
}

impl ValueScan {
    /// Takes the next character; the first must not be white space.
    pub fn push(&mut self, c: char) -> Step {
        match self.kind {
            Kind::Start => self.begin(c),
            Kind::Scalar if c.is_ascii_whitespace() || ",}]".contains(c) => Step::Past,
            Kind::Scalar => Step::Inside,
            Kind::String => match self.string_ends(c) {
                true => Step::End,
                false => Step::Inside,
            },
            Kind::Compound => self.nested(c),
        }
    }

    fn begin(&mut self, c: char) -> Step {
        self.kind = match c {
            '"' => Kind::String,
            '{' | '[' => Kind::Compound,
            '-' | '0'..='9' | 't' | 'f' | 'n' => Kind::Scalar,
            _ => return Step::Bad,
        };
        self.depth = 1;
        Step::Inside
    }

    fn nested(&mut self, c: char) -> Step {
        if self.in_string {
            self.in_string = !self.string_ends(c);
            return Step::Inside;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth = self.depth.saturating_add(1),
            '}' | ']' => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 { Step::End } else { Step::Inside }
    }

    fn string_ends(&mut self, c: char) -> bool {
        let was_escaped = std::mem::take(&mut self.is_escaped);
        self.is_escaped = c == '\\' && !was_escaped;
        c == '"' && !was_escaped
    }
}

/// Where an object's text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// Between values.
    More,
    /// The character is the first of the value of [`ObjectWalk::key`]. What follows is the
    /// caller's until it says [`ObjectWalk::value_done`].
    Value,
    /// The object ended with it.
    End,
    /// This is no object.
    Bad,
}

/// Walks over the keys of an object.
#[derive(Clone, Debug, Default)]
pub(super) struct ObjectWalk {
    place: Place,
    key: String,
    is_escaped: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Place {
    #[default]
    Open,
    FirstKey,
    NextKey,
    Key,
    Colon,
    BeforeValue,
    AfterValue,
}

impl ObjectWalk {
    /// The key of the value that begins.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Goes on behind a value.
    pub fn value_done(&mut self) {
        self.place = Place::AfterValue;
    }

    /// Takes a character that is not part of a value.
    pub fn push(&mut self, c: char) -> Walk {
        if self.place == Place::Key {
            self.push_key(c);
            return Walk::More;
        }
        if c.is_ascii_whitespace() {
            return Walk::More;
        }
        self.place = match (self.place, c) {
            (Place::Open, '{') => Place::FirstKey,
            (Place::FirstKey | Place::AfterValue, '}') => return Walk::End,
            (Place::FirstKey | Place::NextKey, '"') => {
                self.key.clear();
                Place::Key
            }
            (Place::Colon, ':') => Place::BeforeValue,
            (Place::BeforeValue, _) => return Walk::Value,
            (Place::AfterValue, ',') => Place::NextKey,
            _ => return Walk::Bad,
        };
        Walk::More
    }

    /// Keys that matter have no escapes, so one with any is kept as it is written.
    fn push_key(&mut self, c: char) {
        if c == '"' && !self.is_escaped {
            self.place = Place::Colon;
            return;
        }
        self.is_escaped = c == '\\' && !self.is_escaped;
        self.key.push(c);
    }
}

/// Reads the text of a string while it comes.
#[derive(Clone, Debug, Default)]
pub(super) struct StringText {
    has_begun: bool,
    /// An escape that is not whole yet.
    escape: String,
}

impl StringText {
    /// Takes the next character, the opening quote first; adds what it means to `out`.
    pub fn push(&mut self, c: char, out: &mut String) -> Step {
        if !self.has_begun {
            self.has_begun = true;
            return if c == '"' { Step::Inside } else { Step::Bad };
        }
        if self.escape.is_empty() && c == '"' {
            return Step::End;
        }
        if self.escape.is_empty() && c != '\\' {
            out.push(c);
            return Step::Inside;
        }
        self.escape.push(c);
        if self.is_escape_whole() {
            let quoted = format!("\"{}\"", std::mem::take(&mut self.escape));
            // A lone surrogate and an unknown escape mean nothing.
            out.push_str(&serde_json::from_str::<String>(&quoted).unwrap_or("\u{fffd}".into()));
        }
        Step::Inside
    }

    fn is_escape_whole(&self) -> bool {
        let escape = self.escape.as_bytes();
        match escape.get(1) {
            None => false,
            Some(b'u') if escape.len() < 6 => false,
            // The first half of a pair waits for its second.
            Some(b'u')
                if matches!(
                    escape[2..4],
                    [b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B']
                ) =>
            {
                escape.len() >= 12
            }
            Some(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_where_json_says() {
        for (text, n) in [
            (r#"{"a":"}\"}"} x"#, 12),
            (r#"[[1],"]"],"#, 9),
            (r#""a\\" "#, 5),
            ("12, ", 2),
            ("true}", 4),
        ] {
            let mut scan = ValueScan::default();
            let mut n_inside = 0;
            for c in text.chars() {
                match scan.push(c) {
                    Step::Inside => n_inside += 1,
                    Step::End => {
                        n_inside += 1;
                        break;
                    }
                    _ => break,
                }
            }
            assert_eq!(n_inside, n, "{text}");
        }
        assert_eq!(ValueScan::default().push('x'), Step::Bad);
    }

    #[test]
    fn a_string_says_what_json_says() {
        let text = r#""a\n\"\u00e9\ud83d\ude00\\b/""#;
        let (mut string, mut out) = (StringText::default(), String::new());
        let last = text.chars().map(|c| string.push(c, &mut out)).last();
        assert_eq!(last, Some(Step::End));
        assert_eq!(out, serde_json::from_str::<String>(text).unwrap());
    }
}
