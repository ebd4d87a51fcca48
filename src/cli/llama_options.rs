//! llama-server's options as `serve` takes them: under their own names, renamed, left out with a
//! warning, or refused.
//!
//! ```text
//! same as here         passed on                            --ctx-size 4096
//! another spelling     passed on under ours                 -np 4 -> --parallel 4
//! always so here       left out                             --jinja
//! no counterpart       left out with its values, warned of  --flash-attn on
//! would be missed      refused                              --ssl-key-file, -hf
//! ```
//!
//! The lists follow llama-server's own help. What stands in none of them goes to the parser of
//! arguments, which knows ours and names the nearest.

use std::ffi::OsString;

/// Other spellings of ours.
const RENAMED: [(&str, &str); 29] = [
    ("-np", "--parallel"),
    ("-ub", "--ubatch-size"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-to", "--timeout"),
    ("-n-predict", "--n-predict"),
    ("--predict", "--n-predict"),
    ("--embeddings", "--embedding"),
    ("--rerank", "--reranking"),
    ("--cors-origins", "--cors-origin"),
    ("--draft", "--draft-max"),
    ("--draft-n", "--draft-max"),
    ("--spec-draft-n-max", "--draft-max"),
    ("--draft-n-min", "--draft-min"),
    ("--spec-draft-n-min", "--draft-min"),
    ("--spec-draft-p-min", "--draft-p-min"),
    ("-md", "--model-draft"),
    ("--spec-draft-model", "--model-draft"),
    ("--temperature", "--temp"),
    ("--typical-p", "--typical"),
    ("--top-n-sigma", "--top-nsigma"),
    ("--sampler-seq", "--sampling-seq"),
    ("--dynatemp-exponent", "--dynatemp-exp"),
    ("--mirostat-tau", "--mirostat-ent"),
    ("--mirostat-eta", "--mirostat-lr"),
    ("--log-verbose", "--verbose"),
    ("--log-jsonl", "--log-json"),
    ("--usage", "--help"),
    ("--slots-endpoint-disable", "--no-slots"),
];

/// What is always so here: nothing changes without them.
const SAME: [&str; 12] = [
    "--jinja",
    "-cb",
    "--cont-batching",
    "--mmap",
    "--cache-prompt",
    "-kvu",
    "--kv-unified",
    "--ui",
    "--webui",
    "--prefill-assistant",
    "--no-perf",
    "--warmup",
];

/// What would be missed: the program says what to do instead.
const REFUSED: [(&str, &str); 11] = [
    ("--ssl-key-file", "TLS is not spoken here; put a proxy before the service"),
    ("--ssl-cert-file", "TLS is not spoken here; put a proxy before the service"),
    ("--api-prefix", "paths have no prefix here; a proxy can take one off"),
    ("-hf", "`jetforge pull NAME` gets a model; then name it with --model"),
    ("-hfr", "`jetforge pull NAME` gets a model; then name it with --model"),
    ("--hf-repo", "`jetforge pull NAME` gets a model; then name it with --model"),
    ("-mu", "`jetforge pull URL` gets a model; then name it with --model"),
    ("--model-url", "`jetforge pull URL` gets a model; then name it with --model"),
    ("-dr", "`jetforge pull NAME` gets a model; then name it with --model"),
    ("--docker-repo", "`jetforge pull NAME` gets a model; then name it with --model"),
    ("--grammar-file", "a grammar belongs to a request: its field `grammar`"),
];

/// What has no counterpart and takes no value.
const SWITCHES: &str = "-cl --cache-list --completion-bash --swa-full --perf -e --escape \
    --no-escape -kvo --kv-offload -nkvo --no-kv-offload --repack -nr --no-repack --no-host -cmoe \
    --cpu-moe --check-tensors --op-offload --no-op-offload --log-disable --no-log-jsonl --offline \
    --log-prefix --no-log-prefix --log-timestamps --no-log-timestamps -bs --backend-sampling \
    -no-kvu --no-kv-unified --cache-idle-slots --no-cache-idle-slots -sp --special --no-warmup \
    --spm-infill -nocb --no-cont-batching --mmproj-auto --no-mmproj --no-mmproj-auto \
    --mmproj-offload --no-mmproj-offload --reuse-port --cors-credentials --no-cors-credentials \
    --ui-mcp-proxy --webui-mcp-proxy --no-ui-mcp-proxy --no-webui-mcp-proxy -ag --agent -no-ag \
    --no-agent --no-ui --no-webui --no-cache-prompt --models-autoload --no-models-autoload \
    --no-jinja --reasoning-preserve --no-reasoning-preserve --skip-chat-parsing \
    --no-skip-chat-parsing --no-prefill-assistant --lora-init-without-apply -cmoed \
    --spec-draft-cpu-moe --cpu-moe-draft --spec-draft-backend-sampling \
    --no-spec-draft-backend-sampling --spec-default --embd-gemma-default \
    --fim-qwen-1.5b-default --fim-qwen-3b-default --fim-qwen-7b-default --fim-qwen-7b-spec \
    --fim-qwen-14b-spec --fim-qwen-30b-default --gpt-oss-20b-default --gpt-oss-120b-default \
    --vision-gemma-4b-default --vision-gemma-12b-default --mlock --no-mmap --list-devices \
    --direct-io -dio --no-direct-io -ndio";

/// What has no counterpart and takes a value.
const VALUED: &str = "-tb --threads-batch -C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll \
    -Cb --cpu-mask-batch -Crb --cpu-range-batch --cpu-strict-batch --prio-batch --poll-batch \
    --keep --rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx \
    --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -dt --defrag-thold \
    --rpc -lm --load-mode -lzm --lazy-mode --numa -dev --device -ot --override-tensor -ncmoe \
    --n-cpu-moe -ncffn --n-cpu-ffn -ngl --gpu-layers --n-gpu-layers -sm --split-mode -ts \
    --tensor-split -mg --main-gpu -fit --fit -fitt --fit-target -fitc --fit-ctx --override-kv \
    --control-vector --control-vector-scaled -hff --hf-file -hft --hf-token --log-file \
    --log-colors -lv --verbosity --log-verbosity --spec-draft-type-k -ctkd --cache-type-k-draft \
    --spec-draft-type-v -ctvd --cache-type-v-draft --adaptive-target --adaptive-decay --grammar \
    -j --json-schema -jf --json-schema-file -lcs --lookup-cache-static -lcd \
    --lookup-cache-dynamic --kv-unified-per-slot -ctxcp --ctx-checkpoints --swa-checkpoints -cms \
    --checkpoint-min-step -cram --cache-ram -r --reverse-prompt -mm --mmproj -mmu --mmproj-url \
    -mmdev --mmproj-device --image-min-tokens --image-max-tokens --mtmd-batch-max-tokens \
    --video-fps --video-timestamp-interval --video-ffmpeg-dir --tags --embd-normalize --path \
    --cors-methods --cors-headers --ui-config --webui-config --ui-config-file \
    --webui-config-file --tools --tools-runtime --mcp-servers-config --mcp-servers-json \
    --chat-template-kwargs --sse-ping-interval --threads-http --cache-reuse --media-path \
    --models-dir --models-preset --models-max -rea --reasoning --reasoning-effort \
    --reasoning-budget --reasoning-budget-message -sps --slot-prompt-similarity \
    --sleep-idle-seconds --log-prompts-dir --spec-draft-hf -hfd -hfrd --hf-repo-draft \
    --spec-draft-threads -td --threads-draft --spec-draft-threads-batch -tbd \
    --threads-batch-draft --spec-draft-cpu-mask -Cd --cpu-mask-draft --spec-draft-cpu-range -Crd \
    --cpu-range-draft --spec-draft-cpu-strict --cpu-strict-draft --spec-draft-prio --prio-draft \
    --spec-draft-poll --poll-draft --spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft \
    --spec-draft-cpu-strict-batch --cpu-strict-batch-draft --spec-draft-prio-batch \
    --prio-batch-draft --spec-draft-poll-batch --poll-batch-draft --spec-draft-override-tensor \
    -otd --override-tensor-draft --spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed \
    --n-cpu-moe-draft --spec-synth-len --spec-synth-rates \
    --spec-draft-p-split --draft-p-split --spec-draft-device \
    -devd --device-draft --spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft \
    --spec-type --spec-ngram-mod-n-min \
    --spec-ngram-mod-n-max --spec-ngram-mod-n-match --spec-ngram-simple-size-n \
    --spec-ngram-simple-size-m --spec-ngram-simple-min-hits --spec-ngram-map-k-size-n \
    --spec-ngram-map-k-size-m --spec-ngram-map-k-min-hits --spec-ngram-map-k4v-size-n \
    --spec-ngram-map-k4v-size-m --spec-ngram-map-k4v-min-hits \
    --spec-ngram-size-n --spec-ngram-size-m --spec-ngram-min-hits";

/// What has no counterpart and takes one of these words, or nothing in older versions.
const SOMETIMES: [&str; 2] = ["-fa", "--flash-attn"];
const WORDS: [&str; 6] = ["on", "off", "auto", "true", "false", "enabled"];

/// The option, hidden in `serve`, that carries a name to warn of.
pub const IGNORED: &str = "--ignored-option";

/// What becomes of an option.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// It is ours, or nobody's.
    Pass,
    Rename(&'static str),
    Drop,
    /// Left out with so many values, and warned of.
    Ignore(usize),
    /// Left out with a value if one follows.
    IgnoreWord,
    Refuse(&'static str),
}

fn fate(name: &str) -> Fate {
    let is_in = |list: &str| list.split_whitespace().any(|known| known == name);
    if let Some((_, ours)) = RENAMED.iter().find(|(theirs, _)| *theirs == name) {
        return Fate::Rename(ours);
    }
    if let Some((_, reason)) = REFUSED.iter().find(|(theirs, _)| *theirs == name) {
        return Fate::Refuse(reason);
    }
    match name {
        _ if SAME.contains(&name) => Fate::Drop,
        _ if SOMETIMES.contains(&name) => Fate::IgnoreWord,
        "--control-vector-layer-range" => Fate::Ignore(2),
        _ if is_in(SWITCHES) => Fate::Ignore(0),
        _ if is_in(VALUED) => Fate::Ignore(1),
        _ => Fate::Pass,
    }
}

/// The arguments of `serve` as the parser wants them.
///
/// # Errors
/// The option that is refused, and why.
pub fn translate(args: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let mut args = args.into_iter().peekable();
    let mut out = Vec::new();
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str().filter(|text| text.starts_with('-')) else {
            out.push(arg);
            continue;
        };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let name = match name.strip_prefix("--") {
            Some(long) => format!("--{}", long.replace('_', "-")),
            None => name.to_owned(),
        };
        let with_value = |name: &str| match value {
            Some(value) => OsString::from(format!("{name}={value}")),
            None => OsString::from(name),
        };
        match fate(&name) {
            Fate::Pass => out.push(with_value(&name)),
            Fate::Rename(ours) => out.push(with_value(ours)),
            Fate::Drop => {}
            Fate::Refuse(reason) => return Err(format!("{name}: {reason}")),
            Fate::Ignore(n) => {
                let n_follow = if value.is_some() { 0 } else { n };
                args.by_ref().take(n_follow).for_each(drop);
                out.push(format!("{IGNORED}={name}").into());
            }
            Fate::IgnoreWord => {
                let is_word = |arg: &OsString| WORDS.iter().any(|word| arg == word);
                args.next_if(is_word);
                out.push(format!("{IGNORED}={name}").into());
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Result<String, String> {
        let words = translate(line.split_whitespace().map(OsString::from))?;
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap().to_owned()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn a_script_for_llama_server_becomes_one_for_us() {
        let line = "-m a.gguf -c 8192 -np 2 -ngl 99 --flash-attn on --mlock --jinja -tb 4 \
                    --n_predict 7";
        let ours = "-m a.gguf -c 8192 --parallel 2 --ignored-option=-ngl \
                    --ignored-option=--flash-attn --ignored-option=--mlock --ignored-option=-tb \
                    --n-predict 7";
        assert_eq!(translated(line).unwrap(), ours);
        assert_eq!(translated("-fa -m x").unwrap(), "--ignored-option=-fa -m x");
        assert_eq!(translated("--keep=4 --port=1").unwrap(), "--ignored-option=--keep --port=1");
        let two = "--control-vector-layer-range 1 2 --metrics";
        assert_eq!(
            translated(two).unwrap(),
            "--ignored-option=--control-vector-layer-range --metrics"
        );
    }

    #[test]
    fn what_would_be_missed_is_refused_with_what_to_do() {
        assert!(translated("-hf a/b").unwrap_err().contains("jetforge pull"));
        assert!(translated("--ssl-key-file k").unwrap_err().contains("proxy"));
    }
}
