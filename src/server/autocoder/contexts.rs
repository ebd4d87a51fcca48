//! What became of the context chunks of recent tasks, for whoever looks at them.
//!
//! In memory alone, and bounded: an answer does not depend on it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::context::Choice;
use crate::base::limits::TASKS_CONTEXTS_MAX;
use crate::inference::TenantId;

type Key = (TenantId, String);

/// See the module.
#[derive(Default)]
pub(in crate::server) struct Contexts(Mutex<VecDeque<(Key, Choice)>>);

impl Contexts {
    fn lock(&self) -> MutexGuard<'_, VecDeque<(Key, Choice)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what became of the chunks of a task; the oldest is forgotten.
    pub(super) fn put(&self, tenant: TenantId, id: &str, choice: Choice) {
        let mut kept = self.lock();
        kept.retain(|(key, _)| key.0 != tenant || key.1 != id);
        if kept.len() >= TASKS_CONTEXTS_MAX {
            kept.pop_front();
        }
        kept.push_back(((tenant, id.to_owned()), choice));
    }

    /// What became of the chunks of a task, if that is known.
    pub(super) fn find(&self, tenant: TenantId, id: &str) -> Option<Choice> {
        let kept = self.lock();
        let found = kept.iter().find(|(key, _)| key.0 == tenant && key.1 == id);
        found.map(|(_, choice)| choice.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_known_to_those_whose_they_are() {
        let contexts = Contexts::default();
        let choice = |n_max| Choice { n_max, ..Choice::default() };
        for n in 0..TASKS_CONTEXTS_MAX + 1 {
            contexts.put(TenantId(1), &n.to_string(), choice(n));
        }
        contexts.put(TenantId(1), "7", choice(70));
        let n_max = |tenant, id: &str| contexts.find(TenantId(tenant), id).map(|own| own.n_max);
        assert_eq!((n_max(1, "0"), n_max(1, "1"), n_max(1, "7")), (None, Some(1), Some(70)));
        assert_eq!(n_max(2, "1"), None, "it is another's");
        assert_eq!(contexts.lock().len(), TASKS_CONTEXTS_MAX);
    }
}
