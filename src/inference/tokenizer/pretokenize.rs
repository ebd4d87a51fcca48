//! Pre-tokenizers: how a text is cut into the words that BPE merges within.
//!
//! `tokenizer.ggml.pre` names a list of rules. Each rule cuts every piece that the rules before it
//! left: what its pattern matches becomes pieces, and so does what lies between the matches. Names
//! and patterns are those of llama.cpp, which has them from the models' own `tokenizer.json`.
//!
//! Those patterns end in `\s+(?!\S)|\s+`: white space, of which the last character is left to the
//! word that follows. A look-ahead would send every search into a backtracking engine with a step
//! limit; so the patterns here say `\s+` and [`Spaces`] gives the last character back afterwards.
//! What remains are regular expressions in the strict sense, and the search is linear in the text.

use std::ops::Range;

use fancy_regex::Regex;

use super::error::TokenizerError;

/// What becomes of a match that is all white space and stands before a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spaces {
    /// It stays as it is.
    Keep,
    /// Its last character goes to the word, unless it is the only one: `\s+(?!\S)`.
    GiveBack,
    /// The same, but a run that ends its line stays: `\s*[\r\n]+|\s+(?!\S)|\s+`.
    GiveBackInLine,
}

/// A pattern and what it leaves of white space.
type Rule = (&'static str, Spaces);

/// The pre-tokenizer that a name stands for, with the habits that llama.cpp ties to the name.
#[derive(Clone, Copy)]
pub(super) struct PreTokenizer {
    names: &'static [&'static str],
    rules: &'static [Rule],
    /// A word that is a token is taken whole, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Texts start with BOS unless the file says otherwise.
    pub(super) add_bos: bool,
}

const GPT2: Rule =
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+", Spaces::GiveBack);
const DIGIT: Rule = (r"\p{N}", Spaces::Keep);
const THREE_DIGITS: Rule = (r"\p{N}{1,3}", Spaces::Keep);
const LINE_END: Rule = ("[\r\n]", Spaces::Keep);
/// U+0800 to U+4E00 takes white space such as U+2009 in, and so do the signs of DeepSeek-LLM with
/// U+3000; llama.cpp hides white space beyond ASCII from such lists.
const IDEOGRAPHS: Rule =
    (r"[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}&&\S]+", Spaces::Keep);

