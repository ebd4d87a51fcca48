//! How a model family writes calls of tools, told from its chat template.
//!
//! | family | a call |
//! |---|---|
//! | Hermes, Qwen 2.5 and 3 | `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` |
//! | Llama 3 | the whole answer is `{"name": ..., "parameters": {...}}` |
//! | Mistral | `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, or `[TOOL_CALLS]name[ARGS]{..}` |
//! | DeepSeek V3.1 | begin mark, name, separator, arguments, end mark, inside the list's marks |
//! | DeepSeek R1 | the same with `function`, separator, name, and the arguments fenced as JSON |
//! | any other | the answer is JSON with `tool_call` or `response`: llama.cpp's generic form |

/// A family's way of calling tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// No tools: text is text.
    Plain,
    /// See the table.
    Hermes,
    /// See the table.
    Llama3,
    /// See the table; whether names stand before `[ARGS]`.
    Mistral {
        /// `[TOOL_CALLS]name[ARGS]{...}` instead of a list.
        is_named: bool,
    },
    /// See the table; whether arguments are fenced.
    DeepSeek {
        /// As R1 does it.
        is_fenced: bool,
    },
    /// See the table.
    Generic,
}

pub(super) const HERMES_OPEN: &str = "<tool_call>";
pub(super) const HERMES_CLOSE: &str = "</tool_call>";
pub(super) const MISTRAL_OPEN: &str = "[TOOL_CALLS]";
pub(super) const MISTRAL_ARGS: &str = "[ARGS]";
pub(super) const DEEPSEEK_LIST_OPEN: &str = "<｜tool▁calls▁begin｜>";
pub(super) const DEEPSEEK_LIST_CLOSE: &str = "<｜tool▁calls▁end｜>";
pub(super) const DEEPSEEK_OPEN: &str = "<｜tool▁call▁begin｜>";
pub(super) const DEEPSEEK_SEP: &str = "<｜tool▁sep｜>";
pub(super) const DEEPSEEK_CLOSE: &str = "<｜tool▁call▁end｜>";

impl Family {
    /// The family that a template belongs to.
    pub fn of_template(source: &str) -> Family {
        let has = |text: &str| source.contains(text);
        if has(MISTRAL_OPEN) {
            Family::Mistral { is_named: has(MISTRAL_ARGS) }
        } else if has(DEEPSEEK_OPEN) {
            Family::DeepSeek { is_fenced: has("```json") || has("``json") }
        } else if has(HERMES_OPEN) && has("tools") && !has("<function=") && !has("<arg_key>") {
            Family::Hermes
        } else if has("<|start_header_id|>") && has("tools") && has("parameters") {
            Family::Llama3
        } else {
            Family::Generic
        }
    }

    /// Whether a template of this family is told of the tools itself.
    pub fn has_native_tools(self, source: &str) -> bool {
        match self {
            Family::Plain | Family::Generic => false,
            // R1's own template writes calls but does not list the tools.
            _ => source.contains("tools"),
        }
    }

    /// Marks that begin a call inside of text.
    pub fn opens(self) -> &'static [&'static str] {
        match self {
            Family::Hermes => &[HERMES_OPEN],
            Family::Mistral { .. } => &[MISTRAL_OPEN],
            Family::DeepSeek { .. } => &[DEEPSEEK_OPEN],
            Family::Plain | Family::Llama3 | Family::Generic => &[],
        }
    }

    /// Marks around calls that say nothing by themselves.
    pub fn drops(self) -> &'static [&'static str] {
        match self {
            Family::Hermes => &[HERMES_CLOSE],
            Family::DeepSeek { .. } => &[DEEPSEEK_LIST_OPEN, DEEPSEEK_CLOSE, DEEPSEEK_LIST_CLOSE],
            _ => &[],
        }
    }

    /// Every mark that can be a control token, which the reader must see to tell calls apart.
    pub fn marks(self) -> Vec<&'static str> {
        let inner: &[&str] = match self {
            Family::Mistral { .. } => &[MISTRAL_ARGS],
            Family::DeepSeek { .. } => &[DEEPSEEK_SEP],
            _ => &[],
        };
        [self.opens(), self.drops(), inner].concat()
    }

    /// Whether several calls can stand in one answer.
    pub fn calls_in_parallel(self) -> bool {
        !matches!(self, Family::Llama3 | Family::Plain)
    }

    /// Characters of a call's id: Mistral's templates insist on nine.
    pub fn n_id_chars(self) -> Option<usize> {
        matches!(self, Family::Mistral { .. }).then_some(9)
    }
}
