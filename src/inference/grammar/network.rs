//! GBNF rules as a network of nodes that a reader of characters walks.
//!
//! ```text
//! Chars, Token       read something, then go on
//! Fork               go on in several ways
//! Call               go on in a rule, and behind it at its Return
//! Repeat, Again      before the item of a count, and behind it
//! Return             the end of a rule
//! ```
//!
//! Every path is built from its end, so a node knows its successor. Counts are not unrolled: the
//! reader keeps them on its stack, and `x{0,100000}` costs three nodes.

use std::collections::HashMap;

use super::error::GrammarError;
use super::gbnf::{CharSet, Item, Rules};
use super::vocab::GrammarVocab;
use crate::base::limits::GBNF_NODES_MAX;
use crate::inference::tokenizer::TokenId;

pub(super) type NodeId = u32;

/// No bound on a count.
pub(super) const UNBOUNDED: u32 = u32::MAX;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Chars { set: u32, next: NodeId },
    Token { id: TokenId, is_negated: bool, next: NodeId },
    Fork(Vec<NodeId>),
    Call { rule: u32, next: NodeId },
    Repeat { body: NodeId, min: u32, max: u32, next: NodeId },
    Again { repeat: NodeId },
    Return,
}

/// A grammar ready to be walked.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) nodes: Vec<Node>,
    pub(super) sets: Vec<CharSet>,
    /// `[n_rule]`
    pub(super) entries: Vec<NodeId>,
    pub(super) root: NodeId,
}

impl Network {
    /// # Errors
    /// Too many nodes, or a rule that begins with itself.
    pub(super) fn new(rules: &Rules, vocab: &GrammarVocab) -> Result<Network, GrammarError> {
        let root = rules.root()?;
        let mut builder = Builder { nodes: vec![], sets: HashMap::new(), vocab };
        let mut entries = Vec::with_capacity(rules.names.len());
        for (number, alternates) in rules.alternates.iter().enumerate() {
            let undefined = || GrammarError::NoRule { rule: rules.names[number].clone() };
            let alternates = alternates.as_ref().ok_or_else(undefined)?;
            // A Return of its own: the search for left recursion asks which rule it ends.
            let end = builder.add(Node::Return)?;
            entries.push(builder.alternates(alternates, end)?);
        }
        let mut sets: Vec<(CharSet, u32)> = builder.sets.into_iter().collect();
        sets.sort_unstable_by_key(|(_, number)| *number);
        let root = entries[root];
        let sets = sets.into_iter().map(|(set, _)| set).collect();
        let network = Network { nodes: builder.nodes, sets, entries, root };
        match left_recursive(&network) {
            Some(rule) => Err(GrammarError::LeftRecursion { rule: rules.names[rule].clone() }),
            None => Ok(network),
        }
    }
}

struct Builder<'a> {
    nodes: Vec<Node>,
    sets: HashMap<CharSet, u32>,
    vocab: &'a GrammarVocab,
}

