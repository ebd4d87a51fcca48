//! Pieces of an answer as they become durable, and the places between them.
//!
//! ```text
//! place   EPOCH-TOKENS: which text, and how many of its tokens lie before it
//! row     [[prompt, answer, "text", [tokens]], …]: pieces of one commit
//! ```
//!
//! A reader who names a place gets what lies behind it: exactly, for places are only told of
//! pieces that are on the disk.

use serde_json::{Value, json};

/// Text that came at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which of the prompts.
    pub prompt_idx: usize,
    /// Which of its answers.
    pub answer_idx: usize,
    /// The text; a token may add none, when its bytes are no letter yet.
    pub text: String,
    /// The tokens.
    pub tokens: Vec<u32>,
}

impl Piece {
    /// Steps that a place makes over it: one for each token, and one for text without any.
    pub fn n_step(&self) -> i64 {
        self.tokens.len().max(1) as i64
    }
}

/// A place in the texts of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which text.
    pub epoch: i64,
    /// Its tokens before this place; text that came without one counts as one.
    pub n_token: i64,
}

impl Place {
    /// A place as [`Place::name`] writes it.
    pub fn parse(text: &str) -> Option<Place> {
        let (epoch, n_token) = text.split_once('-')?;
        let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= 0);
        Some(Place { epoch: number(epoch)?, n_token: number(n_token)? })
    }

    /// `EPOCH-TOKENS`.
    pub fn name(self) -> String {
        format!("{}-{}", self.epoch, self.n_token)
    }
}

/// Pieces as the bytes of a row.
pub fn to_row(pieces: &[Piece]) -> Vec<u8> {
    let one = |p: &Piece| json!([p.prompt_idx, p.answer_idx, p.text, p.tokens]);
    Value::Array(pieces.iter().map(one).collect()).to_string().into_bytes()
}

/// The pieces of a row; `None` if it is none.
pub fn of_row(row: &[u8]) -> Option<Vec<Piece>> {
    let one = |value: &Value| {
        let idx = |i: usize| usize::try_from(value[i].as_u64()?).ok();
        let token = |value: &Value| u32::try_from(value.as_u64()?).ok();
        Some(Piece {
            prompt_idx: idx(0)?,
            answer_idx: idx(1)?,
            text: value[2].as_str()?.to_owned(),
            tokens: value[3].as_array()?.iter().map(token).collect::<Option<_>>()?,
        })
    };
    serde_json::from_slice::<Vec<Value>>(row).ok()?.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_what_was_put_in_and_a_place_is_its_name() {
        let piece = |i: usize| Piece {
            prompt_idx: i,
            answer_idx: 1,
            text: "a\n\u{1f600}\"".to_owned(),
            tokens: vec![1, 2, u32::MAX],
        };
        let pieces = [piece(0), piece(3)];
        assert_eq!(of_row(&to_row(&pieces)).unwrap(), pieces);
        assert_eq!(of_row(b"[[0,0,\"x\",[-1]]]"), None);
        let place = Place { epoch: 2, n_token: 41 };
        assert_eq!(Place::parse(&place.name()), Some(place));
        for wrong in ["", "2", "-1-2", "a-b", "2-x"] {
            assert_eq!(Place::parse(wrong), None, "{wrong}");
        }
    }
}
