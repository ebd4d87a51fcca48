//! Which pre-tokenizer a `tokenizer.json` describes, by llama.cpp's name of it.
//!
//! The description is compared rule by rule with those that are known. llama.cpp's converter hashes
//! the tokens of a text instead, which needs the original tokenizer.

use serde_json::Value as Json;

/// The shape that Qwen and Llama 3 share, around their numbers.
macro_rules! modern {
    ($number:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $number,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const QWEN2: &str = modern!(r"\p{N}");
const LLAMA3: &str = modern!(r"\p{N}{1,3}");
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const DEEPSEEK_CODER: &[&str] = &[
    r"split [\r\n]",
    r"split \s?\p{L}+",
    r"split \s?\p{P}+",
    "split [一-龥ࠀ-一가-퟿]+",
    "digits",
    "bytes",
];

/// The name, or what was found instead.
pub(super) fn name_of(pre_tokenizer: &Json) -> Result<&'static str, String> {
    let mut rules = Vec::new();
    collect(pre_tokenizer, 0, &mut rules);
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    let split = |pattern: &str| format!("split {pattern}");
    let (qwen2, llama3, gpt2) = (split(QWEN2), split(LLAMA3), split(GPT2));
    let known: [(&str, &[&str]); 7] = [
        ("qwen2", &[&qwen2, "bytes"]),
        ("llama-bpe", &[&llama3, "bytes"]),
        ("deepseek-coder", DEEPSEEK_CODER),
        ("starcoder", &["digits", "words"]),
        ("starcoder", &["digits", &gpt2, "bytes"]),
        ("gpt-2", &["words"]),
        ("gpt-2", &[&gpt2, "bytes"]),
    ];
    let found = known.into_iter().find(|(_, known)| *known == rules);
    found.map(|(name, _)| name).ok_or_else(|| match rules.is_empty() {
        true => "it names no pre-tokenizer".to_owned(),
        false => format!("the pre-tokenizer [{}] is not known", rules.join("; ")),
    })
}

/// The rules in order: `split PATTERN`, `digits`, `bytes`, and `words`, bytes after GPT-2's rule.
fn collect(json: &Json, depth: usize, rules: &mut Vec<String>) {
    // Sequences of sequences are not made by anybody; a bound on them is cheap.
    if depth > 4 {
        rules.push("a sequence in a sequence".to_owned());
        return;
    }
    match json["type"].as_str() {
        None => {}
        Some("Sequence") => {
            let parts = json["pretokenizers"].as_array();
            parts.into_iter().flatten().for_each(|part| collect(part, depth + 1, rules));
        }
        Some("Split") if json["behavior"] == "Isolated" && json["invert"] != true => {
            let pattern = json["pattern"]["Regex"].as_str().unwrap_or("?");
            let pattern = pattern.replace('\r', r"\r").replace('\n', r"\n");
            rules.push(format!("split {pattern}"));
        }
        Some("Digits") if json["individual_digits"] == true => rules.push("digits".to_owned()),
        Some("ByteLevel") if json["add_prefix_space"] != true => {
            let is_cut = json["use_regex"] != false;
            rules.push(if is_cut { "words" } else { "bytes" }.to_owned());
        }
        Some(_) => rules.push(json.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn families_are_told_apart() {
        let split = |regex: &str| {
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated",
                   "invert": false})
        };
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": false});
        let sequence = |parts: Vec<Json>| json!({"type": "Sequence", "pretokenizers": parts});
        assert_eq!(name_of(&sequence(vec![split(QWEN2), bytes.clone()])), Ok("qwen2"));
        assert_eq!(name_of(&sequence(vec![split(LLAMA3), bytes.clone()])), Ok("llama-bpe"));
        let digits = json!({"type": "Digits", "individual_digits": true});
        let coder = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"];
        let mut coder: Vec<Json> = coder.into_iter().map(split).collect();
        coder.extend([digits.clone(), bytes]);
        assert_eq!(name_of(&sequence(coder)), Ok("deepseek-coder"));
        let words = json!({"type": "ByteLevel", "add_prefix_space": false});
        assert_eq!(name_of(&words), Ok("gpt-2"));
        assert_eq!(name_of(&sequence(vec![digits, words])), Ok("starcoder"));
        let error = name_of(&split("[a-z]+")).unwrap_err();
        assert!(error.contains("split [a-z]+"), "{error}");
        assert!(name_of(&Json::Null).unwrap_err().contains("names no"));
    }
}
