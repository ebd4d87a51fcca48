//! What follows a try: the answer, another backend, or the end. A pure function.
//!
//! ```text
//!                          nothing was sent    it may have been taken    the client has heard
//! any request              another             another                   as below
//! one that became a job    another             the end                   the end
//! a stream                                                               the same text from
//!                                                                        another, if it can be
//!                                                                        had; else a failure
//! ```
//!
//! A generation changes nothing outside of the backend, so asking twice costs time and nothing
//! else. A job is another matter: whoever has it keeps it. Answers of the 4xx kind are about the
//! request and final, except those that are about this backend.

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request did not leave.
    NotSent,
    /// It was sent, and no answer came that could be read.
    Lost,
    /// An answer with a status, none of which the client has seen.
    Status(u16),
    /// The answer broke off after the client had heard a part of it.
    Cut,
}

/// What a try means for the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stakes {
    /// A backend that has taken the request goes on with it, whoever leaves.
    pub is_kept: bool,
    /// The text that the client has heard can be compared with that of another backend.
    pub can_replay: bool,
    /// Tries that are left.
    pub n_left: usize,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The client gets this answer.
    Answer,
    /// The next backend is asked.
    Another,
    /// The next backend is asked for the same text, of which the client gets what it lacks.
    Replay,
    /// The client is told that it failed.
    Fail,
}

/// Whether a status is about this backend, so that another one may do better: no key, no such
/// model or path there, no place, no time, less room than elsewhere, broken.
pub fn is_about_backend(status: u16) -> bool {
    matches!(status, 401 | 403 | 404 | 405 | 408 | 413 | 429) || status >= 500
}

/// Whether a status says that nothing was done with what was asked: no turn, no place, no room on
/// the disk.
pub fn is_refusal(status: u16) -> bool {
    matches!(status, 429 | 503 | 507)
}

/// How a try ended whose answer has a status and no words that a client can be shown.
pub fn wordless(status: u16) -> Outcome {
    match status {
        // Nothing was done with it: our key is wrong there, and that is no news for a client.
        401 | 403 => Outcome::NotSent,
        _ if is_refusal(status) => Outcome::Status(status),
        // Somebody took it, and may have broken on it.
        _ => Outcome::Lost,
    }
}

/// See the module.
pub fn next(outcome: Outcome, stakes: Stakes) -> Next {
    let has_left = stakes.n_left > 0;
    match outcome {
        Outcome::NotSent if has_left => Next::Another,
        Outcome::Lost if has_left && !stakes.is_kept => Next::Another,
        Outcome::Status(status) if is_about_backend(status) && has_left => Next::Another,
        Outcome::Status(_) => Next::Answer,
        Outcome::Cut if has_left && !stakes.is_kept && stakes.can_replay => Next::Replay,
        Outcome::NotSent | Outcome::Lost | Outcome::Cut => Next::Fail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_whose_words_do_not_come_was_an_answer_all_the_same() {
        let kept = Stakes { is_kept: true, can_replay: false, n_left: 2 };
        for (status, outcome, then) in [
            (401, Outcome::NotSent, Next::Another),
            (403, Outcome::NotSent, Next::Another),
            (429, Outcome::Status(429), Next::Another),
            (503, Outcome::Status(503), Next::Another),
            (507, Outcome::Status(507), Next::Another),
            // It may be what broke it: a job that nobody else gets.
            (500, Outcome::Lost, Next::Fail),
            (400, Outcome::Lost, Next::Fail),
        ] {
            assert_eq!((wordless(status), next(outcome, kept)), (outcome, then), "{status}");
        }
    }

    #[test]
    fn a_job_that_may_have_been_taken_is_not_given_to_another() {
        let stakes = Stakes { is_kept: true, can_replay: true, n_left: 2 };
        assert_eq!(next(Outcome::NotSent, stakes), Next::Another);
        assert_eq!(next(Outcome::Lost, stakes), Next::Fail);
        assert_eq!(next(Outcome::Cut, stakes), Next::Fail);
        assert_eq!(next(Outcome::Status(503), stakes), Next::Another, "it was refused");
    }

    #[test]
    fn what_is_wrong_with_the_request_is_wrong_everywhere() {
        let stakes = Stakes { n_left: 2, ..Stakes::default() };
        for status in [200, 202, 400, 409, 422] {
            assert_eq!(next(Outcome::Status(status), stakes), Next::Answer, "{status}");
        }
        for status in [401, 404, 413, 429, 500, 502, 503] {
            assert_eq!(next(Outcome::Status(status), stakes), Next::Another, "{status}");
            let last = Stakes { n_left: 0, ..stakes };
            assert_eq!(next(Outcome::Status(status), last), Next::Answer, "{status}");
        }
    }

    #[test]
    fn a_text_that_was_heard_goes_on_only_as_the_same_text() {
        let stakes = Stakes { n_left: 1, ..Stakes::default() };
        assert_eq!(next(Outcome::Cut, stakes), Next::Fail);
        assert_eq!(next(Outcome::Cut, Stakes { can_replay: true, ..stakes }), Next::Replay);
        let last = Stakes { can_replay: true, n_left: 0, ..stakes };
        assert_eq!(next(Outcome::Cut, last), Next::Fail);
    }
}
