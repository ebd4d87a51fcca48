//! Chat templates for files that carry none, and how such a file shows which one it needs.
//!
//! The formats are those of the models' cards; texts are the same as llama.cpp's built-in ones
//! where it has them. They write no BOS: the tokenizer adds it where the model wants it.

use super::error::TemplateError;
use crate::inference::gguf::Metadata;

const CHATML: &str = "\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}";

const LLAMA2: &str = "\
{%- set ns = namespace(open=false) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- message.content + '</s>' -}}{%- set ns.open = false -%}
{%- else -%}
{%- if not ns.open -%}{{- '[INST] ' -}}{%- set ns.open = true -%}{%- endif -%}
{%- if message.role == 'system' -%}
{{- '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' -}}
{%- else -%}{{- message.content + ' [/INST]' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}";

const LLAMA3: &str = "\
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
{{- message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}";

const DEEPSEEK_CODER: &str = "\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- message.content -}}
{%- elif message.role == 'assistant' -%}
{{- '### Response:\\n' + message.content + '\\n<|EOT|>\\n' -}}
{%- else -%}{{- '### Instruction:\\n' + message.content + '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}";

/// Phi-2 and Phi-1.5 were trained on no chat format; this is the one that Phi-2's card shows.
const PHI: &str = "\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- message.content + '\\n' -}}
{%- elif message.role == 'assistant' -%}{{- 'Output: ' + message.content + '\\n' -}}
{%- else -%}{{- 'Instruct: ' + message.content + '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Output:' -}}{%- endif -%}";

const PHI3: &str = "\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}";

/// TinyLlama's and Zephyr's own, with their `</s>`.
const ZEPHYR: &str = "\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + '</s>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}";

/// The same with the end token of StableLM's vocabulary.
const STABLELM: &str = "\
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' + message.content + '<|endoftext|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}";

const GEMMA: &str = "\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set ns.system = ns.system + message.content | trim -%}
{%- else -%}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
{{- '<start_of_turn>' + role + '\\n' -}}
{%- if ns.system and role != 'model' -%}
{{- ns.system + '\\n\\n' -}}{%- set ns.system = '' -%}
{%- endif -%}
{{- message.content | trim + '<end_of_turn>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}";

const VICUNA: &str = "\
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{- message.content + '\\n\\n' -}}
{%- elif message.role == 'assistant' -%}{{- 'ASSISTANT: ' + message.content + '</s>\\n' -}}
{%- else -%}{{- 'USER: ' + message.content + '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}";

/// The source of a built-in template.
pub(super) fn by_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "chatml" => CHATML,
        "llama2" => LLAMA2,
        "llama3" => LLAMA3,
        "deepseek-coder" => DEEPSEEK_CODER,
        "phi" => PHI,
        "phi3" => PHI3,
        "zephyr" => ZEPHYR,
        "stablelm" => STABLELM,
        "gemma" => GEMMA,
        "vicuna" => VICUNA,
        _ => return None,
    })
}

/// The template that a file without one needs: by the marks of turns in its vocabulary, then by
/// architecture and name. `None` where nothing speaks of chats, as for most base models.
///
/// # Errors
/// Keys of the wrong type.
pub(super) fn for_model(
    meta: &Metadata,
    tokens: &[&str],
    eos: &str,
) -> Result<Option<&'static str>, TemplateError> {
    let arch = meta.str("general.architecture")?.unwrap_or_default();
    let name = meta.str("general.name")?.unwrap_or_default().to_lowercase();
    let has = |texts: &[&str]| texts.iter().all(|text| tokens.contains(text));
    let is_called = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    let is_for_chats = is_called(&["chat", "instruct", "zephyr"]) || name.ends_with("-it");
    let found = if has(&["<|im_start|>", "<|im_end|>"]) {
        Some(CHATML)
    } else if has(&["<|start_header_id|>", "<|eot_id|>"]) {
        Some(LLAMA3)
    } else if has(&["<start_of_turn>", "<end_of_turn>"]) {
        Some(GEMMA)
    } else if has(&["<|user|>", "<|assistant|>", "<|end|>"]) {
        Some(PHI3)
    } else if has(&["<|EOT|>", "<｜begin▁of▁sentence｜>"]) {
        // Base and instruct models share the vocabulary.
        (eos == "<|EOT|>" || is_called(&["instruct"])).then_some(DEEPSEEK_CODER)
    } else if arch == "phi2" {
        Some(PHI)
    } else if arch == "stablelm" && is_for_chats {
        Some(STABLELM)
    } else if is_called(&["vicuna"]) {
        Some(VICUNA)
    } else if is_called(&["zephyr"]) || (is_called(&["tinyllama"]) && is_for_chats) {
        Some(ZEPHYR)
    } else if arch == "llama" && eos == "</s>" && is_for_chats {
        Some(LLAMA2)
    } else {
        None
    };
    Ok(found)
}
