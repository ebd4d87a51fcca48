//! Walks a GBNF network over the bytes of tokens.
//!
//! ```text
//! configuration   a node that reads something, and the stack of places to return to
//! state           every configuration that the text so far can be in, and the bytes of a
//!                 character that has begun
//! ```
//!
//! Stacks and states are interned, and each state remembers where a byte leads: after a few
//! tokens the walk over the vocabulary's tree is a table look-up per node.
//!
//! llguidance could not be asked: its lexer takes the longest match, so that `"a" "bc" | "ab" "d"`
//! refuses `abc`, and GBNF knows no lexer. llama.cpp's grammars allow the same tokens there and
//! here, except that a character is whole UTF-8 here, and a control token is not its name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::error::GrammarError;
use super::network::{Network, Node, NodeId, UNBOUNDED};
use super::part::{Part, Step};
use crate::base::limits;
use crate::inference::tokenizer::TokenId;

pub(super) type StateId = u32;

/// The state from which nothing goes on.
pub(super) const DEAD: StateId = 0;
/// A way that has not been walked.
const UNKNOWN: StateId = u32::MAX;

type StackId = u32;
const EMPTY: StackId = 0;

/// A node that reads something, or the end of the text, and the stack there.
type Config = (NodeId, StackId);

/// The top of a stack: where to go on after a rule, or the count of a repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Frame {
    node: NodeId,
    count: u32,
    below: StackId,
}

struct State {
    configs: Arc<[Config]>,
    part: Part,
    /// `[256]`, once the first way has been walked.
    ways: Option<Box<[StateId; 256]>>,
}

/// Everything that has been reached in a network.
pub(super) struct Walker {
    network: Arc<Network>,
    /// `frames[0]` stands for the empty stack.
    frames: Vec<Frame>,
    stacks: HashMap<Frame, StackId>,
    states: Vec<State>,
    numbers: HashMap<(Arc<[Config]>, Part), StateId>,
    n_steps: usize,
    failed: Option<GrammarError>,
}

impl Walker {
    /// An empty walker; `start` begins the walk.
    fn new(network: Arc<Network>) -> Walker {
        let bottom = Frame { node: NodeId::MAX, count: 0, below: EMPTY };
        let mut walker = Walker {
            network,
            frames: vec![bottom],
            stacks: HashMap::new(),
            states: vec![],
            numbers: HashMap::new(),
            n_steps: 0,
            failed: None,
        };
        walker.state(vec![], Part::default()); // DEAD
        walker
    }

    /// # Errors
    /// Too many ways to begin.
    pub(super) fn start(network: Arc<Network>) -> Result<(Walker, StateId), GrammarError> {
        let root = network.root;
        let mut walker = Walker::new(network);
        let configs = walker.close(vec![(root, EMPTY)]);
        let start = walker.state(configs, Part::default());
        walker.check()?;
        Ok((walker, start))
    }

    /// A walker that knows only this state.
    pub(super) fn only(&self, state: StateId) -> (Walker, StateId) {
        let mut walker = Walker::new(self.network.clone());
        let mut moved = HashMap::from([(EMPTY, EMPTY)]);
        let State { configs, part, .. } = &self.states[state as usize];
        let configs = configs.iter().map(|&(node, stack)| {
            let mut above = vec![];
            let mut bottom = stack;
            while !moved.contains_key(&bottom) {
                above.push(bottom);
                bottom = self.frames[bottom as usize].below;
            }
            for old in above.into_iter().rev() {
                let frame = self.frames[old as usize];
                let new = walker.push(Frame { below: moved[&frame.below], ..frame });
                moved.insert(old, new);
            }
            (node, moved[&stack])
        });
        let configs = configs.collect();
        let state = walker.state(configs, *part);
        (walker, state)
    }

    /// Begins the work for one token: its bounds start anew.
    pub(super) fn begin(&mut self) {
        self.n_steps = 0;
    }

