"""What llama-server answers on the default model, as tests/golden/llama_api.json.

    llama-server -m models/default.gguf -c 1024 -np 2 -n 64 --no-ui --slots --props \
        --slot-save-path DIR/ --port 18099
    python tests/tools/golden_llama_api.py http://127.0.0.1:18099

With `--infill` it writes tests/golden/llama_infill.json from a server with room for other files:

    llama-server -m models/default.gguf -c 1024 -b 512 -np 1 -n 64 --no-ui --port 18099
    python tests/tools/golden_llama_api.py http://127.0.0.1:18099 --infill

Each case is a request with the status and the body that came; a stream's body is the list of its
`data:` lines. tests/llama_api.rs sends the same and compares: values where they must be equal,
names and types of fields elsewhere.
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden"
PROMPT = "def add(a, b):\n    return"
LONG = "x = 1\n" * 400


def completion(**fields):
    body = {"prompt": PROMPT, "n_predict": 8, "temperature": 0.0, "cache_prompt": False}
    return {**body, **fields}


def infill(**fields):
    body = {"input_prefix": "def add(a, b):\n", "input_suffix": "\nprint(add(1, 2))\n"}
    return {**body, "n_predict": 8, "temperature": 0.0, "cache_prompt": False, **fields}


VIM = {
    "input_prefix": "import sys\n\ndef main():\n",
    "input_suffix": "\nmain()\n",
    "input_extra": [{"text": "def helper(x):\n    return x\n", "time": 1.5, "filename": "a.py"}],
    "prompt": "    ",
    "n_predict": 16,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.90,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms",
        "timings/prompt_per_second", "timings/predicted_n", "timings/predicted_ms",
        "timings/predicted_per_token_ms", "timings/predicted_per_second", "truncated",
        "tokens_cached",
    ],
}
VSCODE_WARM = {
    "input_prefix": "", "input_suffix": "",
    "input_extra": [{"text": "def helper(x):\n    return x\n", "time": 1, "filename": "a.py"}],
    "prompt": "", "n_predict": 0, "samplers": [], "cache_prompt": True,
    "t_max_prompt_ms": 500, "t_max_predict_ms": 1,
}

CASES = [
    ("completion", "POST", "/completion", completion()),
    ("completions", "POST", "/completions", completion()),
    ("sampled", "POST", "/completion", completion(temperature=0.8, seed=42)),
    ("prompt tokens", "POST", "/completion", completion(prompt=[5, 6, 7, 8])),
    ("prompt mixed", "POST", "/completion", completion(prompt=[5, 6, "return", 7, " x"])),
    ("prompt object", "POST", "/completion", completion(prompt={"prompt_string": PROMPT})),
    ("prompts", "POST", "/completion", completion(prompt=[PROMPT, [5, 6], {"prompt_string": "a"}])),
    ("prompt empty", "POST", "/completion", completion(prompt="")),
    ("n_cmpl", "POST", "/completion", completion(n_cmpl=2, seed=1)),
    ("return_tokens", "POST", "/completion", completion(return_tokens=True)),
    ("n_probs", "POST", "/completion", completion(n_probs=3)),
    ("post_sampling_probs", "POST", "/completion",
     completion(n_probs=3, post_sampling_probs=True, temperature=1.0, seed=3, top_k=5)),
    ("response_fields", "POST", "/completion", completion(
        response_fields=["content", "generation_settings/n_predict", "timings/prompt_n", "no/such"])),
    ("n_predict 0", "POST", "/completion", completion(n_predict=0)),
    ("max_tokens", "POST", "/completion", completion(n_predict=None, max_tokens=4)),
    ("stop", "POST", "/completion", completion(stop=[" b"], n_predict=24)),
    ("stop string", "POST", "/completion", completion(stop=" b", n_predict=24, n_probs=2)),
    ("ignore_eos", "POST", "/completion", completion(ignore_eos=True, n_predict=48)),
    ("bias array", "POST", "/completion", completion(logit_bias=[[5, -1.5], [" b", False], [7]])),
    ("bias object", "POST", "/completion", completion(logit_bias={"5": 2, " b": -3, "x": True})),
    ("grammar", "POST", "/completion", completion(grammar='root ::= "yes" | "no"')),
    ("json_schema", "POST", "/completion", completion(
        n_predict=40, json_schema={"type": "object", "properties": {"a": {"type": "boolean"}},
                                   "required": ["a"], "additionalProperties": False})),
    ("samplers names", "POST", "/completion",
     completion(samplers=["top-k", "NUCLEUS", "temp", "nonsense"])),
    ("samplers letters", "POST", "/completion", completion(samplers="edkypmxt?")),
    ("samplers none", "POST", "/completion", completion(samplers=[], n_predict=2)),
    ("everything", "POST", "/completion", completion(
        dynatemp_range=0.5, dynatemp_exponent=1.5, top_k=30, top_p=0.9, min_p=0.02, typical_p=0.9,
        top_n_sigma=2.0, xtc_probability=0.1, xtc_threshold=0.2, repeat_last_n=32,
        repeat_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.2, dry_multiplier=0.5,
        dry_base=1.5, dry_allowed_length=3, dry_penalty_last_n=100,
        dry_sequence_breakers=["\n", ":"], mirostat=0, mirostat_tau=4.0, mirostat_eta=0.2, seed=9,
        min_keep=1, n_keep=5, n_discard=3, n_indent=2, t_max_predict_ms=60000, id_slot=1,
        timings_per_token=True, return_progress=True, lora=[{"id": 0, "scale": 0.5}],
        unknown_field={"x": 1})),
    ("stream", "POST", "/completion", completion(stream=True)),
    ("stream n_probs", "POST", "/completion", completion(stream=True, n_probs=2)),
    ("stream timings", "POST", "/completion", completion(stream=True, timings_per_token=True)),
    ("stream progress", "POST", "/completion", completion(stream=True, return_progress=True)),
    ("stream prompts", "POST", "/completion", completion(stream=True, prompt=[PROMPT, "import"])),
    ("stream fields", "POST", "/completion",
     completion(stream=True, response_fields=["content", "stop"])),
    ("stream n_predict 0", "POST", "/completion", completion(stream=True, n_predict=0)),
    ("bad temperature", "POST", "/completion", completion(temperature="hot")),
    ("bad n_predict", "POST", "/completion", completion(n_predict=-5)),
    ("bad stream", "POST", "/completion", completion(stream="yes")),
    ("bad stop", "POST", "/completion", completion(stop=[1])),
    ("bad prompt", "POST", "/completion", completion(prompt=5)),
    ("bad prompt element", "POST", "/completion", completion(prompt=[True])),
    ("no prompts", "POST", "/completion", completion(prompt=[])),
    ("no prompt", "POST", "/completion", {"n_predict": 4}),
    ("bad token", "POST", "/completion", completion(prompt=[999999])),
    ("negative token", "POST", "/completion", completion(prompt=[-1])),
    ("long prompt", "POST", "/completion", completion(prompt=LONG)),
    ("long prompt stream", "POST", "/completion", completion(prompt=LONG, stream=True)),
    ("bad lora", "POST", "/completion", completion(lora=5)),
    ("no breakers", "POST", "/completion", completion(dry_sequence_breakers=[])),
    ("bad grammar", "POST", "/completion", completion(grammar="root ::= (")),
    ("bad json", "POST", "/completion", None),
    ("infill", "POST", "/infill", infill()),
    ("infill extra", "POST", "/infill", infill(
        prompt="    ret", input_extra=[{"filename": "m.py", "text": "x = 1\n"}, {"text": "y"}])),
    ("infill long", "POST", "/infill", infill(input_prefix=LONG, input_suffix="")),
    ("infill vim", "POST", "/infill", VIM),
    ("infill warm", "POST", "/infill", VSCODE_WARM),
    ("infill no prefix", "POST", "/infill", {"input_suffix": "a"}),
    ("infill no suffix", "POST", "/infill", {"input_prefix": "a"}),
    ("infill bad prompt", "POST", "/infill", infill(prompt=5)),
    ("infill bad extra", "POST", "/infill", infill(input_extra={"a": 1})),
    ("infill bad chunk", "POST", "/infill", infill(input_extra=[{"filename": "a"}])),
    ("infill bad filename", "POST", "/infill", infill(input_extra=[{"text": "a", "filename": 1}])),
    ("tokenize", "POST", "/tokenize", {"content": PROMPT}),
    ("tokenize special", "POST", "/tokenize",
     {"content": "<|im_start|>user", "add_special": True}),
    ("tokenize plain", "POST", "/tokenize",
     {"content": "<|im_start|>user", "parse_special": False}),
    ("tokenize pieces", "POST", "/tokenize",
     {"content": "caf\u00e9 \u5abd \U0001f917 x", "with_pieces": True}),
    ("tokenize mixed", "POST", "/tokenize", {"content": [5, "def", 6]}),
    ("tokenize nothing", "POST", "/tokenize", {}),
    ("detokenize", "POST", "/detokenize", {"tokens": [5, 6, 7, 300, 301]}),
    ("detokenize nothing", "POST", "/detokenize", {}),
    ("template", "POST", "/apply-template", {"messages": [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]}),
    ("template parts", "POST", "/apply-template", {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}),
    ("template no messages", "POST", "/apply-template", {}),
    ("props", "GET", "/props", None),
    ("set props", "POST", "/props", {}),
    ("slots", "GET", "/slots", None),
    ("slots free", "GET", "/slots?fail_on_no_slot=1", None),
    ("slot erase", "POST", "/slots/0?action=erase", {}),
    ("slot bad name", "POST", "/slots/0?action=save", {"filename": "../x"}),
    ("slot empty name", "POST", "/slots/0?action=save", {"filename": ""}),
    ("slot bad action", "POST", "/slots/0?action=burn", {"filename": "x"}),
    ("slot no action", "POST", "/slots/0", {"filename": "x"}),
    ("slot bad id", "POST", "/slots/x?action=erase", {}),
    ("slot no such", "POST", "/slots/99?action=erase", {}),
    ("embedding", "POST", "/embedding", {"content": "a"}),
    ("embeddings", "POST", "/embeddings", {"content": "a"}),
    ("rerank", "POST", "/rerank", {"query": "a", "documents": ["b"]}),
    ("reranking", "POST", "/v1/reranking", {"query": "a", "documents": ["b"]}),
    ("lora", "GET", "/lora-adapters", None),
    ("set lora", "POST", "/lora-adapters", [{"id": 0, "scale": 0.5}]),
    ("bad set lora", "POST", "/lora-adapters", {}),
]


CHUNKS = [
    {"filename": "a.py", "text": "def helper(x):\n    return x\n", "time": 1},
    {"text": "y = <|im_end|>\n"},
]
INFILL = [
    ("plain", "POST", "/infill", infill()),
    ("prompt", "POST", "/infill", infill(prompt="    ret")),
    ("chunks", "POST", "/infill", infill(prompt="    ret", input_extra=CHUNKS)),
    ("control tokens", "POST", "/infill",
     infill(input_prefix="<|im_start|>", input_suffix="<|im_end|>", prompt="<|fim_prefix|>")),
    ("tokens", "POST", "/infill", infill(input_prefix=[300, "x"], input_suffix=[301])),
    ("long prefix", "POST", "/infill", infill(input_prefix=LONG)),
    ("long suffix", "POST", "/infill", infill(input_suffix=LONG, prompt="a")),
    ("vim", "POST", "/infill", {**VIM, "cache_prompt": False, "seed": 5, "response_fields": []}),
    ("sampled", "POST", "/infill", infill(samplers=["top_k", "top_p", "infill"], seed=3, top_p=0.9)),
    ("letters", "POST", "/infill", infill(samplers="kpi", seed=4, n_predict=24)),
]


def ask(base, method, path, body):
    data = b'{"prompt": ' if method == "POST" and body is None else None
    if body is not None:
        data = json.dumps(body).encode()
    request = urllib.request.Request(base + path, data=data, method=method)
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            status, text = response.status, response.read().decode()
            kind = response.headers.get("Content-Type", "")
    except urllib.error.HTTPError as error:
        status, text, kind = error.code, error.read().decode(), "json"
    if kind.startswith("text/event-stream"):
        lines = [line for line in text.split("\n\n") if line.startswith("data: ")]
        return status, {"stream": [json.loads(line[6:]) for line in lines]}
    return status, json.loads(text)


def main():
    base, cases = sys.argv[1], []
    is_infill = "--infill" in sys.argv
    for name, method, path, body in INFILL if is_infill else CASES:
        status, answer = ask(base, method, path, body)
        print(status, name)
        case = {"name": name, "method": method, "path": path, "body": body}
        cases.append({**case, "status": status, "answer": answer})
    lines = ",\n".join(json.dumps(case) for case in cases)
    out = GOLDEN / ("llama_infill.json" if is_infill else "llama_api.json")
    out.write_text(f"[\n{lines}\n]\n")


main()
