//! Lists by pages: every key once, newest first, whatever the page size and whatever is created
//! meanwhile.

use std::collections::{BTreeMap, HashSet};

use gatekey::grpc::proto::{CreateKeyRequest, Key, ListKeysRequest};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::support::{Client, on_both_engines};

const TENANT: &str = "default";
pub const MANY: usize = 10_000;
/// More than there are cores: while some keys are hashed, others are being committed.
const CREATORS: usize = 16;

on_both_engines! {
    async fn pages_of_every_size_give_the_same_list(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let mut created = Vec::new();
        for _ in 0..20 {
            created.push(admin.issue(TENANT, &["jobs:read"]).await.0);
        }
        created.reverse();
        let (whole, next) = list(&admin, TENANT, 0, String::new()).await;
        assert_eq!(whole, created, "newest first");
        assert_eq!(next, "");
        for size in 1..=7 {
            let mut pages = Vec::new();
            let mut page_token = String::new();
            loop {
                let (page, next) = list(&admin, TENANT, size, page_token).await;
                pages.push(page);
                if next.is_empty() {
                    break;
                }
                page_token = next;
            }
            let (last, full) = pages.split_last().expect("a page");
            let size = usize::try_from(size).expect("a size");
            assert!(
                full.iter().all(|page| page.len() == size),
                "pages of {size}"
            );
            assert!((1..=size).contains(&last.len()), "pages of {size}");
            assert_eq!(pages.concat(), created, "pages of {size}");
        }
    }
}

/// One page of a tenant's keys, and the token of the next.
pub async fn list(
    admin: &Client,
    tenant: &str,
    page_size: i32,
    page_token: String,
) -> (Vec<Key>, String) {
    let request = ListKeysRequest {
        tenant_id: tenant.to_owned(),
        page_size,
        page_token,
        ..ListKeysRequest::default()
    };
    let answer = admin.keys.clone().list_keys(request).await;
    let answer = answer.expect("a page").into_inner();
    (answer.keys, answer.next_page_token)
}

/// A key that was made.
pub struct Made {
    pub key_id: String,
    pub plaintext: String,
}

/// As many new keys as asked for, by the revisions that created them.
pub async fn create_many(admin: &Client, request: &CreateKeyRequest) -> BTreeMap<i64, Made> {
    let mut creators = JoinSet::new();
    for _ in 0..CREATORS {
        let (admin, request) = (admin.clone(), request.clone());
        creators.spawn(async move {
            let mut created = Vec::new();
            for _ in 0..MANY / CREATORS {
                let (key, plaintext) = admin.create(request.clone()).await;
                let key_id = key.key_id;
                created.push((key.revision, Made { key_id, plaintext }));
            }
            created
        });
    }
    creators.join_all().await.into_iter().flatten().collect()
}

/// Another administrator, who goes on creating keys until it is stopped.
pub struct Others {
    /// How many it has created.
    count: watch::Receiver<usize>,
    /// Ends with the ids of what it has created, when nobody counts any more.
    creator: JoinHandle<HashSet<String>>,
}

impl Others {
    pub fn start(admin: Client, request: CreateKeyRequest) -> Self {
        let (counter, count) = watch::channel(0);
        let creator = tokio::spawn(async move {
            let mut created = HashSet::new();
            while !counter.is_closed() {
                let (key, _) = admin.create(request.clone()).await;
                created.insert(key.key_id);
                counter.send_replace(created.len());
            }
            created
        });
        Self { count, creator }
    }

    /// Waits until it has created another key.
    pub async fn one_more(&mut self) {
        self.count.mark_unchanged();
        self.count.changed().await.expect("it goes on creating");
    }

    /// Stops it, and gives the ids of all that it created.
    pub async fn stop(self) -> HashSet<String> {
        drop(self.count);
        self.creator.await.expect("it created what it was to")
    }
}
