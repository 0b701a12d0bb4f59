//! Lists by pages: every key once, newest first, whatever the page size and whatever is created
//! meanwhile.

use std::{
    collections::{BTreeMap, HashSet},
    time::Instant,
};

use gatekey::grpc::proto::{Key, ListKeysRequest};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::support::{Client, client::new_key, on_both_engines};

const TENANT: &str = "default";
const MANY: usize = 10_000;
/// More than there are cores: while some keys are hashed, others are being committed.
const CREATORS: usize = 16;

on_both_engines! {
    async fn ten_thousand_keys_are_listed_in_order_none_missing_or_twice_while_others_are_created(
        setup: Setup
    ) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let started = Instant::now();
        let created = create_many(&admin).await;
        println!("{MANY} keys were created in {:.1?}", started.elapsed());
        assert_eq!(created.len(), MANY, "each key has a revision of its own");

        let mut others = Others::start(admin.clone());
        let started = Instant::now();
        let mut listed: Vec<Key> = Vec::new();
        let mut page_token = String::new();
        loop {
            others.one_more().await;
            let (page, next) = list(&admin, 1000, page_token).await;
            listed.extend(page);
            if next.is_empty() {
                break;
            }
            page_token = next;
        }
        let meanwhile = others.stop().await;
        println!(
            "{} keys were listed in {:.1?}, {} having been created meanwhile",
            listed.len(),
            started.elapsed(),
            meanwhile.len()
        );

        let newest_first = listed.is_sorted_by(|newer, older| newer.revision > older.revision);
        assert!(
            newest_first,
            "each key is older than the one before it, and so none is there twice"
        );
        let of_the_many = listed.iter().filter(|key| !meanwhile.contains(&key.key_id));
        let of_the_many: Vec<_> = of_the_many.map(|key| &key.key_id).collect();
        assert!(
            of_the_many
                .iter()
                .eq(&created.values().rev().collect::<Vec<_>>()),
            "{} keys were listed of {MANY}",
            of_the_many.len()
        );
    }

    async fn pages_of_every_size_give_the_same_list(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let mut created = Vec::new();
        for _ in 0..20 {
            created.push(admin.issue(TENANT, &["jobs:read"]).await.0);
        }
        created.reverse();
        let (whole, next) = list(&admin, 0, String::new()).await;
        assert_eq!(whole, created, "newest first");
        assert_eq!(next, "");
        for size in 1..=7 {
            let mut pages = Vec::new();
            let mut page_token = String::new();
            loop {
                let (page, next) = list(&admin, size, page_token).await;
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

/// One page of the tenant's keys, and the token of the next.
async fn list(admin: &Client, page_size: i32, page_token: String) -> (Vec<Key>, String) {
    let request = ListKeysRequest {
        tenant_id: TENANT.to_owned(),
        page_size,
        page_token,
        ..ListKeysRequest::default()
    };
    let answer = admin.keys.clone().list_keys(request).await;
    let answer = answer.expect("a page").into_inner();
    (answer.keys, answer.next_page_token)
}

/// The ids of as many new keys, by the revisions that created them.
async fn create_many(admin: &Client) -> BTreeMap<i64, String> {
    let mut creators = JoinSet::new();
    for _ in 0..CREATORS {
        let admin = admin.clone();
        creators.spawn(async move {
            let mut created = Vec::new();
            for _ in 0..MANY / CREATORS {
                let (key, _) = admin.create(new_key(TENANT, &["jobs:read"])).await;
                created.push((key.revision, key.key_id));
            }
            created
        });
    }
    creators.join_all().await.into_iter().flatten().collect()
}

/// Another administrator, who goes on creating keys until it is stopped.
struct Others {
    /// How many it has created.
    count: watch::Receiver<usize>,
    /// Ends with the ids of what it has created, when nobody counts any more.
    creator: JoinHandle<HashSet<String>>,
}

impl Others {
    fn start(admin: Client) -> Self {
        let (counter, count) = watch::channel(0);
        let creator = tokio::spawn(async move {
            let mut created = HashSet::new();
            while !counter.is_closed() {
                let (key, _) = admin.issue(TENANT, &["jobs:read"]).await;
                created.insert(key.key_id);
                counter.send_replace(created.len());
            }
            created
        });
        Self { count, creator }
    }

    /// Waits until it has created another key.
    async fn one_more(&mut self) {
        self.count.mark_unchanged();
        self.count.changed().await.expect("it goes on creating");
    }

    /// Stops it, and gives the ids of all that it created.
    async fn stop(self) -> HashSet<String> {
        drop(self.count);
        self.creator.await.expect("it created what it was to")
    }
}
