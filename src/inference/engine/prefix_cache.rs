//! The prefix cache: pages of finished and running sequences, found again by their tokens.
//!
//! ```text
//! scope (tenant, adapters)
//!   [32 tokens] page 7
//!     [32 tokens] page 3
//!       [32 tokens] page 9
//!       [11 tokens] page 4      the end of a sequence
//!     [32 tokens] page 12       another text from here on
//! ```
//!
//! A tree whose nodes hold a page and the tokens in it. Full pages that match are shared: nobody
//! writes to them again. A page that matches in part is copied by the one who goes on from there;
//! its holder may go on writing behind the tokens that are noted here. Tokens are compared, never
//! hashes of them. The least recently used leaf that no sequence holds goes first.

use std::collections::HashMap;

use super::pages::PagePool;
use crate::inference::backend::{PAGE_LEN, PageIdx};
use crate::inference::tokenizer::TokenId;

/// What keys and values depend on besides tokens: adapters, and the tenant where it is private.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The tenant of a private prefix.
    pub tenant: Option<u64>,
    /// Adapters and the bits of their scales.
    pub adapters: Vec<(usize, u32)>,
}

type NodeIdx = usize;

struct Node {
    parent: Option<NodeIdx>,
    scope: Scope,
    children: Vec<NodeIdx>,
    /// 1 to 32.
    tokens: Vec<TokenId>,
    page: PageIdx,
    last_used: u64,
}

/// What was found of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Full pages, held for the finder.
    pub pages: Vec<PageIdx>,
    /// A page whose first tokens go on from there, and how many: to be copied.
    pub partial: Option<(PageIdx, usize)>,
}

impl Found {
    /// Tokens found.
    pub fn n_tokens(&self) -> usize {
        self.pages.len() * PAGE_LEN + self.partial.map_or(0, |(_, n)| n)
    }
}

/// The tree.
#[derive(Default)]
pub struct PrefixCache {
    nodes: Vec<Option<Node>>,
    vacant: Vec<NodeIdx>,
    roots: HashMap<Scope, Vec<NodeIdx>>,
    clock: u64,
}

impl PrefixCache {
    /// The longest prefix of `tokens` that is cached. Its full pages are held once more.
    pub fn find(&mut self, pool: &mut PagePool, scope: &Scope, tokens: &[TokenId]) -> Found {
        self.clock += 1;
        let mut found = Found::default();
        let mut at = None;
        let mut rest = tokens;
        loop {
            let best = self.best_child(scope, at, rest);
            let Some((idx, n_same)) = best else { break };
            let clock = self.clock;
            let node = self.node_mut(idx);
            node.last_used = clock;
            let page = node.page;
            if n_same < PAGE_LEN {
                found.partial = Some((page, n_same));
                break;
            }
            pool.retain(page);
            found.pages.push(page);
            rest = &rest[PAGE_LEN..];
            at = Some(idx);
        }
        found
    }

    /// The page that holds the end of `tokens`, if all of them are here. Counts as no use.
    pub fn page_at(&self, scope: &Scope, tokens: &[TokenId]) -> Option<PageIdx> {
        let mut at = None;
        for chunk in tokens.chunks(PAGE_LEN) {
            let (idx, n_same) = self.best_child(scope, at, chunk)?;
            if n_same < chunk.len() {
                return None;
            }
            at = Some(idx);
        }
        Some(self.node(at?).page)
    }

    /// Notes that `pages` hold `tokens`; pages that are new here are held once more. Where another
    /// computed the same full page, the holder gets that one for its own: the bits are equal, and
    /// two sequences side by side with one beginning need its pages once. (Else the cache would
    /// hold pages that nobody uses and that cannot go, since another's stand behind them.)
    pub fn insert(
        &mut self,
        pool: &mut PagePool,
        scope: &Scope,
        tokens: &[TokenId],
        pages: &mut [PageIdx],
    ) {
        self.clock += 1;
        let mut at = None;
        for (chunk, page) in tokens.chunks(PAGE_LEN).zip(pages) {
            let idx = match self.best_child(scope, at, chunk) {
                Some((idx, n_same)) if n_same == chunk.len() => {
                    let same = self.node(idx).page;
                    if n_same == PAGE_LEN && same != *page {
                        pool.retain(same);
                        pool.release(std::mem::replace(page, same));
                    }
                    idx
                }
                Some((idx, n_same)) if n_same == self.node(idx).tokens.len() => {
                    self.extend(pool, idx, chunk, *page);
                    idx
                }
                _ => self.add(pool, scope, at, chunk, *page),
            };
            let clock = self.clock;
            self.node_mut(idx).last_used = clock;
            at = Some(idx);
        }
    }

    /// Frees the least recently used page that nobody else holds; whether there was one.
    pub fn evict(&mut self, pool: &mut PagePool) -> bool {
        let nodes = self.nodes.iter().enumerate();
        let leaves = nodes.filter_map(|(idx, node)| Some((idx, node.as_ref()?)));
        let idle = leaves.filter(|(_, n)| n.children.is_empty() && pool.n_holder(n.page) == 1);
        let Some((idx, _)) = idle.min_by_key(|(_, node)| node.last_used) else { return false };
        self.remove(pool, idx);
        true
    }

