//! What a soak asks: every kind of request that clients make, good and bad, drawn by dice.

use serde_json::{Value, json};

use super::prompt::Dice;

/// Positions of a sequence in the soaked server, as it is started.
pub const N_CTX: usize = 1024;

/// One request.
#[derive(Clone, Debug)]
pub struct Shot {
    /// What it is, for the summary.
    pub name: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Path, with its query.
    pub path: &'static str,
    /// Body; empty for none.
    pub body: Vec<u8>,
    /// Statuses that are right.
    pub expects: &'static [u16],
    /// Whether the answer is a stream.
    pub streams: bool,
    /// What else must hold.
    pub check: Check,
}

/// What must hold of a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Its status.
    Status,
    /// The texts of its choices are JSON, unless their length cut them.
    Json,
    /// The texts are those that the same request had before.
    Twin(usize),
}

const OK: &[u16] = &[200];
const BAD: &[u16] = &[400];

const WORDS: [&str; 16] = [
    "def ",
    "return ",
    "sum",
    "(items)",
    "\n    ",
    "for i in ",
    "range",
    "# sort a list\n",
    "print",
    "import ",
    "class ",
    "self.",
    "x = 1\n",
    "if ",
    "Grüße ",
    "\"text\"",
];

/// A text of about `n` tokens, never none.
fn text(dice: &mut Dice, n: usize) -> String {
    (0..n / 2 + 1).map(|_| *dice.pick(&WORDS)).collect()
}

fn post(name: &'static str, path: &'static str, body: &Value) -> Shot {
    let streams = body["stream"] == true;
    let body = body.to_string().into_bytes();
    Shot { name, method: "POST", path, body, expects: OK, streams, check: Check::Status }
}

/// The fields of sampling, now and then one of the rarer ones.
fn sampled(dice: &mut Dice, mut body: Value) -> Value {
    body["seed"] = json!(dice.within(0, 1 << 30));
    body["temperature"] = json!([0.0, 0.7, 1.0, 1.5][dice.within(0, 4)]);
    body["stream"] = json!(dice.chance(60));
    match dice.within(0, 24) {
        0 => body["top_k"] = json!(5),
        1 => body["min_p"] = json!(0.2),
        2 => body["repeat_penalty"] = json!(1.2),
        3 => body["mirostat"] = json!(2),
        4 => body["dry_multiplier"] = json!(0.8),
        5 => body["stop"] = json!(["\n\n", "return"]),
        6 => body["logit_bias"] = json!([[300, false], [301, 2.0]]),
        7 => body["ignore_eos"] = json!(true),
        8 => body["priority"] = json!("background"),
        9 => body["priority"] = json!("agent"),
        10 => body["cache_prompt"] = json!(false),
        11 => body["cache_private"] = json!(true),
        12 => body["deadline_ms"] = json!(dice.within(1, 400)),
        13 => body["t_max_predict_ms"] = json!(dice.within(1, 200)),
        14 => body["on_disconnect"] = json!("detach"),
        15 => body["timings_per_token"] = json!(true),
        16 => body["return_progress"] = json!(true),
        17 => body["id_slot"] = json!(dice.within(0, 4)),
        _ => {}
    }
    body
}

fn completion(dice: &mut Dice) -> Shot {
    let n = dice.within(1, 120);
    let mut body = json!({"prompt": text(dice, n), "max_tokens": dice.within(0, 48)});
    if dice.chance(10) {
        body["logprobs"] = json!(dice.within(0, 6));
    } else if dice.chance(10) {
        body["echo"] = json!(true);
    }
    if dice.chance(30) {
        body["stream_options"] = json!({"include_usage": true});
    }
    post("completion", "/v1/completions", &sampled(dice, body))
}

fn chat(dice: &mut Dice) -> Shot {
    let n = dice.within(1, 60);
    let body = json!({
        "messages": [
            {"role": "system", "content": "You write Python."},
            {"role": "user", "content": text(dice, n)},
        ],
        "max_tokens": dice.within(1, 48),
    });
    post("chat", "/v1/chat/completions", &sampled(dice, body))
}

