//! Tests the guard in every possible order of its steps, including the weak orders of other
//! processors. Loom runs the code of `epochs.rs` on its own atomics.

#[path = "epochs.rs"]
mod epochs;

mod atomic {
    pub(super) use loom::sync::atomic::{AtomicI64, AtomicU32, Ordering};
}

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use loom::{
    sync::{Arc, Mutex},
    thread,
};

use self::{
    atomic::AtomicI64,
    epochs::{Epochs, Stamp},
};
use crate::domain::{
    event::Touched,
    key_policy::{KeyPolicy, PolicyInputs},
    scope::Scopes,
    tenant::Tenant,
    token::KeyId,
};

/// A database, a cache with one entry, and the epochs between them.
struct World {
    /// The log's head; a row that is read now is as new as this head.
    head: AtomicI64,
    epochs: Epochs,
    /// The cached entry: its stamp, and the head that its row is as new as.
    entry: Mutex<Option<(Stamp, i64)>>,
}

impl World {
    fn new(head: i64) -> Arc<Self> {
        let world = Self {
            head: AtomicI64::new(head),
            // Few, because each costs loom time. A shared epoch only invalidates more entries.
            epochs: Epochs::new(1),
            entry: Mutex::new(None),
        };
        world.epochs.clear(head);
        Arc::new(world)
    }

    /// Loads the key, as a cache miss and the warm start do.
    fn load(&self) {
        let ticket = self.epochs.ticket();
        let head = self.head.load(Ordering::SeqCst);
        let (stamp, keep) = self.epochs.stamp(id(), &policy(), head, ticket);
        if keep {
            *self.entry.lock().unwrap() = Some((stamp, head));
        }
    }

    /// Commits a change, and invalidates the entries that it affects.
    fn change(&self, revision: i64, touched: &Touched) {
        self.head.fetch_max(revision, Ordering::SeqCst);
        self.epochs.apply(revision, touched);
    }

    /// Returns the head of the cached row that a Validate call would use, if the entry is valid.
    fn answered_by(&self) -> Option<i64> {
        let entry = *self.entry.lock().unwrap();
        let (stamp, head) = entry?;
        self.epochs.counts(id(), stamp).then_some(head)
    }
}

fn id() -> KeyId {
    KeyId::from_bare("0123456789abcdef").unwrap()
}

fn policy() -> KeyPolicy {
    KeyPolicy::new(&PolicyInputs {
        tenant_id: "acme",
        owner_id: "alice",
        scopes: &Scopes::default(),
        audiences: &[],
        allowed_cidrs: &[],
        metadata: &BTreeMap::new(),
        expires_at: None,
        revoked: false,
        suspended: false,
        owner: None,
        tenant: &Tenant::default(),
    })
}

fn changes() -> [Touched; 4] {
    let (tenant, owner) = ("acme".to_owned(), "alice".to_owned());
    [
        Touched::All,
        Touched::Keys(vec![id()]),
        Touched::Owner {
            tenant: tenant.clone(),
            owner,
        },
        Touched::Tenant(tenant),
    ]
}

/// Runs `race` in every order, and returns whether an entry is valid at the end of any of them. If
/// none ever is, the test proves nothing.
fn some_count(race: impl Fn() -> Arc<World> + Send + Sync + 'static) -> bool {
    let counted = std::sync::Arc::new(AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&counted);
    loom::model(move || {
        let world = race();
        seen.fetch_or(world.answered_by().is_some(), Ordering::SeqCst);
    });
    counted.load(Ordering::SeqCst)
}

#[test]
fn what_was_loaded_before_a_change_never_counts_once_the_change_was_told() {
    for change in changes() {
        assert!(some_count(move || {
            let world = World::new(0);
            let loading = thread::spawn({
                let world = Arc::clone(&world);
                move || world.load()
            });
            world.change(1, &change);
            assert_ne!(world.answered_by(), Some(0));
            loading.join().unwrap();
            assert_ne!(world.answered_by(), Some(0));
            world
        }));
    }
}

#[test]
fn what_was_loaded_before_joining_anew_never_counts_after() {
    assert!(some_count(|| {
        let world = World::new(5);
        let loading = thread::spawn({
            let world = Arc::clone(&world);
            move || world.load()
        });
        // A failover has lost revisions 4 and 5.
        world.head.store(3, Ordering::SeqCst);
        world.epochs.clear(3);
        assert_ne!(world.answered_by(), Some(5));
        loading.join().unwrap();
        assert_ne!(world.answered_by(), Some(5));
        world
    }));
}