    /// What was exceeded since the last look, if anything.
    pub(super) fn check(&mut self) -> Result<(), GrammarError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    pub(super) fn n_states(&self) -> usize {
        self.states.len()
    }

    /// Where the byte leads; [`DEAD`] too if a bound was exceeded.
    pub(super) fn step(&mut self, from: StateId, byte: u8) -> StateId {
        if let Some(ways) = &self.states[from as usize].ways
            && ways[byte as usize] != UNKNOWN
        {
            return ways[byte as usize];
        }
        let to = self.walk(from, byte);
        if self.failed.is_some() {
            return DEAD;
        }
        let ways = &mut self.states[from as usize].ways;
        ways.get_or_insert_with(|| Box::new([UNKNOWN; 256]))[byte as usize] = to;
        to
    }

    /// Where the bytes lead.
    pub(super) fn steps(&mut self, from: StateId, bytes: &[u8]) -> StateId {
        bytes.iter().fold(from, |state, &byte| match state {
            DEAD => DEAD,
            _ => self.step(state, byte),
        })
    }

    /// Where the token leads as a whole, and as its text. `!<...>` takes whole characters only, for
    /// the answer goes on behind it.
    pub(super) fn step_token(
        &mut self,
        from: StateId,
        token: TokenId,
        text: &[u8],
        is_whole: bool,
    ) -> StateId {
        let takes = |id, is_negated| match is_negated {
            true => id != token && is_whole,
            false => id == token,
        };
        let whole = self.tokens(from).filter(|&(id, is_negated, ..)| takes(id, is_negated));
        let seeds: Vec<Config> = whole.map(|(_, _, next, stack)| (next, stack)).collect();
        let as_text = if text.is_empty() { DEAD } else { self.steps(from, text) };
        if seeds.is_empty() {
            return as_text;
        }
        let mut configs = self.close(seeds);
        let State { configs: others, part, .. } = &self.states[as_text as usize];
        if part.is_none() {
            configs.extend_from_slice(others);
        }
        self.state(configs, Part::default())
    }