fn llama_completion(dice: &mut Dice) -> Shot {
    let n = dice.within(1, 100);
    let mut body = json!({"prompt": text(dice, n), "n_predict": dice.within(0, 48)});
    if dice.chance(20) {
        body["n_probs"] = json!(dice.within(1, 10));
    }
    post("llama completion", "/completion", &sampled(dice, body))
}

fn several(dice: &mut Dice) -> Shot {
    let n = dice.within(1, 80);
    let body = json!({"prompt": text(dice, n), "max_tokens": 16, "n": dice.within(2, 9)});
    post("several answers", "/v1/completions", &sampled(dice, body))
}

fn several_prompts(dice: &mut Dice) -> Shot {
    let prompts: Vec<String> = (0..dice.within(2, 8)).map(|_| text(dice, 20)).collect();
    let body = json!({"prompt": prompts, "max_tokens": 8});
    post("several prompts", "/v1/completions", &sampled(dice, body))
}

fn long_prompt(dice: &mut Dice) -> Shot {
    let n = dice.within(N_CTX / 2, N_CTX - 40);
    let tokens: Vec<usize> = (0..n).map(|_| dice.within(300, 4000)).collect();
    let body = json!({"prompt": tokens, "max_tokens": dice.within(1, 120), "ignore_eos": true});
    post("long prompt", "/v1/completions", &sampled(dice, body))
}

fn context_shift(dice: &mut Dice) -> Shot {
    let tokens: Vec<usize> = (0..N_CTX - 20).map(|_| dice.within(300, 4000)).collect();
    let body = json!({"prompt": tokens, "max_tokens": 60, "ignore_eos": true, "n_keep": 4,
        "context_shift": true});
    post("context shift", "/v1/completions", &sampled(dice, body))
}

fn grammar(dice: &mut Dice) -> Shot {
    let grammar = r#"root ::= "[" (item ("," item)*)? "]"
item ::= "0" | [1-9] [0-9]* | "\"" [a-z]* "\"" "#;
    let body = json!({"prompt": "items = ", "max_tokens": 40, "grammar": grammar});
    Shot { check: Check::Json, ..post("grammar", "/v1/completions", &sampled(dice, body)) }
}

fn schema(dice: &mut Dice) -> Shot {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "kind": {"enum": ["a", "b"]},
        },
        "required": ["name", "n"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let messages = json!([{"role": "user", "content": "an item"}]);
    let body = json!({"messages": messages, "max_tokens": 60, "response_format": format});
    let body = sampled(dice, body);
    Shot { check: Check::Json, ..post("schema", "/v1/chat/completions", &body) }
}

fn tool_call(dice: &mut Dice) -> Shot {
    let parameters = json!({"type": "object", "properties": {"path": {"type": "string"}}});
    let tool = json!({"type": "function", "function": {"name": "read", "parameters": parameters}});
    let choice = *dice.pick(&["required", "auto", "none"]);
    let body = json!({
        "messages": [{"role": "user", "content": "read a file"}],
        "tools": [tool], "tool_choice": choice, "max_tokens": 40,
    });
    post("tools", "/v1/chat/completions", &sampled(dice, body))
}

fn infill(dice: &mut Dice) -> Shot {
    let n = dice.within(1, 200);
    let body = json!({
        "input_prefix": text(dice, n), "input_suffix": text(dice, 40), "n_predict": 24,
        "input_extra": [{"filename": "a.py", "text": text(dice, 120)}],
    });
    post("infill", "/infill", &sampled(dice, body))
}

fn embeddings(dice: &mut Dice) -> Shot {
    let inputs: Vec<String> = (0..dice.within(1, 5)).map(|_| text(dice, 40) + "x").collect();
    post("embeddings", "/v1/embeddings", &json!({ "input": inputs }))
}

fn tokens(dice: &mut Dice) -> Shot {
    let n = dice.within(1, 2000);
    match dice.within(0, 3) {
        0 => post("tokenize", "/tokenize", &json!({"content": text(dice, n)})),
        1 => post("detokenize", "/detokenize", &json!({"tokens": [300, 301, 302]})),
        _ => {
            let messages = json!([{"role": "user", "content": text(dice, n)}]);
            post("apply-template", "/apply-template", &json!({ "messages": messages }))
        }
    }
}

