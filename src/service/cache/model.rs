//! The guard in every order that its steps can take, the weak ones of other processors among them:
//! loom runs the very code of `epochs.rs` on atomics of its own.

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
    scope::Scopes,
    standing::{Standing, Terms},
    tenant::Tenant,
    token::KeyId,
};

/// A store, a cache with one place, and the epochs between them.
struct World {
    /// The log's head, which a row that is read now is as new as.
    head: AtomicI64,
    epochs: Epochs,
    /// What is in memory: what it was true at, and how new the row is.
    entry: Mutex<Option<(Stamp, i64)>>,
}

impl World {
    fn new(head: i64) -> Arc<Self> {
        let world = Self {
            head: AtomicI64::new(head),
            // Few, as each costs loom time; a shared one only makes an entry count less.
            epochs: Epochs::new(1),
            entry: Mutex::new(None),
        };
        world.epochs.clear(head);
        Arc::new(world)
    }

    /// Loads the key, as a miss and the warm start do.
    fn load(&self) {
        let ticket = self.epochs.ticket();
        let head = self.head.load(Ordering::SeqCst);
        let (stamp, keep) = self.epochs.stamp(id(), &standing(), head, ticket);
        if keep {
            *self.entry.lock().unwrap() = Some((stamp, head));
        }
    }

    /// Commits a change, and makes what it touched count no more.
    fn change(&self, revision: i64, touched: &Touched) {
        self.head.fetch_max(revision, Ordering::SeqCst);
        self.epochs.apply(revision, touched);
    }

    /// How new the row is that a Validate would be answered by.
    fn answered_by(&self) -> Option<i64> {
        let entry = *self.entry.lock().unwrap();
        let (stamp, head) = entry?;
        self.epochs.counts(id(), stamp).then_some(head)
    }
}

fn id() -> KeyId {
    KeyId::from_bare("0123456789abcdef").unwrap()
}

fn standing() -> Standing {
    Standing::new(&Terms {
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

fn changes() -> [Touched; 3] {
    let (tenant, owner) = ("acme".to_owned(), "alice".to_owned());
    [
        Touched::Keys(vec![id()]),
        Touched::Owner {
            tenant: tenant.clone(),
            owner,
        },
        Touched::Tenant(tenant),
    ]
}

/// Runs `race` in every order, and says whether an entry counted at the end of some of them:
/// where none ever does, nothing is shown.
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