    /// The tokens that are named here: `(id, is_negated, next, stack)`.
    pub(super) fn tokens(
        &self,
        state: StateId,
    ) -> impl Iterator<Item = (TokenId, bool, NodeId, StackId)> + '_ {
        let State { configs, part, .. } = &self.states[state as usize];
        let configs = if part.is_none() { &configs[..] } else { &[] };
        configs.iter().filter_map(|&(node, stack)| match self.network.nodes[node as usize] {
            Node::Token { id, is_negated, next } => Some((id, is_negated, next, stack)),
            _ => None,
        })
    }

    /// Whether the text may end here.
    pub(super) fn is_accepting(&self, state: StateId) -> bool {
        let State { configs, part, .. } = &self.states[state as usize];
        part.is_none() && configs.iter().any(|config| self.is_end(config))
    }

    /// Whether the text must end here.
    pub(super) fn is_finished(&self, state: StateId) -> bool {
        let configs = &self.states[state as usize].configs;
        !configs.is_empty() && configs.iter().all(|config| self.is_end(config))
    }

    fn is_end(&self, &(node, _): &Config) -> bool {
        matches!(self.network.nodes[node as usize], Node::Return)
    }

    fn walk(&mut self, from: StateId, byte: u8) -> StateId {
        let State { configs, part, .. } = &self.states[from as usize];
        let configs = configs.clone();
        match part.push(byte) {
            Step::Invalid => DEAD,
            Step::Part(part) => {
                let (low, high) = part.range();
                let can_be = |&(node, _): &Config| self.reads(node, low, high).is_some();
                let configs = configs.iter().copied().filter(can_be).collect();
                self.state(configs, part)
            }
            Step::Char(c) => {
                let read = |&(node, stack): &Config| Some((self.reads(node, c, c)?, stack));
                let seeds = configs.iter().filter_map(read).collect();
                let configs = self.close(seeds);
                self.state(configs, Part::default())
            }
        }
    }

    /// The node behind this one, if it reads some character of the range.
    fn reads(&self, node: NodeId, low: u32, high: u32) -> Option<NodeId> {
        let Node::Chars { set, next } = self.network.nodes[node as usize] else { return None };
        let set = &self.network.sets[set as usize];
        let idx = set.partition_point(|range| range.1 < low);
        set.get(idx).is_some_and(|range| range.0 <= high).then_some(next)
    }

    /// Every configuration that can be reached without reading anything.
    fn close(&mut self, mut todo: Vec<Config>) -> Vec<Config> {
        let network = self.network.clone();
        let mut seen = HashSet::new();
        let mut closed = Vec::new();
        while let Some((node, stack)) = todo.pop() {
            if !seen.insert((node, stack)) {
                continue;
            }
            self.n_steps += 1;
            if self.is_exceeded(seen.len()) {
                return vec![];
            }
            match &network.nodes[node as usize] {
                Node::Chars { .. } | Node::Token { .. } => closed.push((node, stack)),
                Node::Fork(branches) => todo.extend(branches.iter().map(|&to| (to, stack))),
                &Node::Call { rule, next } => {
                    // A call at the end of a rule needs no place to return to: a rule that ends
                    // in itself goes on forever in the same stack.
                    let is_last = matches!(network.nodes[next as usize], Node::Return);
                    let frame = Frame { node: next, count: 0, below: stack };
                    let stack = if is_last { stack } else { self.push(frame) };
                    todo.push((network.entries[rule as usize], stack));
                }
                Node::Repeat { .. } => self.repeat(&network, node, 0, stack, &mut todo),
                &Node::Again { repeat } => {
                    let Frame { count, below, .. } = self.frames[stack as usize];
                    self.repeat(&network, repeat, count, below, &mut todo);
                }
                Node::Return if stack == EMPTY => closed.push((node, stack)),
                Node::Return => {
                    let Frame { node, below, .. } = self.frames[stack as usize];
                    todo.push((node, below));
                }
            }
        }
        closed
    }

    /// Goes on behind `count` repetitions.
    fn repeat(
        &mut self,
        network: &Network,
        node: NodeId,
        count: u32,
        stack: StackId,
        todo: &mut Vec<Config>,
    ) {
        let Node::Repeat { body, min, max, next } = network.nodes[node as usize] else { return };
        if count >= min {
            todo.push((next, stack));
        }
        if count < max {
            // Without a bound, all counts from the least on are the same.
            let count = if max == UNBOUNDED { (count + 1).min(min) } else { count + 1 };
            let stack = self.push(Frame { node, count, below: stack });
            todo.push((body, stack));
        }
    }

    fn push(&mut self, frame: Frame) -> StackId {
        let next = self.frames.len() as StackId;
        let stack = *self.stacks.entry(frame).or_insert(next);
        if stack == next {
            self.frames.push(frame);
        }
        stack
    }

    fn state(&mut self, mut configs: Vec<Config>, part: Part) -> StateId {
        if configs.is_empty() && !self.states.is_empty() {
            return DEAD;
        }
        configs.sort_unstable();
        configs.dedup();
        let configs: Arc<[Config]> = configs.into();
        let next = self.states.len() as StateId;
        let state = *self.numbers.entry((configs.clone(), part)).or_insert(next);
        if state == next {
            self.states.push(State { configs, part, ways: None });
        }
        state
    }

    fn is_exceeded(&mut self, n_configs: usize) -> bool {
        let bounds = [
            (n_configs, limits::GBNF_CONFIGS_MAX, "ways to read one place"),
            (self.n_steps, limits::GBNF_STEPS_MAX, "steps for one token"),
            (self.states.len(), limits::GBNF_STATES_MAX, "states for one token"),
        ];
        let exceeded = bounds.into_iter().find(|(n, max, _)| n > max);
        if let Some((_, max, what)) = exceeded {
            self.failed = Some(GrammarError::TooComplex { what, max });
        }
        self.failed.is_some()
    }
}