/// `'s`, `'LL` and the like; spelled out, since `(?i)` would let `ſ` and the Kelvin sign in.
macro_rules! contraction {
    () => {
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}

/// The shape that Llama 3, Qwen and their relatives share.
macro_rules! modern {
    ($word:literal, $number:literal, $symbols:literal) => {
        (
            concat!(
                contraction!(),
                r"|[^\r\n\p{L}\p{N}]?",
                $word,
                "|",
                $number,
                "| ?",
                $symbols,
                r"|\s*[\r\n]+|\s+"
            ),
            Spaces::GiveBackInLine,
        )
    };
}

const LLAMA3: Rule = modern!(r"\p{L}+", r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]+[\r\n]*");
const QWEN2: Rule = modern!(r"\p{L}+", r"\p{N}", r"[^\s\p{L}\p{N}]+[\r\n]*");
const QWEN35: Rule = modern!(r"[\p{L}\p{M}]+", r"\p{N}", r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*");
const MINICPM5: Rule = modern!(r"\p{L}+", r"\p{N}+", r"[^\s\p{L}\p{N}]+[\r\n]*");
const SEED_CODER: Rule = modern!(r"\p{L}+", r"\p{N}", r"[^\s\p{L}\p{N}\r\n]+");
const BAILING: Rule = (
    concat!(
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
    ),
    Spaces::GiveBackInLine,
);

/// Words that change case inside: capitals first, then small letters.
///
/// A letter that is "not a-z" may be of any other script, so both halves take those; llama.cpp's
/// look-aheads `((?=[\p{L}])([^a-z]))` are the intersections here.
macro_rules! cased {
    ($after_word:expr, $number:literal) => {
        (
            concat!(
                r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
                $after_word,
                r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
                $after_word,
                "|",
                $number,
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
            ),
            Spaces::GiveBackInLine,
        )
    };
}

const TEKKEN: Rule = cased!("", r"\p{N}");
const GPT4O: Rule =
    cased!(r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?", r"\p{N}{1,3}");
const DEEPSEEK3: Rule = (
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"
    ),
    Spaces::GiveBackInLine,
);
const KANA: Rule = (r"[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+", Spaces::Keep);
const BLOOM: Rule = (r" ?[^(\s|.,!?…。，、।۔،)]+", Spaces::Keep);

/// The letters of DeepSeek-LLM: Latin, Greek, Cyrillic and other scripts with case.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-z\\u{b5}\
    \\u{c0}-\\u{d6}\\u{d8}-\\u{f6}\\u{f8}-\\u{1ba}\\u{1bc}-\\u{1bf}\
    \\u{1c4}-\\u{293}\\u{295}-\\u{2af}\
    \\u{370}-\\u{373}\\u{376}\\u{377}\\u{37b}-\\u{37d}\\u{37f}\\u{386}\\u{388}-\\u{38a}\\u{38c}\
    \\u{38e}-\\u{3a1}\\u{3a3}-\\u{3f5}\\u{3f7}-\\u{481}\\u{48a}-\\u{52f}\\u{531}-\\u{556}\
    \\u{10a0}-\\u{10c5}\\u{13a0}-\\u{13f5}\\u{13f8}-\\u{13fd}\\u{1c90}-\\u{1cba}\\u{1cbd}-\\u{1cbf}\
    \\u{1d00}-\\u{1d2b}\\u{1d6b}-\\u{1d77}\\u{1d79}-\\u{1d9a}\\u{1e00}-\\u{1f15}\\u{1f18}-\\u{1f1d}\
    \\u{1f20}-\\u{1f45}\\u{1f48}-\\u{1f4d}\\u{1f50}-\\u{1f57}\\u{1f59}\\u{1f5b}\\u{1f5d}\
    \\u{1f5f}-\\u{1f7d}\\u{1f80}-\\u{1fb4}\\u{1fb6}-\\u{1fbc}\\u{1fbe}\\u{1fc2}-\\u{1fc4}\
    \\u{1fc6}-\\u{1fcc}\\u{1fd0}-\\u{1fd3}\\u{1fd6}-\\u{1fdb}\\u{1fe0}-\\u{1fec}\\u{1ff2}-\\u{1ff4}\
    \\u{1ff6}-\\u{1ffc}\\u{2102}\\u{2107}\\u{210a}-\\u{2113}\\u{2115}\\u{2119}-\\u{211d}\\u{2124}\
    \\u{2126}\\u{2128}\\u{212a}-\\u{212d}\\u{212f}-\\u{2134}\\u{2139}\\u{213c}-\\u{213f}\
    \\u{2145}-\\u{2149}\\u{214e}\\u{2183}\\u{2184}\\u{2c00}-\\u{2c7b}\\u{2c7e}-\\u{2ce4}\
    \\u{2ceb}-\\u{2cee}\\u{2cf2}\\u{2cf3}\\u{a640}-\\u{a66d}\\u{a680}-\\u{a69b}\\u{a722}-\\u{a76f}\
    \\u{a771}-\\u{a787}\\u{a78b}-\\u{a78e}\\u{ab70}-\\u{abbf}\\u{fb00}-\\u{fb06}\\u{fb13}-\\u{fb17}\
    \\u{ff21}-\\u{ff3a}\\u{ff41}-\\u{ff5a}\\u{10400}-\\u{1044f}\\u{104b0}-\\u{104d3}\
    \\u{104d8}-\\u{104fb}\\u{10c80}-\\u{10cb2}\\u{10cc0}-\\u{10cf2}\\u{118a0}-\\u{118df}\
    \\u{1e900}-\\u{1e943}\
    ]+";

const DEEPSEEK_LLM: &[Rule] = &[
    LINE_END,
    (DEEPSEEK_LETTERS, Spaces::Keep),
    (
        r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}&&\S]+",
        Spaces::Keep,
    ),
    (r"\s+$", Spaces::Keep),
    IDEOGRAPHS,
    (r"\p{N}+", Spaces::Keep),
];
const DEEPSEEK_CODER: &[Rule] =
    &[LINE_END, (r"\s?\p{L}+", Spaces::Keep), (r"\s?\p{P}+", Spaces::Keep), IDEOGRAPHS, DIGIT];
/// llama.cpp's rules for files that name no pre-tokenizer, made before the key existed.
const DEFAULT: &[Rule] = &[
    (r"[\p{P}\$\+<=>\^~\|]+", Spaces::Keep),
    GPT2,
    (r"\p{N}+", Spaces::Keep),
    ("[0-9][0-9][0-9]", Spaces::Keep),
];
const FALCON: &[Rule] =
    &[(r"[\p{P}\$\+<=>\^~\|`]+", Spaces::Keep), GPT2, ("[0-9][0-9][0-9]", Spaces::Keep)];

