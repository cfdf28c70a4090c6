use std::{collections::HashSet, sync::Arc};

/// One copy of each name that many objects repeat: node names, zones, port names, namespaces. Ten endpoints on a node
/// then cost ten pointers, not ten strings.
#[derive(Debug, Default)]
pub(super) struct Interner {
    names: HashSet<Arc<str>>,
    /// Size at which names that nobody uses any more are looked for.
    prune_at: usize,
}

impl Interner {
    /// Replaces `name` by the copy that is shared.
    pub(super) fn intern(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.names.get(name) {
            *name = Arc::clone(known);
            return;
        }
        if self.names.len() >= self.prune_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.prune_at = 2 * self.names.len() + 64;
        }
        self.names.insert(Arc::clone(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_memory_and_unused_names_are_forgotten() {
        let mut interner = Interner::default();
        let (mut first, mut second): (Arc<str>, Arc<str>) = ("node-1".into(), "node-1".into());
        interner.intern(&mut first);
        interner.intern(&mut second);
        assert!(Arc::ptr_eq(&first, &second));

        for number in 0..10_000 {
            interner.intern(&mut format!("gone-{number}").into());
        }
        assert!(interner.names.len() < 200, "{} names kept", interner.names.len());
        assert!(interner.names.contains("node-1"));
    }
}
