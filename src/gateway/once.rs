//! Owns names that are taken once: answers that must not count twice, in this process and, over a store, in all.
//! Does not know what the names stand for.
//! Invariant: while its time lasts a name is given to one taker; what cannot be remembered is not given at all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::Store;

/// Most names that are remembered at a time.
const NAMES_MAX: usize = 100_000;

/// What became of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Once {
    /// The asker is the first.
    First,
    /// Somebody was before.
    Taken,
    /// Nobody can say: too many names, or the store is out of reach.
    Unknown,
}

/// The names that are taken.
pub(super) struct Names {
    taken: Mutex<HashMap<String, Instant>>,
    shared: Option<Arc<dyn Store>>,
}

// === impl Names ===

impl Names {
    /// Names of this process, or of all that share the store.
    pub(super) fn new(shared: Option<Arc<dyn Store>>) -> Self {
        Self { taken: Mutex::default(), shared }
    }

    /// Takes a name.
    ///
    /// # Cancel safety
    /// The name may have been taken.
    pub(super) async fn take(&self, name: &str, lasts: Duration) -> Once {
        match self.take_here(name, lasts) {
            Once::First => {}
            other @ (Once::Taken | Once::Unknown) => return other,
        }
        let Some(store) = &self.shared else { return Once::First };
        // Whoever takes it is nobody in particular: the same asker does not get it twice either.
        let owner = uuid::Uuid::new_v4().simple().to_string();
        match store.claim(&format!("once:{name}"), &owner, lasts).await {
            Ok(true) => Once::First,
            Ok(false) => Once::Taken,
            Err(_) => Once::Unknown,
        }
    }

    fn take_here(&self, name: &str, lasts: Duration) -> Once {
        let now = Instant::now();
        let mut taken = self.taken.lock();
        if taken.get(name).is_some_and(|until| *until > now) {
            return Once::Taken;
        }
        if taken.len() >= NAMES_MAX {
            taken.retain(|_, until| *until > now);
            if taken.len() >= NAMES_MAX {
                return Once::Unknown;
            }
        }
        taken.insert(name.to_owned(), now + lasts);
        Once::First
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[tokio::test]
    async fn a_name_is_taken_once_until_its_time_is_over() {
        let names = Names::new(None);
        assert_eq!(names.take("a", HOUR).await, Once::First);
        assert_eq!(names.take("a", HOUR).await, Once::Taken);
        assert_eq!(names.take("b", Duration::ZERO).await, Once::First);
        assert_eq!(names.take("b", HOUR).await, Once::First);
    }

    #[tokio::test]
    async fn instances_over_one_store_take_a_name_once() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let (one, other) = (Names::new(Some(Arc::clone(&store))), Names::new(Some(store)));
        assert_eq!(one.take("a", HOUR).await, Once::First);
        assert_eq!(other.take("a", HOUR).await, Once::Taken);
        assert_eq!(one.take("a", HOUR).await, Once::Taken);
    }

    #[tokio::test]
    async fn what_cannot_be_remembered_is_not_given() {
        let names = Names::new(None);
        for n in 0..NAMES_MAX {
            assert_eq!(names.take(&n.to_string(), HOUR).await, Once::First);
        }
        assert_eq!(names.take("one more", HOUR).await, Once::Unknown);
    }
}