    /// Forgets the leaves of `tokens`' path, as far as no other path needs them; tokens forgotten.
    pub fn forget(&mut self, pool: &mut PagePool, scope: &Scope, tokens: &[TokenId]) -> usize {
        let (mut path, mut at, mut rest) = (Vec::new(), None, tokens);
        while let Some((idx, n_same)) = self.best_child(scope, at, rest) {
            if n_same < self.node(idx).tokens.len() {
                break;
            }
            path.push(idx);
            rest = &rest[n_same..];
            at = Some(idx);
        }
        let mut n_forgotten = 0;
        for idx in path.into_iter().rev() {
            if !self.node(idx).children.is_empty() {
                break;
            }
            n_forgotten += self.node(idx).tokens.len();
            self.remove(pool, idx);
        }
        n_forgotten
    }

    /// Pages that are noted here.
    #[cfg(test)]
    pub fn n_page(&self) -> usize {
        self.nodes.iter().flatten().count()
    }

    /// Pages that are noted here, once for each note.
    #[cfg(test)]
    pub fn pages(&self) -> Vec<PageIdx> {
        self.nodes.iter().flatten().map(|node| node.page).collect()
    }

    /// Pages that only the cache holds.
    pub fn n_page_idle(&self, pool: &PagePool) -> usize {
        self.nodes.iter().flatten().filter(|n| pool.n_holder(n.page) == 1).count()
    }

    fn node(&self, idx: NodeIdx) -> &Node {
        self.nodes[idx].as_ref().expect("indices of removed nodes are in no list")
    }

    fn node_mut(&mut self, idx: NodeIdx) -> &mut Node {
        self.nodes[idx].as_mut().expect("indices of removed nodes are in no list")
    }

    fn children(&self, scope: &Scope, at: Option<NodeIdx>) -> &[NodeIdx] {
        match at {
            Some(idx) => &self.node(idx).children,
            None => self.roots.get(scope).map_or(&[], Vec::as_slice),
        }
    }

    /// The child that shares most of the next tokens, and how many.
    fn best_child(
        &self,
        scope: &Scope,
        at: Option<NodeIdx>,
        rest: &[TokenId],
    ) -> Option<(NodeIdx, usize)> {
        let same = |idx: NodeIdx| {
            self.node(idx).tokens.iter().zip(rest).take_while(|(a, b)| a == b).count()
        };
        let children = self.children(scope, at).iter().map(|&idx| (idx, same(idx)));
        children.filter(|&(_, n)| n > 0).max_by_key(|&(_, n)| n)
    }

    fn add(
        &mut self,
        pool: &mut PagePool,
        scope: &Scope,
        parent: Option<NodeIdx>,
        tokens: &[TokenId],
        page: PageIdx,
    ) -> NodeIdx {
        pool.retain(page);
        let (scope, tokens) = (scope.clone(), tokens.to_vec());
        let node =
            Node { parent, scope, children: Vec::new(), tokens, page, last_used: self.clock };
        let idx = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        match parent {
            Some(parent) => self.node_mut(parent).children.push(idx),
            None => self.roots.entry(node.scope.clone()).or_default().push(idx),
        }
        self.nodes[idx] = Some(node);
        idx
    }

    /// A node whose tokens begin `tokens` takes the longer run, in `page`.
    fn extend(&mut self, pool: &mut PagePool, idx: NodeIdx, tokens: &[TokenId], page: PageIdx) {
        pool.retain(page);
        let node = self.node_mut(idx);
        let old = std::mem::replace(&mut node.page, page);
        node.tokens = tokens.to_vec();
        pool.release(old);
    }

