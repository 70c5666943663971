//! When a cached entry may still be used: it must have been loaded after the last change of its key.

use std::{
    hash::{DefaultHasher, Hash, Hasher as _},
    sync::atomic::{AtomicU64, Ordering},
};

/// Keys share this many counters; two that meet only cause a load more.
const STRIPES: usize = 1_024;

/// A point in time, taken before a load and kept with what was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

/// Remembers when each key last changed. Raised after a commit and before it is answered, so that a caller who
/// was told of a change never meets the state before it; what was being loaded meanwhile is not kept. The key
/// need not be known before the load: what was loaded may tell it.
pub struct Generations {
    latest: AtomicU64,
    changed: Box<[AtomicU64]>,
    all_changed: AtomicU64,
}

impl Default for Generations {
    fn default() -> Self {
        Self {
            latest: AtomicU64::new(0),
            changed: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            all_changed: AtomicU64::new(0),
        }
    }
}

impl Generations {
    /// Taken before a load.
    pub fn before_load(&self) -> Generation {
        Generation(self.latest.load(Ordering::SeqCst))
    }

    /// Whether what was loaded after `loaded` was taken still holds for `key`.
    pub fn holds<K: Hash>(&self, key: &K, loaded: Generation) -> bool {
        let changed = self
            .stripe(key)
            .map_or(u64::MAX, |stripe| stripe.load(Ordering::SeqCst));
        changed.max(self.all_changed.load(Ordering::SeqCst)) <= loaded.0
    }

    /// Ends everything loaded for `key` up to now.
    pub fn raise<K: Hash>(&self, key: &K) {
        let generation = self.latest.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(stripe) = self.stripe(key) {
            stripe.fetch_max(generation, Ordering::SeqCst);
        }
    }

    /// Ends everything loaded up to now.
    pub fn raise_all(&self) {
        let generation = self.latest.fetch_add(1, Ordering::SeqCst) + 1;
        self.all_changed.fetch_max(generation, Ordering::SeqCst);
    }

    fn stripe<K: Hash>(&self, key: &K) -> Option<&AtomicU64> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % STRIPES as u64).ok()?;
        self.changed.get(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    #[test]
    fn an_entry_holds_until_its_key_changes() {
        let generations = Generations::default();
        let loaded = generations.before_load();
        let stripe = |key: i64| std::ptr::from_ref(generations.stripe(&key).must());
        let other = (0..100).find(|key| stripe(*key) != stripe(7)).must();

        generations.raise(&other);
        assert!(generations.holds(&7_i64, loaded));
        assert!(!generations.holds(&other, loaded));

        generations.raise(&7_i64);
        assert!(!generations.holds(&7_i64, loaded));
        assert!(generations.holds(&7_i64, generations.before_load()));
    }

    #[test]
    fn a_load_that_a_change_overtook_is_not_kept() {
        let generations = Generations::default();

        let loaded = generations.before_load();
        generations.raise(&7_i64);

        assert!(!generations.holds(&7_i64, loaded));
    }

    #[test]
    fn everything_ends_when_memory_must_be_read_anew() {
        let generations = Generations::default();
        let loaded = generations.before_load();

        generations.raise_all();

        assert!((0..100_i64).all(|key| !generations.holds(&key, loaded)));
        assert!(generations.holds(&7_i64, generations.before_load()));
    }
}