fn look(dice: &mut Dice) -> Shot {
    let paths = [
        "/health",
        "/v1/models",
        "/metrics",
        "/slots",
        "/props",
        "/timeline",
        "/openapi.json",
        "/",
        "/lora-adapters",
    ];
    let path = dice.pick(&paths);
    Shot { method: "GET", body: Vec::new(), ..post("look", path, &json!(null)) }
}

fn refused(dice: &mut Dice) -> Shot {
    let long: Vec<u32> = vec![400; N_CTX + 500];
    let bodies = [
        json!({"prompt": long, "max_tokens": 4}),
        json!({"prompt": "x", "max_tokens": "many"}),
        json!({"prompt": "x", "n": 100_000}),
        json!({"prompt": [5_000_000]}),
        json!({"prompt": ""}),
        json!({"max_tokens": 4}),
        json!({"prompt": "x", "grammar": "root ::= nothing"}),
        json!({"prompt": "x", "json_schema": {"type": "no such type"}}),
        json!({"prompt": "x", "temperature": "hot", "stream": true}),
        json!({"prompt": "x", "lora": [{"id": 7, "scale": 1.0}]}),
    ];
    let shot = post("refused", "/v1/completions", &json!(null));
    match dice.within(0, bodies.len() + 4) {
        0 => Shot { body: b"{\"prompt\": \"x\", ".to_vec(), expects: BAD, ..shot },
        1 => Shot { path: "/v1/nothing", expects: &[404], ..shot },
        2 => Shot { method: "GET", path: "/v1/completions", body: vec![], expects: &[405], ..shot },
        3 => Shot { path: "/reranking", body: b"{}".to_vec(), expects: &[501], ..shot },
        i => Shot { body: bodies[i - 4].to_string().into_bytes(), expects: BAD, ..shot },
    }
}

/// A request of any kind.
pub fn draw(dice: &mut Dice, n_twin: usize) -> Shot {
    match dice.within(0, 100) {
        0..24 => completion(dice),
        24..36 => chat(dice),
        36..46 => llama_completion(dice),
        46..50 => several(dice),
        50..52 => several_prompts(dice),
        52..56 => long_prompt(dice),
        56..58 => context_shift(dice),
        58..62 => grammar(dice),
        62..66 => schema(dice),
        66..68 => tool_call(dice),
        68..73 => infill(dice),
        73..77 => embeddings(dice),
        77..82 => tokens(dice),
        82..88 => look(dice),
        88..93 => refused(dice),
        _ => {
            let idx = dice.within(0, n_twin);
            twin(idx)
        }
    }
}

/// Request `idx` of those whose answers are known: the same text, whatever runs beside it.
pub fn twin(idx: usize) -> Shot {
    let mut dice = Dice::new(0x7477_696e, idx as u64);
    let n = dice.within(1, 300);
    let body = json!({
        "prompt": text(&mut dice, n),
        "max_tokens": 24,
        "seed": idx,
        "temperature": if idx % 2 == 0 { 0.9 } else { 0.0 },
        "ignore_eos": idx % 3 == 0,
        "n": 1 + idx % 2,
        "stream": idx % 4 == 3,
    });
    Shot { check: Check::Twin(idx), ..post("twin", "/v1/completions", &body) }
}

/// What the choices of a whole answer say, and whether their length cut them; streamed or not, of
/// completions and chats.
pub fn texts(answers: &[Value]) -> Vec<(String, bool)> {
    let mut texts: Vec<(String, bool)> = Vec::new();
    for choice in answers.iter().filter_map(|answer| answer["choices"].as_array()).flatten() {
        let idx = choice["index"].as_u64().unwrap_or(0) as usize;
        if texts.len() <= idx {
            texts.resize(idx + 1, Default::default());
        }
        let said = [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
        texts[idx].0.extend(said.iter().filter_map(|text| text.as_str()));
        texts[idx].1 |= choice["finish_reason"] == "length";
    }
    texts
}