    fn remove(&mut self, pool: &mut PagePool, idx: NodeIdx) {
        let node = self.nodes[idx].take().expect("indices of removed nodes are in no list");
        let siblings = match node.parent {
            Some(parent) => &mut self.node_mut(parent).children,
            None => self.roots.entry(node.scope.clone()).or_default(),
        };
        siblings.retain(|&sibling| sibling != idx);
        if node.parent.is_none() && siblings.is_empty() {
            self.roots.remove(&node.scope);
        }
        pool.release(node.page);
        self.vacant.push(idx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pages(pool: &mut PagePool, n_tokens: usize) -> Vec<PageIdx> {
        (0..n_tokens.div_ceil(PAGE_LEN)).map(|_| pool.alloc().unwrap()).collect()
    }

    fn cache(pool: &mut PagePool, cache: &mut PrefixCache, tokens: &[TokenId]) -> Vec<PageIdx> {
        let mut pages = pages(pool, tokens.len());
        cache.insert(pool, &Scope::default(), tokens, &mut pages);
        pages.iter().for_each(|&page| pool.release(page));
        pages
    }

    fn text(n: u32, end: u32) -> Vec<TokenId> {
        (0..n).chain([end]).collect()
    }

    #[test]
    fn full_pages_are_shared_and_a_part_is_copied() {
        let (mut pool, mut tree) = (PagePool::new(16), PrefixCache::default());
        let first = cache(&mut pool, &mut tree, &text(70, 1000));
        let found = tree.find(&mut pool, &Scope::default(), &text(68, 2000));
        assert_eq!(found.pages, first[..2]);
        assert_eq!(found.partial, Some((first[2], 4)));
        assert_eq!(found.n_tokens(), 68);
        assert_eq!(pool.n_holder(first[0]), 2);
    }

    /// Two that began alike at the same time, each with pages of its own: when one is gone, what it
    /// leaves is the other's or can be had back.
    #[test]
    fn twins_hold_the_pages_of_one() {
        let (mut pool, mut tree) = (PagePool::new(16), PrefixCache::default());
        let (one, other) = (text(100, 1), text(100, 2));
        let mut held = [pages(&mut pool, one.len()), pages(&mut pool, other.len())];
        for (pages, text) in held.iter_mut().zip([&one, &other]) {
            tree.insert(&mut pool, &Scope::default(), text, pages);
        }
        assert_eq!(held[0][..3], held[1][..3]);
        assert_eq!(pool.n_free(), 16 - 5);
        held[0].iter().for_each(|&page| pool.release(page));
        while tree.evict(&mut pool) {}
        assert_eq!(pool.n_free(), 16 - held[1].len());
        held[1].iter().for_each(|&page| pool.release(page));
        while tree.evict(&mut pool) {}
        assert_eq!(pool.n_free(), 16);
    }

    #[test]
    fn scopes_do_not_meet() {
        let (mut pool, mut tree) = (PagePool::new(16), PrefixCache::default());
        cache(&mut pool, &mut tree, &text(70, 0));
        let private = Scope { tenant: Some(1), ..Scope::default() };
        assert_eq!(tree.find(&mut pool, &private, &text(70, 0)).n_tokens(), 0);
    }

    #[test]
    fn a_longer_run_of_the_same_text_takes_the_place_of_the_shorter() {
        let (mut pool, mut tree) = (PagePool::new(16), PrefixCache::default());
        cache(&mut pool, &mut tree, &text(40, 40));
        cache(&mut pool, &mut tree, &text(50, 50));
        assert_eq!((tree.n_page(), pool.n_free()), (2, 14));
        assert_eq!(tree.find(&mut pool, &Scope::default(), &text(50, 50)).n_tokens(), 51);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_held_stays() {
        let (mut pool, mut tree) = (PagePool::new(4), PrefixCache::default());
        let old = cache(&mut pool, &mut tree, &text(31, 1));
        let new: Vec<TokenId> = text(31, 2).into_iter().rev().collect();
        let new = cache(&mut pool, &mut tree, &new);
        let held = tree.find(&mut pool, &Scope::default(), &text(31, 1));
        assert_eq!(held.pages, old);
        assert!(tree.evict(&mut pool));
        assert_eq!(pool.n_holder(new[0]), 0);
        assert!(!tree.evict(&mut pool), "a held page stays");
        pool.release(old[0]);
        assert!(tree.evict(&mut pool));
        assert_eq!(pool.n_free(), 4);
    }

    #[test]
    fn a_forgotten_text_frees_what_no_other_needs() {
        let (mut pool, mut tree) = (PagePool::new(8), PrefixCache::default());
        cache(&mut pool, &mut tree, &text(40, 1));
        cache(&mut pool, &mut tree, &text(40, 2));
        assert_eq!(tree.forget(&mut pool, &Scope::default(), &text(40, 1)), 9);
        assert_eq!(tree.find(&mut pool, &Scope::default(), &text(40, 2)).n_tokens(), 41);
    }

    proptest! {
        /// Against a plain list of texts: what is found is a common prefix, the longest unless
        /// pages were evicted, and no page is lost or freed twice.
        #[test]
        fn it_finds_what_a_list_of_texts_would(
            texts in proptest::collection::vec(proptest::collection::vec(0u32..2, 1..150), 1..12),
        ) {
            let (mut pool, mut tree) = (PagePool::new(64), PrefixCache::default());
            let mut known: Vec<Vec<TokenId>> = Vec::new();
            for text in &texts {
                let found = tree.find(&mut pool, &Scope::default(), text);
                let common = |k: &Vec<TokenId>| {
                    k.iter().zip(text).take_while(|(a, b)| a == b).count()
                };
                let longest = known.iter().map(common).max().unwrap_or(0);
                prop_assert_eq!(found.n_tokens(), longest);
                let mut held = found.pages.clone();
                while held.len() * PAGE_LEN < text.len() {
                    held.push(pool.alloc().unwrap());
                }
                tree.insert(&mut pool, &Scope::default(), text, &mut held);
                held.into_iter().for_each(|page| pool.release(page));
                known.push(text.clone());
                prop_assert_eq!(pool.n_free() + tree.n_page(), 64);
            }
            while tree.evict(&mut pool) {}
            prop_assert_eq!(pool.n_free(), 64);
        }
    }
}