impl Builder<'_> {
    fn add(&mut self, node: Node) -> Result<NodeId, GrammarError> {
        if self.nodes.len() >= GBNF_NODES_MAX {
            return Err(GrammarError::TooComplex { what: "nodes", max: GBNF_NODES_MAX });
        }
        self.nodes.push(node);
        Ok(self.nodes.len() as NodeId - 1)
    }

    fn chars(&mut self, set: &CharSet, next: NodeId) -> Result<NodeId, GrammarError> {
        let n_sets = self.sets.len() as u32;
        let set = match self.sets.get(set) {
            Some(&number) => number,
            None => {
                self.sets.insert(set.clone(), n_sets);
                n_sets
            }
        };
        self.add(Node::Chars { set, next })
    }

    fn fork(&mut self, mut branches: Vec<NodeId>) -> Result<NodeId, GrammarError> {
        branches.dedup();
        match branches[..] {
            [only] => Ok(only),
            _ => self.add(Node::Fork(branches)),
        }
    }

    fn alternates(
        &mut self,
        alternates: &[Vec<Item>],
        next: NodeId,
    ) -> Result<NodeId, GrammarError> {
        let mut branches = Vec::with_capacity(alternates.len());
        for sequence in alternates {
            let mut entry = next;
            for item in sequence.iter().rev() {
                entry = self.item(item, entry)?;
            }
            branches.push(entry);
        }
        self.fork(branches)
    }

    /// The node at which the item begins that `next` follows.
    fn item(&mut self, item: &Item, next: NodeId) -> Result<NodeId, GrammarError> {
        match item {
            Item::Text(text) => self.text(text, next),
            Item::Chars(set) => self.chars(set, next),
            &Item::Token { id, is_negated } => self.add(Node::Token { id, is_negated, next }),
            &Item::Rule(rule) => self.add(Node::Call { rule: rule as u32, next }),
            Item::Group(alternates) => self.alternates(alternates, next),
            Item::Repeat { max: Some(0), .. } => Ok(next),
            Item::Repeat { item, min: 0, max: Some(1) } => {
                let body = self.item(item, next)?;
                self.fork(vec![body, next])
            }
            Item::Repeat { item, min, max } => {
                let repeat = self.add(Node::Return)?; // its place; what it is follows
                let again = self.add(Node::Again { repeat })?;
                let body = self.item(item, again)?;
                let max = max.unwrap_or(UNBOUNDED);
                self.nodes[repeat as usize] = Node::Repeat { body, min: *min, max, next };
                Ok(repeat)
            }
        }
    }

    /// A text by its characters. Where it spells a control token, that token will do as well:
    /// people write `"<tool_call>"`, whether it is a token of their model or not.
    fn text(&mut self, text: &str, next: NodeId) -> Result<NodeId, GrammarError> {
        let mut at_end = HashMap::new(); // where the text goes on behind a token
        let mut entry = next;
        at_end.insert(text.len(), next);
        for (idx, c) in text.char_indices().rev() {
            let c = c as u32;
            let set = if c == 0 { vec![] } else { vec![(c, c)] };
            entry = self.chars(&set, entry)?;
            if let Some((id, n_bytes)) = self.vocab.control_at(&text[idx..])
                && let Some(&next) = at_end.get(&(idx + n_bytes))
            {
                let token = self.add(Node::Token { id, is_negated: false, next })?;
                entry = self.fork(vec![entry, token])?;
            }
            at_end.insert(idx, entry);
        }
        Ok(entry)
    }
}

/// A rule that can come back to its beginning without reading anything.
fn left_recursive(network: &Network) -> Option<usize> {
    let calls = first_calls(network);
    // Colors of a depth-first search: 0 unseen, 1 on the way, 2 done.
    let mut colors = vec![0u8; calls.len()];
    for start in 0..calls.len() {
        let mut path = vec![(start, 0)];
        while let Some((rule, idx)) = path.pop() {
            if idx == 0 && colors[rule] == 2 {
                continue;
            }
            colors[rule] = 1;
            match calls[rule].get(idx) {
                None => colors[rule] = 2,
                Some(&callee) if colors[callee] == 1 => return Some(callee),
                Some(&callee) => {
                    path.push((rule, idx + 1));
                    path.push((callee, 0));
                }
            }
        }
    }
    None
}

/// For each rule, those that it can call before it has read anything.
fn first_calls(network: &Network) -> Vec<Vec<usize>> {
    let n_rules = network.entries.len();
    let mut calls = vec![Vec::new(); n_rules];
    let mut is_nullable = vec![false; n_rules];
    // Places behind calls, in which rule, for when the callee turns out to match nothing.
    let mut waiting: Vec<Vec<(usize, NodeId)>> = vec![Vec::new(); n_rules];
    let mut seen = vec![false; network.nodes.len()];
    let mut todo: Vec<(usize, NodeId)> = network.entries.iter().copied().enumerate().collect();
    while let Some((rule, node)) = todo.pop() {
        if std::mem::replace(&mut seen[node as usize], true) {
            continue;
        }
        match &network.nodes[node as usize] {
            Node::Chars { .. } | Node::Token { .. } => {}
            Node::Fork(branches) => todo.extend(branches.iter().map(|&branch| (rule, branch))),
            &Node::Call { rule: callee, next } => {
                let callee = callee as usize;
                calls[rule].push(callee);
                match is_nullable[callee] {
                    true => todo.push((rule, next)),
                    false => waiting[callee].push((rule, next)),
                }
            }
            &Node::Repeat { body, min, next, .. } => {
                todo.push((rule, body));
                if min == 0 {
                    todo.push((rule, next));
                }
            }
            &Node::Again { repeat } => {
                // The item matched nothing, so it can do so as often as need be.
                if let Node::Repeat { next, .. } = network.nodes[repeat as usize] {
                    todo.push((rule, next));
                }
            }
            Node::Return => {
                is_nullable[rule] = true;
                todo.append(&mut waiting[rule]);
            }
        }
    }
    calls
}