/// Only rules, no habits.
const fn plain(names: &'static [&'static str], rules: &'static [Rule]) -> PreTokenizer {
    PreTokenizer { names, rules, ignore_merges: false, add_bos: false }
}

const fn whole_words(pre: PreTokenizer) -> PreTokenizer {
    PreTokenizer { ignore_merges: true, ..pre }
}

const fn with_bos(pre: PreTokenizer) -> PreTokenizer {
    PreTokenizer { add_bos: true, ..pre }
}

static PRE_TOKENIZERS: &[PreTokenizer] = &[
    plain(&["default", ""], DEFAULT),
    plain(&["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan", "grok-2"], &[QWEN2]),
    plain(&["kormo", "f2llmv2", "solar-open"], &[QWEN2]),
    plain(&["qwen35"], &[QWEN35]),
    plain(&["deepseek-coder"], DEEPSEEK_CODER),
    plain(&["deepseek-llm"], DEEPSEEK_LLM),
    plain(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[THREE_DIGITS, KANA, DEEPSEEK3],
    ),
    plain(&["starcoder", "smollm", "refact", "command-r", "codeshell", "mellum2"], &[DIGIT, GPT2]),
    plain(&["exaone", "minerva-7b"], &[DIGIT, GPT2]),
    plain(&["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"], &[GPT2]),
    plain(&["exaone4", "gigachat", "a.x-4.0", "mellum", "modern-bert", "roberta-bpe"], &[GPT2]),
    plain(&["jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en"], &[GPT2]),
    plain(&["jina-v2-code"], &[GPT2]),
    with_bos(whole_words(plain(&["llama-bpe", "llama3", "llama-v3", "falcon3"], &[LLAMA3]))),
    with_bos(whole_words(plain(&["falcon-h1", "pixtral", "midm-2.0", "lfm2"], &[LLAMA3]))),
    with_bos(whole_words(plain(&["jina-v5-nano"], &[LLAMA3]))),
    plain(&["dbrx", "smaug-bpe", "chatglm-bpe"], &[LLAMA3]),
    whole_words(plain(&["glm4", "glm5"], &[LLAMA3])),
    plain(&["seed-coder"], &[SEED_CODER]),
    whole_words(plain(&["minicpm5"], &[THREE_DIGITS, MINICPM5])),
    with_bos(whole_words(plain(&["tekken"], &[TEKKEN]))),
    plain(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    plain(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING]),
    plain(&["falcon"], FALCON),
    plain(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    plain(&["viking"], &[BLOOM, DIGIT]),
    plain(&["laguna"], &[(r"[^\n]+|[\n]+", Spaces::Keep), QWEN2]),
];

/// The pre-tokenizer with this name.
///
/// # Errors
/// An unknown name; the message lists the known ones.
pub(super) fn by_name(pre: &str) -> Result<PreTokenizer, TokenizerError> {
    PRE_TOKENIZERS.iter().find(|known| known.names.contains(&pre)).copied().ok_or_else(|| {
        let mut names: Vec<&str> =
            PRE_TOKENIZERS.iter().flat_map(|known| known.names).copied().collect();
        names.retain(|name| !name.is_empty());
        names.sort_unstable();
        TokenizerError::UnknownPre { pre: pre.to_owned(), supported: names.join(", ") }
    })
}

/// A pre-tokenizer's rules, compiled.
pub(super) struct Splitter {
    rules: Vec<(Regex, Spaces)>,
}

impl Splitter {
    pub(super) fn new(pre: &PreTokenizer) -> Result<Splitter, TokenizerError> {
        let compile = |&(pattern, spaces): &Rule| match Regex::new(pattern) {
            Ok(regex) => Ok((regex, spaces)),
            Err(source) => Err(TokenizerError::Split { source: Box::new(source) }),
        };
        Ok(Splitter { rules: pre.rules.iter().map(compile).collect::<Result<_, _>>()? })
    }

    /// The words of `text`, end to end, none of them empty.
    ///
    /// # Errors
    /// The regex engine gives up; not silently a shorter list.
    pub(super) fn split(&self, text: &str) -> Result<Vec<Range<usize>>, TokenizerError> {
        let mut pieces = vec![];
        if !text.is_empty() {
            pieces.push(0..text.len());
        }
        for (regex, spaces) in &self.rules {
            let mut next = Vec::with_capacity(pieces.len() * 2);
            for piece in pieces {
                cut(regex, *spaces, &text[piece.clone()], piece.start, &mut next)
                    .map_err(|source| TokenizerError::Split { source: Box::new(source) })?;
            }
            pieces = next;
        }
        Ok(pieces)
    }
}

/// Cuts one piece, which starts at `base` in the text, by one rule.
fn cut(
    regex: &Regex,
    spaces: Spaces,
    piece: &str,
    base: usize,
    out: &mut Vec<Range<usize>>,
) -> Result<(), fancy_regex::Error> {
    let mut done = 0;
    while let Some(found) = regex.find_from_pos(piece, done)? {
        let end = found.end() - n_given_back(found.as_str(), &piece[found.end()..], spaces);
        if found.start() > done {
            out.push(base + done..base + found.start());
        }
        if end <= found.start() {
            break; // no pattern matches nothing, but a loop that cannot end must not depend on it
        }
        out.push(base + found.start()..base + end);
        done = end;
    }
    if done < piece.len() {
        out.push(base + done..base + piece.len());
    }
    Ok(())
}

/// Bytes of the match that are left for the next word.
fn n_given_back(found: &str, rest: &str, spaces: Spaces) -> usize {
    let Some(last) = found.chars().next_back() else {
        return 0;
    };
    if spaces == Spaces::Keep || rest.is_empty() || !last.is_whitespace() {
        return 0;
    }
    let in_line = !matches!(last, '\r' | '\n');
    let n_last = last.len_utf8();
    let gives = (spaces == Spaces::GiveBack || in_line)
        && found.len() > n_last
        && found.chars().all(char::is_whitespace);
    if gives { n_last } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'a>(pre: &str, text: &'a str) -> Vec<&'a str> {
        let splitter = Splitter::new(&by_name(pre).unwrap()).unwrap();
        let pieces = splitter.split(text).unwrap();
        pieces.into_iter().map(|piece| &text[piece]).collect()
    }

    #[test]
    fn every_pre_tokenizer_compiles_and_loses_nothing() {
        let text = "Don't  stop\t\n\n  naïve été 12345 日本語かな 한국어 x²≠½ \u{85}\u{a0}\u{200d}🦀 \
                    a\r\n ";
        for pre in PRE_TOKENIZERS {
            for name in pre.names {
                assert_eq!(words(name, text).concat(), text, "{name}");
                assert!(words(name, "").is_empty());
            }
        }
    }

    #[test]
    fn no_pattern_needs_the_backtracking_engine() {
        // A look-around or back-reference has "(?=", "(?!" or "\1" in it.
        for pre in PRE_TOKENIZERS {
            for (pattern, _) in pre.rules {
                assert!(!pattern.contains("(?=") && !pattern.contains("(?!"), "{pattern}");
            }
        }
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_word() {
        assert_eq!(words("qwen2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(words("qwen2", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(words("qwen2", "\n \n"), ["\n \n"]);
        assert_eq!(words("qwen2", "x  "), ["x", "  "]);
        assert_eq!(words("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(words("gpt-2", "a \t b  "), ["a", " \t", " b", "  "]);
        assert_eq!(words("gpt-2", "\tb"), ["\t", "b"]);
    }

    #[test]
    fn numbers_are_cut_as_each_family_does() {
        assert_eq!(words("qwen2", "1234"), ["1", "2", "3", "4"]);
        assert_eq!(words("llama-bpe", "1234"), ["123", "4"]);
        assert_eq!(words("gpt-2", " 1234"), [" 1234"]);
        assert_eq!(words("starcoder", "a12"), ["a", "1", "2"]);
        assert_eq!(words("default", "12345"), ["123", "45"]);
    }

    #[test]
    fn contractions_and_case() {
        assert_eq!(words("qwen2", "I'LL we'd"), ["I", "'LL", " we", "'d"]);
        assert_eq!(words("gpt-2", "I'LL"), ["I", "'", "LL"]);
        assert_eq!(words("tekken", "camelCase"), ["camel", "Case"]);
    }

    #[test]
    fn a_megabyte_of_spaces_is_cut_at_once() {
        let text = " ".repeat(1 << 20) + "x";
        assert_eq!(words("qwen2", &text).len(), 2);
        assert_eq!(words("gpt-2", &text).len(), 2);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = by_name("nonesuch").map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("`nonesuch`") && error.contains("qwen2"), "{error}");
    }
}
