//! llama.cpp's options as `serve`, `generate` and `chat` take them: under their own names, renamed,
//! left out with a warning, or refused.
//!
//! ```text
//! same as here         passed on                            --ctx-size 4096
//! another spelling     passed on under ours                 -np 4 -> --parallel 4
//! always so here       left out                             --jinja
//! no counterpart       left out with its values, warned of  --flash-attn on
//! would be missed      refused                              --api-prefix, -hf
//! nearly one of these  refused with the nearest             --n-gpu-layer
//! ```
//!
//! The lists follow llama.cpp's own help. A name that the verb has itself is its own, whatever the
//! lists say. What stands in none of them goes to the parser of arguments, which knows ours.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::base::format::nearest;

/// Other spellings of ours.
const RENAMED: [(&str, &str); 31] = [
    ("-np", "--parallel"),
    ("-dev", "--device"),
    ("-ngl", "--n-gpu-layers"),
    ("--gpu-layers", "--n-gpu-layers"),
    ("-ub", "--ubatch-size"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-to", "--timeout"),
    ("-n-predict", "--n-predict"),
    ("--predict", "--n-predict"),
    ("--embeddings", "--embedding"),
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
const SAME: [&str; 14] = [
    "--jinja",
    "--rerank",
    "--reranking",
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
const REFUSED: [(&str, &str); 9] = [
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
const SWITCHES: &str = "-cnv --conversation -no-cnv --no-conversation -st --single-turn -mli \
    --multiline-input -i --interactive -if --interactive-first --simple-io --display-prompt \
    --no-display-prompt --show-timings --no-show-timings -cl --cache-list --completion-bash \
    --swa-full --perf -e --escape \
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
const VALUED: &str = "-np --parallel -ub --ubatch-size --prompt-cache -tb --threads-batch \
    -C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll \
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
const WORDS: [&str; 10] =
    ["on", "off", "auto", "true", "false", "enabled", "disabled", "0", "1", "-1"];

/// The hidden option that carries a name to warn of.
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

/// Names of the options that a verb has, each with whether a value follows.
pub type Options = BTreeMap<String, bool>;

fn fate(name: &str, ours: &Options) -> Fate {
    let is_in = |list: &str| list.split_whitespace().any(|known| known == name);
    if ours.contains_key(name) {
        return Fate::Pass;
    }
    let renamed = RENAMED.iter().find(|(theirs, _)| *theirs == name);
    if let Some((_, here)) = renamed.filter(|(_, here)| ours.contains_key(*here)) {
        return Fate::Rename(here);
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

/// llama.cpp's name that was probably meant, where it is nearer than any of ours.
fn nearly(name: &str, ours: &Options) -> Option<&'static str> {
    let lists = [SWITCHES, VALUED].into_iter().flat_map(str::split_whitespace);
    let pairs = RENAMED.iter().chain(&REFUSED).map(|(theirs, _)| *theirs);
    let theirs: Vec<&str> = lists.chain(pairs).chain(SAME).chain(SOMETIMES).collect();
    let all = theirs.iter().copied().chain(ours.keys().map(String::as_str));
    let found = nearest(name, all.filter(|known| known.starts_with("--")))?;
    theirs.into_iter().find(|known| *known == found && !ours.contains_key(found))
}

/// An option's name as ours are spelled, `--n_predict` as `--n-predict`; `None` for what is no
/// name, such as a prompt that begins with a dash.
fn spelled(name: &str) -> Option<String> {
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let long = name.strip_prefix("--").map(|long| format!("--{}", long.replace('_', "-")));
    is_name.then(|| long.unwrap_or_else(|| name.to_owned()))
}

/// The arguments of a verb that has the options `ours`, as the parser wants them.
///
/// # Errors
/// The option that is refused, and why.
pub fn translate(
    args: impl IntoIterator<Item = OsString>,
    ours: &Options,
) -> Result<Vec<OsString>, String> {
    let mut args = args.into_iter().peekable();
    let mut out = Vec::new();
    while let Some(arg) = args.next() {
        let text = arg.to_str().filter(|text| text.len() > 1 && text.starts_with('-'));
        if text == Some("--") {
            out.push(arg);
            out.extend(args);
            break;
        }
        let (name, value) = match text.map(|text| text.split_once('=').unwrap_or((text, ""))) {
            Some((name, value)) => (spelled(name), value),
            None => (None, ""),
        };
        let Some(name) = name else {
            out.push(arg);
            continue;
        };
        let has_value = text.is_some_and(|text| text.contains('='));
        let with_value = |name: &str| match has_value {
            true => OsString::from(format!("{name}={value}")),
            false => OsString::from(name),
        };
        match fate(&name, ours) {
            Fate::Pass => {
                out.push(with_value(&name));
                match ours.get(&name) {
                    Some(true) if !has_value => out.extend(args.next()),
                    None if name.starts_with("--") => {
                        if let Some(theirs) = nearly(&name, ours) {
                            return Err(format!("{name} is not known; did you mean {theirs}?"));
                        }
                    }
                    _ => {}
                }
            }
            Fate::Rename(here) => {
                out.push(with_value(here));
                if !has_value && ours.get(here) == Some(&true) {
                    out.extend(args.next());
                }
            }
            Fate::Drop => {}
            Fate::Refuse(reason) => return Err(format!("{name}: {reason}")),
            Fate::Ignore(n) => {
                let n_follow = if has_value { 0 } else { n };
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
        let ours =
            ["-m", "-c", "--n-predict", "--parallel", "--port"].map(|o| (o.to_owned(), true));
        let ours = ours.into_iter().chain([("--metrics".to_owned(), false)]).collect();
        let words = translate(line.split_whitespace().map(OsString::from), &ours)?;
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
        assert_eq!(translated("-fa 1 -m x").unwrap(), "--ignored-option=-fa -m x");
        let two = "--control-vector-layer-range 1 2 --metrics";
        assert_eq!(
            translated(two).unwrap(),
            "--ignored-option=--control-vector-layer-range --metrics"
        );
    }

    #[test]
    fn what_would_be_missed_is_refused_with_what_to_do() {
        assert!(translated("-hf a/b").unwrap_err().contains("jetforge pull"));
        assert!(translated("--api-prefix /x").unwrap_err().contains("proxy"));
    }

    #[test]
    fn a_value_is_never_taken_for_an_option() {
        assert_eq!(translated("-m --mlock -c -fa").unwrap(), "-m --mlock -c -fa");
        assert_eq!(translated("-- --mlock -np").unwrap(), "-- --mlock -np");
        assert_eq!(translated("--- a/file -").unwrap(), "--- a/file -");
    }

    #[test]
    fn a_slip_of_the_keys_is_answered_with_the_nearest() {
        for (slip, meant) in [
            ("--n-gpu-layer", "--n-gpu-layers"),
            ("--flash-atn", "--flash-attn"),
            ("--mlok", "--mlock"),
        ] {
            assert!(translated(slip).unwrap_err().ends_with(&format!("{meant}?")), "{slip}");
        }
        // Ours are the parser's business.
        assert_eq!(translated("--metric").unwrap(), "--metric");
    }
}
