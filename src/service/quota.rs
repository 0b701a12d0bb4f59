//! A limit on the number of concurrent items, with a smaller limit per holder, so that one holder
//! cannot take all places.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// A number of places, of which each holder may take some.
pub struct Quota<K> {
    max: usize,
    each: usize,
    held: Mutex<Held<K>>,
    released: Notify,
}

struct Held<K> {
    total: usize,
    by: HashMap<K, usize>,
}

/// One place, released when dropped.
pub struct Share<K: Eq + Hash> {
    quota: Arc<Quota<K>>,
    holder: K,
}

impl<K: Eq + Hash + Clone> Quota<K> {
    /// Returns a quota of `max` places, at most `each` per holder.
    #[must_use]
    pub fn new(max: usize, each: usize) -> Arc<Self> {
        let held = Held {
            total: 0,
            by: HashMap::new(),
        };
        Arc::new(Self {
            max,
            each,
            held: Mutex::new(held),
            released: Notify::new(),
        })
    }

    /// Takes a place for this holder. Returns `None` if the holder has reached its limit or all
    /// places are taken.
    #[must_use]
    pub fn try_take(self: &Arc<Self>, holder: &K) -> Option<Share<K>> {
        let mut held = self.held();
        if held.total >= self.max || held.by.get(holder).is_some_and(|has| *has >= self.each) {
            return None;
        }
        held.total += 1;
        *held.by.entry(holder.clone()).or_default() += 1;
        Some(Share {
            quota: Arc::clone(self),
            holder: holder.clone(),
        })
    }

    /// Waits until a place is free, and takes it for this holder.
    pub async fn take(self: &Arc<Self>, holder: &K) -> Share<K> {
        loop {
            let released = self.released.notified();
            if let Some(share) = self.try_take(holder) {
                return share;
            }
            released.await;
        }
    }
}

impl<K> Quota<K> {
    fn held(&self) -> MutexGuard<'_, Held<K>> {
        // Nothing panics while the lock is held.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = self.quota.held();
        held.total -= 1;
        if let Some(has) = held.by.get_mut(&self.holder) {
            *has -= 1;
            if *has == 0 {
                held.by.remove(&self.holder);
            }
        }
        drop(held);
        self.quota.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_cannot_take_all_places() {
        let quota = Quota::new(3, 2);
        let first = quota.try_take(&"a");
        let second = quota.try_take(&"a");
        assert!(first.is_some() && second.is_some());
        assert!(quota.try_take(&"a").is_none(), "it has as many as it may");
        let other = quota.try_take(&"b");
        assert!(other.is_some());
        assert!(quota.try_take(&"c").is_none(), "all places are taken");
        drop(first);
        assert!(quota.try_take(&"a").is_some());
    }

    #[tokio::test]
    async fn who_waits_gets_the_place_that_is_released() {
        let quota = Quota::new(1, 1);
        let first = quota.take(&1).await;
        let waiting = tokio::spawn({
            let quota = Arc::clone(&quota);
            async move { drop(quota.take(&2).await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
        assert_eq!(quota.held().by.len(), 0);
    }
}
